"""The data folder's lock, which serialises landing, compaction, expiry, erasure and backup.

It is a `flock` on `.lock`, which the kernel releases when its holder dies. For hosts that do not see each other's
`flock`, the file's content names the holder and is renewed every few seconds: a process that finds a claim of another
host waits until it is withdrawn, or was unchanged for `GRACE` seconds. A holder that was suspended for that long
notices before its next step (`check_held`). With a ledger on PostgreSQL the holder has its advisory lock as well.
`reasoning serve` uses a lock of the same kind.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from reasoning.io import hosts
from storage.errors import DataFolderBusy, DataFolderError, LockLost
from storage.files import open_private, write_once
from storage.lake.address import parse_log_url
from storage.layout import Layout
from storage.volumes import VolumeKind, check_alone, check_volume, is_foreign, quiet_for

LOCK_TIMEOUT = 60.0  # seconds
_POLL = 0.02
_FOREIGN_POLL = 1.0
_CLAIM_BYTES = 1024
# Where `flock` may not hold: seconds after which a claim of another host, made at the same moment, is visible here.
SETTLE = 1.5


class Held:
    """A claim that this process has on a file: who holds it, and the signs of life that it gives other hosts."""

    def __init__(self, fd: int, path: Path, kind: VolumeKind, claim: dict[str, Any]) -> None:
        self._fd, self._path, self._kind, self._claim = fd, path, kind, claim
        self._values: dict[str, Any] = {}
        self._beat = hosts.steady()
        self._told = False  # whether the claim was ever in the file: on a full disk it may not be
        self.lost = ""  # why another process has it now

    def tell(self, **values: Any) -> None:
        """Add to what the file says, also after this process has ended."""
        self._values |= values
        self._claim |= values
        self.beat()

    def beat(self) -> None:
        """Give a sign of life, unless another process has the file by now."""
        begun = hosts.steady()  # before it is given: we may be suspended in between
        self._look()
        if not self.lost:
            self._claim["beat"] += 1
            if _write(self._fd, self._claim):
                self._told = True
                if begun - self._beat <= hosts.FENCE:  # one that came too late brings nothing back
                    self._beat = begun

    def check(self) -> None:
        """Raise `LockLost` if another process may hold the lock now. For every step that cannot be undone."""
        self._look()
        lost, quiet = self.lost, hosts.steady() - self._beat
        if not lost and self._kind != "local" and quiet > hosts.FENCE:  # on a local disk the flock held all the while
            lost = f"it was suspended, or could not write to {self._path.name}, for more than {hosts.FENCE:g} s"
        if lost:
            raise LockLost(
                f"{self._claim['verb']} lost the lock {self._path}: {lost}. It was stopped before its next step, as "
                "another process may be at work; nothing is lost, run it again"
            )

    def withdraw(self) -> None:
        if (_read(self._fd) or {}).get("nonce") == self._claim["nonce"]:
            with suppress(OSError):
                os.ftruncate(self._fd, 0)
                if self._values:
                    _write(self._fd, self._values)

    def _look(self) -> None:
        if (
            self._told
            and not self.lost
            and (found := _read_path(self._path) or {}).get("nonce") != self._claim["nonce"]
        ):
            holder = f"{_name_holder(found, self._claim['tag'])} has it" if found else "its file was deleted or emptied"
            self.lost = holder


# By the lock file. Of each thread: one that lost the lock may run beside the one that has it.
_held: ContextVar[dict[Path, Held]] = ContextVar("held", default={})  # noqa: B039 - it is never changed in place


# The connection that holds the lock of a lake.
_catalog: ContextVar[Any] = ContextVar("catalog", default=None)


def check_held(layout: Layout) -> None:
    """Raise `LockLost` if this process held the data folder's lock and another one may hold it now.

    Call it before renaming, deleting or overwriting files that others see. Does nothing if the lock was never held.
    """
    if held := _held.get().get(layout.lock.absolute()):
        held.check()
    if (connection := _catalog.get()) is not None:
        try:
            connection.execute("SELECT 1")
        except Exception as error:
            raise LockLost(
                f"the connection that holds the lock of the lake is gone ({type(error).__name__}): another process may "
                "be at work. It was stopped before its next step; nothing is lost, run it again"
            ) from None


@contextmanager
def data_lock(layout: Layout, verb: str, *, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
    """Hold the data folder's lock while doing `verb` ("landing"), waiting up to `timeout` seconds for it.

    Raises `DataFolderBusy` naming the holder, `DataFolderError` where the folder cannot be written or is on a volume
    whose locks are not to be trusted, and `LedgerError` where the ledger's PostgreSQL cannot be reached.
    """
    wait = _begin(layout, layout.lock, verb, timeout)
    with _locked(wait) as held, _advisory_lock(wait), _lake_lock(wait):
        token = _held.set({**_held.get(), wait.path: held})
        try:
            yield
        finally:
            _held.reset(token)


@contextmanager
def file_lock(layout: Layout, path: Path, verb: str, *, timeout: float) -> Iterator[Held]:
    """Hold another lock file of a data folder among the processes of all hosts. Raises as `data_lock` does."""
    with _locked(_begin(layout, path, verb, timeout)) as held:
        yield held


@contextmanager
def _locked(wait: _Wait) -> Iterator[Held]:
    fd = _flock(wait)
    held = None
    try:
        held = _claim(fd, wait)
        with _renewing(held):
            yield held
    finally:
        if held is not None:
            held.withdraw()
        os.close(fd)


def _begin(layout: Layout, path: Path, verb: str, timeout: float) -> _Wait:
    kind = check_volume(layout, verb)
    return _Wait(layout, path.absolute(), verb, kind, hosts.host_tag(layout.data), timeout, time.monotonic() + timeout)


@dataclass(frozen=True)
class _Wait:
    layout: Layout
    path: Path
    verb: str
    kind: VolumeKind
    tag: str
    timeout: float
    deadline: float

    def or_busy(self, holder: str, pause: float, *, hint: str = "Run it again later") -> None:
        """Sleep, or raise `DataFolderBusy` on timeout."""
        if time.monotonic() >= self.deadline:
            raise DataFolderBusy(
                f"{self.layout.data} is busy with {holder}; {self.verb} waited {self.timeout:g} s. {hint}"
            )
        time.sleep(max(0.0, min(pause, self.deadline - time.monotonic())))


def _flock(wait: _Wait) -> int:
    """A descriptor of the lock file, locked."""
    while True:
        try:
            fd = open_private(wait.path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise DataFolderError(
                f"{wait.layout.data} cannot be locked for {wait.verb} ({wait.path.name}: {error.strerror}): "
                "it must be writable by the user who lands, compacts, expires or erases"
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), wait.path.stat()):
                    return fd
            os.close(fd)  # somebody deleted the file: whoever comes next locks another one
        except BlockingIOError:
            try:
                wait.or_busy(_name_holder(_read(fd), wait.tag), _POLL)
            finally:
                os.close(fd)
        except OSError as error:
            os.close(fd)
            raise DataFolderError(
                f"{wait.layout.data} is on a file system without locks ({error.strerror}): {wait.verb} was not begun; "
                "put the data folder on a local disk (docs/guides/storage.md)"
            ) from error


def _claim(fd: int, wait: _Wait) -> Held:
    """Write who holds the lock, once no other host does. Raises `DataFolderBusy`."""
    claim = {
        "verb": wait.verb[:64],
        "pid": os.getpid(),
        "host": hosts.host_name()[:64],
        "tag": wait.tag,
        "space": _process_space(),
        "nonce": secrets.token_hex(8),
        "beat": 0,
    }
    while True:
        _wait_for_claim(wait)
        check_alone(wait.layout, wait.verb)
        held = Held(fd, wait.path, wait.kind, claim)
        held.beat()
        if wait.kind != "unknown":
            return held
        # Two hosts that claim at one moment: the later one's content stays, and both read it once it has settled.
        time.sleep(SETTLE)
        found = _read_path(wait.path) or {}
        if found.get("nonce") == claim["nonce"]:
            return held
        wait.or_busy(_name_holder(found, wait.tag), secrets.randbelow(1000) / 1000)


def _wait_for_claim(wait: _Wait) -> None:
    group = wait.path.name.strip(".")
    while True:
        held = _read_path(wait.path) or {}
        tag = held.get("tag")
        if not isinstance(tag, str) or not is_foreign(tag, wait.tag, wait.kind) or _has_died(held, wait.tag):
            if _is_at_work(held, wait.path):  # though its flock was granted to us as well
                wait.or_busy(_name_holder(held, wait.tag), _POLL)
                continue
            quiet_for(wait.layout, group, {})
            return
        mark = f"{held.get('nonce')} {held.get('beat')}"
        if quiet_for(wait.layout, group, {"lock": mark})["lock"] >= hosts.GRACE:
            return
        hint = f"If that host is dead, its claim ends {hosts.GRACE:g} s after its last sign of life: run it again then"
        wait.or_busy(_name_holder(held, wait.tag), _FOREIGN_POLL, hint=hint)


def _is_at_work(held: dict[str, Any], lock: Path) -> bool:
    """Whether the process of a claim is another one of this host that has the lock file open."""
    pid = held.get("pid")
    return isinstance(pid, int) and pid != os.getpid() and hosts.has_open(pid, lock.stat())


def _has_died(held: dict[str, Any], tag: str) -> bool:
    """Whether the process of a claim was one that would be seen here, and is none any more."""
    pid, space = held.get("pid"), _process_space()
    if held.get("tag") != tag or not space or held.get("space") != space or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return pid == os.getpid()


def _process_space() -> str:
    """In which a process id is this process's: containers of one kernel have one each. Empty where nobody tells."""
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - no file that there is
    except OSError:
        return ""


@contextmanager
def _renewing(held: Held) -> Iterator[None]:
    """Give signs of life for other hosts while the block runs."""
    done = threading.Event()

    def renew() -> None:
        while not done.wait(hosts.HEARTBEAT):
            held.beat()

    thread = threading.Thread(target=renew, name="data-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def _advisory_lock(wait: _Wait) -> Iterator[None]:
    """With a ledger on PostgreSQL: its lock of this data folder, which every host sees."""
    if not wait.layout.ledger_url.startswith(("postgresql:", "postgresql+", "postgres:")):
        yield
        return
    from storage.ledger.database import LedgerDatabase, open_database

    with LedgerDatabase(*open_database(wait.layout.data, datetime.now(UTC))) as database:
        name = f"data folder {_folder_id(wait.layout)}"
        while True:
            with database.exclusive(name) as got:
                if got:
                    yield
                    return
            wait.or_busy(
                "a process that holds the ledger's lock of this folder, perhaps of another host", _FOREIGN_POLL
            )


@contextmanager
def _lake_lock(wait: _Wait) -> Iterator[None]:
    """With tables in a lake: the lock of its catalog, so that one process of all hosts writes to them at a time.

    PostgreSQL gives it up when the holder's connection ends, however that ends.
    """
    address = parse_log_url(wait.layout.log_url)
    if address is None:
        yield
        return
    try:
        import psycopg
    except ImportError as error:
        raise DataFolderError(
            f"REASONING_LOG: {error}: {wait.verb} was not begun. Install the driver: pip install 'psycopg[binary]'"
        ) from error
    try:
        connection = psycopg.connect(address.catalog, autocommit=True)
    except psycopg.Error as error:
        raise DataFolderError(
            f"the catalog of {address!r} cannot be reached ({type(error).__name__}): {wait.verb} was not begun; "
            "look at REASONING_LOG and its database"
        ) from None
    with connection:
        token = _catalog.set(connection)
        while True:
            row = connection.execute("SELECT pg_try_advisory_lock(hashtext('custom-reasoning log'))").fetchone()
            if row is not None and row[0]:
                try:
                    yield
                finally:
                    _catalog.reset(token)
                return
            wait.or_busy("a process that writes to the lake, perhaps of another host", _FOREIGN_POLL)


def _folder_id(layout: Layout) -> str:
    """What a data folder is called by all hosts, whatever its path on each. Made by the first."""
    path = layout.data / ".folder"
    with suppress(FileNotFoundError):
        return path.read_text().strip()
    write_once(path, secrets.token_hex(8).encode())
    return path.read_text().strip()


def _name_holder(held: dict[str, Any] | None, tag: str) -> str:
    if not held or "verb" not in held:
        return "another process"
    elsewhere = "" if held.get("tag") == tag else f" on host {held.get('host')}"
    return f"{held['verb']} (process {held.get('pid')}){elsewhere}"


def _read(fd: int) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        held = orjson.loads(os.pread(fd, 4 * _CLAIM_BYTES, 0))
        return held if isinstance(held, dict) else None
    return None


def _read_path(path: Path) -> dict[str, Any] | None:
    """The claim, opened anew: network file systems show what others wrote on opening a file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _read(fd)
    finally:
        os.close(fd)


def _write(fd: int, claim: dict[str, Any]) -> bool:
    with suppress(OSError):  # on a full disk the lock must work all the same
        # One write of one length: what others read of it is whole, and never two of them mixed.
        os.pwrite(fd, orjson.dumps(claim).ljust(_CLAIM_BYTES), 0)
        return True
    return False
