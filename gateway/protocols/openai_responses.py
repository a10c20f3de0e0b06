"""OpenAI's Responses."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import orjson

from gateway.errors import ModelAnswerError
from gateway.http.sse import encode_event
from gateway.protocols.answers import EVENTS, JSON, OwnAnswer, UpstreamAnswer, read_json_or_events
from gateway.protocols.openai_usage import read_usage
from gateway.protocols.port import Operation
from gateway.protocols.questions import TextPrompt, read_question
from reasoning.io.bounded import load_bounded
from reasoning.io.sse import Event


def _question(request: Mapping[str, Any]) -> TextPrompt | None:
    return read_question(request, request.get("input"))


def _read_whole(response: Any) -> UpstreamAnswer:
    if response.get("status") not in (None, "completed"):
        raise ModelAnswerError("unfinished", str(response.get("status")))
    answer = UpstreamAnswer(stop="completed")
    for item in response["output"]:
        if item["type"] == "message":
            answer.text += "".join(part.get("text", "") for part in item["content"] if part["type"] == "output_text")
        elif item["type"] == "function_call":
            answer.tool_calls.append({"name": item["name"], "arguments": item["arguments"]})
    read_usage(answer, response.get("usage"))
    return answer


def _read_stream(events: list[Event]) -> UpstreamAnswer:
    for event in events:
        data = load_bounded(event.data) if event.data.strip() != b"[DONE]" else {}
        if data.get("type") == "response.completed":
            return _read_whole(data["response"])
    raise ModelAnswerError("unfinished")


def _write(answer: OwnAnswer, request: Mapping[str, Any]) -> tuple[bytes, bytes]:
    item_id = f"msg_rsn{secrets.token_hex(12)}"
    part = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": []}
    item = {"id": item_id, "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    response: dict[str, Any] = {
        "id": f"resp_rsn{secrets.token_hex(12)}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "completed",
        "model": answer.model,
        "output": [item],
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": None,
        "top_p": None,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": answer.input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": answer.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": answer.input_tokens + answer.output_tokens,
        },
    }
    if not request.get("stream"):
        return JSON, orjson.dumps(response)
    begun = response | {"status": "in_progress", "output": [], "usage": None}
    place = {"item_id": item_id, "output_index": 0, "content_index": 0}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": item | {"status": "in_progress", "content": []},
        },
        {"type": "response.content_part.added", **place, "part": part | {"text": ""}},
        {"type": "response.output_text.delta", **place, "delta": answer.text, "logprobs": []},
        {"type": "response.output_text.done", **place, "text": answer.text, "logprobs": []},
        {"type": "response.content_part.done", **place, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": response},
    ]
    return EVENTS, b"".join(
        encode_event(event["type"], event | {"sequence_number": i}) for i, event in enumerate(events)
    )


RESPONSES = Operation(
    name="responses",
    route="responses",
    path=re.compile(rb"/v1/responses"),
    question=_question,
    read=partial(read_json_or_events, whole=_read_whole, streamed=_read_stream),
    write=_write,
)
