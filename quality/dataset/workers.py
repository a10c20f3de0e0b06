"""Functions of this package in processes of their own, as many as there are processors.

The processes are not forked (threads of DuckDB may hold locks) and do not import the caller's `__main__` (which may
have no guard against being run again). A task and its result are one pickle each, over pipes.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO, Any

from quality.errors import QualityError

MOST = 8
_MAIN = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import quality.dataset.workers as w; w.work()"
_LENGTH = struct.Struct("<Q")

Run = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterator[Any]]
"""`run(function, arguments)`: the results of `function(*each)`, in order."""


@contextmanager
def processes(wanted: bool) -> Iterator[Run]:
    """A `Run` in other processes; in this one where they are not `wanted`, or there is one processor only.

    The function must be one of a module, and it, its arguments and its result must be picklable. An error of a function
    is raised here. Raises `QualityError` where a process dies.
    """
    count = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, MOST)
    if not wanted or count < 2:
        yield _run_here
        return
    crew = [_start() for _ in range(count)]
    local = threading.local()
    idle = list(crew)
    try:
        with ThreadPoolExecutor(count, "export") as threads:

            def ask(function: Callable[..., Any], each: tuple[Any, ...]) -> Any:
                if not hasattr(local, "process"):
                    local.process = idle.pop()
                return _ask(local.process, function, each)

            def run(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
                futures: list[Future[Any]] = [threads.submit(ask, function, each) for each in arguments]
                try:
                    for future in futures:
                        yield future.result()
                finally:
                    for future in futures:
                        future.cancel()

            yield run
    finally:
        for process in crew:
            process.kill()
            process.communicate()


def work() -> None:
    """Answer tasks until there are no more."""
    tasks, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no result
    while (task := _receive(tasks)) is not None:
        function, arguments = pickle.loads(task)  # noqa: S301 - of our parent
        try:
            found = (True, function(*arguments))
        except Exception as error:
            found = (False, error)
        _send(results, pickle.dumps(found))


def _run_here(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    return (function(*each) for each in arguments)


def _start() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _MAIN, json.dumps(sys.path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _ask(process: subprocess.Popen[bytes], function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    assert process.stdin is not None and process.stdout is not None
    try:
        _send(process.stdin, pickle.dumps((function, arguments)))
        answer = _receive(process.stdout)
    except OSError:
        answer = None
    if answer is None:
        raise QualityError(
            f"a process of the export died (exit status {process.poll()}): was memory short? run it again"
        )
    good, found = pickle.loads(answer)  # noqa: S301 - of our child
    if not good:
        raise found
    return found


def _send(file: IO[bytes], content: bytes) -> None:
    file.write(_LENGTH.pack(len(content)))
    file.write(content)
    file.flush()


def _receive(file: IO[bytes]) -> bytes | None:
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    content = file.read(length)
    return content if len(content) == length else None
