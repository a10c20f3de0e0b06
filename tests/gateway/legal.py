"""The rules of an Anthropic stream, as a checker that gives the message which the stream makes."""

from __future__ import annotations

import re
from typing import Any

import orjson

from reasoning.io.sse import EventDecoder


def read_legal_stream(body: bytes) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """(message, error): exactly one of them when the stream was legal. AssertionError when a rule is broken."""
    events = EventDecoder().feed(body)
    assert body.endswith(b"\n\n"), "an event without an end"
    message: dict[str, Any] | None = None
    open_index: int | None = None
    arguments = ""
    delta_seen = False
    for position, event in enumerate(events):
        data = orjson.loads(event.data)
        assert event.event == data["type"], "the event line names its type"
        match data["type"]:
            case "ping":
                continue
            case "error":
                assert position == len(events) - 1, "nothing follows an error"
                assert data["error"]["type"]
                assert data["error"]["message"]
                return None, data["error"]
            case "message_start":
                assert message is None, "one message_start"
                message = data["message"]
                assert message["content"] == []
                assert message["stop_reason"] is None
                assert message["role"] == "assistant"
            case "content_block_start":
                assert message is not None
                assert open_index is None, "one block open at a time"
                assert not delta_seen
                assert data["index"] == len(message["content"]), "contiguous index"
                open_index = data["index"]
                block = dict(data["content_block"])
                assert block["type"] in ("text", "tool_use")
                if block["type"] == "text":
                    assert block["text"] == ""
                else:
                    assert block["input"] == {}
                    assert block["name"]
                    assert re.fullmatch(r"toolu_[A-Za-z0-9]+", block["id"])
                    assert block["id"] not in {b.get("id") for b in message["content"]}
                message["content"].append(block)
                arguments = ""
            case "content_block_delta":
                assert message is not None
                assert data["index"] == open_index
                block, delta = message["content"][open_index], data["delta"]
                if delta["type"] == "text_delta":
                    assert block["type"] == "text"
                    block["text"] += delta["text"]
                else:
                    assert delta["type"] == "input_json_delta"
                    assert block["type"] == "tool_use"
                    arguments += delta["partial_json"]
            case "content_block_stop":
                assert message is not None
                assert data["index"] == open_index
                block = message["content"][open_index]
                if block["type"] == "tool_use":
                    block["raw"] = arguments
                else:
                    assert block["text"].strip(), "a text of white space"
                open_index = None
            case "message_delta":
                assert message is not None
                assert open_index is None
                assert not delta_seen, "one message_delta"
                delta_seen = True
                message |= data["delta"]
                message["usage"] = message["usage"] | data["usage"]
            case "message_stop":
                assert delta_seen
                assert position == len(events) - 1
                assert message is not None
                return _finished(message), None
            case other:
                raise AssertionError(f"unknown event {other}")
    raise AssertionError("neither message_stop nor an error at the end")


def _finished(message: dict[str, Any]) -> dict[str, Any]:
    assert message["content"] or message["stop_reason"] == "max_tokens", "an empty message"
    tools = [block for block in message["content"] if block["type"] == "tool_use"]
    for block in tools:
        raw = block.pop("raw")
        try:
            block["input"] = orjson.loads(raw) if raw.strip() else {}
        except orjson.JSONDecodeError:
            assert message["stop_reason"] == "max_tokens", "cut arguments reported as whole"
            assert block is message["content"][-1], "only the last call can be cut"
    if tools:
        assert message["stop_reason"] in ("tool_use", "max_tokens")
    else:
        assert message["stop_reason"] in ("end_turn", "max_tokens", "stop_sequence")
    return message
