"""Background work that may be dropped, but never delays anyone."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

_log = logging.getLogger("reasoning")
_Work = Callable[[], None] | None


class ShadowPool:
    """A few daemon threads behind a bounded queue: concurrent.futures has no bound, and holds up a process's end.

    A signal handler may `submit` in the middle of one: `SimpleQueue.put` is reentrant, and no lock is waited for.
    """

    def __init__(self, workers: int, limit: int) -> None:
        self._workers = workers
        self._limit = max(limit, workers)
        self._starting = threading.Lock()
        self._tasks: SimpleQueue[_Work] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, work: Callable[[], None]) -> bool:
        """Take `work`, or refuse it when the queue is full."""
        if not self._threads and not self._start():
            return False
        if self._tasks.qsize() >= self._limit:
            return False
        self._tasks.put(work)
        return True

    def close(self, seconds: float) -> int:
        """Wait for what was taken, at most so long. How much was left undone, and is dropped."""
        until = time.monotonic() + seconds
        threads, self._threads = self._threads, []
        tasks, self._tasks = self._tasks, SimpleQueue()
        for _ in threads:
            tasks.put(None)
        for thread in threads:
            thread.join(max(until - time.monotonic(), 0))
        dropped = 0
        while True:
            try:
                dropped += tasks.get_nowait() is not None
            except Empty:
                break
        for _ in threads:  # for those that are still at work
            tasks.put(None)
        return dropped

    def _start(self) -> bool:
        """Start the threads. Whether there are any, or will be: another caller may be at it."""
        if not self._starting.acquire(blocking=False):
            return True
        try:
            if not self._threads:
                started = []
                try:
                    for _ in range(self._workers):
                        thread = threading.Thread(
                            target=_work, args=(self._tasks,), name="reasoning-shadow", daemon=True
                        )
                        thread.start()
                        started.append(thread)
                except RuntimeError:  # no (more) threads to be had: of the system, or while the interpreter ends
                    pass
                self._threads = started
            return bool(self._threads)
        finally:
            self._starting.release()


def _work(tasks: SimpleQueue[_Work]) -> None:
    while (work := tasks.get()) is not None:
        try:
            work()
        except Exception:
            _log.exception("a shadow question failed")
