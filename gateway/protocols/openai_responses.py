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
from gateway.protocols.forced import (
    ForcedForm,
    Turn,
    asks_for_more,
    called,
    forced_schema,
    openai_forced_tool,
    text_of,
    turns_of,
)
from gateway.protocols.openai_usage import read_usage
from gateway.protocols.port import Operation
from gateway.protocols.questions import TextPrompt, read_question
from reasoning.io.bounded import load_bounded
from reasoning.io.sse import Event


def _question(request: Mapping[str, Any]) -> TextPrompt | None:
    return read_question(request, request.get("input"))


def _function(tool: Any) -> Any:
    return tool if isinstance(tool, dict) and tool.get("type") == "function" else None


def _forced(request: Mapping[str, Any]) -> ForcedForm | None:
    choice, tools, text = request.get("tool_choice"), request.get("tools"), request.get("text")
    if choice == "required" or isinstance(choice, dict):
        return None if asks_for_more(request) else openai_forced_tool(choice, tools, _function)
    wanted = text.get("format") if isinstance(text, dict) else None
    if not isinstance(wanted, dict) or (tools and choice != "none") or asks_for_more(request):
        return None
    if wanted.get("type") != "json_schema":
        return None
    return forced_schema(wanted.get("name"), wanted.get("schema"), wanted.get("description"))


def _turns(request: Mapping[str, Any]) -> list[Turn] | None:
    instructions, given = request.get("instructions"), request.get("input")
    if not isinstance(instructions, str | None):
        return None
    head = [Turn("system", instructions)] if instructions else []
    if isinstance(given, str):
        return [*head, Turn("user", given)]
    if not isinstance(given, list):
        return None
    turns = []
    for item in given:
        kind = item.get("type", "message") if isinstance(item, dict) else None
        if kind == "reasoning":
            continue
        if kind == "function_call":
            turns.append(Turn("assistant", called(item.get("name"), item.get("arguments"))))
        elif kind == "function_call_output":
            if (output := text_of(item.get("output"))) is None:
                return None
            turns.append(Turn("tool", output))
        elif kind != "message" or (said := turns_of([item])) is None:
            return None
        else:
            turns += said
    return [*head, *turns]


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


def _text_item(answer: OwnAnswer) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An output item of text, and the events that stream it up to its last one."""
    item_id = f"msg_rsn{secrets.token_hex(12)}"
    part = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": []}
    item = {"id": item_id, "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    place = {"item_id": item_id, "output_index": 0, "content_index": 0}
    begun = item | {"status": "in_progress", "content": []}
    return item, [
        {"type": "response.output_item.added", "output_index": 0, "item": begun},
        {"type": "response.content_part.added", **place, "part": part | {"text": ""}},
        {"type": "response.output_text.delta", **place, "delta": answer.text, "logprobs": []},
        {"type": "response.output_text.done", **place, "text": answer.text, "logprobs": []},
        {"type": "response.content_part.done", **place, "part": part},
    ]


def _call_item(answer: OwnAnswer) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The same of a tool call."""
    assert answer.call is not None
    name, arguments = answer.call[0], orjson.dumps(answer.call[1]).decode()
    item_id, call_id = f"fc_rsn{secrets.token_hex(12)}", f"call_rsn{secrets.token_hex(12)}"
    item = {"type": "function_call", "id": item_id, "call_id": call_id, "name": name, "arguments": arguments}
    item["status"] = "completed"
    place = {"item_id": item_id, "output_index": 0}
    begun = item | {"status": "in_progress", "arguments": ""}
    return item, [
        {"type": "response.output_item.added", "output_index": 0, "item": begun},
        {"type": "response.function_call_arguments.delta", **place, "delta": arguments},
        {"type": "response.function_call_arguments.done", **place, "name": name, "arguments": arguments},
    ]


def _write(answer: OwnAnswer, request: Mapping[str, Any]) -> tuple[bytes, bytes]:
    item, changes = _call_item(answer) if answer.call is not None else _text_item(answer)
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
        "store": False,
        "temperature": None,
        "top_p": None,
        "tool_choice": request.get("tool_choice") or "auto",
        "tools": request.get("tools") or [],
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
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        *changes,
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
    forced=_forced,
    turns=_turns,
    read=partial(read_json_or_events, whole=_read_whole, streamed=_read_stream),
    write=_write,
)
