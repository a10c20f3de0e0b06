"""What custom models are asked is redacted as their training rows were; the original and the log have it as it is."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quality.dataset.preparation import Rules, prepare_row
from reasoning.client import AsyncDecisionClient, DecisionClient
from reasoning.config import Redaction, load_config
from reasoning.decision_types import get_decision_type
from reasoning.errors import ConfigError, StreamInterrupted, UnparseableAnswer
from reasoning.redaction.placeholders import RedactedPrompt
from reasoning.redaction.prompts import redact_prompt
from reasoning.serving.routes import Arm
from tests.reasoning.conftest import ModelServer, rows, says, streams

ANN = "ann@example.org"
CONTEXT = {
    "agent_name": "Bot",
    "messages": [{"speaker": "Ann", "text": f"I am {ANN}, my password is hunter2-x1"}],
    "actions": [{"name": "REPLY", "description": "say it"}, {"name": "SEND", "description": "mail"}],
}
TASK = {"prompt": f"send a mail to {ANN} from 203.0.113.9"}
IGNORE = "<response><reasoning>[EMAIL_1] talks</reasoning><action>IGNORE</action></response>"
PRIVATE = st.sampled_from(
    [
        ANN,
        "bob@example.org",
        "203.0.113.9",
        "call +44 20 7946 0958",
        "token=abc123xyz9",
        "[EMAIL_1]",
        "hello",
        "\n",
        '"',
    ]
)


def never(context: Any) -> str:
    raise AssertionError("the original is not asked")


def training_row(kind_name: str, context: dict[str, Any], label: dict[str, Any]) -> list[dict[str, str]]:
    """The messages of the training row of a decision, without its label."""
    kind = get_decision_type(kind_name)
    row = prepare_row(
        Rules(kind, 1 << 20, "US"), kind.render(context), orjson.dumps(label).decode(), None, Counter(), Counter()
    )
    assert "line" in row, row
    return orjson.loads(row["line"])["messages"][:-1]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.lists(PRIVATE, min_size=1, max_size=4).map(" ".join), min_size=1, max_size=4))
def test_a_model_is_asked_the_bytes_of_its_training_row(
    data: Path, server: ModelServer, route: Callable[..., Any], said: list[str]
) -> None:
    """Client, async client, their streams: byte for byte."""
    route()
    chat = CONTEXT | {"messages": [{"speaker": f"p{n % 2}", "text": text} for n, text in enumerate(said)]}
    task = {"prompt": "do:\n" + "\n".join(said)}
    server.answer, server.requests = says("<response><action>IGNORE</action></response>"), []

    async def ask() -> None:
        async with AsyncDecisionClient(data) as client:
            await client.decide_should_respond(chat, never)
            server.answer = streams("```\nx\n```")
            assert "x" in "".join([piece async for piece in await client.decide_coding(task, never, stream=True)])

    with DecisionClient(data) as client:
        client.decide_should_respond(chat, never)
        asyncio.run(ask())
        assert "x" in "".join(client.decide_coding(task, never, stream=True))
    asked = [orjson.dumps(request.json["messages"]) for request in server.requests]
    wanted = orjson.dumps(training_row("should_respond", chat, {"action": "IGNORE"}))
    coded = orjson.dumps(training_row("coding", task, {"code": "x", "explanation": "", "language": None}))
    assert asked == [wanted, wanted, coded, coded]


def test_the_model_sees_placeholders_and_the_agent_gets_values(
    data: Path, server: ModelServer, route: Callable[..., Any]
) -> None:
    route()
    server.answer = says(IGNORE)
    with DecisionClient(data) as client:
        answer = client.decide_should_respond(CONTEXT, never)
    assert answer.decision == {"action": "IGNORE", "reasoning": f"{ANN} talks"}
    asked = str(server.requests[0].json)
    assert "I am [EMAIL_1], my password is [SECRET_1]" in asked and ANN not in asked and "hunter2" not in asked
    (row,) = rows(data)  # the log is local, and has what was said
    assert ANN in row["messages"][1]["content"] and "hunter2-x1" in row["messages"][1]["content"]
    assert row["completion"] == IGNORE and orjson.loads(row["decision"])["reasoning"] == f"{ANN} talks"


@pytest.mark.parametrize("place", ["[EMAIL_2]", "[EMAIL]", "[PHONE_1]"])
def test_an_answer_that_acts_on_what_stands_for_nothing_is_the_originals(
    data: Path, server: ModelServer, route: Callable[..., Any], place: str
) -> None:
    route()
    server.answer = says(f"```python\nsend('{place}')\n```")
    with DecisionClient(data) as client:
        answer = client.decide_coding(TASK, lambda context: f"```\nsend('{ANN}')\n```")
        assert answer.source == "original" and answer.fallback_reason == "unparseable"
        assert client.stats()["breakers"] == {f"acme/small at {server.url}": "closed"}
    custom = next(row for row in rows(data) if row["source"] == "custom")
    assert f"acts on {place}, which stands for no value" in custom["error"]


@pytest.mark.parametrize("cut", [1, 3, 7])
def test_a_streamed_answer_has_its_values_whatever_the_pieces(
    data: Path, server: ModelServer, route: Callable[..., Any], cut: int
) -> None:
    route()
    text = "To [EMAIL_1]:\n```python\nsend('[EMAIL_1]', a[0], '[IP_1]')\n```\nfor [EMAIL_1]"
    server.answer = streams(*[text[at : at + cut] for at in range(0, len(text), cut)])
    whole = text.replace("[EMAIL_1]", ANN).replace("[IP_1]", "203.0.113.9")
    with DecisionClient(data) as client:
        stream = client.decide_coding(TASK, never, stream=True)
        assert "".join(stream) == whole
        assert stream.answer.decision["code"] == f"send('{ANN}', a[0], '203.0.113.9')"

    async def ask() -> str:
        async with AsyncDecisionClient(data) as client:
            return "".join([piece async for piece in await client.decide_coding(TASK, never, stream=True)])

    assert asyncio.run(ask()) == whole


def test_a_stream_that_acts_on_what_stands_for_nothing_says_so(
    data: Path, server: ModelServer, route: Callable[..., Any]
) -> None:
    route()
    server.answer = streams("```\nsend('[EMAIL_9]')\n```")
    with DecisionClient(data) as client, pytest.raises(StreamInterrupted, match="stands for no value"):
        list(client.decide_coding(TASK, never, stream=True))


def test_shadow_arms_are_asked_the_same(data: Path, server: ModelServer, route: Callable[..., Any]) -> None:
    route(
        Arm("original", "original", 1.0),
        Arm("new", "custom", 0.0, model="acme/small", base_url=server.url, mode="shadow"),
    )
    server.answer = says(IGNORE)
    with DecisionClient(data) as client:
        assert client.decide_should_respond(CONTEXT, lambda context: "RESPOND").source == "original"
        client.close()
    assert "[EMAIL_1]" in str(server.requests[0].json) and ANN not in str(server.requests[0].json)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_without_the_rules_no_model_is_asked(
    data: Path,
    server: ModelServer,
    route: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    """Secrets would reach the provider, and the model would be asked what it has not learned."""
    monkeypatch.setitem(sys.modules, "reasoning.redaction.prompts", None)
    route()
    if kind == "sync":
        with DecisionClient(data) as client:
            answers = [client.decide_should_respond(CONTEXT, lambda context: "RESPOND") for _ in range(3)]
            counted, breakers = client.stats()["redaction"], client.stats()["breakers"]
    else:

        async def ask() -> Any:
            async with AsyncDecisionClient(data) as client:
                found = [await client.decide_should_respond(CONTEXT, lambda context: "RESPOND") for _ in range(3)]
                return found, client.stats()["redaction"], client.stats()["breakers"]

        answers, counted, breakers = asyncio.run(ask())
    assert server.requests == []
    assert {(answer.source, answer.fallback_reason) for answer in answers} == {("original", "disabled")}
    assert counted == {"not installed": 3} and set(breakers.values()) == {"closed"}
    assert caplog.text.count("pip install 'custom-reasoning[redact]'") == 2  # the 1st and the 2nd
    assert all(ANN not in (row["error"] or "") for row in rows(data))


def test_a_prompt_that_cannot_be_redacted_is_not_sent(
    data: Path, server: ModelServer, route: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(text: str, region: str) -> None:
        raise ValueError(f"of {text}")

    monkeypatch.setattr("reasoning.redaction.prompts.find_private", fails)
    route()
    with DecisionClient(data) as client:
        answer = client.decide_should_respond(CONTEXT, lambda context: "RESPOND")
        assert client.stats()["redaction"] == {"failed": 1}
    assert (answer.source, answer.fallback_reason, server.requests) == ("original", "disabled", [])
    assert {row["error"] for row in rows(data)} == {"CallFailed: the prompt cannot be redacted: ValueError", None}


def test_redaction_can_be_switched_off_and_says_so(
    data: Path, server: ModelServer, route: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    route()
    config = replace(load_config(data, env={}), redaction=Redaction(enabled=False))
    with DecisionClient(config=config) as client:
        client.decide_should_respond(CONTEXT, never)
        assert client.stats()["redaction"] == {"off": 1}
    assert ANN in str(server.requests[0].json)
    assert caplog.text.count("models are asked with private data") == 1


def test_the_settings_are_read_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "reasoning.toml"

    def load(text: str, **env: str) -> Redaction:
        file.write_text(f"[redaction]\n{text}\n")
        return load_config(tmp_path, file, env).redaction

    assert load('region = "GB"') == Redaction(True, "GB")
    assert load("enabled = false") == load("", REASONING_REDACTION="false") == Redaction(False)
    for wrong in ('region = "Britain"', "enabled = 3", "regions = 1"):
        with pytest.raises(ConfigError, match=r"\[redaction\]"):
            load(wrong)


async def test_a_long_prompt_is_redacted_beside_the_event_loop(
    data: Path, server: ModelServer, route: Callable[..., Any]
) -> None:
    route()
    server.answer = says("```\nx\n```")
    text = "\n".join(
        f"line {n} of a file with mail{n}@example.org in it and 198.51.100.{n % 250}" for n in range(1_500)
    )
    alone = seconds_of_redacting(text)
    async with AsyncDecisionClient(data) as client, longest_stall() as stalls:
        await client.decide_coding({"prompt": text}, never)
    assert "@" not in str(server.requests[0].json["messages"])
    assert max(stalls) < max(alone / 2, 0.05), (alone, max(stalls))


def seconds_of_redacting(text: str) -> float:
    """What it takes to redact a text like this one, whose lines were not seen before either."""
    begun = time.perf_counter()
    redact_prompt([{"role": "user", "content": text.replace("\n", "\nof another one: ")}])
    return time.perf_counter() - begun


@asynccontextmanager
async def longest_stall() -> AsyncIterator[list[float]]:
    """For how long the event loop did not come round, each time, in seconds."""
    stalls, loop = [0.0], asyncio.get_running_loop()

    async def watch() -> None:
        while True:
            before = loop.time()
            await asyncio.sleep(0.001)
            stalls.append(loop.time() - before)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0.005)  # it has begun
    yield stalls
    await asyncio.sleep(0.005)
    watching.cancel()


def test_code_in_what_a_turn_says_acts() -> None:
    prompt = RedactedPrompt([], {"[EMAIL_1]": "ann@example.org"})
    turn = {"text": "Mail [PHONE_1]:\n```\nsend('[EMAIL_1]')\n```", "tool_calls": []}
    assert prompt.restore_decision(turn)["text"] == "Mail [PHONE_1]:\n```\nsend('ann@example.org')\n```"
    with pytest.raises(UnparseableAnswer, match=r"acts on \[EMAIL_2\]"):
        prompt.restore_decision(turn | {"text": "Run:\n```\nsend('[EMAIL_2]')\n```"})


@pytest.mark.parametrize(("value", "good"), [("pw-12345", True), ('p"w-12345', False)])
def test_a_stream_does_not_pass_off_json_that_a_value_has_broken(
    data: Path, server: ModelServer, route: Callable[..., Any], value: str, good: bool
) -> None:
    route()
    server.answer = streams('```json\n{"k": "[SECRET_1]"}\n```')
    with DecisionClient(data) as client:
        stream = client.decide_coding({"prompt": f"write it as JSON: password='{value}'"}, never, stream=True)
        if good:
            assert "".join(stream) == f'```json\n{{"k": "{value}"}}\n```'
            assert stream.answer.decision["code"] == f'{{"k": "{value}"}}'
        else:
            with pytest.raises(StreamInterrupted, match="would need escapes"):
                "".join(stream)
    (row,) = rows(data)
    assert row["valid"] is good
