"""What an upstream said, read from a copy of its answer: Anthropic's and OpenAI's forms, whole or streamed.

For the log and for decision prompts; never on the way of an answer to its client.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from gateway.errors import ModelAnswerError
from gateway.prices import Price
from reasoning.bounded import TooLarge, load_bounded
from reasoning.errors import OversizedEvent
from reasoning.sse import Event, EventDecoder
from reasoning.turns import format_call

Form = Literal["anthropic", "chat", "responses"]


@dataclass(slots=True)
class Said:
    """An answer: its text, its tool calls in order (`{"name", "arguments"}`), and the tokens where they were told."""

    text: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    input_tokens: int | None = None  # all of them, the cached ones too
    output_tokens: int | None = None
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    stop: str | None = None  # why it ended, in the API's own word

    @property
    def completion(self) -> str:
        """Text and tool calls as one text, as `reasoning.turns` writes a turn."""
        calls = [format_call(call["name"], call["arguments"]) for call in self.tool_calls]
        return "\n".join([self.text, *calls] if self.text else calls)

    @property
    def whole(self) -> bool:
        """Was it ended by the model itself, not by a limit or a filter?"""
        return self.stop in (
            "end_turn",
            "tool_use",
            "stop_sequence",
            "stop",
            "tool_calls",
            "function_call",
            "completed",
        )

    def cost_usd(self, price: Price | None) -> float | None:
        """What its tokens cost. None where that is not known."""
        if price is None or self.input_tokens is None or self.output_tokens is None:
            return None
        return price.cost_usd(
            input=self.input_tokens - self.cache_read_tokens - self.cache_write_tokens,
            output=self.output_tokens,
            cache_read=self.cache_read_tokens,
            cache_write=self.cache_write_tokens,
        )


def read_answer(form: Form, body: bytes, content_type: str) -> Said:
    """Raises `ModelAnswerError` when it is not a whole answer of that form."""
    try:
        if "text/event-stream" in content_type:
            return _STREAMED[form](EventDecoder().feed(body))
        return _WHOLE[form](load_bounded(body))
    except (TooLarge, OversizedEvent) as error:
        raise ModelAnswerError("too_large", str(error)) from None
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ModelAnswerError("malformed", type(error).__name__) from None


def read_cut(body: bytes, content_type: str) -> Said:
    """What there is of an answer of Anthropic's that has no end, or none that can be read. Never raises."""
    said = Said()
    if "text/event-stream" in content_type:
        with suppress(ModelAnswerError, OversizedEvent, ValueError, KeyError, TypeError, AttributeError):
            _read_events(EventDecoder().feed(body), said)
    said.stop = None  # whatever it said of its end
    return said


def _anthropic(message: Any) -> Said:
    said = Said()
    for block in message["content"]:
        if block["type"] == "text":
            said.text += block["text"]
        elif block["type"] == "tool_use":
            said.tool_calls.append({"name": block["name"], "arguments": block["input"]})
    _anthropic_usage(said, message.get("usage"))
    said.stop = message.get("stop_reason")
    return said


def _anthropic_events(events: list[Event]) -> Said:
    said = Said()
    if not _read_events(events, said):
        raise ModelAnswerError("unfinished")
    return said


def _read_events(events: list[Event], said: Said) -> bool:
    """Add what the events tell to `said`, as they tell it. Is it all?"""
    texts: list[str] = []  # joined once: a text that grows by pieces is copied with each of them
    try:
        return _read_each(events, said, texts)
    finally:
        said.text += "".join(texts)


def _read_each(events: list[Event], said: Said, texts: list[str]) -> bool:
    arguments: dict[int, list[str]] = {}
    calls: dict[int, dict[str, Any]] = {}
    stopped = False
    for event in events:
        data = load_bounded(event.data)
        match data.get("type"):
            case "message_start":
                _anthropic_usage(said, data["message"].get("usage"))
            case "content_block_start":
                block = data["content_block"]
                if block["type"] == "tool_use":
                    calls[data["index"]] = call = {"name": block["name"], "arguments": block.get("input") or {}}
                    said.tool_calls.append(call)
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
                _anthropic_usage(said, data.get("usage"))
                said.stop = (data.get("delta") or {}).get("stop_reason")
            case "message_stop":
                stopped = True
            case "error":
                raise ModelAnswerError("error_in_stream")
    return stopped


def _anthropic_usage(said: Said, usage: Any) -> None:
    if not isinstance(usage, dict):
        return
    # The last event of a stream repeats the counts that the first one told, all of them or some.
    fresh = max((said.input_tokens or 0) - said.cache_read_tokens - said.cache_write_tokens, 0)
    told = {name: value for name, value in usage.items() if isinstance(value, int) and value >= 0}
    said.cache_write_tokens = told.get("cache_creation_input_tokens", said.cache_write_tokens)
    said.cache_read_tokens = told.get("cache_read_input_tokens", said.cache_read_tokens)
    if "input_tokens" in told or said.input_tokens is not None:
        said.input_tokens = told.get("input_tokens", fresh) + said.cache_write_tokens + said.cache_read_tokens
    said.output_tokens = told.get("output_tokens", said.output_tokens)


def _chat(completion: Any) -> Said:
    choice = completion["choices"][0]
    message = choice["message"]
    said = Said(text=message.get("content") or "", stop=choice.get("finish_reason"))
    for call in message.get("tool_calls") or []:
        said.tool_calls.append({"name": call["function"]["name"], "arguments": call["function"]["arguments"]})
    _chat_usage(said, completion.get("usage"))
    return said


def _chat_events(events: list[Event]) -> Said:
    said, texts = Said(), []
    for event in events:
        if event.data.strip() == b"[DONE]":
            break
        chunk = load_bounded(event.data)
        if chunk.get("error"):
            raise ModelAnswerError("error_in_stream")
        _chat_usage(said, chunk.get("usage"))
        for choice in chunk.get("choices") or []:
            texts.append((choice.get("delta") or {}).get("content") or "")
            said.stop = choice.get("finish_reason") or said.stop
    if said.stop is None:
        raise ModelAnswerError("unfinished")
    said.text = "".join(texts)
    return said


def _chat_usage(said: Said, usage: Any) -> None:
    if isinstance(usage, dict):
        said.input_tokens = usage.get("prompt_tokens", usage.get("input_tokens"))
        said.output_tokens = usage.get("completion_tokens", usage.get("output_tokens"))
        details = usage.get("prompt_tokens_details", usage.get("input_tokens_details"))
        said.cache_read_tokens = (details.get("cached_tokens") or 0) if isinstance(details, dict) else 0


def _responses(response: Any) -> Said:
    if response.get("status") not in (None, "completed"):
        raise ModelAnswerError("unfinished", str(response.get("status")))
    said = Said(stop="completed")
    for item in response["output"]:
        if item["type"] == "message":
            said.text += "".join(part.get("text", "") for part in item["content"] if part["type"] == "output_text")
        elif item["type"] == "function_call":
            said.tool_calls.append({"name": item["name"], "arguments": item["arguments"]})
    _chat_usage(said, response.get("usage"))
    return said


def _responses_events(events: list[Event]) -> Said:
    for event in events:
        data = load_bounded(event.data) if event.data.strip() != b"[DONE]" else {}
        if data.get("type") == "response.completed":
            return _responses(data["response"])
    raise ModelAnswerError("unfinished")


_WHOLE = {"anthropic": _anthropic, "chat": _chat, "responses": _responses}
_STREAMED = {"anthropic": _anthropic_events, "chat": _chat_events, "responses": _responses_events}
