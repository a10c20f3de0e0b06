"""Background work that may be dropped, but never delays anyone: questions to shadow arms.

One rule for threads and for event loops: at most `workers` at once, at most `queue` waiting, what is more is dropped.
Closing waits so long for what was taken, then drops the rest. All of it is counted, by the names of `Outcome`.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Literal

from reasoning.error_text import describe_error

if TYPE_CHECKING:
    import asyncio

_log = logging.getLogger("reasoning")

Outcome = Literal["taken", "dropped", "done", "failed"]
"""`taken` or `dropped` when submitted; `done`, `failed` or `dropped` when it ended or `close` ended it."""

Count = Callable[[Outcome], object]


class _Policy:
    def __init__(self, workers: int, queue: int, count: Count) -> None:
        self._workers = workers
        self._limit = workers + queue
        self._count = count

    def _admits(self, under_way: int) -> bool:
        """Is there room for one more beside so many? Counts the answer."""
        admitted = under_way < self._limit
        self._count("taken" if admitted else "dropped")
        return admitted

    def _ended(self, error: Exception | None) -> None:
        if error is None:
            self._count("done")
        else:
            self._count("failed")
            _log.warning("a shadow question failed: %s", describe_error(error))

    def _drop(self, undone: int) -> int:
        for _ in range(undone):
            self._count("dropped")
        return undone


class ShadowThreads(_Policy):
    """A few daemon threads: concurrent.futures has no bound, and holds up a process's end.

    A signal handler may `submit` in the middle of one: `SimpleQueue.put` is reentrant, and no lock is waited for.
    """

    def __init__(self, workers: int, queue: int, count: Count) -> None:
        super().__init__(workers, queue, count)
        self._starting = threading.Lock()
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._under_way: list[None] = []  # one for each that waits or is being done: append and pop are atomic
        self._threads: list[threading.Thread] = []

    def submit(self, work: Callable[[], None]) -> bool:
        """Have `work` done soon. False where it is not taken. Never waits."""
        if not self._threads and not self._start():
            self._drop(1)
            return False
        if not self._admits(len(self._under_way)):
            return False
        self._under_way.append(None)
        self._tasks.put(work)
        return True

    def close(self, seconds: float) -> int:
        """Wait for what was taken, at most so long. How much was dropped, or is not done by then."""
        until = time.monotonic() + seconds
        threads, self._threads = self._threads, []
        tasks, self._tasks = self._tasks, SimpleQueue()
        for _ in threads:
            tasks.put(None)
        for thread in threads:
            thread.join(max(until - time.monotonic(), 0))
        undone = 0
        while True:
            try:
                if tasks.get_nowait() is not None:
                    self._under_way.pop()
                    undone += 1
            except Empty:
                break
        for _ in threads:  # for those that are still at work
            tasks.put(None)
        return self._drop(undone)

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
                            target=self._work, args=(self._tasks,), name="reasoning-shadow", daemon=True
                        )
                        thread.start()
                        started.append(thread)
                except RuntimeError:  # no (more) threads to be had: of the system, or while the interpreter ends
                    pass
                self._threads = started
            return bool(self._threads)
        finally:
            self._starting.release()

    def _work(self, tasks: SimpleQueue[Callable[[], None] | None]) -> None:
        while (work := tasks.get()) is not None:
            error = None
            try:
                work()
            except Exception as raised:
                error = raised
            finally:
                self._under_way.pop()
            self._ended(error)


class ShadowTasks(_Policy):
    """Tasks of the running event loop. One loop may end and another one come."""

    def __init__(self, workers: int, queue: int, count: Count) -> None:
        super().__init__(workers, queue, count)
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            weakref.WeakKeyDictionary()
        )

    def submit(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Have `work` done soon. False where it is not taken. Never waits."""
        import asyncio  # takes longer to import than all that a sync client needs

        if not self._admits(len(self._tasks)):
            return False
        loop = asyncio.get_running_loop()
        turns = self._turns.get(loop) or self._turns.setdefault(loop, asyncio.Semaphore(self._workers))
        task = loop.create_task(self._work(turns, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def close(self, seconds: float = 5.0) -> int:
        """Wait for what this loop has taken, at most so long, then cancel it. How much that was."""
        import asyncio

        loop = asyncio.get_running_loop()
        mine = [task for task in self._tasks if task.get_loop() is loop]
        if mine:
            await asyncio.wait(mine, timeout=seconds)
        undone = [task for task in mine if not task.done()]
        for task in undone:
            task.cancel()
        await asyncio.gather(*undone, return_exceptions=True)
        return self._drop(len(undone))

    async def _work(self, turns: asyncio.Semaphore, work: Callable[[], Awaitable[None]]) -> None:
        async with turns:
            error = None
            try:
                await work()
            except Exception as raised:
                error = raised
            self._ended(error)
