"""Durable changes to files: what is renamed into place was synced first, and so was the folder afterwards."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
# What `exchange` fails with where the system or the filesystem has none.
CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents; they outlast a loss of power."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def write_atomic(path: Path, content: bytes) -> None:
    """Put `content` at `path`: a reader, or a crash, sees the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def remove_tree(path: Path) -> None:
    """Delete a folder and all in it; nothing to do when it is not there."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return


def remove_abandoned(folders: Iterable[Path]) -> None:
    """Delete those of the folders that nobody holds a flock on: their owners died."""
    for folder in folders:
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_tree(folder)
        except BlockingIOError:
            continue
        finally:
            os.close(fd)


@contextmanager
def scratch_folder(home: Path, prefix: str) -> Iterator[Path]:
    """A folder in `home`, on its filesystem; removed at the end, or by the next one of this prefix after a kill.

    Its owner holds a lock on it, which the kernel frees when the owner dies.
    """
    home.mkdir(parents=True, exist_ok=True)
    remove_abandoned(home.glob(f"{prefix}*"))
    while True:
        scratch = Path(tempfile.mkdtemp(dir=home, prefix=prefix))
        with suppress(FileNotFoundError):  # another one may take it for abandoned before it is locked
            fd = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if scratch.exists():
                break
            os.close(fd)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(fd)


def replace_folder(new: Path, old: Path) -> None:
    """Put the folder `new` in place of `old`, in one step where the system has one, and what was there in its place.

    Where it has none, `old` is removed first: killed between the two steps, it is gone, and never half of it there.
    """
    try:
        exchange(new, old)
    except FileNotFoundError:
        new.rename(old)
    except OSError as error:
        if error.errno not in CANNOT_EXCHANGE:
            raise
        remove_tree(old)
        new.rename(old)
    sync(old.parent)


def exchange(a: Path, b: Path) -> None:
    """Swap what two paths name, in one step: `renameat2(RENAME_EXCHANGE)` of Linux 3.15+.

    Raises OSError, with ENOSYS or EINVAL where the system or the filesystem cannot.
    """
    if not sys.platform.startswith("linux"):
        raise OSError(errno.ENOSYS, f"no atomic exchange of folders on {platform.system()}")
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        renameat2 = libc.renameat2
    except AttributeError:  # glibc < 2.28
        raise OSError(errno.ENOSYS, "this libc has no renameat2") from None
    if renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(a), None, str(b))
