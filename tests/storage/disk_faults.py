"""A process in which the Nth call that reaches the disk fails, be it of Python, of pyarrow or of DuckDB.

Run with `disk_faults.c` in LD_PRELOAD; for every line of JSON on stdin it forks a process that runs a verb, and tells
on stdout how that went. (It does no work itself: threads of the libraries would not outlast the fork.)
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MODES = ("EIO", "ENOSPC", "short write")


@contextmanager
def failing_disk(scratch: Path) -> Iterator[Any]:
    """A function (data, verb, number of the call, mode) -> what it did: `failed` (the call) and `error`."""
    library = scratch / "disk_faults.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-w", "-o", library, source, "-ldl"], check=True)
    command = [sys.executable, "-m", __name__, str(library)]
    env = os.environ | {"LD_PRELOAD": str(library)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def run(data: Path, verb: str, number: int, mode: str) -> dict[str, Any]:
            stdin.write(json.dumps([str(data), verb, number, MODES.index(mode)]) + "\n")
            stdin.flush()
            return dict(json.loads(stdout.readline()))

        yield run
        stdin.close()


def serve(library: str) -> None:
    import tests.storage.survival  # noqa: F401 - once, before the forks

    faults = ctypes.CDLL(library)
    faults.disk_faults_failed.restype = ctypes.c_char_p
    for line in sys.stdin:
        data, verb, number, mode = json.loads(line)
        here, there = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.write(there, _try(faults, Path(data), verb, number, mode))
            finally:
                os._exit(0)
        os.close(there)
        with os.fdopen(here) as said:
            answer = said.read()
        _, status = os.waitpid(child, 0)
        print(answer or json.dumps({"failed": "?", "error": f"ended with {status}"}), flush=True)


def _try(faults: ctypes.CDLL, data: Path, verb: str, number: int, mode: int) -> bytes:
    from tests.storage.survival import VERBS

    signal.alarm(120)
    error = ""
    faults.disk_faults_arm(os.fsencode(data), ctypes.c_long(number), mode)
    try:
        VERBS[verb](data)
    except BaseException:
        error = traceback.format_exc()
    faults.disk_faults_disarm()
    return json.dumps({"failed": faults.disk_faults_failed().decode(), "error": error}).encode()


if __name__ == "__main__":
    serve(sys.argv[1])
