"""Custom models behind the gateway are asked redacted prompts, and their answers reach the client with the values."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.coding.answer_spec import AnswerSpec
from gateway.coding.translate import to_message
from gateway.coding.translate_stream import ChatStream
from gateway.errors import ModelAnswerError
from quality.dataset.preparation import Rules, prepare_row
from reasoning.config import Redaction
from reasoning.decision_types import get_decision_type
from reasoning.redaction.placeholders import RedactedPrompt
from reasoning.redaction.prompts import redact_prompt
from reasoning.serving.routes import Arm
from tests.gateway.conftest import Running, Start
from tests.gateway.legal import read_legal_stream
from tests.gateway.scripted import (
    ANTHROPIC_MESSAGE,
    DONE,
    USAGE,
    chat_answer,
    chat_chunk,
    chat_stream,
    json,
    stream,
)
from tests.gateway.test_gateway_coding import ask, coding
from tests.reasoning.test_client_redaction import longest_stall, seconds_of_redacting

ANN, IP, SECRET = "ann@example.org", "203.0.113.9", 'p"w-12345'
SAID = f"fix the code: mail {ANN} from {IP}, password='{SECRET}'"
PLACES = {"[EMAIL_1]": ANN, "[IP_1]": IP, "[SECRET_1]": SECRET}
NATIVE, TEXT = "ep/coder", "ep/rsn-a1b2c3-coder"


def route(running: Running, model: str, **options: Any) -> None:
    running.route(arms=(Arm("custom", "custom", weight=1.0, model=model, base_url=running.model.url),), **options)


def call(arguments: str, name: str = "Bash") -> dict[str, Any]:
    return {"index": 0, "id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}


def with_values(text: str) -> str:
    for name, value in PLACES.items():
        text = text.replace(name, value)
    return text


def conversation(rng: random.Random) -> dict[str, Any]:
    """A coding conversation with calls and results, in which private values stand in every place."""
    pieces = [
        ANN,
        IP,
        f"token={rng.randrange(10**9)}abc",
        "[EMAIL_1]",
        "call +44 20 7946 0958",
        "plain",
        '"',
        "\n",
        "é",
    ]

    def text() -> str:
        return " ".join(["do", *rng.choices(pieces, k=rng.randrange(1, 6))])

    messages: list[dict[str, Any]] = [{"role": "user", "content": "fix the bug: " + text()}]
    for n in range(rng.randrange(3)):
        use = {"type": "tool_use", "id": f"toolu_rsn{n}", "name": "Bash", "input": {"command": text(), "n": n}}
        messages.append({"role": "assistant", "content": [{"type": "text", "text": text()}, use]})
        result = {"type": "tool_result", "tool_use_id": f"toolu_rsn{n}", "content": text()}
        messages.append({"role": "user", "content": [result, {"type": "text", "text": text()}]})
    return coding(messages=messages, system=f"You are a coding agent of {ANN}.")


async def test_a_coding_model_is_asked_the_bytes_of_its_training_row(start: Start) -> None:
    running = await start()
    route(running, TEXT)
    for seed in range(30):
        call_text = 'I look.\n<tool_call>\n{"name": "Bash", "arguments": {"command": "ls"}}\n</tool_call>'
        running.model.script = json(chat_answer(call_text))
        _, headers, _ = await ask(running, conversation(random.Random(seed)))
        assert headers["x-reasoning-source"] == "custom"
    asked = [seen.json["messages"] for seen in running.model.seen]
    rows = await running.records()
    assert len(rows) == len(asked) == 30
    kind = get_decision_type("coding")
    for row, sent in zip(rows, asked, strict=True):
        prepared = prepare_row(Rules(kind, 1 << 20, "US"), row["messages"], row["decision"], None, Counter(), Counter())
        learned = orjson.loads(prepared["line"])["messages"][:-1]
        assert orjson.dumps(sent) == orjson.dumps(learned)
        assert ANN in str(row["messages"]) and ANN not in str(sent)  # the log stays as it is


async def test_a_decision_is_asked_the_bytes_of_its_training_row(start: Start) -> None:
    running = await start()
    running.route("should_respond")
    running.model.script = json(
        chat_answer("<response><reasoning>[EMAIL_1]</reasoning><action>STOP</action></response>")
    )
    context = {"agent_name": "Ada", "messages": [{"speaker": "Bob", "text": SAID}]}
    _, _, body = await running.ask("POST", "/v1/decide/should_respond", json={"context": context, "original": "IGNORE"})
    answer = orjson.loads(body)
    assert answer["source"] == "custom" and answer["decision"] == {"action": "STOP", "reasoning": ANN}
    kind = get_decision_type("should_respond")
    assert running.model.last.json["messages"] == redact_prompt(kind.render(context)).messages
    assert ANN not in str(running.model.last.json)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("model", [NATIVE, TEXT])
async def test_an_answer_has_the_values(start: Start, model: str, streamed: bool) -> None:
    running = await start()
    route(running, model)
    said = "Mail [EMAIL_1] and [PHONE_9]:\n```\nsend('[EMAIL_1]', a[0])\n```\n"
    arguments = '{"command":"echo [SECRET_1] > [IP_1].txt","more":[{"to":"[EMAIL_1]"}]}'
    if model == TEXT:
        said += f'<tool_call>\n{{"name": "Bash", "arguments": {arguments}}}\n</tool_call>'
    calls = [call(arguments)] if model == NATIVE else []
    for cut in (1, 4, 1000) if streamed else (0,):
        if streamed:
            chunks = [chat_chunk(content=said[at : at + cut]) for at in range(0, len(said), cut)]
            if calls:
                chunks.append(chat_chunk(tool_calls=[call(arguments[:0])]))
                pieces = [arguments[at : at + cut] for at in range(0, len(arguments), cut)]
                chunks += [chat_chunk(tool_calls=[{"index": 0, "function": {"arguments": p}}]) for p in pieces]
            finish = chat_chunk(finish_reason="tool_calls" if calls else "stop", usage=USAGE)
            running.model.script = stream(*chunks, finish, DONE)
        else:
            running.model.script = json(chat_answer(said, calls, "tool_calls" if calls else "stop"))
        _, _, body = await ask(running, coding(SAID, stream=streamed))
        message = read_legal_stream(body)[0] if streamed else orjson.loads(body)
        assert message is not None, body
        text, use = message["content"]
        assert text["text"].strip() == f"Mail {ANN} and [PHONE_9]:\n```\nsend('{ANN}', a[0])\n```"
        assert use["input"] == {"command": f"echo {SECRET} > {IP}.txt", "more": [{"to": ANN}]}
    sent = running.model.last.body.decode()
    assert ANN not in sent and "12345" not in sent and IP not in sent and "mail [EMAIL_1] from [IP_1]" in sent
    assert all(ANN in row["decision"] for row in await running.records())


BAD_CALLS = [call('{"command": "mail [EMAIL_2]"}')]
BAD_CODE = "Here:\n```\nsend('[EMAIL_2]')\n```"


@pytest.mark.parametrize("answer", [chat_answer("x", BAD_CALLS, "tool_calls"), chat_answer(BAD_CODE)])
async def test_an_answer_that_acts_on_what_stands_for_nothing_is_anthropics(start: Start, answer: Any) -> None:
    running = await start()
    route(running, NATIVE)
    running.model.script = json(answer)
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    _, headers, body = await ask(running, coding(SAID))
    assert b"msg_upstream" in body and "x-reasoning-source" not in headers
    assert running.anthropic.last.json == coding(SAID)  # the fallback gets what the client said
    rows = await running.records()
    assert [(row["source"], row["fallback_reason"]) for row in rows] == [
        ("custom", "unparseable"),
        ("original", "unparseable"),
    ]
    assert "acts on [EMAIL_2]" in rows[0]["error"]
    assert set(running.gateway.state.coding.breaker_states().values()) == {"closed"}


@pytest.mark.parametrize("written", ["[EMAIL_2]", "\\u005bEMAIL_1]"])
@pytest.mark.parametrize("first", [True, False])
async def test_a_stream_never_ends_a_call_that_acts_on_what_stands_for_nothing(
    start: Start, written: str, first: bool
) -> None:
    running = await start()
    route(running, NATIVE)
    begin = [] if first else [chat_chunk(content="I mail.")]
    arguments = f'{{"command": "mail {written}"}}'
    end = [chat_chunk(tool_calls=[call(arguments)]), chat_chunk(finish_reason="tool_calls", usage=USAGE), DONE]
    running.model.script = stream(*begin, *end, pause=0.02)
    running.anthropic.script = stream(b"event: anthropics\n\n")
    _, headers, body = await ask(running, coding(SAID, stream=True))
    if headers.get("x-reasoning-source") == "custom":
        message, error = read_legal_stream(body)
        assert message is None and error is not None
    else:
        assert first and written == "[EMAIL_2]" and b"anthropics" in body
    assert b"[EMAIL_2]" not in body


async def test_what_a_native_model_is_shown_is_redacted_in_every_place(start: Start) -> None:
    running = await start()
    route(running, NATIVE)
    running.model.script = json(chat_answer("Fine."))
    tools = [{"name": "Bash", "description": f"of {ANN}", "input_schema": {"type": "object", "default": {"ip": IP}}}]
    use = {"type": "tool_use", "id": "toolu_rsn1", "name": "Bash", "input": {"card": 4111111111111111}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": f"fix the code of {ANN}"}]},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_rsn1", "content": f"from {IP}"}]},
    ]
    body = coding(system=f"agent of {ANN}", tools=tools, messages=messages)
    assert (await ask(running, body))[1]["x-reasoning-source"] == "custom"
    sent = running.model.last.json
    assert [m.get("content") for m in sent["messages"]] == [
        "agent of [EMAIL_1]",
        "fix the code of [EMAIL_1]",
        None,
        "from [IP_1]",
    ]
    assert sent["messages"][2]["tool_calls"][0]["function"]["arguments"] == '{"card":"[CARD_1]"}'
    function = sent["tools"][0]["function"]
    assert function["description"] == "of [EMAIL_1]" and function["parameters"]["default"] == {"ip": "[IP_1]"}


async def test_what_cannot_be_redacted_goes_to_no_model(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(text: str, region: str) -> None:
        raise ValueError(f"of {text}")

    monkeypatch.setattr("reasoning.redaction.prompts.find_private", fails)
    running = await start()
    route(running, TEXT)
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    assert b"msg_upstream" in (await ask(running, coding(SAID)))[2]
    assert running.model.seen == []
    rows = await running.records()
    assert {(row["fallback_reason"], row["error"]) for row in rows if row["source"] == "custom"} == {
        ("disabled", "the prompt cannot be redacted: ValueError")
    }
    assert set(running.gateway.state.coding.breaker_states().values()) == {"closed"}


async def test_it_can_be_switched_off_and_says_so(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    running = await start(config={"redaction": Redaction(enabled=False)})
    assert caplog.text.count("models are asked with private data") == 1
    route(running, NATIVE)
    running.model.script = json(chat_answer("write to [EMAIL_1]"))
    _, _, body = await ask(running, coding(SAID))
    assert orjson.loads(body)["content"][0]["text"] == "write to [EMAIL_1]" and ANN in str(running.model.last.json)


async def test_a_long_prompt_holds_nobody_up(start: Start) -> None:
    running = await start()
    route(running, TEXT)
    running.model.script = stream(*chat_stream("Done."))
    text = "\n".join(f"line {n} with mail{n}@example.org and 198.51.100.{n % 250} in it" for n in range(1_500))
    alone = seconds_of_redacting(text)
    async with longest_stall() as stalls:
        _, headers, _ = await ask(running, coding(f"fix the code\n{text}", stream=True))
    assert headers["x-reasoning-source"] == "custom"
    assert "@" not in str(running.model.last.json["messages"][-1])
    assert max(stalls) < max(alone / 2, 0.05), (alone, max(stalls))


PIECES = st.sampled_from(
    ["[EMAIL_1]", "[SECRET_1]", "[EMAIL_2]", "[EMAIL", "_1]", "[", "a[IP] ", "x ", "```\n", "\n", "word", "é", "[IP_1]"]
)


@given(
    said=st.lists(PIECES, min_size=1, max_size=12).map("".join),
    command=st.lists(PIECES, max_size=8).map("".join),
    cuts=st.integers(1, 7),
    native=st.booleans(),
)
@settings(max_examples=60)
def test_a_stream_says_what_the_whole_answer_says(said: str, command: str, cuts: int, native: bool) -> None:
    """Placeholders across the borders of pieces, in words, in code and in calls, whether known or not."""
    redacted = RedactedPrompt([], PLACES)
    asked = AnswerSpec(tools_in_text=not native, offers_tools=True, redacted=redacted)
    arguments = orjson.dumps({"command": command}).decode()
    if native:
        chunks = [chat_chunk(content=said[at : at + cuts]) for at in range(0, len(said), cuts)]
        chunks.append(chat_chunk(tool_calls=[call("")]))
        chunks += [
            chat_chunk(tool_calls=[{"index": 0, "function": {"arguments": arguments[at : at + cuts]}}])
            for at in range(0, len(arguments), cuts)
        ]
        whole = chat_answer(said, [call(arguments)], "tool_calls")
    else:
        said = f'{said}\n\n<tool_call>\n{{"name": "Bash", "arguments": {arguments}}}\n</tool_call>'
        chunks = [chat_chunk(content=said[at : at + cuts]) for at in range(0, len(said), cuts)]
        whole = chat_answer(said)
    outcome: list[Any] = []
    for make in (lambda: streamed(asked, chunks), lambda: to_message(whole, asked)["content"]):
        try:
            blocks = make()
            words = "".join(block["text"] for block in blocks if block["type"] == "text")
            outcome.append((words.strip(), [block["input"] for block in blocks if block["type"] == "tool_use"]))
        except ModelAnswerError as error:
            outcome.append(error.reason)
    assert outcome[0] == outcome[1]


def streamed(asked: AnswerSpec, chunks: list[bytes]) -> list[dict[str, Any]]:
    stream = ChatStream(asked)
    out = b"".join([stream.feed(chunk) for chunk in [*chunks, chat_chunk(finish_reason="stop", usage=USAGE), DONE]])
    message, error = read_legal_stream(out)
    assert message is not None and error is None
    told = [{key: block[key] for key in ("type", "text", "input") if key in block} for block in message["content"]]
    assert told == [{key: b[key] for key in ("type", "text", "input") if key in b} for b in stream.content]
    return stream.content


NESTED = orjson.dumps({"content": orjson.dumps({"to": "[EMAIL_1]", "env": '{"p": "[SECRET_1]", "n": 1.0}'}).decode()})


@pytest.mark.parametrize("model", [NATIVE, TEXT])
async def test_a_value_in_json_within_arguments_is_written_as_json(start: Start, model: str) -> None:
    running = await start()
    route(running, model)
    arguments = NESTED.decode()
    said = "" if model == NATIVE else f'<tool_call>\n{{"name": "Bash", "arguments": {arguments}}}\n</tool_call>'
    calls = [call(arguments)] if model == NATIVE else []
    running.model.script = json(chat_answer(said, calls, "tool_calls" if calls else "stop"))
    _, _, body = await ask(running, coding(SAID))
    (use,) = orjson.loads(body)["content"]
    content = orjson.loads(use["input"]["content"])
    assert content["to"] == ANN and content["env"] == '{"p": "p\\"w-12345", "n": 1.0}'
    assert orjson.loads(content["env"])["p"] == SECRET


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_a_stream_never_ends_a_call_whose_nested_json_it_would_break(cut: int) -> None:
    asked = AnswerSpec(offers_tools=True, redacted=RedactedPrompt([], PLACES))
    for arguments, good in ((NESTED.decode(), False), (NESTED.decode().replace("SECRET", "IP"), True)):
        pieces = [arguments[at : at + cut] for at in range(0, len(arguments), cut)]
        chunks = [chat_chunk(tool_calls=[call("")])]
        chunks += [chat_chunk(tool_calls=[{"index": 0, "function": {"arguments": piece}}]) for piece in pieces]
        if good:
            assert orjson.loads(streamed(asked, chunks)[0]["input"]["content"])["to"] == ANN
        else:
            with pytest.raises(ModelAnswerError, match="cannot put back"):
                streamed(asked, chunks)


@pytest.mark.parametrize("model", [NATIVE, TEXT])
async def test_a_stop_sequence_with_a_private_value_goes_to_no_model(start: Start, model: str) -> None:
    running = await start()
    route(running, model)
    running.model.script, running.anthropic.script = json(chat_answer("Fine.")), json(ANTHROPIC_MESSAGE)
    assert b"msg_upstream" in (await ask(running, coding(SAID, stop_sequences=["END", f"To: {ANN}"])))[2]
    assert running.model.seen == []
    errors = [row["error"] for row in await running.records() if row["source"] == "custom"]
    assert errors == ["the prompt cannot be redacted: a stop sequence has a private value"]
    await ask(running, coding(f"in another session, {SAID}", stop_sequences=["END"]))
    assert running.model.last.json["stop"] == ["END"]


@pytest.mark.parametrize("depth", [300, 900])
async def test_arguments_that_are_nested_too_deeply_are_no_answer(start: Start, depth: int) -> None:
    running = await start()
    route(running, NATIVE)
    arguments = f'{{"a": {"[" * depth}"[EMAIL_1]"{"]" * depth}}}'
    running.model.script = json(chat_answer("", [call(arguments)], "tool_calls"))
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    assert b"msg_upstream" in (await ask(running, coding(SAID)))[2]
    end = chat_chunk(finish_reason="tool_calls", usage=USAGE)
    running.model.script = stream(chat_chunk(tool_calls=[call(arguments)]), end, DONE, pause=0.02)
    assert b"msg_upstream" in (await ask(running, coding(f"in another session, {SAID}", stream=True)))[2]
