"""Whatever a client or a server sends, the gateway stands: odd requests go to whoever can say what is wrong."""

from __future__ import annotations

import random
from typing import Any

import orjson

from tests.gateway.conftest import Start
from tests.gateway.legal import read_legal_stream
from tests.gateway.scripted import ANTHROPIC_MESSAGE, chat_answer, chat_chunk, chat_stream, json, message_events, stream
from tests.gateway.test_gateway_coding import coding
from tests.gateway.test_gateway_decisions import CONTEXT, PROMPTS, request

ODD: list[Any] = [None, True, -5, 1.5, "", "x", "\0", [], {}, [[]], [None], {"a": 1}, "length", "9" * 400]
ODD += [{"type": ["any"]}, [{"type": "text", "text": 5}], [{"role": ["user"]}], [{"index": 0}], {"type": "tool_use"}]
ODD += [[{"id": "a", "function": {"name": "Bash", "arguments": "{"}}], [{"function": None}], [{"name": 5}]]
FIELDS = (
    *("messages", "system", "tools", "tool_choice", "max_tokens", "stream", "metadata", "stop_sequences", "input"),
    *("output_config", "context_management", "text", "response_format", "stream_options", "user", "stop", "n"),
)
CALL = {"id": "a", "function": {"name": "Bash", "arguments": "{}"}}


def spoil(dice: random.Random, value: Any) -> Any:
    """The value with one thing in it lost, or replaced by something odd."""
    if isinstance(value, dict) and value and dice.random() < 0.85:
        key = dice.choice(list(value))
        rest = {name: each for name, each in value.items() if name != key}
        return rest if dice.random() < 0.25 else rest | {key: spoil(dice, value[key])}
    if isinstance(value, list) and value and dice.random() < 0.85:
        at = dice.randrange(len(value))
        return [*value[:at], spoil(dice, value[at]), *value[at + 1 :]]
    return dice.choice(ODD)


async def test_odd_requests_are_nobodys_fall(start: Start) -> None:
    running = await start()
    running.route("should_respond")
    running.model.script, running.anthropic.script = json(chat_answer("x")), json(ANTHROPIC_MESSAGE)
    running.openai.script = json({})
    dice = random.Random(1)
    for number in range(150):
        form = dice.choice(["chat", "responses", "anthropic"])
        path, body = request(form, PROMPTS["should_respond", "xml"], False)
        if number % 3 == 0:
            path, body = dice.choice([("/v1/messages", coding()), ("/v1/decide/should_respond", {})])
        if path.startswith("/v1/decide"):
            body = spoil(dice, {"context": CONTEXT, "original": "IGNORE", "tags": {"a": "b"}, "subject_ids": ["x"]})
        else:
            body |= {dice.choice(FIELDS): dice.choice(ODD) for _ in range(2)}
        status, _, answer = await running.ask("POST", path, json=body)
        assert status < 500, (path, body, answer)
    assert running.gateway.state.metrics.statistics()["records_dropped"] == {}


async def test_odd_answers_are_anthropics_or_errors_and_on_record(start: Start) -> None:
    running = await start(config={"breaker_failures": 1000})
    running.route()
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    dice = random.Random(2)
    for number in range(80):
        body = coding(f"fix the code of {number}", stream=number % 2 == 1)
        chunk = orjson.loads(chat_chunk(content="hey", tool_calls=[{"index": 0, **CALL}])[6:])
        odd = b"data: %b\n\n" % orjson.dumps(spoil(dice, chunk))
        whole = json(spoil(dice, chat_answer("x", [CALL], "tool_calls")))
        running.model.script = stream(chat_chunk(content="a"), odd, *chat_stream("z")) if body["stream"] else whole
        status, headers, answer = await running.ask("POST", "/v1/messages", json=body)
        assert status == 200
        if "x-reasoning-source" in headers and body["stream"]:
            read_legal_stream(answer)
    running.route(weight=0.0)
    call = {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {}}
    message = ANTHROPIC_MESSAGE | {"content": [{"type": "text", "text": "t"}, call]}
    for number in range(80):
        body = coding(f"fix the code of the other {number}", stream=number % 2 == 1)
        events = message_events(message)
        at = dice.randrange(len(events))
        events[at] = b"event: x\ndata: %b\n\n" % orjson.dumps(spoil(dice, orjson.loads(events[at].split(b"data: ")[1])))
        said = events if body["stream"] else [orjson.dumps(spoil(dice, message))]
        kind = "text/event-stream" if body["stream"] else "application/json"
        running.anthropic.script = stream(*said, content_type=kind)
        status, headers, answer = await running.ask("POST", "/v1/messages", json=body)
        assert (status, answer) == (200, b"".join(said))
        assert "x-reasoning-decision-id" in headers
    rows = await running.records()
    assert running.gateway.state.metrics.statistics()["records_dropped"] == {}
    assert len([row for row in rows if row["source"] == "original" and "other" in row["messages"][-1]["content"]]) == 80
