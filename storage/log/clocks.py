"""Reject records whose time is implausible by the landing clock, so that retention and time splits stay correct."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from storage.layout import read_settings
from storage.log.batches import Batch, Parsed

_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class ClockLimits:
    """The earliest and the latest time that a record may have when it lands at `now`."""

    now: datetime
    earliest: datetime
    latest: datetime


def clock_limits(now: datetime | None = None) -> ClockLimits:
    """The limits of `[storage]` in reasoning.toml around `now`, by default the time of this machine."""
    config = read_settings()
    now = (now or datetime.now(UTC)).astimezone(UTC)
    behind = min(timedelta(days=config.max_days_behind), now - _FIRST)
    ahead = min(timedelta(days=config.max_days_ahead), _LAST - now)
    return ClockLimits(now, now - behind, now + ahead)


def reject_off_clock(parsed: Parsed, limits: ClockLimits) -> Parsed:
    """Move the rows beyond the limits to the rejected lines, with the reason.

    Feedback is judged by its own time, but never refers to a future decision.
    """
    batches, rejected = [], dict(parsed[1])
    for batch in parsed[0]:
        reasons = _find_off_clock(batch, limits)
        if reasons:
            rejected |= {batch.lines[row]: reason for row, reason in reasons.items()}
            keep = [row for row in range(len(batch.lines)) if row not in reasons]
            batch = Batch(batch.key, batch.table.take(pa.array(keep, pa.int64())), [batch.lines[row] for row in keep])
        if batch.lines:
            batches.append(batch)
    return batches, rejected


def _find_off_clock(batch: Batch, limits: ClockLimits) -> dict[int, str]:
    ts = batch.table["ts"]
    if batch.key.date > limits.latest.date().isoformat():
        return {row: _reason(f"{batch.key.date}", limits, ahead=True) for row in range(len(ts))}
    bounds = pc.min_max(ts)
    kind = ts.type
    reasons = {}
    for limit, beyond, ahead in ((limits.latest, pc.greater, True), (limits.earliest, pc.less, False)):
        edge = pa.scalar(limit, kind)
        if beyond(bounds["max" if ahead else "min"], edge).as_py():
            for row in pc.indices_nonzero(beyond(ts, edge)).to_pylist():
                reasons[row] = _reason(str(ts[row].cast(pa.string()).as_py()), limits, ahead=ahead)
    return reasons


def _reason(time: str, limits: ClockLimits, *, ahead: bool) -> str:
    edge, word = (limits.latest, "ahead of") if ahead else (limits.earliest, "behind")
    days = abs((edge - limits.now).total_seconds()) / 86_400
    return (
        f"clock: {time} is more than {days:g} days {word} the clock of landing ({limits.now:%Y-%m-%dT%H:%M:%SZ}); set "
        f"the clock of its host right, and run `reasoning reland` once the time fits, or with a larger [storage] "
        f"max_days_{'ahead' if ahead else 'behind'} in reasoning.toml"
    )


def counting_day(day: date, landed: date, limits: ClockLimits) -> date:
    """The day that retention counts from: the later of the record's and the landing day, ignoring impossible ones."""
    possible = [each for each in (day, landed) if each <= limits.latest.date()]
    return max(possible, default=limits.now.date())
