"""What time it is. The provider's clock decides where ours differs: its bill, its minutes and its stops go by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from provider.port import Provider

Now = datetime | Callable[[], datetime] | None
"""A fixed time, a clock to ask again and again, or None for the machine's."""

IMPLAUSIBLE = timedelta(days=1)
"""A provider that is further ahead than this of a machine whose clock agrees with the ledger is not believed."""

TOLERANCE = timedelta(minutes=1)
"""Two clocks that differ by less are one: an HTTP `Date` has whole seconds, and an answer takes its time."""

_LOOKED_AT = timedelta(hours=1)  # how long ago the guard may have looked last for the ledger to be a witness


def clock_of(now: Now) -> Callable[[], datetime]:
    """The clock behind a `now` argument."""
    if now is None:
        return lambda: datetime.now(UTC)
    if isinstance(now, datetime):
        return lambda: now
    return now


def moment(value: Any) -> datetime | None:
    """A time, in UTC where it names no zone, else None."""
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def time_from_headers(headers: Mapping[str, str]) -> datetime | None:
    """The time of an answer's `Date` header (RFC 9110); None without one, or with one that is not a time."""
    try:
        return moment(parsedate_to_datetime(headers["date"]))
    except (KeyError, ValueError, TypeError):
        return None


def correct_time(
    provider: Provider, now: datetime, warnings: list[str], *, seen: datetime | None = None
) -> tuple[datetime, bool]:
    """`now`, or the provider's time where that differs by more than `TOLERANCE`; and whether it is to be relied on.

    `seen` is when the ledger last metered something that runs, the third witness: where the provider is ahead by more
    than `IMPLAUSIBLE` and this machine agrees with the ledger, the provider's time is not believed, as if it told none.
    A difference is said in `warnings`, with the remedy.
    """
    told = provider.time()
    if told is None:
        return now, provider.capabilities.free  # where nothing costs anything, this machine's clock is good enough
    if abs(told - now) <= TOLERANCE:
        return now, True
    if _is_refuted(told, now, seen):
        warnings.append(
            f"the provider's clock is {told - now} ahead of this machine's ({now:%Y-%m-%d %H:%M:%S} UTC), which agrees "
            "with the ledger: the provider's time is not used; if this machine's clock is wrong, synchronise it (NTP)"
        )
        return now, False
    seconds = abs(int((now - told).total_seconds()))
    warnings.append(
        f"this machine's clock is {timedelta(seconds=seconds)} {'ahead of' if now > told else 'behind'} the provider's "
        f"({now:%Y-%m-%d %H:%M:%S} UTC, the provider says {told:%H:%M:%S}): the provider's time is used; synchronise "
        "the clock (NTP)"
    )
    return told, True


def _is_refuted(told: datetime, now: datetime, seen: datetime | None) -> bool:
    """Is the provider so far ahead of this machine and of the ledger that it is the provider's clock that is wrong?"""
    return told - now > IMPLAUSIBLE and seen is not None and -TOLERANCE <= now - seen <= _LOOKED_AT


def provider_clock(provider: Provider, now: Now, *, seen: datetime | None) -> Callable[[], datetime]:
    """The clock of a `now` argument, corrected by the provider's where they differ by more than `TOLERANCE`.

    Asks the provider once. It is the clock as given without an answer, or with one that is not believed (`seen`: see
    `correct_time`).
    """
    clock = clock_of(now)
    told = provider.time()
    offset = told - clock() if told is not None else timedelta(0)
    if told is None or abs(offset) <= TOLERANCE or _is_refuted(told, clock(), seen):
        return clock
    return lambda: clock().astimezone(UTC) + offset
