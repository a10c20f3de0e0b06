"""The demo's folder: its own, empty at the start, used by one demo at a time."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo.errors import DemoError
from storage.files import make_folder
from storage.layout import Layout

NEEDED_BYTES = 150 << 20
"""The disk space that a demo needs."""

MARKER = ".demo"
"""Only a folder that holds this file is ever emptied."""


@contextmanager
def demo_folder(data: Path) -> Iterator[Path]:
    """A data folder of the demo's own, emptied of an earlier demo, and locked against another one.

    Raises `DemoError` where the folder holds something else, another demo is running in it, or its disk is full.
    """
    marker = data / MARKER
    if data.exists() and not marker.is_file() and (not data.is_dir() or any(data.iterdir())):
        raise DemoError(f"{data} is not empty, and no demo made it. Choose another folder: --data FOLDER")
    try:
        make_folder(data)
        lock = marker.open("a")
    except OSError as error:
        raise DemoError(f"cannot write to {data} ({error.strerror}). Choose another folder: --data FOLDER") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(
                f"another demo is running in {data}. Wait for it, or choose another folder: --data FOLDER"
            ) from None
        for path in data.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path != marker:
                path.unlink()
        free = shutil.disk_usage(data).free
        if free < NEEDED_BYTES:
            raise DemoError(
                f"the disk of {data} has {free >> 20} MB left, and the demo needs {NEEDED_BYTES >> 20} MB. "
                "Free some, or choose another folder: --data FOLDER"
            )
        Layout(data).create()
        yield data
