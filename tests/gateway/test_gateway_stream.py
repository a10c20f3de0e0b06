"""The chat stream translated: every bug of a peer as a case, and any stream whatsoever."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.coding.answer_spec import AnswerSpec
from gateway.coding.translate_stream import ChatStream, error_event
from gateway.errors import ModelAnswerError
from reasoning.errors import OversizedEvent
from reasoning.io.sse import EventDecoder
from tests.gateway.legal import read_legal_stream
from tests.gateway.scripted import DONE, USAGE, chat_chunk, chat_stream


def call(index: int | None = None, id: str | None = None, name: str | None = None, args: Any = None) -> dict[str, Any]:
    found: dict[str, Any] = {"function": {}}
    if index is not None:
        found["index"] = index
    if id is not None:
        found["id"] = id
    if name is not None:
        found["function"]["name"] = name
    if args is not None:
        found["function"]["arguments"] = args
    return found


def run(*chunks: bytes, stop: tuple[str, ...] = ()) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The stream as a client sees it, the way the door sends it: (message, error)."""
    chat = ChatStream(AnswerSpec("ep/coder", stop))
    out = b""
    try:
        for chunk in chunks:
            piece = chat.feed(chunk)
            assert bool(out or piece) == chat.started
            out += piece
            if chat.finished:
                break
        else:
            out += chat.finish()
    except ModelAnswerError as error:
        if not out:
            assert not chat.started
            return None, {"type": "fallback", "message": error.reason}
        out += error_event("api_error", "broke off")
    return read_legal_stream(out)


def message(*chunks: bytes, **options: Any) -> dict[str, Any]:
    found, error = run(*chunks, **options)
    assert found is not None, error
    return found


def fallback(*chunks: bytes) -> str:
    found, error = run(*chunks)
    assert found is None
    assert error is not None
    assert error["type"] == "fallback"
    return error["message"]


def test_text_and_usage() -> None:
    found = message(*chat_stream("Hel", "lo"))
    assert found["content"] == [{"type": "text", "text": "Hello"}]
    assert found["stop_reason"] == "end_turn"
    assert found["usage"]["input_tokens"] == 12  # what was read from a cache is not in it
    assert found["usage"]["cache_read_input_tokens"] == 8
    assert found["usage"]["output_tokens"] == 5


def test_nothing_is_sent_before_the_first_piece() -> None:
    chat = ChatStream(AnswerSpec("m"))
    assert chat.feed(chat_chunk(role="assistant", content="")) == b""
    assert chat.feed(b": comment\n\n") == b""
    assert chat.feed(chat_chunk(content="\n ")) == b""
    assert not chat.started
    out = chat.feed(chat_chunk(content="x"))
    assert out.startswith(b"event: message_start\n")
    assert b'"text":"\\n x"' in out


def test_first_delta_that_comes_with_the_role_is_kept() -> None:  # litellm #30014, #30765
    found = message(chat_chunk(role="assistant", content="First"), *chat_stream(" second"))
    assert found["content"][0]["text"] == "First second"


def test_arguments_that_come_with_the_name_are_kept() -> None:  # litellm #25321
    found = message(
        chat_chunk(tool_calls=[call(0, "c1", "read", '{"path":')]),
        chat_chunk(tool_calls=[call(0, args='"a.py"}')]),
        *chat_stream(finish="tool_calls"),
    )
    assert found["content"][0]["input"] == {"path": "a.py"}
    assert found["stop_reason"] == "tool_use"


def test_empty_list_of_tool_calls_is_no_call() -> None:  # litellm #29286
    found = message(chat_chunk(content="hi", tool_calls=[]), *chat_stream())
    assert [block["type"] for block in found["content"]] == ["text"]
    assert found["stop_reason"] == "end_turn"


@pytest.mark.parametrize("split", range(1, 24))
def test_thinking_is_never_sent(split: int) -> None:  # litellm #32357: thinking inside a text block
    text = "<think>\nsecret plan</think>\n\nAnswer"
    found = message(*chat_stream(text[:split], text[split:]))
    assert found["content"] == [{"type": "text", "text": "Answer"}]
    found = message(chat_chunk(reasoning="secret plan"), *chat_stream("Answer"))
    assert found["content"] == [{"type": "text", "text": "Answer"}]


def test_what_only_looks_like_thinking_is_sent() -> None:
    assert message(*chat_stream("<", "thin", "g>x"))["content"][0]["text"] == "<thing>x"
    assert message(*chat_stream("<thi"))["content"][0]["text"] == "<thi"
    assert fallback(*chat_stream("<think>never closed")) == "empty"


def test_failure_in_the_stream_is_no_answer() -> None:  # litellm #32086: a failure became an empty 200
    failure = b'data: {"error":{"message":"overloaded"}}\n\n'
    assert fallback(failure) == "error_in_stream"
    assert fallback(chat_chunk(role="assistant") + failure) == "error_in_stream"
    found, error = run(chat_chunk(content="Hello"), failure)
    assert found is None
    assert error is not None
    assert error["type"] == "api_error"


def test_stream_without_an_end_is_no_success() -> None:
    for end in ([], [DONE]):
        found, error = run(chat_chunk(content="Hello"), *end)
        assert found is None
        assert error is not None
        assert error["type"] == "api_error"
    assert fallback(DONE) == "unfinished"
    assert fallback() == "unfinished"


def test_finish_and_usage_in_one_write() -> None:  # claude-code-router #1234
    found = message(b"".join(chat_stream("Hello")))
    assert found["usage"]["output_tokens"] == 5
    split = (
        chat_chunk(content="x")
        + chat_chunk(finish_reason="stop")
        + b"data: "
        + orjson.dumps({"choices": [], "usage": USAGE})
    )
    assert message(split + b"\n\n" + DONE)["usage"]["output_tokens"] == 5


def test_usage_is_the_last_one_and_not_the_sum() -> None:  # grok2api #748
    running = [chat_chunk(content=str(i), usage={"prompt_tokens": 9, "completion_tokens": i}) for i in range(1, 4)]
    usage = message(*running, *chat_stream())["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (12, 5)


def test_text_then_tools_are_blocks_of_their_own() -> None:  # claude-code-router #1397, #1725
    found = message(
        chat_chunk(content="I read."),
        chat_chunk(tool_calls=[call(0, "a", "read", "{}")]),
        chat_chunk(content=" And more."),
        *chat_stream(finish="tool_calls"),
    )
    assert [block["type"] for block in found["content"]] == ["text", "tool_use", "text"]


def test_interleaved_arguments_are_put_apart() -> None:  # LiteLLM corrupts them
    found = message(
        chat_chunk(tool_calls=[call(0, "a", "read", '{"x"')]),
        chat_chunk(tool_calls=[call(1, "b", "write", '{"y"')]),
        chat_chunk(tool_calls=[call(0, args=":1}"), call(1, args=":2")]),
        chat_chunk(tool_calls=[call(1, args="}")]),
        *chat_stream(finish="tool_calls"),
    )
    assert [(b["name"], b["input"]) for b in found["content"]] == [("read", {"x": 1}), ("write", {"y": 2})]


def test_all_calls_at_one_index_are_told_apart_by_their_ids() -> None:
    found = message(
        chat_chunk(tool_calls=[call(0, "a", "read", '{"x":1}')]),
        chat_chunk(tool_calls=[call(0, "b", "write", '{"y":2}')]),
        *chat_stream(finish="tool_calls"),
    )
    assert [(b["name"], b["input"]) for b in found["content"]] == [("read", {"x": 1}), ("write", {"y": 2})]


def test_calls_without_an_index_and_with_repeated_names() -> None:
    found = message(
        chat_chunk(tool_calls=[call(None, "a", "read", '{"x":')]),
        chat_chunk(tool_calls=[call(None, "a", "read", "1}")]),
        *chat_stream(finish="stop"),
    )
    assert [(b["name"], b["input"]) for b in found["content"]] == [("read", {"x": 1})]
    assert found["stop_reason"] == "tool_use"  # whatever the finish_reason says


def test_call_cut_by_the_length_is_max_tokens() -> None:  # CLIProxyAPI #5836: truncated tool reported as tool_use
    found = message(chat_chunk(tool_calls=[call(0, "a", "read", '{"x": "un')]), *chat_stream(finish="length"))
    assert found["stop_reason"] == "max_tokens"


def test_two_cut_calls_are_an_error() -> None:
    calls = [call(0, "a", "read", '{"x":'), call(1, "b", "write", '{"y":')]
    _, error = run(chat_chunk(tool_calls=calls), *chat_stream(finish="length"))
    assert error is not None


def test_call_that_is_no_json_is_an_error() -> None:
    _, error = run(chat_chunk(tool_calls=[call(0, "a", "read", '{"x": "un')]), *chat_stream(finish="tool_calls"))
    assert error is not None
    assert error["type"] == "api_error"


def test_arguments_that_are_an_object_or_nothing() -> None:
    found = message(
        chat_chunk(tool_calls=[call(0, "a", "read", {"x": 1}), call(1, "b", "list")]), *chat_stream(finish="tool_calls")
    )
    assert [b["input"] for b in found["content"]] == [{"x": 1}, {}]


def test_filtered_and_empty_answers_fall_back() -> None:
    assert fallback(*chat_stream(finish="content_filter")) == "content_filter"
    assert fallback(*chat_stream()) == "empty"
    assert fallback(*chat_stream(" \n ")) == "empty"
    assert fallback(b"data: {not json\n\n") == "malformed_stream"


def test_stop_sequence_is_told_when_the_server_tells_it() -> None:
    end = orjson.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": "END"}]})
    found = message(chat_chunk(content="x"), b"data: " + end + b"\n\n", stop=("END",))
    assert (found["stop_reason"], found["stop_sequence"]) == ("stop_sequence", "END")


def test_content_is_kept_for_the_log() -> None:
    chat = ChatStream(AnswerSpec("m"))
    for chunk in (chat_chunk(content="A"), chat_chunk(tool_calls=[call(0, "a", "read", '{"x":1}')])):
        chat.feed(chunk)
    chat.feed(b"".join(chat_stream(finish="tool_calls")))
    assert chat.content[0] == {"type": "text", "text": "A"}
    assert chat.content[1]["input"] == {"x": 1}
    assert chat.usage["output_tokens"] == 5


# Any stream at all.

_ids = st.sampled_from([None, "a", "b", ""])
_json_pieces = st.sampled_from(['{"x":', "1}", "{}", '"a"', "[", "", "{", "}", " ", '{"k":"v"}'])
_calls = st.lists(
    st.builds(call, st.sampled_from([None, 0, 1, 2]), _ids, st.sampled_from([None, "read", "write", ""]), _json_pieces),
    max_size=3,
)
_texts = st.sampled_from(["", "a", " ", "\n", "<think>", "</think>", "<thi", "nk>", "héllo 🙂", "data: x\n\n"])
_usages = st.sampled_from([None, {}, USAGE, {"prompt_tokens": -1}, {"completion_tokens": "7"}, 3])
_good = st.one_of(
    st.builds(lambda t: chat_chunk(content=t), _texts),
    st.builds(lambda c: chat_chunk(tool_calls=c), _calls),
    st.builds(lambda t, c: chat_chunk(content=t, tool_calls=c), _texts, _calls),
    st.builds(
        lambda f, u: chat_chunk(finish_reason=f, usage=u),
        st.sampled_from(["stop", "length", "tool_calls", "eos", "content_filter", "weird"]),
        _usages,
    ),
    st.just(DONE),
    st.just(b": comment\n\n"),
)
_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda v: (
        st.lists(v, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "delta", "content", "tool_calls", "function", "index", "name", "arguments", "usage"]
            ),
            v,
            max_size=4,
        )
    ),
    max_leaves=12,
)
_odd = st.one_of(
    _values.map(lambda v: b"data: " + orjson.dumps(v) + b"\n\n"),
    _values.map(lambda v: b"data: " + orjson.dumps({"choices": [{"delta": v}]}) + b"\r\n\r\n"),
    st.binary(max_size=12),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(_good, _good, _good, _odd), max_size=12), st.integers(0, 2**32))
def test_any_stream_is_legal_or_a_clean_error(chunks: list[bytes], seed: int) -> None:
    body = b"".join(chunks)
    cuts = random.Random(seed)
    pieces = []
    while body:
        size = cuts.choice([1, 2, 3, 7, 40, 400])
        pieces.append(body[:size])
        body = body[size:]
    run(*pieces)


@settings(max_examples=150, deadline=None)
@given(st.lists(_good, max_size=8), st.integers(0, 2**32))
def test_where_the_chunks_are_cut_does_not_matter(chunks: list[bytes], seed: int) -> None:
    def strip(found: tuple[dict[str, Any] | None, dict[str, Any] | None]) -> Any:
        message, error = found
        if message is None:
            return error
        for block in message["content"]:
            block.pop("id", None)
        return {key: message[key] for key in ("content", "stop_reason", "usage")}

    whole = strip(run(*[bytes([byte]) for byte in b"".join(chunks)]))
    cuts = random.Random(seed)
    body, pieces = b"".join(chunks), []
    while body:
        size = cuts.randint(1, 60)
        pieces.append(body[:size])
        body = body[size:]
    other = strip(run(*pieces))
    if isinstance(whole, dict) and whole.get("type") in ("api_error", "fallback"):
        # Whether a failure comes before or after the first byte depends on the writes; that it fails does not.
        assert other["type"] in ("api_error", "fallback")
    else:
        assert other == whole


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["data: a", "data:b", "event: e", ": c", "", "id: 1", "data", "retry: 5", "dataé: x"])),
    st.integers(),
)
def test_decoder_does_not_care_for_cuts_and_line_ends(lines: list[str], seed: int) -> None:
    rng = random.Random(seed)
    ends = [rng.choice(["\n", "\r\n", "\r"]) for _ in lines]
    body = "".join(line + end for line, end in zip(lines, ends, strict=True)).encode()
    plain = EventDecoder()
    # A CR before a line end of LF alone would be read as one CRLF: say it the plain way.
    expected = plain.feed(body)
    cut = EventDecoder()
    got = [event for byte in body for event in cut.feed(bytes([byte]))]
    assert got == expected


def test_event_without_an_end_does_not_fill_memory() -> None:
    decoder = EventDecoder(max_bytes=1000)
    with pytest.raises(OversizedEvent, match="1000 bytes"):
        for _ in range(100):
            decoder.feed(b"data: " + b"x" * 50 + b"\n")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_chat_stream_in_every_form_that_the_specification_allows(end: bytes) -> None:
    body = b"".join(chat_stream("a", "b")).replace(b'"choices":', b'\ndata: "choices":')
    stream = ChatStream(AnswerSpec("m"))
    out = b"".join(stream.feed(bytes([byte])) for byte in (b"\xef\xbb\xbf" + body).replace(b"\n", end))
    message, error = read_legal_stream(out + stream.finish())
    assert error is None and message is not None
    assert message["content"] == [{"type": "text", "text": "ab"}]


def test_an_event_that_is_too_large_is_an_error_of_the_models() -> None:
    with pytest.raises(ModelAnswerError, match="malformed_stream"):
        ChatStream(AnswerSpec("m")).feed(b"data: [" + b"[]," * (1 << 20) + b"0]\n\n")


@pytest.mark.parametrize("begin", ["", "text <think> ", "```py\n", "```py\n<tool_call>", "``` a"])
@pytest.mark.parametrize("unit", [" ", "\n", "<think>", "</think>", "<response>", "a ", "`", "<tool_call"])
def test_small_pieces_of_a_long_answer_take_linear_time(begin: str, unit: str) -> None:
    # 56 KB in pieces of 4 characters held the gateway's loop for 12 seconds.
    def seconds(size: int) -> float:
        text = begin + unit * (size // len(unit))
        stream = ChatStream(AnswerSpec("m", (), True))
        events = [chat_chunk(content=text[at : at + 8]) for at in range(0, len(text), 8)]
        started = time.process_time()
        with suppress(ModelAnswerError):
            for event in events:
                stream.feed(event)
        return time.process_time() - started

    took = seconds(48_000)
    assert took < 0.4 or took < 18 * seconds(8_000)  # 6 times as much; 36 times where it grows with the square
