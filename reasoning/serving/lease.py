"""The routes file as a client sees it: re-read when it changes, void when its lease has ended."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from reasoning.errors import RoutesError
from reasoning.records import FallbackReason
from reasoning.serving.routes import CLOCK_TOLERANCE, Route, Routes, read_routes

_log = logging.getLogger("reasoning")


class _Lease(NamedTuple):
    """One state of the file. Threads swap it as a whole: none may see the new file's signature with the old routes."""

    signature: tuple[int, int, int]
    routes: Routes | None
    begins_at: float
    """0, unless the lease was issued in the future when it was read: by a clock that was wrong."""
    expires_at: float
    """Seconds since the epoch."""
    ends_at: float
    """By the monotonic clock: a clock that is set back must not lengthen a lease."""


class RoutesLease:
    """Looks at the file (one `stat`) at every question. Never raises: `error` tells why there are no routes."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self.path = path
        self._name = str(path)
        self.error: str | None = None
        self._clock = clock
        self._real_time = clock is time.time
        self._lease: _Lease | None = None

    def find(self, decision_type: str, now: float) -> tuple[Route | None, FallbackReason | None]:
        """The route of a decision type at `now` (seconds since the epoch), or why there is none."""
        lease = self._current()
        if lease is None or lease.routes is None:
            return None, "no_route"
        if not lease.begins_at <= now < lease.expires_at or (self._real_time and time.monotonic() >= lease.ends_at):
            return None, "lease_expired"
        route = lease.routes.routes.get(decision_type)
        return (route, None) if route else (None, "no_route")

    def _current(self) -> _Lease | None:
        lease = self._lease
        try:
            status = os.stat(self._name)  # noqa: PTH116 - pathlib's takes three times as long
            signature = (status.st_ino, status.st_mtime_ns, status.st_size)
            if lease is None or signature != lease.signature:
                lease = self._lease = self._read(signature)
        except FileNotFoundError:
            lease = self._lease = self.error = None
        except OSError as error:  # of stat, such as a folder that may not be entered
            lease = self._lease = None
            self._give_up(error)
        return lease

    def _read(self, signature: tuple[int, int, int]) -> _Lease | None:
        try:
            routes = read_routes(self.path)
        except FileNotFoundError:
            raise
        except Exception as error:  # whatever a file holds, the agent goes on
            self._give_up(error)
            if isinstance(error, RoutesError) and not isinstance(error.__cause__, OSError):
                return _Lease(signature, None, 0.0, 0.0, 0.0)
            return None  # not the file's fault, such as too many open files: it is read again at the next question
        if refusal := routes.refusal():
            self._give_up(RoutesError(f"{self.path}: {refusal}"))
            return _Lease(signature, routes, 0.0, 0.0, 0.0)  # expired, whatever the time
        clock, begins_at = self._clock(), (routes.issued_at - CLOCK_TOLERANCE).timestamp()
        if clock < begins_at:
            when = f"issued at {routes.issued_at:%Y-%m-%dT%H:%M:%SZ}, which is in the future"
            self._give_up(RoutesError(f"{self.path}: {when}; synchronise the clocks of the guard and the agents"))
        else:
            self.error, begins_at = None, 0.0
        expires_at = routes.expires_at.timestamp()
        length = (routes.expires_at - routes.issued_at).total_seconds()
        return _Lease(signature, routes, begins_at, expires_at, time.monotonic() + min(length, expires_at - clock))

    def _give_up(self, error: Exception) -> None:
        if str(error) != self.error:
            _log.warning("no routes, every decision is the original's: %s", error)
        self.error = str(error)
