"""The routes file as a client sees it: re-read when it changes, void when its lease has ended."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from reasoning.errors import RoutesError
from reasoning.records import FallbackReason
from reasoning.routes import Route, Routes, read_routes

_log = logging.getLogger("reasoning")


class RoutesLease:
    """Looks at the file (one `stat`) at every question. Never raises: `error` tells why there are no routes."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self.path = path
        self._name = str(path)
        self.error: str | None = None
        self._real_time = clock is time.time
        self._signature: tuple[int, int, int] | None = None
        self._routes: Routes | None = None
        self._read_at = 0.0

    def find(self, decision_type: str, now: float) -> tuple[Route | None, FallbackReason | None]:
        """The route of a decision type at `now` (seconds since the epoch), or why there is none."""
        routes = self._current()
        if routes is None:
            return None, "no_route"
        if now >= routes.expires_at.timestamp():
            return None, "lease_expired"
        # A clock that is set back must not lengthen a lease: it ends after its own length in any case.
        length = (routes.expires_at - routes.issued_at).total_seconds()
        if self._real_time and time.monotonic() - self._read_at >= length:
            return None, "lease_expired"
        route = routes.routes.get(decision_type)
        return (route, None) if route else (None, "no_route")

    def _current(self) -> Routes | None:
        try:
            status = os.stat(self._name)  # noqa: PTH116 - pathlib's takes three times as long
            signature = (status.st_ino, status.st_mtime_ns, status.st_size)
            if signature != self._signature:
                self._signature, self._routes = signature, None
                self._routes, self._read_at, self.error = read_routes(self.path), time.monotonic(), None
        except FileNotFoundError:
            self._routes, self._signature, self.error = None, None, None
        except OSError as error:  # of stat, such as a folder that may not be entered
            self._give_up(error)
            self._signature = None
        except RoutesError as error:
            self._give_up(error)
        return self._routes

    def _give_up(self, error: Exception) -> None:
        if str(error) != self.error:
            _log.warning("no routes, every decision is the original's: %s", error)
        self._routes, self.error = None, str(error)
