"""The emulator's clock: it may be set, moved forward and stopped, so that hours of bills take no hours."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from emulator.errors import ApiError
from emulator.world.state import State


class Clock:
    """UTC time of the emulator: the machine's time plus an offset, or standing still. Survives a restart.

    A standing clock keeps its time over a restart; a running one goes on running while the emulator is down.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._offset = float(state.get_setting("clock_offset", 0.0))
        self._frozen_at: float | None = state.get_setting("clock_frozen_at", None)

    @property
    def frozen(self) -> bool:
        return self._frozen_at is not None

    def timestamp(self) -> float:
        """Seconds since the epoch."""
        return self._frozen_at if self._frozen_at is not None else time.time() + self._offset

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.timestamp(), UTC)

    def set(self, now: datetime | None = None, *, advance: timedelta | None = None, frozen: bool | None = None) -> None:
        """Set the clock to `now` or move it on by `advance`; `frozen` stops it or lets it run."""
        timestamp = now.timestamp() if now is not None else self.timestamp()
        if advance is not None:
            timestamp += advance.total_seconds()
        stands = self.frozen if frozen is None else frozen
        self._frozen_at = timestamp if stands else None
        self._offset = timestamp - time.time()
        with self._state.transaction():
            self._state.set_setting("clock_frozen_at", self._frozen_at)
            self._state.set_setting("clock_offset", self._offset)


def parse_time(text: object) -> datetime:
    """A time from RFC 3339 text; without an offset it is UTC."""
    try:
        parsed = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        parsed = None
    if parsed is None:
        raise ApiError(400, f"{text!r} is not a time; write it as 2026-11-22T12:00:00Z")
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def format_time(timestamp: float) -> str:
    """RFC 3339 with microseconds and `Z`."""
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
