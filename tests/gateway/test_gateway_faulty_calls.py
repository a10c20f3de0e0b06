"""Answers of a coding model whose tool calls are not what the request asked for, and settings that it is not told."""

from __future__ import annotations

import json as jsonlib
import random
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.coding.answer_spec import asked_of
from gateway.coding.json_prefix import JsonPrefix
from gateway.coding.translate import to_chat, to_message
from gateway.coding.translate_stream import ChatStream
from gateway.errors import ModelAnswerError
from tests.gateway.conftest import Running, Start
from tests.gateway.legal import read_legal_stream
from tests.gateway.scripted import ANTHROPIC_MESSAGE, DONE, USAGE, chat_answer, chat_chunk, chat_stream, json, stream
from tests.gateway.test_gateway_coding import ask, coding

READ = {
    "name": "read",
    "input_schema": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
}
LIST = {"name": "list", "input_schema": {"type": "object", "properties": {}}}
BODY: dict[str, Any] = {
    "max_tokens": 100,
    "tools": [READ, LIST],
    "messages": [{"role": "user", "content": "fix it"}],
}


def call(name: str | None, arguments: Any, index: int = 0, id: str | None = None) -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return {"index": index, "function": function} | ({"id": id} if id else {})


def answers(
    calls: list[dict[str, Any]], finish: str = "tool_calls", text: str | None = None, **fields: Any
) -> list[Any]:
    """The same answer as a whole and as a stream: each a message, or the reason why it is none."""
    spec = asked_of(to_chat({**BODY, **fields}, model="m"), model="m")
    found: list[Any] = []
    try:
        found.append(to_message(chat_answer(text, calls, finish), spec))
    except ModelAnswerError as error:
        found.append(error.reason)
    chat = ChatStream(spec)
    out = b""
    try:
        for each in [[call] for call in calls]:
            out += chat.feed(chat_chunk(tool_calls=each))
        out += chat.feed(chat_chunk(finish_reason=finish, usage=USAGE) + DONE)
        found.append(read_legal_stream(out)[0])
    except ModelAnswerError as error:
        found.append(error.reason)
    return found


def test_null_arguments_are_an_empty_object() -> None:
    for message in answers([call("list", "null")]):
        assert [block["input"] for block in message["content"]] == [{}]


@pytest.mark.parametrize("arguments", ["null", "", " ", "{}"])
def test_a_tool_that_needs_arguments_is_not_called_without(arguments: str) -> None:
    assert answers([call("read", arguments)]) == ["tool_arguments", "tool_arguments"]


@pytest.mark.parametrize("arguments", ['"x"', "[1]", "7", "true", "nul"])
def test_nothing_of_arguments_that_are_no_object_goes_out(arguments: str) -> None:
    chat = ChatStream(asked_of(to_chat(BODY, model="m"), model="m"))
    out = b""
    with pytest.raises(ModelAnswerError, match="tool_arguments"):
        out += chat.feed(chat_chunk(tool_calls=[call("list", arguments)]))
        out += chat.feed(chat_chunk(finish_reason="tool_calls") + DONE)
    assert b"input_json_delta" not in out


def test_what_follows_a_finish_reason_is_part_of_the_answer() -> None:
    chat = ChatStream(asked_of(to_chat(BODY, model="m"), model="m"))
    out = chat.feed(chat_chunk(tool_calls=[call("read", "")]))
    out += chat.feed(chat_chunk(finish_reason="tool_calls"))
    out += chat.feed(chat_chunk(tool_calls=[call(None, '{"path": "a.py"}')]))
    out += chat.feed(chat_chunk(content="Read it.", finish_reason="stop") + DONE)
    message, _ = read_legal_stream(out)
    assert message is not None
    assert message["content"][0]["input"] == {"path": "a.py"}
    assert message["content"][1]["text"] == "Read it."


def test_another_tool_than_the_forced_one_is_no_answer() -> None:
    forced = {"tool_choice": {"type": "tool", "name": "read"}}
    assert answers([call("list", "{}")], **forced) == ["tool_choice", "tool_choice"]
    for message in answers([call("read", '{"path": "a"}')], **forced):
        assert message["stop_reason"] == "tool_use"


def test_a_tool_that_is_not_offered_is_not_called() -> None:
    assert answers([call("remove", "{}")]) == ["tool_choice", "tool_choice"]


def test_two_calls_are_no_answer_where_one_is_allowed() -> None:
    two = [call("list", "{}", 0, "a"), call("list", "{}", 1, "b")]
    single = {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}
    assert answers(two, **single) == ["tool_choice", "tool_choice"]
    assert [len(message["content"]) for message in answers(two)] == [2, 2]


def test_an_answer_that_is_only_a_cut_call_is_max_tokens() -> None:
    whole, streamed = answers([call("read", '{"path": "un')], finish="length")
    assert (whole["content"], whole["stop_reason"]) == ([], "max_tokens")
    assert streamed["stop_reason"] == "max_tokens"
    text = 'On it.\n<tool_call>\n{"name": "read", "arg'
    whole = to_message(chat_answer(text, finish="length"), asked_of(to_chat(BODY, model="m"), model="m"))
    assert [block["text"] for block in whole["content"]] == ["On it.\n"]
    spec = asked_of(to_chat(BODY, model="m"), model="m", tools_in_text=True)
    only = text.removeprefix("On it.\n")
    assert to_message(chat_answer(only, finish="length"), spec)["content"] == []
    chat = ChatStream(spec)
    message, _ = read_legal_stream(b"".join(chat.feed(chunk) for chunk in chat_stream(only, finish="length")))
    assert message is not None
    assert (message["content"], message["stop_reason"]) == ([], "max_tokens")


def test_calls_at_one_index_without_ids_are_told_apart() -> None:
    calls = [call("read", '{"path": "a"}'), call("read", '{"path": "b"}'), call("read", "")]
    chat = ChatStream(asked_of(to_chat(BODY, model="m"), model="m"))
    out = b"".join(chat.feed(chat_chunk(tool_calls=[each])) for each in calls)
    message, _ = read_legal_stream(out + chat.feed(chat_chunk(finish_reason="tool_calls") + DONE))
    assert message is not None
    assert [block["input"] for block in message["content"]] == [{"path": "a"}, {"path": "b"}]


def test_sglang_tells_the_stop_sequence_in_matched_stop() -> None:
    body = {**BODY, "stop_sequences": ["END"]}
    spec = asked_of(to_chat(body, model="m"), model="m")
    completion = chat_answer("Done.")
    completion["choices"][0]["matched_stop"] = "END"
    message = to_message(completion, spec)
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "END")
    completion["choices"][0]["matched_stop"] = 151645  # the id of the end of a turn
    assert to_message(completion, spec)["stop_reason"] == "end_turn"


@pytest.mark.parametrize("tools", [[], [READ, LIST]])
async def test_a_thought_without_an_opening_is_never_an_answer(start: Start, tools: list[Any]) -> None:
    running = await start()
    running.route()
    headers = running.headers | {"x-reasoning-coding": "on"}

    async def answer(text: str, **fields: Any) -> bytes:
        body = coding(text, tools=tools, **fields)
        return (await running.ask("POST", "/v1/messages", json=body, headers=headers))[2]

    said = "The user wants a plan.\nA short one.\n</think>\n\nHere it is."
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    running.model.script = json(chat_answer(said))
    assert orjson.loads(await answer("one"))["content"] == [{"type": "text", "text": "Here it is."}]
    running.model.script = stream(*chat_stream(*said.splitlines(keepends=True)), pause=0.01)
    _, error = read_legal_stream(await answer("two", stream=True))
    assert error is not None
    message, _ = read_legal_stream(await answer("three", stream=True))
    assert message is not None
    assert message["content"] == [{"type": "text", "text": "Here it is."}]
    running.model.script = stream(*chat_stream("No thought", " at all."), pause=0.01)
    message, _ = read_legal_stream(await answer("four", stream=True))
    assert message is not None
    assert message["content"] == [{"type": "text", "text": "No thought at all."}]


async def test_effort_and_thinking_budgets_are_passed_on_or_named(start: Start) -> None:
    wanted = {"output_config": {"effort": "max"}, "thinking": {"type": "enabled", "budget_tokens": 2048}}

    async def served(running: Running) -> tuple[Any, Any]:
        running.route()
        running.model.script = json(chat_answer("Done."))
        _, headers, _ = await ask(running, coding(**wanted))
        [row] = await running.records()
        return headers["x-reasoning-ignored"], orjson.loads(row["tags"])["ignored"]

    silent = await start()
    both = "output_config.effort, thinking.budget_tokens"
    assert await served(silent) == (both, both.replace(" ", ""))
    assert "reasoning_effort" not in silent.model.last.json
    told = await start(coding_effort=True)
    assert await served(told) == ("thinking.budget_tokens", "thinking.budget_tokens")
    assert told.model.last.json["reasoning_effort"] == "high"


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values, max_size=3),
    max_leaves=5,
)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.text(max_size=3), _values, max_size=3),
    st.booleans(),
    st.integers(0, 40),
    st.sampled_from(["", *'{}[]",:\\nu1-. ux']),
    st.integers(0, 2**32),
)
def test_every_piece_of_arguments_is_the_beginning_of_valid_json(
    value: dict[str, Any], ascii: bool, at: int, inserted: str, seed: int
) -> None:
    import jiter

    text = jsonlib.dumps(value, ensure_ascii=ascii)
    text = text[:at] + inserted + text[at:]
    valid = None
    with suppress(orjson.JSONDecodeError):
        valid = orjson.loads(text)
    prefix, cuts, out, rest = JsonPrefix(), random.Random(seed), "", text
    try:
        while rest:
            size = cuts.randint(1, 5)
            out, rest = out + prefix.feed(rest[:size]), rest[size:]
            if out:
                jiter.from_json(out.encode(), partial_mode=True)  # as the SDKs read it
    except ModelAnswerError:
        assert valid is None
    assert (out == text.lstrip()) or valid is None
