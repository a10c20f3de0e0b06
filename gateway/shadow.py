"""Work beside the answers: so much at once, so much waiting, the rest is not done and counted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from gateway.metrics import Metrics
from reasoning.redact import describe_error

_log = logging.getLogger("gateway")


class Shadows:
    """Runs questions to shadow arms after the answer that they are compared with has gone out."""

    def __init__(self, metrics: Metrics, *, workers: int, queue: int) -> None:
        self._metrics = metrics
        self._limit = workers + queue
        self._turns = asyncio.Semaphore(workers)
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, work: Callable[[], Awaitable[None]]) -> None:
        """Have `work` done soon, or not at all. Never waits."""
        if len(self._tasks) >= self._limit:
            self._metrics.shadows.labels("dropped").inc()
            return
        task = asyncio.create_task(self._run(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self, seconds: float = 5.0) -> None:
        """Wait so long for what is under way, then end it."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in list(self._tasks):
            self._metrics.shadows.labels("dropped").inc()
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, work: Callable[[], Awaitable[None]]) -> None:
        async with self._turns:
            try:
                await work()
            except Exception as error:  # nobody waits for it
                self._metrics.shadows.labels("failed").inc()
                _log.warning("a shadow question failed: %s", describe_error(error))
            else:
                self._metrics.shadows.labels("done").inc()
