"""A text as the answer of an API: Anthropic's messages, OpenAI's chat completions and responses, whole or streamed."""

from __future__ import annotations

import secrets
import time
from typing import Any

import orjson

from gateway.read_answers import Form
from gateway.sse import DONE, encode_data, encode_event
from gateway.translate import mint_message_id


def answer_body(
    form: Form,
    text: str,
    *,
    model: str,
    input_tokens: int,
    output_tokens: int,
    stream: bool,
    stream_usage: bool = False,
    stop_sequence: str | None = None,
) -> tuple[bytes, bytes]:
    """(content type, body) of an answer that says `text`. Token counts are those that the model's server told.

    `stop_sequence` is the one that ended the text, which Anthropic tells. `stream_usage` is what a chat request says in
    `stream_options.include_usage`: a stream tells its usage only then.
    """
    if form == "chat":
        body = _chat(text, model, input_tokens, output_tokens, stream, stream_usage)
    elif form == "anthropic":
        body = _anthropic(text, model, input_tokens, output_tokens, stream, stop_sequence)
    else:
        body = _responses(text, model, input_tokens, output_tokens, stream)
    return (b"text/event-stream; charset=utf-8" if stream else b"application/json"), body


def _anthropic(text: str, model: str, input_tokens: int, output_tokens: int, stream: bool, stop: str | None) -> bytes:
    ended = {"stop_reason": "stop_sequence" if stop else "end_turn", "stop_sequence": stop}
    message: dict[str, Any] = {
        "id": mint_message_id(),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": text}],
        **ended,
        "usage": {"input_tokens": input_tokens, "output_tokens": output_tokens},
    }
    if not stream:
        return orjson.dumps(message)
    start = message | {
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": message["usage"] | {"output_tokens": 0},
    }
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": ended,
            "usage": {"output_tokens": output_tokens},
        },
        {"type": "message_stop"},
    ]
    return b"".join(encode_event(event["type"], event) for event in events)


def _chat(text: str, model: str, input_tokens: int, output_tokens: int, stream: bool, stream_usage: bool) -> bytes:
    base = {"id": f"chatcmpl-rsn{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
    usage = {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
    }
    if not stream:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        return orjson.dumps(base | {"object": "chat.completion", "choices": [choice], "usage": usage})
    base["object"] = "chat.completion.chunk"
    if stream_usage:
        base["usage"] = None
    chunks = [
        base | {"choices": [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}]},
        base | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ]
    if stream_usage:
        chunks.append(base | {"choices": [], "usage": usage})
    return b"".join(encode_data(chunk) for chunk in chunks) + DONE


def _responses(text: str, model: str, input_tokens: int, output_tokens: int, stream: bool) -> bytes:
    item_id = f"msg_rsn{secrets.token_hex(12)}"
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    item = {"id": item_id, "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    response: dict[str, Any] = {
        "id": f"resp_rsn{secrets.token_hex(12)}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "completed",
        "model": model,
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
            "input_tokens": input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": input_tokens + output_tokens,
        },
    }
    if not stream:
        return orjson.dumps(response)
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
        {"type": "response.output_text.delta", **place, "delta": text, "logprobs": []},
        {"type": "response.output_text.done", **place, "text": text, "logprobs": []},
        {"type": "response.content_part.done", **place, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": response},
    ]
    return b"".join(encode_event(event["type"], event | {"sequence_number": i}) for i, event in enumerate(events))
