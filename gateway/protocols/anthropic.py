"""Anthropic's API: Messages may be decision prompts or coding; all else is passed on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import orjson

from gateway.coding.translate import mint_message_id, mint_tool_id
from gateway.errors import ModelAnswerError
from gateway.http.sse import encode_event
from gateway.protocols.answers import EVENTS, JSON, OwnAnswer, UpstreamAnswer, read_json_or_events
from gateway.protocols.forced import (
    ForcedForm,
    Turn,
    asks_for_more,
    forced_schema,
    forced_tool,
    form_of,
    text_of,
    turns_of,
)
from gateway.protocols.port import MB, OpenApiPath, Operation, Protocol, roots
from gateway.protocols.questions import TextPrompt, read_question
from reasoning.errors import OversizedEvent
from reasoning.io.bounded import load_bounded
from reasoning.io.sse import Event, EventDecoder


def _question(request: Mapping[str, Any]) -> TextPrompt | None:
    return read_question(request, request.get("messages"))


def _forced_tool(tools: Any, name: Any) -> ForcedForm | None:
    if not isinstance(tools, list) or not isinstance(name, str | None):
        return None
    own = [tool for tool in tools if isinstance(tool, dict) and tool.get("type", "custom") in ("custom", None)]
    forms = [form for tool in own if (form := form_of(tool, "input_schema"))]
    return forced_tool(forms, name) if name is not None or len(forms) == len(tools) else None


def _forced(request: Mapping[str, Any]) -> ForcedForm | None:
    choice, tools, config = request.get("tool_choice"), request.get("tools"), request.get("output_config")
    kind = choice.get("type") if isinstance(choice, dict) else None
    if isinstance(choice, dict) and kind in ("tool", "any"):
        return None if asks_for_more(request) else _forced_tool(tools, choice.get("name") if kind == "tool" else None)
    wanted = (config.get("format") if isinstance(config, dict) else None) or request.get("output_format")
    if not isinstance(wanted, dict) or (tools and kind != "none") or asks_for_more(request):
        return None
    return forced_schema(None, wanted.get("schema")) if wanted.get("type") == "json_schema" else None


def _turns(request: Mapping[str, Any]) -> list[Turn] | None:
    system, turns = text_of(request.get("system")), turns_of(request.get("messages"))
    return None if system is None or turns is None else [Turn("system", system), *turns]


def read_cut(body: bytes, content_type: str) -> UpstreamAnswer:
    """What there is of an answer that has no end, or none that can be read. Never raises."""
    answer = UpstreamAnswer()
    if "text/event-stream" in content_type:
        with suppress(ModelAnswerError, OversizedEvent, ValueError, KeyError, TypeError, AttributeError):
            _read_events(EventDecoder().feed(body), answer)
    answer.stop = None  # whatever it said of its end
    return answer


def _read_message(message: Any) -> UpstreamAnswer:
    answer = UpstreamAnswer()
    for block in message["content"]:
        if block["type"] == "text":
            answer.text += block["text"]
        elif block["type"] == "tool_use":
            answer.tool_calls.append({"name": block["name"], "arguments": block["input"]})
    _read_usage(answer, message.get("usage"))
    answer.stop = message.get("stop_reason")
    return answer


def _read_stream(events: list[Event]) -> UpstreamAnswer:
    answer = UpstreamAnswer()
    if not _read_events(events, answer):
        raise ModelAnswerError("unfinished")
    return answer


def _read_events(events: list[Event], answer: UpstreamAnswer) -> bool:
    """Add what the events tell to `answer`, as they tell it. Is it all?"""
    texts: list[str] = []  # joined once: a text that grows by pieces is copied with each of them
    try:
        return _read_each(events, answer, texts)
    finally:
        answer.text += "".join(texts)


def _read_each(events: list[Event], answer: UpstreamAnswer, texts: list[str]) -> bool:
    arguments: dict[int, list[str]] = {}
    calls: dict[int, dict[str, Any]] = {}
    stopped = False
    for event in events:
        data = load_bounded(event.data)
        match data.get("type"):
            case "message_start":
                _read_usage(answer, data["message"].get("usage"))
            case "content_block_start":
                block = data["content_block"]
                if block["type"] == "tool_use":
                    calls[data["index"]] = call = {"name": block["name"], "arguments": block.get("input") or {}}
                    answer.tool_calls.append(call)
                elif block["type"] == "text":
                    texts.append(block.get("text", ""))
            case "content_block_delta":
                delta = data["delta"]
                if delta["type"] == "text_delta":
                    texts.append(delta["text"])
                elif delta["type"] == "input_json_delta":
                    arguments.setdefault(data["index"], []).append(delta["partial_json"])
            case "content_block_stop":
                if data["index"] in calls and (text := "".join(arguments.get(data["index"], []))):
                    try:
                        calls[data["index"]]["arguments"] = load_bounded(text.encode())
                    except ValueError:
                        calls[data["index"]]["arguments"] = text  # cut by max_tokens, or too large to be read
            case "message_delta":
                _read_usage(answer, data.get("usage"))
                answer.stop = (data.get("delta") or {}).get("stop_reason")
            case "message_stop":
                stopped = True
            case "error":
                raise ModelAnswerError("error_in_stream")
    return stopped


def _read_usage(answer: UpstreamAnswer, usage: Any) -> None:
    if not isinstance(usage, dict):
        return
    # The last event of a stream repeats the counts that the first one told, all of them or some.
    fresh = max((answer.input_tokens or 0) - answer.cache_read_tokens - answer.cache_write_tokens, 0)
    told = {name: value for name, value in usage.items() if isinstance(value, int) and value >= 0}
    answer.cache_write_tokens = told.get("cache_creation_input_tokens", answer.cache_write_tokens)
    answer.cache_read_tokens = told.get("cache_read_input_tokens", answer.cache_read_tokens)
    if "input_tokens" in told or answer.input_tokens is not None:
        answer.input_tokens = told.get("input_tokens", fresh) + answer.cache_write_tokens + answer.cache_read_tokens
    answer.output_tokens = told.get("output_tokens", answer.output_tokens)


_EMPTY: dict[str, dict[str, Any]] = {"text": {"text": ""}, "tool_use": {"input": {}}}
"""Of a block that a stream begins, what is still to come."""


def _write(answer: OwnAnswer, request: Mapping[str, Any]) -> tuple[bytes, bytes]:
    stop = answer.stop_sequence
    ended = {"stop_reason": "stop_sequence" if stop else "end_turn", "stop_sequence": stop}
    block: dict[str, Any] = {"type": "text", "text": answer.text}
    delta = {"type": "text_delta", "text": answer.text}
    if answer.call is not None:
        name, arguments = answer.call
        block = {"type": "tool_use", "id": mint_tool_id(), "name": name, "input": arguments}
        delta = {"type": "input_json_delta", "partial_json": orjson.dumps(arguments).decode()}
        ended = {"stop_reason": "tool_use", "stop_sequence": None}
    message: dict[str, Any] = {
        "id": mint_message_id(),
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": [block],
        **ended,
        "usage": {"input_tokens": answer.input_tokens, "output_tokens": answer.output_tokens},
    }
    if not request.get("stream"):
        return JSON, orjson.dumps(message)
    start = message | {
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": message["usage"] | {"output_tokens": 0},
    }
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": block | _EMPTY[block["type"]]},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": ended,
            "usage": {"output_tokens": answer.output_tokens},
        },
        {"type": "message_stop"},
    ]
    return EVENTS, b"".join(encode_event(event["type"], event) for event in events)


def _error(status: int, type: str, message: str, request_id: str | None) -> tuple[int, bytes]:
    error = {"type": "error", "error": {"type": type, "message": message}, "request_id": request_id}
    return status, orjson.dumps(error)


MESSAGES = Operation(
    name="anthropic",
    route="messages",
    path=re.compile(rb"/v1/messages"),
    question=_question,
    read=partial(read_json_or_events, whole=_read_message, streamed=_read_stream),
    write=_write,
    may_be_coding=True,
    forced=_forced,
    turns=_turns,
)

ANTHROPIC = Protocol(
    name="anthropic",
    title="Anthropic",
    url="https://api.anthropic.com",
    roots=frozenset({b"/", b"/api"})  # what Claude Code asks besides the API
    | roots(
        *("messages", "complete", "organizations", "environments", "sessions", "deployments", "deployment_runs"),
        *("dreams", "memory_stores", "tunnels", "user_profiles", "agents", "files", "models", "skills", "vaults"),
    ),
    operations=(MESSAGES,),
    key_headers=(b"x-api-key", b"authorization"),
    fallback_key_header=b"authorization",
    secret=re.compile(rb"sk-ant-", re.IGNORECASE),
    secret_hints=(b"sk-",),
    header_prefixes=(b"anthropic-",),
    weak_headers=frozenset({b"x-api-key"}),
    agents=(b"anthropic", b"claude"),
    any_key_roots=roots("messages", "complete"),
    error=_error,
    model_paths=("POST /v1/messages", "POST /v1/messages/count_tokens", "POST /v1/complete"),
    repeatable=re.compile(rb"/v1/(messages|messages/count_tokens|complete)"),
    # Clients whose base URL holds the /v1 already, or that leave it out: elizaOS's plugin posts to /messages.
    aliases={b"/messages": b"/v1/messages", b"/messages/count_tokens": b"/v1/messages/count_tokens"},
    administration=frozenset({b"organizations"}),
    large_bodies=((b"/v1/messages/batches", 256 * MB), (b"/v1/files", 512 * MB)),
    described=(
        OpenApiPath(
            "/v1/messages", "Anthropic Messages; coding is answered by the coding model where that can be", decided=True
        ),
        OpenApiPath("/v1/messages/count_tokens", "Anthropic token counting, passed on"),
    ),
)
