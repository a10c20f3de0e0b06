"""Durable file changes: a file is synced before it is renamed into place, and its folder afterwards."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reasoning.io.hosts import host_tag, same_machine

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_SCRATCH_TAG = re.compile(r"([0-9a-f]{16})-[^-]+$")  # of `scratch_folder`
_FOREIGN_SCRATCH_AGE = 86_400.0  # seconds
# What `exchange` fails with where the system or the filesystem has none.
CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
_CANNOT = (*CANNOT_EXCHANGE, errno.ENOLCK)  # and `flock`, `chmod` and the sync of a folder


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _CANNOT or not stat.S_ISDIR(os.fstat(fd).st_mode):
            raise  # some network file systems sync no folders
    finally:
        os.close(fd)


def private_umask() -> None:
    """Make this process create files and folders for its owner only. For our own processes, not for an agent's."""
    os.umask(0o077)


def make_tree_private(folder: Path) -> None:
    """Restrict a new folder and everything in it to its owner, whatever umask it was made with."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            make_private(path, 0o700 if path.is_dir() else 0o600)


def open_private(path: Path | str, flags: int) -> int:
    """`os.open` that creates files for their owner only, whatever the umask."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def make_private(path: Path, mode: int = 0o600) -> None:
    """Restrict a file that a library has just made to its owner, whatever the umask.

    On a file system without permissions (FAT) it keeps those of the mount.
    """
    try:
        path.chmod(mode)
    except OSError as error:
        if error.errno not in (errno.EPERM, *_CANNOT):
            raise


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents for their owner only, durably."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(0o700, exist_ok=True)
        sync(folder.parent)


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically: readers, and a crash, see the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb", opener=open_private) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_once(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically unless a file exists. Of two concurrent writers, the first wins."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(draft, "xb", opener=open_private) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return
        except OSError as error:
            if error.errno not in (errno.EPERM, *_CANNOT) or path.exists():
                raise
            draft.rename(path)  # no hard links here: the later of two that come at one moment wins
    finally:
        draft.unlink(missing_ok=True)
    sync(path.parent)


def remove_tree(path: Path) -> None:
    """Delete a folder and all in it; nothing to do when it is not there."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return


def remove_abandoned(folders: Iterable[Path]) -> None:
    """Delete the folders that nobody holds a flock on, because their owners died.

    Where the flock of another host may be invisible, or there are no locks, they must also be a day old.
    """
    for folder in folders:
        match = _SCRATCH_TAG.search(folder.name)
        try:
            recent = time.time() - folder.stat().st_mtime < _FOREIGN_SCRATCH_AGE
            if recent and match is not None and not same_machine(match[1], host_tag(folder.parent)):
                continue
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            if _lock(fd, fcntl.LOCK_NB) or not recent:
                remove_tree(folder)
        except BlockingIOError:
            continue
        finally:
            os.close(fd)


def _lock(fd: int, how: int = 0) -> bool:
    """Lock a folder for this process alone; False where the file system has no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | how)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    return True


@contextmanager
def scratch_folder(home: Path, prefix: str) -> Iterator[Path]:
    """A folder in `home`, on its filesystem; removed at the end, or by the next one of this prefix after a kill.

    Its owner locks it; the kernel releases the lock when the owner dies.
    """
    make_folder(home)
    remove_abandoned(home.glob(f"{prefix}*"))
    while True:
        scratch = Path(tempfile.mkdtemp(dir=home, prefix=f"{prefix}{host_tag(home)}-"))
        with suppress(FileNotFoundError):  # another one may take it for abandoned before it is locked
            fd = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            _lock(fd)
            if scratch.exists():
                break
            os.close(fd)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(fd)


def replace_folder(new: Path, old: Path) -> None:
    """Exchange the folders `new` and `old` in one step where the system can.

    Otherwise `old` is removed first. A kill between the two steps leaves no folder, but never half of one.
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
