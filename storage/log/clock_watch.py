"""A wrong clock must not expire a log: is the time of this machine plausible, given when the folder was last expired?

Retention is the one verb that deletes by the clock, and a deletion cannot be undone. Each expiry therefore leaves a
mark of two clocks: the wall clock, which anybody may set, and the steady clock of the boot, which nobody can. Within
one boot both must have gone forward alike. After a reboot only the size of the step can be judged. A step that is not
plausible holds expiry back for `HOLD`, so that a person or NTP can set the clock right; if the clock then still says
the same, it is believed.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time, timedelta

import orjson

from reasoning.io.hosts import boot_id, steady
from storage.errors import ClockJumped
from storage.files import write_atomic
from storage.layout import Layout
from storage.log.clocks import ClockLimits

HOLD = timedelta(hours=20)
"""Less than a day, so that the next daily expiry finds it over."""
LONGEST_PAUSE = timedelta(days=30)
"""A longer time since the last sign of life of a folder is not believed at once where only the wall clock tells it."""

_log = logging.getLogger("storage")


@dataclass(frozen=True)
class _Mark:
    """What both clocks said. `wall` is a POSIX time in seconds; `steady` is seconds since the boot named by `boot`."""

    boot: str
    wall: float
    steady: float

    def drift(self, other: _Mark) -> timedelta | None:
        """How much further the wall clock went than the steady one since `other`. None across boots."""
        if self.boot != other.boot:
            return None
        return timedelta(seconds=(self.wall - other.wall) - (self.steady - other.steady))


def check_clock(layout: Layout, limits: ClockLimits, newest: date | None) -> None:
    """Raise `ClockJumped` where the clock went further ahead than is plausible; else leave the mark of this expiry.

    `newest` is the day of the newest decisions, the sign of life of a folder that was never expired. The caller holds
    the folder's lock.
    """
    now = _Mark(boot_id(), limits.now.timestamp(), steady())
    last, held = _read(layout)
    allowed = limits.latest - limits.now
    drift = now.drift(last) if last else None
    if drift is not None:
        implausible = drift > allowed
    else:
        signs = [datetime.fromtimestamp(last.wall, UTC)] if last else []
        signs += [datetime.combine(newest, time.max, UTC)] if newest else []
        implausible = bool(signs) and limits.now - max(signs) > max(LONGEST_PAUSE, allowed)
    if implausible:
        drift = now.drift(held) if held else None
        if held is None or drift is None or abs(drift) > allowed:
            held = now
        waited = timedelta(seconds=now.steady - held.steady)
        if waited < HOLD:
            _write(layout, last, held)
            raise ClockJumped(_explain(limits.now, last, newest, HOLD - waited))
    _write(layout, now, None)


def _explain(now: datetime, last: _Mark | None, newest: date | None, left: timedelta) -> str:
    seen = f"the last expiry was at {datetime.fromtimestamp(last.wall, UTC):%Y-%m-%d %H:%M} UTC" if last else ""
    seen = seen or f"the newest decisions are of {newest}"
    return (
        f"clock: it is {now:%Y-%m-%d %H:%M} UTC by this machine, but {seen}, and no more time can be accounted for, so "
        f"nothing was deleted; set the clock right, or if it is right, let expiry run again in "
        f"{left.total_seconds() / 3600:.0f} hours or more"
    )


def _read(layout: Layout) -> tuple[_Mark | None, _Mark | None]:
    """The mark of the last expiry, and that of the first one that was held back since."""
    try:
        found = orjson.loads(layout.expiry_clock.read_bytes())
        last, held = (_Mark(**found[name]) if found[name] else None for name in ("last", "held"))
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("%s cannot be read (%s): it is made anew", layout.expiry_clock, type(error).__name__)
        return None, None
    return last, held


def _write(layout: Layout, last: _Mark | None, held: _Mark | None) -> None:
    marks = {"last": asdict(last) if last else None, "held": asdict(held) if held else None}
    write_atomic(layout.expiry_clock, orjson.dumps(marks))
