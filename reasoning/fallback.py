"""What a fallback may report beside its decision: which model it asked, and what that used and cost.

::

    def should_respond(context):
        reply = ask_my_model(context)
        return Fallback(reply.action, model="gpt-6-luna", input_tokens=reply.prompt_tokens,
                        output_tokens=reply.completion_tokens)

    def write_code(context):                      # a stream, or a call deep inside the fallback
        with fallback_call(model="gpt-6-luna") as call:
            for piece in stream_my_model(context):
                yield piece
            call.input_tokens, call.output_tokens = ...

Both are optional. What is not reported is unknown, never zero.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field, fields
from typing import Any

_INT64 = 1 << 63
REPORTED = "reported"
"""`price_source` of a cost that the fallback itself reported."""

_COUNTS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")


@dataclass(slots=True, kw_only=True)
class Usage:
    """What one call of a fallback's model used. None: not known.

    `model` is its name as its API knows it. `input_tokens` are all of the prompt's, those that were read from a cache
    (`cache_read_tokens`) or written to one (`cache_write_tokens`) included; `output_tokens` are all of the
    completion's, those of its thoughts (`reasoning_tokens`) included. `cost_usd` is in US dollars; without it the
    cost is computed from the tokens by the list price of the model, outside of the agent.
    """

    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost_usd: float | None = None
    price_source: str | None = None
    """Where `cost_usd` comes from, for the log; by default "reported"."""

    def is_empty(self) -> bool:
        """Is nothing known?"""
        return all(getattr(self, each.name) is None for each in fields(Usage))


NO_USAGE = Usage()
"""Nothing is known. Shared: not to be changed."""


@dataclass(slots=True)
class Fallback(Usage):
    """A fallback's decision, in any form that a fallback may return, with what its model used.

    `probabilities` are those of typed questions (`reasoning.questions`): per question the probability of each option.
    """

    decision: Any
    probabilities: Mapping[str, Mapping[str, float]] | None = field(default=None, kw_only=True)


_calls: ContextVar[list[Usage] | None] = ContextVar("reasoning_fallback_calls", default=None)


@contextmanager
def fallback_call(model: str | None = None) -> Iterator[Usage]:
    """Report one call of a model from inside a fallback: set the fields of the `Usage` that this gives.

    Several calls of one fallback are added up. A call that fails or is abandoned counts with what was set until then.
    Outside of a decision nothing is recorded, so the fallback works on its own. A thread that the fallback starts
    belongs to the decision only if it runs in a copy of its context (`contextvars.copy_context`, `asyncio.to_thread`).
    """
    usage, calls = Usage(model=model), _calls.get()
    try:
        yield usage
    finally:
        if calls is not None:
            calls.append(usage)


class collecting:  # noqa: N801 - read as a function. A class, because each decision pays for it
    """Append to `calls` what `fallback_call` reports meanwhile."""

    __slots__ = ("_collected", "_token")

    def __init__(self, calls: list[Usage]) -> None:
        self._collected = calls

    def __enter__(self) -> None:
        self._token: Token[list[Usage] | None] = _calls.set(self._collected)

    def __exit__(self, *_: object) -> None:
        try:  # noqa: SIM105 - `suppress` costs half a microsecond
            _calls.reset(self._token)
        except ValueError:  # a coroutine that is thrown away may be closed in another context
            pass


def split_result(result: Any, calls: list[Usage]) -> tuple[Any, Usage]:
    """The decision that a fallback returned, and what its models used: as returned, else the sum of its calls.

    Never raises: a value of another type than the field's is unknown.
    """
    if isinstance(result, Fallback):
        return result.decision, add_usage(calls) if result.is_empty() else add_usage([result])
    return result, add_usage(calls) if calls else NO_USAGE


def add_usage(calls: list[Usage]) -> Usage:
    """The sum of several calls. A figure that one of them does not know is not known of the sum.

    Cached and reasoning tokens are a part of others: there, not known counts as none where another call knows.
    """
    if not calls:
        return Usage()
    models = dict.fromkeys(call.model for call in calls if isinstance(call.model, str) and call.model)
    sums: dict[str, int | None] = {}
    for name in _COUNTS:
        counts = [_whole(getattr(call, name)) for call in calls]
        part = name not in ("input_tokens", "output_tokens")
        known = any(count is not None for count in counts) if part else None not in counts
        sums[name] = _whole(sum(count or 0 for count in counts)) if known else None
    costs = [_usd(call.cost_usd) for call in calls]
    cost = None if None in costs else _usd(sum(cost or 0.0 for cost in costs))
    sources = dict.fromkeys(call.price_source or REPORTED for call in calls)
    source = None if cost is None else ", ".join(map(str, sources))
    return Usage(model=", ".join(models) or None, cost_usd=cost, price_source=source, **sums)


def _whole(value: Any) -> int | None:
    """A number of tokens that the log can hold, or None."""
    count = _or_none(operator.index, value)
    return count if count is not None and not isinstance(value, bool) and 0 <= count < _INT64 else None


def _usd(value: Any) -> float | None:
    cost = None if value is None or isinstance(value, bool | str) else _or_none(float, value)
    return cost if cost is not None and math.isfinite(cost) and cost >= 0 else None


def _or_none(convert: Callable[[Any], Any], value: Any) -> Any:
    try:
        return convert(value)
    except Exception:  # a value of the user's own type may do anything
        return None
