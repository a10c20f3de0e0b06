"""Background work that may be dropped, but never delays anyone."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

_log = logging.getLogger("reasoning")
_Work = Callable[[], None] | None


class ShadowPool:
    """A few daemon threads behind a bounded queue: concurrent.futures has no bound, and holds up a process's end."""

    def __init__(self, workers: int, limit: int) -> None:
        self._workers = workers
        self._queue: queue.Queue[_Work] = queue.Queue(max(limit, workers))
        self._threads: list[threading.Thread] = []

    def submit(self, work: Callable[[], None]) -> bool:
        """Take `work`, or refuse it when the queue is full."""
        if len(self._threads) < self._workers:
            thread = threading.Thread(target=_work, args=(self._queue,), name="reasoning-shadow", daemon=True)
            try:
                thread.start()
                self._threads.append(thread)
            except RuntimeError:  # no thread to be had: of the system, or while the interpreter ends
                if not self._threads:
                    return False
        try:
            self._queue.put_nowait(work)
        except queue.Full:
            return False
        return True

    def close(self, seconds: float) -> int:
        """Wait for what was taken, at most so long. How much was left undone, and is dropped."""
        until = time.monotonic() + seconds
        with self._queue.all_tasks_done:
            while self._queue.unfinished_tasks and (left := until - time.monotonic()) > 0:
                self._queue.all_tasks_done.wait(left)
        dropped = 0
        while True:
            try:
                dropped += self._queue.get_nowait() is not None
            except queue.Empty:
                break
            self._queue.task_done()
        for _ in self._threads:
            self._queue.put_nowait(None)
        self._threads.clear()
        return dropped


def _work(tasks: queue.Queue[_Work]) -> None:
    while (work := tasks.get()) is not None:
        try:
            work()
        except Exception:
            _log.exception("a shadow question failed")
        finally:
            tasks.task_done()
    tasks.task_done()
