"""How long work at the provider is waited for, and who is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from provider.clock import Now
from storage.progress import OnProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How a step that takes long is waited for.

    `poll_seconds` is the pause between two looks, `timeout` the longest wait in all (None: that of the function).
    `progress` is told how far it is, `now` is the time, and `wait` sleeps.
    """

    progress: OnProgress | None = None
    poll_seconds: float = 5.0
    timeout: timedelta | None = None
    now: Now = None
    wait: Callable[[float], None] = time.sleep

    def longest(self, default: timedelta) -> timedelta:
        """The longest wait: `timeout`, or `default` where none is set."""
        return default if self.timeout is None else self.timeout


AT_EASE = Pace()
