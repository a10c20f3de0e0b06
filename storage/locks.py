"""The one lock of a data folder: landing, compaction, expiry, erasure and backup take turns.

It is `flock` on `.lock`, which the kernel frees when its holder dies, and as far as `flock` holds that is all. Its
content says who holds it and is renewed every few seconds, for hosts that do not see the `flock` of each other: whoever
finds a claim of another host waits until the claim is withdrawn, or was seen unchanged for `GRACE` seconds. With a
ledger on PostgreSQL the holder has its advisory lock as well.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from reasoning import hosts
from storage.errors import DataFolderBusy, DataFolderError
from storage.files import open_private
from storage.layout import Layout
from storage.volumes import Kind, check_volume, file_mark, is_foreign, quiet_for, volume_setting

LOCK_TIMEOUT = 60.0  # seconds
_POLL = 0.02
_FOREIGN_POLL = 1.0
_CLAIM_BYTES = 512
# Where `flock` may not hold: seconds after which a claim of another host, made at the same moment, is visible here.
SETTLE = 1.5


@contextmanager
def data_lock(layout: Layout, verb: str, *, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
    """Hold the data folder's lock while doing `verb` ("landing"), waiting up to `timeout` seconds for it.

    Raises `DataFolderBusy` naming the holder, `DataFolderError` where the folder cannot be written or is on a volume
    whose locks are not to be trusted, and `LedgerError` where the ledger's PostgreSQL cannot be reached.
    """
    kind = check_volume(layout, verb)
    try:
        fd = open_private(layout.lock, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise DataFolderError(
            f"{layout.data} cannot be locked for {verb} ({layout.lock.name}: {error.strerror}): "
            "it must be writable for whoever lands, compacts, expires or erases"
        ) from error
    wait = _Wait(layout, verb, kind, hosts.host_tag(layout.data), timeout, time.monotonic() + timeout)
    claim = None
    try:
        _flock(fd, wait)
        claim = _claim(fd, wait)
        with _advisory_lock(wait), _renewing(fd, claim):
            yield
    finally:
        if claim is not None:
            _withdraw(fd, claim)
        os.close(fd)


@dataclass(frozen=True)
class _Wait:
    layout: Layout
    verb: str
    kind: Kind
    tag: str
    timeout: float
    deadline: float

    def or_busy(self, holder: str, pause: float, *, hint: str = "Run it again later") -> None:
        """Sleep, or raise `DataFolderBusy` when the time is up."""
        if time.monotonic() >= self.deadline:
            raise DataFolderBusy(
                f"{self.layout.data} is busy with {holder}; {self.verb} waited {self.timeout:g} s. {hint}"
            )
        time.sleep(max(0.0, min(pause, self.deadline - time.monotonic())))


def _flock(fd: int, wait: _Wait) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            wait.or_busy(_name_holder(_read(fd), wait.tag), _POLL)
        except OSError as error:
            raise DataFolderError(
                f"{wait.layout.data} is on a file system without locks ({error.strerror}): {wait.verb} was not begun; "
                "put the data folder on a local disk (docs/storage.md)"
            ) from error


def _claim(fd: int, wait: _Wait) -> dict[str, Any]:
    """Write who holds the lock, once no other host does. Raises `DataFolderBusy`."""
    claim = {
        "verb": wait.verb[:64],
        "pid": os.getpid(),
        "host": hosts.host_name()[:64],
        "tag": wait.tag,
        "nonce": secrets.token_hex(8),
        "beat": 0,
    }
    while True:
        _wait_for_claim(wait)
        _wait_for_writers(wait)
        _write(fd, claim)
        if wait.kind != "unknown":
            return claim
        # Two hosts that claim at one moment: the later one's content stays, and both read it once it has settled.
        time.sleep(SETTLE)
        found = _read_path(wait.layout.lock) or {}
        if found.get("nonce") == claim["nonce"]:
            return claim
        wait.or_busy(_name_holder(found, wait.tag), secrets.randbelow(1000) / 1000)


def _wait_for_claim(wait: _Wait) -> None:
    while True:
        held = _read_path(wait.layout.lock) or {}
        tag = held.get("tag")
        if not isinstance(tag, str) or not is_foreign(tag, wait.tag, wait.kind):
            if _is_at_work(held, wait.layout.lock):  # though its flock was granted to us as well
                wait.or_busy(_name_holder(held, wait.tag), _POLL)
                continue
            quiet_for(wait.layout, "lock", {})
            return
        mark = f"{held.get('nonce')} {held.get('beat')}"
        if quiet_for(wait.layout, "lock", {"lock": mark})["lock"] >= hosts.GRACE:
            return
        hint = f"If that host is dead, its claim ends {hosts.GRACE:g} s after its last sign of life: run it again then"
        wait.or_busy(_name_holder(held, wait.tag), _FOREIGN_POLL, hint=hint)


def _is_at_work(held: dict[str, Any], lock: Path) -> bool:
    """Whether the process of a claim is another one of this host that has the lock file open."""
    pid = held.get("pid")
    return isinstance(pid, int) and pid != os.getpid() and hosts.has_open(pid, lock.stat())


def _wait_for_writers(wait: _Wait) -> None:
    """Told that this host alone uses the volume: no other one may be seen writing to it. Raises `DataFolderError`."""
    if wait.kind != "unknown" or volume_setting() != "single-host":
        return
    marks = {}
    for path in wait.layout.spool.glob("*.open"):
        tag = hosts.segment_tag(path.stem)
        if tag is not None and is_foreign(tag, wait.tag, wait.kind):
            with suppress(OSError):  # sealed this moment
                marks[path.stem] = file_mark(path)
    quiet = quiet_for(wait.layout, "writers", marks)
    for name, seconds in quiet.items():
        if seconds < hosts.GRACE:
            raise DataFolderBusy(
                f"{wait.layout.data}: another host, or another mount of it, writes there too (segment {name}, "
                f"unchanged for {seconds:.0f} of {hosts.GRACE:g} s), yet `volume` is single-host: {wait.verb} was not "
                "begun. Stop the agents there, or give each host a data folder of its own (docs/storage.md)"
            )


@contextmanager
def _renewing(fd: int, claim: dict[str, Any]) -> Iterator[None]:
    """Give signs of life for other hosts while the block runs."""
    done = threading.Event()

    def renew() -> None:
        while not done.wait(hosts.HEARTBEAT):
            claim["beat"] += 1
            _write(fd, claim)

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
    from storage.ledger_database import LedgerDatabase, open_database

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


def _folder_id(layout: Layout) -> str:
    """What a data folder is called by all hosts, whatever its path on each. Made by the first."""
    path = layout.data / ".folder"
    with suppress(FileNotFoundError):
        return path.read_text().strip()
    temporary = layout.data / f".folder.{secrets.token_hex(8)}"
    os.close(open_private(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    try:
        temporary.write_text(secrets.token_hex(8))
        with suppress(FileExistsError):
            os.link(temporary, path)  # it fails where there is one, and nobody sees it half
    except OSError:  # no hard links here
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
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


def _write(fd: int, claim: dict[str, Any]) -> None:
    with suppress(OSError):  # on a full disk the lock must work all the same
        # One write of one length: what others read of it is whole, and never two of them mixed.
        os.pwrite(fd, orjson.dumps(claim).ljust(_CLAIM_BYTES), 0)


def _withdraw(fd: int, claim: dict[str, Any]) -> None:
    if (_read(fd) or {}).get("nonce") == claim["nonce"]:
        with suppress(OSError):
            os.ftruncate(fd, 0)
