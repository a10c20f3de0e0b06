"""Answers of APIs: what is read from an upstream's, and what one of our own says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.errors import ModelAnswerError
from prices.models import AnyPrice
from reasoning.errors import OversizedEvent
from reasoning.fallback import Usage
from reasoning.formats.turns import format_call
from reasoning.io.bounded import TooLarge, load_bounded
from reasoning.io.sse import Event, EventDecoder

JSON, EVENTS = b"application/json", b"text/event-stream; charset=utf-8"

FINISHED = ("end_turn", "tool_use", "stop_sequence", "stop", "tool_calls", "function_call", "completed")
"""The reasons for an end that the model itself made, not a limit or a filter. A reader of an API with another word for
it writes `stop`. A tuple, because what an upstream sends may be of any type, such as a list."""


@dataclass(slots=True)
class UpstreamAnswer:
    """An answer: its text, its tool calls in order (`{"name", "arguments"}`), and the tokens where they were told."""

    text: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    input_tokens: int | None = None  # all of them, the cached ones too
    output_tokens: int | None = None
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int | None = None  # of the output tokens
    stop: str | None = None  # why it ended, in the API's own word

    @property
    def completion(self) -> str:
        """Text and tool calls as one text, as `reasoning.formats.turns` writes a turn."""
        calls = [format_call(call["name"], call["arguments"]) for call in self.tool_calls]
        return "\n".join([self.text, *calls] if self.text else calls)

    @property
    def whole(self) -> bool:
        """Was it ended by the model itself, not by a limit or a filter?"""
        return self.stop in FINISHED

    def cost_usd(self, price: AnyPrice | None) -> float | None:
        """What its tokens cost. None where that is not known."""
        if price is None or self.input_tokens is None or self.output_tokens is None:
            return None
        return price.cost_usd(
            input=max(self.input_tokens - self.cache_read_tokens - self.cache_write_tokens, 0),
            output=self.output_tokens,
            cache_read=self.cache_read_tokens,
            cache_write=self.cache_write_tokens,
        )

    def usage(self, model: object, price: AnyPrice | None) -> Usage:
        """What the answer of `model` used, as the log has it."""
        cost = self.cost_usd(price)
        told = self.input_tokens is not None
        return Usage(
            model=model if isinstance(model, str) else None,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            cache_read_tokens=self.cache_read_tokens if told else None,
            cache_write_tokens=self.cache_write_tokens if told else None,
            reasoning_tokens=self.reasoning_tokens,
            cost_usd=cost,
            price_source=price.source if price is not None and cost is not None else None,
        )


@dataclass(frozen=True, slots=True)
class OwnAnswer:
    """An answer of ours to a client. Token counts are those that the model's server reported.

    `call` is the tool call that it is instead of a text: name and arguments; `named` says that the request names the
    tool. `stop_sequence` is the client's stop sequence that ended the text, if one did."""

    text: str
    model: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    stop_sequence: str | None = None
    call: tuple[str, dict[str, Any]] | None = None
    named: bool = False


def read_json_or_events(
    body: bytes,
    content_type: str,
    *,
    whole: Callable[[Any], UpstreamAnswer],
    streamed: Callable[[list[Event]], UpstreamAnswer],
) -> UpstreamAnswer:
    """Read a JSON answer with `whole`, or one of server-sent events with `streamed`.

    Raises `ModelAnswerError` when it is not a complete answer, whatever the readers stumble over."""
    try:
        if "text/event-stream" in content_type:
            return streamed(EventDecoder().feed(body))
        return whole(load_bounded(body))
    except (TooLarge, OversizedEvent) as error:
        raise ModelAnswerError("too_large", str(error)) from None
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ModelAnswerError("malformed", type(error).__name__) from None
