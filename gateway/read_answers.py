"""What an upstream said, read from a copy of its answer: Anthropic's and OpenAI's forms, whole or streamed.

For the log and for decision prompts; never on the way of an answer to its client.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from gateway.errors import ModelAnswerError
from gateway.sse import Event, EventDecoder

Form = Literal["anthropic", "chat", "responses"]


@dataclass(slots=True)
class Said:
    """An answer: its text, its tool calls in order (`{"name", "arguments"}`), and the tokens where they were told."""

    text: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    input_tokens: int | None = None
    output_tokens: int | None = None

    @property
    def completion(self) -> str:
        return with_tool_calls(self.text, self.tool_calls)


def with_tool_calls(text: str, calls: list[dict[str, Any]]) -> str:
    """Text and tool calls as one text, in the form that open models are trained on (`<tool_call>` and JSON)."""
    rendered = [f"<tool_call>\n{orjson.dumps(call).decode()}\n</tool_call>" for call in calls]
    return "\n".join([text, *rendered] if text else rendered)


def read_answer(form: Form, body: bytes, content_type: str) -> Said:
    """Raises `ModelAnswerError` when it is not a whole answer of that form."""
    try:
        if "text/event-stream" in content_type:
            decoder = EventDecoder()
            events = decoder.feed(body) + decoder.finish()
            return _STREAMED[form](events)
        return _WHOLE[form](orjson.loads(body))
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ModelAnswerError("malformed", type(error).__name__) from None


def _anthropic(message: Any) -> Said:
    said = Said()
    for block in message["content"]:
        if block["type"] == "text":
            said.text += block["text"]
        elif block["type"] == "tool_use":
            said.tool_calls.append({"name": block["name"], "arguments": block["input"]})
    _anthropic_usage(said, message.get("usage"))
    return said


def _anthropic_events(events: list[Event]) -> Said:
    said = Said()
    arguments: dict[int, list[str]] = {}
    calls: dict[int, dict[str, Any]] = {}
    stopped = False
    for event in events:
        data = orjson.loads(event.data)
        match data.get("type"):
            case "message_start":
                _anthropic_usage(said, data["message"].get("usage"))
            case "content_block_start":
                block = data["content_block"]
                if block["type"] == "tool_use":
                    calls[data["index"]] = call = {"name": block["name"], "arguments": block.get("input") or {}}
                    said.tool_calls.append(call)
                elif block["type"] == "text":
                    said.text += block.get("text", "")
            case "content_block_delta":
                delta = data["delta"]
                if delta["type"] == "text_delta":
                    said.text += delta["text"]
                elif delta["type"] == "input_json_delta":
                    arguments.setdefault(data["index"], []).append(delta["partial_json"])
            case "content_block_stop":
                if data["index"] in calls and (text := "".join(arguments.get(data["index"], []))):
                    try:
                        calls[data["index"]]["arguments"] = orjson.loads(text)
                    except orjson.JSONDecodeError:
                        calls[data["index"]]["arguments"] = text  # cut by max_tokens
            case "message_delta":
                _anthropic_usage(said, data.get("usage"))
            case "message_stop":
                stopped = True
            case "error":
                raise ModelAnswerError("error_in_stream")
    if not stopped:
        raise ModelAnswerError("unfinished")
    return said


def _anthropic_usage(said: Said, usage: Any) -> None:
    if not isinstance(usage, dict):
        return
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    if any(isinstance(usage.get(name), int) for name in names):
        said.input_tokens = sum(usage.get(name) or 0 for name in names)
    if isinstance(usage.get("output_tokens"), int):
        said.output_tokens = usage["output_tokens"]


def _chat(completion: Any) -> Said:
    message = completion["choices"][0]["message"]
    said = Said(text=message.get("content") or "")
    for call in message.get("tool_calls") or []:
        said.tool_calls.append({"name": call["function"]["name"], "arguments": call["function"]["arguments"]})
    _chat_usage(said, completion.get("usage"))
    return said


def _chat_events(events: list[Event]) -> Said:
    said = Said()
    finished = False
    for event in events:
        if event.data.strip() == b"[DONE]":
            break
        chunk = orjson.loads(event.data)
        if chunk.get("error"):
            raise ModelAnswerError("error_in_stream")
        _chat_usage(said, chunk.get("usage"))
        for choice in chunk.get("choices") or []:
            said.text += (choice.get("delta") or {}).get("content") or ""
            finished = finished or bool(choice.get("finish_reason"))
    if not finished:
        raise ModelAnswerError("unfinished")
    return said


def _chat_usage(said: Said, usage: Any) -> None:
    if isinstance(usage, dict):
        said.input_tokens = usage.get("prompt_tokens", usage.get("input_tokens"))
        said.output_tokens = usage.get("completion_tokens", usage.get("output_tokens"))


def _responses(response: Any) -> Said:
    if response.get("status") not in (None, "completed"):
        raise ModelAnswerError("unfinished", str(response.get("status")))
    said = Said()
    for item in response["output"]:
        if item["type"] == "message":
            said.text += "".join(part.get("text", "") for part in item["content"] if part["type"] == "output_text")
        elif item["type"] == "function_call":
            said.tool_calls.append({"name": item["name"], "arguments": item["arguments"]})
    _chat_usage(said, response.get("usage"))
    return said


def _responses_events(events: list[Event]) -> Said:
    for event in events:
        data = orjson.loads(event.data) if event.data.strip() != b"[DONE]" else {}
        if data.get("type") == "response.completed":
            return _responses(data["response"])
    raise ModelAnswerError("unfinished")


_WHOLE = {"anthropic": _anthropic, "chat": _chat, "responses": _responses}
_STREAMED = {"anthropic": _anthropic_events, "chat": _chat_events, "responses": _responses_events}
