"""Writing records: beside the answers, in one thread with a bounded queue.

An answer's end is held back until the kernel has its record, so that what was answered is on record whatever becomes of
this process: for a quarter of a second at most, and not at all while the thread is behind (counted as `records_late`).
Nothing is written in the event loop, for nobody knows when a disk will hang. What waits is written together, and who
waits is told together: most of what a thread costs is to be woken, and to wake.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gateway.ops.metrics import Metrics
from reasoning.error_text import describe_error
from reasoning.io.spool import SegmentWriter
from reasoning.records import Decision, Feedback

_log = logging.getLogger("gateway")

SMALL_BYTES = 256 << 10
"""Up to this size of a request and its answer the record is made in the event loop, in some 0.1 ms; else beside it."""
SMALL_ANSWER = 16 << 10
"""The same for the answer alone, in which markup is looked for: 56 KB of the worst take 100 ms."""
LOOK_S = 0.125
"""How long the thread may take for what it has taken, before nobody waits for it any more."""

RecordFactory = Callable[[], Iterable[Decision | Feedback]]


class _Job(NamedTuple):
    make: RecordFactory
    size: int
    written: asyncio.Future[bool]


class Recorder:
    """Takes jobs that make records; what does not fit into `max_bytes` of waiting jobs is dropped and counted.

    All but `close` is for the event loop."""

    def __init__(self, spool: Path, metrics: Metrics, *, max_bytes: int) -> None:
        self._writer = SegmentWriter(spool)
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._waiting_bytes = 0
        self._waiting: set[asyncio.Future[bool]] = set()
        self._behind = False
        self._looks = False
        self._batches = 0  # that were written
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="gateway-recorder", daemon=True)
        self._thread.start()

    async def record(self, make: RecordFactory, size: int, *, answer: int) -> None:
        """Have `make` called and its records written, and return when they are, or when the disk takes too long.

        `size` is about how many bytes `make` holds, `answer` how many of them are an answer's. Never raises for a
        record's sake."""
        if size <= SMALL_BYTES and answer <= SMALL_ANSWER:
            made = self._make(make)
            await self.submit(lambda: made, size)
        else:
            await self.submit(make, size)

    def submit(self, make: RecordFactory, size: int) -> asyncio.Future[bool]:
        """Have `make` called and its records written, by the thread. `size` is about how many bytes it holds.

        The future comes true when all is written; false when something was dropped, or is late."""
        loop = asyncio.get_running_loop()
        written: asyncio.Future[bool] = loop.create_future()
        with self._lock:
            fits = self._waiting_bytes + size <= self._max_bytes
            self._waiting_bytes += size if fits else 0
        if not fits:
            self._metrics.dropped.labels("queue_full").inc()
            written.set_result(False)
            return written
        self._jobs.put(_Job(make, size, written))
        if self._behind:
            self._metrics.late.inc()
            written.set_result(False)
            return written
        self._waiting.add(written)
        if not self._looks:
            self._looks = True
            loop.call_later(LOOK_S, self._look, self._batches)
        return written

    def close(self) -> None:
        """Write what waits, and seal the segment."""
        self._jobs.put(None)
        self._thread.join()
        self._writer.close()

    def _look(self, batches: int) -> None:
        """Nobody waits any more for a thread that has written nothing since `batches`."""
        if self._waiting and self._batches == batches:
            self._behind = True
            self._metrics.late.inc(len(self._waiting))
            for future in self._waiting:
                if not future.done():
                    future.set_result(False)
            self._waiting.clear()
        self._looks = bool(self._waiting)
        if self._looks:
            asyncio.get_running_loop().call_later(LOOK_S, self._look, self._batches)

    def _settle(self, written: Sequence[tuple[asyncio.Future[bool], bool]], caught_up: bool) -> None:
        self._batches += 1
        self._behind = self._behind and not caught_up
        for future, result in written:
            self._waiting.discard(future)
            if not future.done():
                future.set_result(result)

    def _run(self) -> None:
        while True:
            found = [self._jobs.get()]
            with suppress(queue.Empty):
                while True:
                    found.append(self._jobs.get_nowait())
            jobs = [job for job in found if job is not None]
            written = [(job.written, self._write(job.make)) for job in jobs]
            with self._lock:
                self._waiting_bytes -= sum(job.size for job in jobs)
            if jobs:
                with suppress(RuntimeError):  # the loop has ended meanwhile
                    jobs[0].written.get_loop().call_soon_threadsafe(self._settle, written, self._jobs.empty())
            if len(jobs) < len(found):
                return

    def _write(self, make: RecordFactory) -> bool:
        records = self._make(make)
        written = sum(self._writer.write(record) for record in records)
        self._metrics.recorded.inc(written)
        if written < len(records):
            self._metrics.dropped.labels("not_written").inc(len(records) - written)
        return written == len(records)

    def _make(self, make: RecordFactory) -> list[Decision | Feedback]:
        try:
            return list(make())
        except Exception as error:  # a record must never end the recorder
            self._metrics.dropped.labels("refused").inc()
            _log.warning("a request was not recorded: %s", describe_error(error))
            return []
