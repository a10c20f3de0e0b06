"""Processes of the local provider: started so that they outlive who started them, and are found by a lock."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from provider.errors import ProviderUnavailable
from storage.files import make_folder, open_private


def start_detached(module: str, arguments: Sequence[str], log: Path) -> None:
    """Run `python -m MODULE ARGUMENTS` in the background. It must call `detach` first.

    The current folder is not on its path: a user's `tasks.py` must not stand in for ours.
    """
    make_folder(log.parent)
    with open(log, "ab", opener=open_private) as file:
        done = subprocess.run(
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            check=False,
            timeout=60,
        )
    if done.returncode:
        raise ProviderUnavailable(f"{module} did not start (exit {done.returncode}): see {log}")


def detach(lock: Path) -> IO[bytes] | None:
    """Go on in the background, in a process that holds `lock`; the process that was started ends.

    Returns the file whose closing gives the lock back; None where another process has it. Call it before any thread is
    started.
    """
    file = hold(lock)
    if file is None:
        return None
    if os.fork():
        os._exit(0)  # the child has the lock now, too
    os.setsid()
    return file


def hold(lock: Path) -> IO[bytes] | None:
    """Hold a lock until the file is closed; None where another process has it."""
    make_folder(lock.parent)
    file = open(lock, "ab", opener=open_private)  # noqa: SIM115 - the caller closes it
    for _ in range(20):  # `is_held` holds it for a moment
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            time.sleep(0.05)
    else:
        file.close()
        return None
    return file
