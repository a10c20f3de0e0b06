"""Writing records beside the answers: a bounded queue and one thread, so that no answer ever waits for a disk."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from gateway.metrics import Metrics
from reasoning.records import Decision
from reasoning.redact import describe_error
from reasoning.spool import SegmentWriter

_log = logging.getLogger("gateway")

# The event loop waits for this thread whenever both have something to do: let it be seldom, for many records at once.
PAUSE_S = 0.05

Make = Callable[[], Iterable[Decision]]


class Recorder:
    """Takes jobs that make decisions; what does not fit into `max_bytes` of waiting jobs is dropped and counted."""

    def __init__(self, spool: Path, metrics: Metrics, *, max_bytes: int) -> None:
        self._writer = SegmentWriter(spool)
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._waiting = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._jobs: queue.SimpleQueue[tuple[Make, int] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="gateway-recorder", daemon=True)
        self._thread.start()

    def submit(self, make: Make, size: int) -> bool:
        """Have `make` called and its decisions written. `size` is about how many bytes it holds. Never blocks."""
        with self._lock:
            if self._waiting + size > self._max_bytes:
                self._metrics.dropped.labels("queue_full").inc()
                return False
            self._waiting += size
        self._jobs.put((make, size))
        return True

    def close(self) -> None:
        """Write what waits, and seal the segment."""
        self._closing.set()
        self._jobs.put(None)
        self._thread.join()
        self._writer.close()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            make, size = job
            try:
                for decision in make():
                    if self._writer.write(decision):
                        self._metrics.recorded.inc()
                    else:
                        self._metrics.dropped.labels("not_written").inc()
            except Exception as error:  # a record must never end the recorder
                self._metrics.dropped.labels("refused").inc()
                _log.warning("a request was not recorded: %s", describe_error(error))
            finally:
                with self._lock:
                    self._waiting -= size
            if self._jobs.empty():
                self._closing.wait(PAUSE_S)
