"""OpenAI's chat completions. A stream tells its usage only where `stream_options.include_usage` asks for it."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import orjson

from gateway.errors import ModelAnswerError
from gateway.http.sse import DONE, encode_data
from gateway.protocols.answers import EVENTS, JSON, OwnAnswer, UpstreamAnswer, read_json_or_events
from gateway.protocols.forced import (
    ForcedForm,
    Turn,
    asks_for_more,
    forced_schema,
    openai_forced_tool,
    turns_of,
)
from gateway.protocols.openai_usage import read_usage
from gateway.protocols.port import Operation
from gateway.protocols.questions import TextPrompt, read_question
from reasoning.io.bounded import load_bounded
from reasoning.io.sse import Event


def _question(request: Mapping[str, Any]) -> TextPrompt | None:
    return read_question(request, request.get("messages"))


def _function(tool: Any) -> Any:
    return tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None


def _forced(request: Mapping[str, Any]) -> ForcedForm | None:
    choice, tools, wanted = request.get("tool_choice"), request.get("tools"), request.get("response_format")
    if choice == "required" or isinstance(choice, dict):
        return None if asks_for_more(request) else openai_forced_tool(choice, tools, _function)
    if not isinstance(wanted, dict) or (tools and choice != "none") or asks_for_more(request):
        return None
    schema = wanted.get("json_schema")
    if wanted.get("type") != "json_schema" or not isinstance(schema, dict):
        return None
    return forced_schema(schema.get("name"), schema.get("schema"), schema.get("description"))


def _turns(request: Mapping[str, Any]) -> list[Turn] | None:
    return turns_of(request.get("messages"))


def _read_whole(completion: Any) -> UpstreamAnswer:
    choice = completion["choices"][0]
    message = choice["message"]
    answer = UpstreamAnswer(text=message.get("content") or "", stop=choice.get("finish_reason"))
    for call in message.get("tool_calls") or []:
        answer.tool_calls.append({"name": call["function"]["name"], "arguments": call["function"]["arguments"]})
    read_usage(answer, completion.get("usage"))
    return answer


def _read_stream(events: list[Event]) -> UpstreamAnswer:
    answer, texts = UpstreamAnswer(), []
    calls: dict[int, tuple[list[str], list[str]]] = {}
    for event in events:
        if event.data.strip() == b"[DONE]":
            break
        chunk = load_bounded(event.data)
        if chunk.get("error"):
            raise ModelAnswerError("error_in_stream")
        read_usage(answer, chunk.get("usage"))
        for choice in chunk.get("choices") or []:
            delta = choice.get("delta") or {}
            texts.append(delta.get("content") or "")
            for call in delta.get("tool_calls") or []:
                name, arguments = calls.setdefault(call.get("index") or 0, ([], []))
                function = call.get("function") or {}
                name.append(function.get("name") or "")
                arguments.append(function.get("arguments") or "")
            answer.stop = choice.get("finish_reason") or answer.stop
    if answer.stop is None:
        raise ModelAnswerError("unfinished")
    answer.text = "".join(texts)
    for name, arguments in calls.values():
        answer.tool_calls.append({"name": "".join(name), "arguments": "".join(arguments)})
    return answer


def _write(answer: OwnAnswer, request: Mapping[str, Any]) -> tuple[bytes, bytes]:
    options = request.get("stream_options")
    tells_usage = isinstance(options, dict) and bool(options.get("include_usage"))
    base = {"id": f"chatcmpl-rsn{secrets.token_hex(12)}", "created": int(time.time()), "model": answer.model}
    usage = {
        "prompt_tokens": answer.input_tokens,
        "completion_tokens": answer.output_tokens,
        "total_tokens": answer.input_tokens + answer.output_tokens,
    }
    said: dict[str, Any] = {"content": answer.text}
    finish, streamed = "stop", said
    if answer.call is not None:
        function = {"name": answer.call[0], "arguments": orjson.dumps(answer.call[1]).decode()}
        call = {"id": f"call_rsn{secrets.token_hex(12)}", "type": "function", "function": function}
        said, streamed = {"content": None, "tool_calls": [call]}, {"content": None, "tool_calls": [{"index": 0} | call]}
        finish = "stop" if answer.named else "tool_calls"  # as OpenAI ends a call of a tool that the request names
    if not request.get("stream"):
        message = {"role": "assistant", "refusal": None} | said
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return JSON, orjson.dumps(base | {"object": "chat.completion", "choices": [choice], "usage": usage})
    base["object"] = "chat.completion.chunk"
    if tells_usage:
        base["usage"] = None
    chunks = [
        base | {"choices": [{"index": 0, "delta": {"role": "assistant"} | streamed, "finish_reason": None}]},
        base | {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]},
    ]
    if tells_usage:
        chunks.append(base | {"choices": [], "usage": usage})
    return EVENTS, b"".join(encode_data(chunk) for chunk in chunks) + DONE


CHAT = Operation(
    name="chat",
    route="chat_completions",
    path=re.compile(rb"/v1/chat/completions"),
    question=_question,
    forced=_forced,
    turns=_turns,
    read=partial(read_json_or_events, whole=_read_whole, streamed=_read_stream),
    write=_write,
)
