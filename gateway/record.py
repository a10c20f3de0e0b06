"""Writing records: at once where that costs microseconds, else beside the answers, in one thread with a bounded queue.

An answer's end is held back until the kernel has its record, so that what was answered is on record whatever becomes of
this process. A small record is one `write(2)` in the event loop: handing it to a thread and back costs three times as
much. Large ones, and all of them for `SLOW_FOR_S` after a write that took longer than `SLOW_S`, are the thread's; an
answer waits for it `WAIT_S` at most, and not at all while the thread is behind (counted as `records_late`).
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from gateway.metrics import Metrics
from reasoning.records import Decision
from reasoning.redact import describe_error
from reasoning.spool import SegmentWriter

_log = logging.getLogger("gateway")

SMALL_BYTES = 256 << 10
SLOW_S = 0.05
SLOW_FOR_S = 60.0
WAIT_S = 0.25

Make = Callable[[], Iterable[Decision]]
_Job = tuple[Make, int, Callable[[], object] | None]


class Recorder:
    """Takes jobs that make decisions; what does not fit into `max_bytes` of waiting jobs is dropped and counted."""

    def __init__(self, spool: Path, metrics: Metrics, *, max_bytes: int) -> None:
        self._writer = SegmentWriter(spool)
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._waiting = 0
        self._behind = False
        self._slow_until = 0.0
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="gateway-recorder", daemon=True)
        self._thread.start()

    def submit(self, make: Make, size: int, done: Callable[[], object] | None = None) -> bool:
        """Have `make` called and its decisions written. `size` is about how many bytes it holds. Never blocks.

        `done` is called in the recorder's thread when that has come to an end, good or bad."""
        with self._lock:
            if self._waiting + size > self._max_bytes:
                self._metrics.dropped.labels("queue_full").inc()
                return False
            self._waiting += size
        self._jobs.put((make, size, done))
        return True

    async def record(self, make: Make, size: int) -> None:
        """Have `make` called and its decisions written, and return when they are, or when the disk takes too long.

        Never raises for a record's sake."""
        started = time.monotonic()
        if size <= SMALL_BYTES and not self._waiting and started >= self._slow_until:
            self._write(make)
            if (ended := time.monotonic()) - started > SLOW_S:
                self._slow_until = ended + SLOW_FOR_S
            return
        loop = asyncio.get_running_loop()
        written: asyncio.Future[None] = loop.create_future()

        def done() -> None:
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(_settle, written)

        if not self.submit(make, size, done):
            return
        if self._behind:
            self._metrics.late.inc()
            return
        try:
            async with asyncio.timeout(WAIT_S):
                await written
        except TimeoutError:
            self._behind = True
            self._metrics.late.inc()

    def close(self) -> None:
        """Write what waits, and seal the segment."""
        self._jobs.put(None)
        self._thread.join()
        self._writer.close()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            make, size, done = job
            try:
                self._write(make)
            finally:
                with self._lock:
                    self._waiting -= size
                if self._jobs.empty():
                    self._behind = False
                if done is not None:
                    done()

    def _write(self, make: Make) -> None:
        try:
            for decision in make():
                if self._writer.write(decision):
                    self._metrics.recorded.inc()
                else:
                    self._metrics.dropped.labels("not_written").inc()
        except Exception as error:  # a record must never end the recorder
            self._metrics.dropped.labels("refused").inc()
            _log.warning("a request was not recorded: %s", describe_error(error))


def _settle(written: asyncio.Future[None]) -> None:
    if not written.done():
        written.set_result(None)
