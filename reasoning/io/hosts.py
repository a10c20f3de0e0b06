"""Which host this is, for folders that several hosts may share.

`flock` holds between processes of one kernel that see a folder through one mount; between others it may not. So a
segment's name carries a host tag of 16 hex digits: 8 of the machine, which outlast a reboot, and 8 of this boot and
this mount. Who has another tag is judged by signs of life (a changing modification time), never by `flock` alone.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import socket
import time
from pathlib import Path

from reasoning.config import host_id

HEARTBEAT = 5.0  # seconds between two signs of life
GRACE = 300.0  # seconds without one after which another host's work may be taken over
# A writer that gave no sign for this long (it was suspended) no longer trusts its segment. Well below GRACE.
FENCE = 120.0

_SEGMENT = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}-(?P<tag>[0-9a-f]{16})-(?P<pid>\d+)")
_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)  # unlike the monotonic clock, it goes on while the machine sleeps


def steady() -> float:
    """Seconds of a clock that nobody sets, the same in all processes of a host. Its zero is the boot, roughly."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)


def boot_id() -> str:
    """This boot of this machine, as 8 hex digits: `steady` may be compared within it."""
    return _digest(_boot())


def host_tag(folder: Path) -> str:
    """The tag of this host for an existing folder. Processes of equal tags see each other's `flock`. Raises OSError."""
    device = os.stat(folder).st_dev  # noqa: PTH116 - the hot path of a new segment
    return _machine() + _digest(f"{_boot()} {device}")


def same_machine(tag: str, other: str) -> bool:
    """Whether two tags are of one machine, perhaps of two boots or mounts of it."""
    return tag[:8] == other[:8]


def segment_tag(name: str) -> str | None:
    """The host tag in a segment's name (without its suffix). None in names of older versions and of copies."""
    match = _SEGMENT.fullmatch(name)
    return match["tag"] if match else None


def segment_pid(name: str) -> int | None:
    """The process id in a segment's name (without its suffix), of its writer where that runs."""
    match = _SEGMENT.fullmatch(name)
    return int(match["pid"]) if match else None


def has_open(pid: int, file: os.stat_result) -> bool:
    """Whether a process that is seen here has a file open. False where that cannot be told (only Linux tells)."""
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                try:
                    if os.path.samestat(os.stat(entry.path), file):  # noqa: PTH116 - of a link of /proc
                        return True
                except OSError:
                    continue
    except OSError:
        pass
    return False


def host_name() -> str:
    """What people call this host."""
    return socket.gethostname() or "unnamed"


@functools.cache
def _machine() -> str:
    return _digest(_override() or _read("/etc/machine-id") or socket.gethostname())


@functools.cache
def _boot() -> str:
    # The override goes in as well: virtual machines that were resumed from one snapshot have one boot id.
    # Without a boot id a reboot goes unnoticed, which is harmless: what was locked before it is free.
    return f"{_override()} {_read('/proc/sys/kernel/random/boot_id') or socket.gethostname()}"


def _override() -> str:
    return host_id()


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
