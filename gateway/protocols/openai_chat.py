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
from gateway.protocols.openai_usage import read_usage
from gateway.protocols.port import Operation
from gateway.protocols.questions import TextPrompt, read_question
from reasoning.io.bounded import load_bounded
from reasoning.io.sse import Event


def _question(request: Mapping[str, Any]) -> TextPrompt | None:
    return read_question(request, request.get("messages"))


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
    for event in events:
        if event.data.strip() == b"[DONE]":
            break
        chunk = load_bounded(event.data)
        if chunk.get("error"):
            raise ModelAnswerError("error_in_stream")
        read_usage(answer, chunk.get("usage"))
        for choice in chunk.get("choices") or []:
            texts.append((choice.get("delta") or {}).get("content") or "")
            answer.stop = choice.get("finish_reason") or answer.stop
    if answer.stop is None:
        raise ModelAnswerError("unfinished")
    answer.text = "".join(texts)
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
    if not request.get("stream"):
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        return JSON, orjson.dumps(base | {"object": "chat.completion", "choices": [choice], "usage": usage})
    base["object"] = "chat.completion.chunk"
    if tells_usage:
        base["usage"] = None
    chunks = [
        base
        | {"choices": [{"index": 0, "delta": {"role": "assistant", "content": answer.text}, "finish_reason": None}]},
        base | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ]
    if tells_usage:
        chunks.append(base | {"choices": [], "usage": usage})
    return EVENTS, b"".join(encode_data(chunk) for chunk in chunks) + DONE


CHAT = Operation(
    name="chat",
    route="chat_completions",
    path=re.compile(rb"/v1/chat/completions"),
    question=_question,
    read=partial(read_json_or_events, whole=_read_whole, streamed=_read_stream),
    write=_write,
)
