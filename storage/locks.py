"""The one lock of a data folder: landing, compaction, expiry and erasure take turns."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from storage.errors import DataFolderBusy, DataFolderError
from storage.layout import Layout

LOCK_TIMEOUT = 60.0  # seconds
_POLL = 0.02


@contextmanager
def data_lock(layout: Layout, verb: str, *, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
    """Hold the data folder's flock while doing `verb` ("landing"), waiting up to `timeout` seconds for it.

    The kernel frees it when the holder dies, however it dies. Raises `DataFolderBusy` naming the holder, and
    `DataFolderError` where the folder cannot be written.
    """
    try:
        fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DataFolderError(
            f"{layout.data} cannot be locked for {verb} ({layout.lock.name}: {error.strerror}): "
            "it must be writable for whoever lands, compacts, expires or erases"
        ) from error
    try:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"
                    raise DataFolderBusy(
                        f"{layout.data} is busy with {holder}; {verb} waited {timeout:g} s. Run it again later"
                    ) from None
                time.sleep(_POLL)
        # Who holds it, for the message above. On a full disk the lock must work all the same.
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{verb} (process {os.getpid()})\n".encode(), 0)
        except OSError:
            pass
        yield
    finally:
        os.close(fd)
