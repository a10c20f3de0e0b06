"""A circuit breaker: after enough failures in a row, leave a model alone for a while, then try one call."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class CircuitBreaker:
    """Closed (calls pass), open (none does), half-open (one probe does). One per model. Thread-safe.

    Every `allow()` that returned True is followed by exactly one of `succeed()`, `fail()` and `release()`.
    `seconds` is how long it stays open; a failed probe doubles that, up to ten times `seconds`.
    """

    def __init__(self, failures: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = failures
        self._seconds = seconds
        self._clock = clock
        self._failures = 0
        self._wait = seconds
        self._retry_at = 0.0
        self._probing = False
        self._lock = threading.RLock()  # reentrant, for signal handlers

    def allow(self) -> bool:
        """May a call be made now?"""
        if self._failures < self._limit:
            return True
        with self._lock:
            if self._probing or self._clock() < self._retry_at:
                return False
            self._probing = True
            return True

    def succeed(self) -> None:
        """The call was answered."""
        if self._failures or self._probing:
            with self._lock:
                self._failures, self._wait, self._probing = 0, self._seconds, False

    def fail(self) -> None:
        """The call failed."""
        with self._lock:
            self._failures += 1
            if self._failures >= self._limit:
                if self._probing:
                    self._wait = min(self._wait * 2, self._seconds * 10)
                self._retry_at = self._clock() + self._wait
            self._probing = False

    def release(self) -> None:
        """The call was given up (a cancellation): it says nothing about the model."""
        with self._lock:
            self._probing = False

    @property
    def state(self) -> str:
        """`closed`, `open`, or `half_open` while its probe is under way."""
        if self._failures < self._limit:
            return "closed"
        return "half_open" if self._probing else "open"
