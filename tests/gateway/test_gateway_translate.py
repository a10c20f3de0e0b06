"""Messages to chat: everything that Claude Code sends, and nothing lost in silence."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.coding.answer_spec import AnswerSpec
from gateway.coding.translate import to_chat, to_message
from gateway.errors import ModelAnswerError, Untranslatable
from tests.gateway.scripted import chat_answer


def chat(messages: list[Any], **fields: Any) -> dict[str, Any]:
    return to_chat({"model": "c", "max_tokens": 9, "messages": messages, **fields}, model="m")


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def use(id: str, name: str = "Read", **input: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": id, "name": name, "input": input}


def result(id: str, content: Any = "ok", **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id, "content": content, **fields}


def reason(messages: list[Any], **fields: Any) -> str:
    with pytest.raises(Untranslatable) as raised:
        chat(messages, **fields)
    return raised.value.reason


HI = [{"role": "user", "content": "hi"}]


def test_system_in_every_form() -> None:
    billing = text("x-anthropic-billing-header: cc_version=2.1; cch=1;")
    cached = {**text("Be brief."), "cache_control": {"type": "ephemeral"}}
    assert chat(HI, system="Be brief.")["messages"][0] == {"role": "system", "content": "Be brief."}
    assert chat(HI, system=[billing, cached])["messages"][0] == {"role": "system", "content": "Be brief."}
    assert chat(HI, system=[billing])["messages"][0]["role"] == "user"
    assert chat([{"role": "system", "content": []}, *HI])["messages"] == [{"role": "user", "content": "hi"}]
    assert chat([{"role": "system", "content": "S"}, *HI], system="T")["messages"][0]["content"] == "T\n\nS"
    later = [
        *HI,
        {"role": "assistant", "content": "yo"},
        {"role": "system", "content": [text("Mode: plan")]},
        user(text("go")),
    ]
    assert chat(later)["messages"][-1] == {"role": "user", "content": "Mode: plan\ngo"}  # CLIProxyAPI #3608


def test_empty_system_between_a_call_and_its_result() -> None:
    turns = [*HI, {"role": "assistant", "content": [use("a")]}, {"role": "system", "content": []}, user(result("a"))]
    assert [m["role"] for m in chat(turns)["messages"]] == ["user", "assistant", "tool"]


def test_tool_results_come_in_the_order_of_the_calls_and_before_the_text() -> None:
    turns = [
        *HI,
        {"role": "assistant", "content": [text("I read."), use("a", path="x"), use("b")]},
        user(text("and now?"), result("b", [text("B1"), text("B2")]), result("a", "A", is_error=True)),
    ]
    messages = chat(turns)["messages"]
    assert messages[1]["content"] == "I read."
    assert [c["id"] for c in messages[1]["tool_calls"]] == ["a", "b"]
    assert orjson.loads(messages[1]["tool_calls"][0]["function"]["arguments"]) == {"path": "x"}
    assert messages[2:] == [
        {"role": "tool", "tool_call_id": "a", "content": "Error: A"},
        {"role": "tool", "tool_call_id": "b", "content": "B1\nB2"},
        {"role": "user", "content": "and now?"},
    ]


def test_results_in_messages_of_their_own_are_joined() -> None:
    call = {"role": "assistant", "content": [use("a"), use("b")]}
    messages = chat([*HI, call, user(result("b", "B")), user(result("a", "A")), user(text("go on"))])["messages"]
    assert [(m["role"], m["content"]) for m in messages[2:]] == [("tool", "A"), ("tool", "B"), ("user", "go on")]
    halves = [{"role": "assistant", "content": [use(name)]} for name in "ab"]
    assert len(chat([*HI, *halves, user(result("a", "A"), result("b", "B"))])["messages"][1]["tool_calls"]) == 2


def test_images_of_a_result_follow_in_a_user_message() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QQ=="}}
    turns = [*HI, {"role": "assistant", "content": [use("a")]}, user(result("a", [text("shot"), image]))]
    body = {"max_tokens": 9, "messages": turns}
    messages = to_chat(body, model="m", images=True)["messages"]
    assert messages[2]["content"].startswith("shot\n(1 image")
    assert messages[3]["content"] == [{"type": "image_url", "image_url": {"url": "data:image/png;base64,QQ=="}}]
    with pytest.raises(Untranslatable, match="image"):
        to_chat(body, model="m")


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k"])
def test_sampling_is_taken_where_the_version_takes_it(name: str) -> None:
    body = {"max_tokens": 9, "messages": HI, name: 1}
    assert to_chat(body, model="m", version="2023-06-01")[name] == 1
    with pytest.raises(Untranslatable, match=f"{name} in version 2026-10-21"):
        to_chat(body, model="m", version="2026-10-21")


def test_thinking_of_others_is_left_out() -> None:
    turn = {"role": "assistant", "content": [{"type": "thinking", "thinking": "x", "signature": "s"}, text("yo")]}
    assert chat([*HI, turn, *HI])["messages"][1] == {"role": "assistant", "content": "yo"}


def test_parameters() -> None:
    made = chat(
        HI,
        temperature=0.5,
        top_p=0.9,
        top_k=4,
        stop_sequences=["END"],
        stream=True,
        metadata={"user_id": "u"},
        thinking={"type": "adaptive", "display": "omitted"},
        service_tier="auto",
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        output_config={"effort": "high"},
    )
    assert (made["temperature"], made["top_p"], made["top_k"], made["stop"]) == (0.5, 0.9, 4, ["END"])
    assert made["max_tokens"] == 9
    assert made["stream_options"] == {"include_usage": True}
    assert not {"metadata", "thinking", "service_tier", "context_management", "output_config"} & made.keys()
    schema = {"type": "object"}
    made = chat(HI, output_config={"format": {"type": "json_schema", "schema": schema}})
    assert made["response_format"]["json_schema"]["schema"] == schema


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "Read"}, {"type": "function", "function": {"name": "Read"}}),
    ],
)
def test_tool_choice(choice: dict[str, Any], expected: Any) -> None:
    tools = [
        {"name": "Read", "description": "d", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}
    ]
    made = chat(HI, tools=tools, tool_choice={**choice, "disable_parallel_tool_use": True})
    assert made["tool_choice"] == expected
    assert made["parallel_tool_calls"] is False
    assert made["tools"] == [
        {"type": "function", "function": {"name": "Read", "description": "d", "parameters": {"type": "object"}}}
    ]


def test_deferred_tools_are_offered_once_they_were_shown() -> None:
    tools = [{"name": "Read", "input_schema": {}}, {"name": "Late", "input_schema": {}, "defer_loading": True}]
    assert [t["function"]["name"] for t in chat(HI, tools=tools)["tools"]] == ["Read"]
    shown = [
        *HI,
        {"role": "assistant", "content": [use("a")]},
        user(result("a", [{"type": "tool_reference", "tool_name": "Late"}])),
    ]
    assert [t["function"]["name"] for t in chat(shown, tools=tools)["tools"]] == ["Read", "Late"]


@pytest.mark.parametrize(
    ("messages", "fields", "why"),
    [
        (HI, {"tools": [{"type": "bash_20250124", "name": "bash"}]}, "server_tool"),
        (
            HI,
            {"tools": [{"name": "x", "input_schema": {}, "allowed_callers": ["code_execution_20250825"]}]},
            "tool_field",
        ),
        (HI, {"tools": [{"name": "x", "input_schema": {}, "new": 1}]}, "tool_field"),
        (HI, {"tools": [{"name": "x", "input_schema": {}, "allowed_callers": 7}]}, "tool_field"),
        (HI, {"tools": [{"name": "x", "input_schema": {}, "allowed_callers": [{}]}]}, "tool_field"),
        ([user({"type": "document", "citations": "x", "source": {"type": "text", "data": "D"}})], {}, "document"),
        (HI, {"container": {"skills": []}}, "unknown_field"),
        (HI, {"context_management": {"edits": [{"type": "compact_20260112"}]}}, "context_management"),
        (HI, {"output_config": {"format": {"type": "grammar"}}}, "output_config"),
        (HI, {"tool_choice": {"type": "any"}}, "malformed"),
        (
            [user({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "x"}})],
            {},
            "document",
        ),
        ([user({"type": "search_result", "source": "x"})], {}, "block"),
        ([user({**text("x"), "citations": [{}]})], {}, "citations"),
        ([*HI, {"role": "assistant", "content": "pre"}], {}, "prefill"),
        ([*HI, {"role": "assistant", "content": [{"type": "server_tool_use", "id": "s"}]}, *HI], {}, "block"),
        ([*HI, {"role": "assistant", "content": [use("a")]}, *HI], {}, "missing_tool_result"),
        ([*HI, {"role": "assistant", "content": [use("a")]}], {}, "missing_tool_result"),
        ([user(result("zz"))], {}, "unmatched_tool_result"),
        (HI, {"max_tokens": None}, "malformed"),
        ([], {}, "malformed"),
        ([{"role": "user", "content": 3}], {}, "malformed"),
        ([{"role": "robot", "content": "x"}], {}, "malformed"),
        (["x"], {}, "malformed"),
    ],
)
def test_what_only_anthropic_can_answer(messages: list[Any], fields: dict[str, Any], why: str) -> None:
    assert reason(messages, **fields) == why


def test_plain_documents_are_text() -> None:
    document = {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "D"}}
    assert chat([user(document, text("q"))])["messages"] == [{"role": "user", "content": "T\nD\nq"}]


ASKED = AnswerSpec("m")


def test_whole_answers() -> None:
    made = to_message(
        chat_answer("<think>hm</think>\n\nHi", [{"function": {"name": "Read", "arguments": ""}}], "tool_calls"), ASKED
    )
    assert [b["type"] for b in made["content"]] == ["text", "tool_use"]
    assert (made["content"][0]["text"], made["content"][1]["input"], made["stop_reason"]) == ("Hi", {}, "tool_use")
    assert to_message(chat_answer("cut", finish="length"), ASKED)["stop_reason"] == "max_tokens"
    cut = chat_answer("x", [{"function": {"name": "Read", "arguments": '{"a": "'}}], "length")
    assert to_message(cut, ASKED)["stop_reason"] == "max_tokens"
    assert [b["type"] for b in to_message(cut, ASKED)["content"]] == ["text"]
    assert to_message(chat_answer([{"type": "text", "text": "parts"}]), ASKED)["content"][0]["text"] == "parts"  # type: ignore[arg-type]
    for bad in (
        {},
        None,
        {"choices": []},
        {"choices": [{"message": None}]},
        chat_answer(None),
        chat_answer("x", finish=""),
    ):
        with pytest.raises(ModelAnswerError):
            to_message(bad, ASKED)


_words = st.sampled_from(["", "a", "fix it", "x-anthropic-billing-header: y", " "])
_blocks = st.recursive(
    st.one_of(
        st.builds(text, _words),
        st.builds(use, st.sampled_from("abc")),
        st.builds(result, st.sampled_from("abc"), st.one_of(_words, st.lists(st.builds(text, _words), max_size=2))),
        st.just({"type": "thinking", "thinking": "x", "signature": ""}),
        st.dictionaries(
            st.sampled_from(["type", "text", "id", "source", "content"]), _words | st.integers() | st.none()
        ),
    ),
    lambda b: st.builds(lambda c: result("a", c), st.lists(b, max_size=2)),
    max_leaves=4,
)
_turns = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["user", "assistant", "system", "user", "assistant"]),
    st.one_of(_words, st.lists(_blocks, max_size=4), st.none()),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_turns, max_size=6))
def test_any_conversation_is_translated_into_a_legal_one_or_refused(turns: list[Any]) -> None:
    body = {"messages": turns, "system": "S"}
    before = copy.deepcopy(body)
    try:
        messages = to_chat({"max_tokens": 9, **body}, model="m")["messages"]
    except Untranslatable:
        return
    finally:
        assert body == before  # the request still has to be passed on
    assert messages[0] == {"role": "system", "content": messages[0]["content"]}
    assert messages[-1]["role"] in ("user", "tool")
    waiting: list[str] = []
    for one, two in pairwise(messages):
        assert (one["role"], two["role"]) != ("user", "user")
        assert (one["role"], two["role"]) != ("assistant", "assistant")
    for message in messages[1:]:
        if message["role"] == "tool":
            assert waiting
            assert message["tool_call_id"] == waiting.pop(0)
            assert isinstance(message["content"], str)
        else:
            assert not waiting
            waiting = [call["id"] for call in message.get("tool_calls", [])]
        assert message["content"] or message["role"] == "tool" or message.get("tool_calls")
    assert not waiting
