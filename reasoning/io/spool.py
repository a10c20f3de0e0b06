"""The spool: segments of CRC-framed lines, one process a segment, nothing acknowledged is lost to SIGKILL.

A segment is named `<UUIDv7>-<host tag>-<pid>`: `.open` while its writer lives, which holds it by `flock`, `.seal`
afterwards. A `.open` that nobody holds was left by a killed writer: it may be landed as it is. Where another host
cannot see the `flock`, the modification time is the sign of life, renewed every few seconds (`reasoning.io.hosts`). One
record is one `write(2)` of one line to a file opened with O_APPEND, so it is the kernel's as soon as `write` returned;
a thread calls `fdatasync` once a second, so that a loss of power costs at most that second. An old segment is never
appended to.

`reasoning.io.segments` has the form of a line.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import logging
import os
import secrets
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from reasoning.ids import uuid7
from reasoning.io.hosts import FENCE, HEARTBEAT, host_tag, steady
from reasoning.io.segments import frame_line
from reasoning.records import Decision, Feedback, encode_record

_log = logging.getLogger("reasoning")
_datasync = getattr(os, "fdatasync", os.fsync)  # macOS has only fsync
# What `flock` fails with where the file system has none, and what a call fails with when a segment is gone.
_NO_LOCKS = frozenset((errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL))
_OPEN_ATTEMPTS = 100
_GONE = frozenset((errno.ENOENT, errno.ESTALE, errno.ENOTDIR))


class SegmentWriter:
    """Appends records to the process's own segment in `directory`, which is made when the first record comes.

    Never raises after construction: what cannot be written is dropped and counted in `dropped`, by `errno` name
    (`ENOSPC`, `EIO`, …), or as `refused` when it cannot be encoded, or as `deleted` or `moved` with its segment.
    Threads may share a writer; a forked child goes on in a segment of its own. A segment is sealed at `max_bytes`, or
    `max_age` seconds after its first record.
    """

    _busy: bool

    def __init__(
        self,
        directory: Path | str,
        *,
        clock: Callable[[], float] = time.time,
        max_bytes: int = 64 << 20,
        max_age: float = 30.0,
        sync_interval: float = 1.0,
    ) -> None:
        self.directory = Path(directory)
        self._clock = clock
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._sync_interval = sync_interval
        self._reset()
        _writers.add(self)

    def write(self, record: Decision | Feedback) -> bool:
        """Append one record. True when the kernel has it: from then on a SIGKILL does not lose it."""
        try:
            line = frame_line(encode_record(record))
        except Exception as error:  # RecordError, or whatever the objects in a record do
            return self._drop("refused", error)
        try:
            with self._lock:
                if self._busy:
                    self._append_apart(line)
                else:
                    self._busy = True
                    try:
                        self._append(line)
                    finally:
                        self._busy = False
                self.written += 1
        except OSError as error:
            self._tell_lost()
            return self._drop(errno.errorcode.get(error.errno or 0, "OSError"), error)
        if self._lost:
            self._tell_lost()
        return True

    def seal(self) -> None:
        """Make what was written landable now, synced to the disk. The next record opens a new segment."""
        self._seal_unless_busy()
        self._sync()
        self._tell_lost()

    def close(self) -> None:
        """Seal, and end the thread. A later write starts anew."""
        self._closing.set()
        self.seal()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def _reset(self) -> None:
        self.written = 0
        self.dropped: Counter[str] = Counter()
        self.sync_errors = 0
        self.last_error: str | None = None
        # An RLock: a signal handler may record while its own thread is inside `write`. Nothing logs under it:
        # logging has a lock of its own that a fork takes as well, in another order.
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._fd: int | None = None
        self._path = self.directory
        self._size = 0
        self._opened = 0.0
        self._written_before = 0  # what `written` was when this segment began
        self._dirty = False
        self._beat = 0.0  # when the open segment last gave a sign of life
        self._unlockable = ""  # a host tag of nobody's, where the file system has no locks
        self._lost: list[tuple[Path, int, str]] = []  # segments that vanished, not told yet
        self.tick_errors = 0
        # Whether state is being changed. Only a signal handler in the thread that holds the lock can see it true,
        # at whatever bytecode: the order of the statements below is for that.
        self._busy = False
        self._sealed: list[int] = []  # descriptors of sealed segments that are not synced yet
        self._extra_fds: set[int] = set()  # those and the ones being synced: a forked child closes them
        self._unsynced_folders: set[Path] = set()  # in which a name is new: it outlasts a loss of power by their sync

    def _append_apart(self, line: bytes) -> None:
        """For a signal handler that interrupted a change of state: its record goes to a segment of its own."""
        interrupted = self._fd, self._path, self._size, self._opened, self._dirty, self._written_before
        self._fd = None
        try:
            self._append(line)
        finally:
            self._seal()
            self._fd, self._path, self._size, self._opened, self._dirty, self._written_before = interrupted

    def _append(self, line: bytes) -> None:
        fd = self._fd
        if fd is None or self._size + len(line) > self._max_bytes or self._is_overdue():
            self._seal()
            fd = self._open()
        try:
            self._write_line(fd, line)
            again = self._is_overdue()  # suspended between the look and the write: what comes twice lands once
        except OSError as error:
            again = error.errno in _GONE  # a stale handle of a network file system
            if not again:
                raise
        if again:
            self._seal()
            self._write_line(self._open(), line)

    def _is_overdue(self) -> bool:
        """Whether the segment may have been landed as a dead host's: then nothing in it counts as written any more."""
        return steady() - self._beat > FENCE

    def _write_line(self, fd: int, line: bytes) -> None:
        done = 0
        try:
            done = os.write(fd, line)
            while done < len(line):
                written = os.write(fd, line[done:])
                if not written:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                done += written
            self._size += done
            self._dirty = True
        except OSError:
            if done:
                self._cut()
            raise
        except BaseException:  # a signal handler raised, and what is in the file by now is anyone's guess
            self._seal()
            raise

    def _cut(self) -> None:
        """Take half a line off the end, so that nothing is ever appended to it."""
        try:
            assert self._fd is not None
            os.ftruncate(self._fd, self._size)
        except OSError:
            self._seal()  # landing quarantines the half line; we go on in a new segment

    def _open(self) -> int:
        self._unsynced_folders |= {self.directory, *_make_folder(self.directory)}
        for _ in range(_OPEN_ATTEMPTS):
            tag = self._unlockable or host_tag(self.directory)
            path = self.directory / f"{uuid7(self._clock())}-{tag}-{os.getpid()}.open"
            beat = steady()  # before each sign of life, not after it: we may be suspended in between
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                if not self._unlockable:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.stat().st_ino == os.fstat(fd).st_ino:
                    break
            except (BlockingIOError, FileNotFoundError):
                pass
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    os.close(fd)
                    raise
                # Without locks: by a tag that is nobody's, it is judged by its signs of life, on this host too.
                self._unlockable = secrets.token_hex(8)
                path.unlink(missing_ok=True)
            # Between open and flock, landing took the empty file for a dead writer's.
            os.close(fd)
        else:  # a file system whose inode numbers change at every look
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        self._fd, self._path, self._size, self._opened = fd, path, 0, time.monotonic()
        self._written_before = self.written
        self._beat = beat
        self._start_thread()
        return fd

    def _start_thread(self) -> None:
        # One that did not start (out of threads for a while) or has ended gets a successor.
        if self._thread is None or self._closing.is_set() or not self._thread.is_alive():
            self._closing = threading.Event()
            self._thread = threading.Thread(
                target=_run_ticks, args=(weakref.ref(self), self._closing, self._sync_interval), daemon=True
            )
            with contextlib.suppress(RuntimeError):  # no new threads while the interpreter ends
                self._thread.start()

    def _seal(self) -> None:
        fd, self._fd = self._fd, None  # first of all: whatever happens, nothing is appended to it any more
        if fd is None:
            return
        self._extra_fds.add(fd)
        self._sealed.append(fd)
        self._dirty = False
        try:
            if not os.fstat(fd).st_nlink:  # whatever has its name by now is not ours to rename
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            self._path.rename(self._path.with_suffix(".seal"))
        except OSError as error:  # closing it is enough: landing takes an .open that nobody holds
            self.last_error = str(error)
            if error.errno in _GONE:
                self._count_lost(fd)

    def _seal_unless_busy(self) -> None:
        with self._lock:
            if not self._busy:
                self._busy = True
                try:
                    self._seal()
                finally:
                    self._busy = False

    def _sync(self) -> None:
        """fdatasync what may not be on the disk yet, outside the lock, so that no caller waits for the disk."""
        with self._lock:
            if self._busy:
                return
            self._busy = True
            try:
                folders, self._unsynced_folders = self._unsynced_folders, set()
                fds, live = self._take_unsynced()
            finally:
                self._busy = False
        for folder in folders:
            try:
                _sync_folder(folder)
            except OSError as error:
                with self._lock:
                    self._count_sync_error(error)
        for fd in fds:
            try:
                _datasync(fd)
                if fd == live:
                    beat = steady()
                    os.utime(fd)  # by the clock of the file system: nobody compares it with one of ours
                    self._count_beat(fd, beat)
            except OSError as error:
                with self._lock:
                    self._count_sync_error(error)
                if fd == live:  # the kernel may have dropped the pages: trust this file no further
                    self._seal_unless_busy()
            with self._lock:
                self._extra_fds.discard(fd)
                with contextlib.suppress(OSError):
                    os.close(fd)

    def _take_unsynced(self) -> tuple[list[int], int | None]:
        """Descriptors to sync and to close; the second is the open segment's among them."""
        fds, self._sealed = self._sealed, []
        if self._fd is None or not (self._dirty or steady() - self._beat >= HEARTBEAT):
            return fds, None
        try:
            live = os.dup(self._fd)
        except OSError as error:
            self._count_sync_error(error)
            return fds, None
        self._dirty = False
        self._extra_fds.add(live)
        return [*fds, live], live

    def _count_beat(self, fd: int, beat: float) -> None:
        """A sign of life was given at `beat`. It is the open segment's only, not of one that was begun meanwhile."""
        with self._lock:
            ours = self._fd is not None and os.path.samestat(os.fstat(fd), os.fstat(self._fd))
            if ours and beat - self._beat <= FENCE:  # one that came too late brings nothing back
                self._beat = max(self._beat, beat)

    def _count_sync_error(self, error: OSError) -> None:
        self.sync_errors += 1
        self.last_error = str(error)

    def _tick(self) -> None:
        with self._lock:
            old = self._fd is not None and (time.monotonic() - self._opened >= self._max_age or self._is_overdue())
            gone = self._is_gone()
        if old or gone:
            self._seal_unless_busy()
        self._sync()
        self._tell_lost()

    def _is_gone(self) -> bool:
        """Whether somebody deleted or moved the open segment. What cannot be looked at now is not held to be gone."""
        if self._fd is None:
            return False
        try:
            if os.fstat(self._fd).st_nlink:
                self._path.stat()
                return False
        except OSError as error:
            return error.errno in _GONE
        return True

    def _count_lost(self, fd: int) -> None:
        """The records of a segment that vanished before it was sealed count as dropped. For one who holds the lock."""
        count = self.written - self._written_before
        if self._is_overdue():
            return  # after a suspension: another host landed it
        reason = "deleted"
        try:
            status = os.fstat(fd)
            if status.st_nlink:
                reason = "moved"
                if os.path.samestat(status, self._path.with_suffix(".seal").stat()):
                    return  # sealed by landing, after a suspension: nothing is lost
        except OSError:
            pass
        if count > 0:
            self.dropped[reason] += count
            self.written = self._written_before
            self._lost.append((self._path, count, reason))

    def _tell_lost(self) -> None:
        while self._lost:
            with contextlib.suppress(IndexError):  # another thread told it
                path, count, reason = self._lost.pop()
                _log.warning(
                    "%s was %s with %d records that had not landed; a new segment is begun", path, reason, count
                )

    def _count_tick_error(self, error: Exception) -> None:
        """The thread goes on whatever happens: without it nothing is sealed by age, nor synced."""
        self.tick_errors += 1
        self.last_error = f"{type(error).__name__}: {error}"
        if self.tick_errors & (self.tick_errors - 1) == 0:
            _log.warning(
                "%s: the writer's thread failed %d times: %s", self.directory, self.tick_errors, self.last_error
            )

    def _drop(self, reason: str, error: Exception) -> bool:
        with self._lock:
            self.dropped[reason] += 1
            count = self.dropped[reason]
            self.last_error = f"{type(error).__name__}: {error}"
        if count & (count - 1) == 0:  # the 1st, 2nd, 4th, … : a full disk must not fill the log as well
            _log.warning("%d records not written to %s (%s): %s", count, self.directory, reason, error)
        return False

    def _close_in_child(self) -> None:
        """The parent's descriptors carry the parent's flock: keep none of them, and start as new."""
        for fd in {*self._extra_fds, *([] if self._fd is None else [self._fd])}:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._reset()


def _make_folder(path: Path) -> list[Path]:
    """Make a folder and its missing parents. The folders that have a new one in them."""
    changed = []
    missing = path
    while not missing.is_dir():
        missing = missing.parent
        changed.append(missing)
    for folder in (*reversed(changed[:-1]), path) if changed else ():
        with contextlib.suppress(FileExistsError):  # made this moment; or a file, which the next one fails with
            folder.mkdir(0o700)  # not mkdir(parents=True), which gives the parents other rights
    return changed


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _run_ticks(writer: weakref.ref[SegmentWriter], closing: threading.Event, interval: float) -> None:
    while not closing.wait(interval):
        alive = writer()
        if alive is None:
            return
        try:
            alive._tick()
        except Exception as error:
            with contextlib.suppress(Exception):  # a logging handler may raise as well
                alive._count_tick_error(error)
        del alive


_writers: weakref.WeakSet[SegmentWriter] = weakref.WeakSet()
_held: list[SegmentWriter] = []


def _before_fork() -> None:
    for writer in list(_writers):
        writer._lock.acquire()
        _held.append(writer)


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop()._lock.release()


def _after_fork_in_child() -> None:
    while _held:
        _held.pop()._close_in_child()


def _close_all() -> None:
    for writer in list(_writers):
        writer.close()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
atexit.register(_close_all)
