"""One process of a host that shares a data folder with another host whose `flock` it does not see.

    python -m tests.storage.two_hosts agent|land|compact|backup DATA HOST [SECONDS]

HOST is what makes the host tag, unless IDENTITY does (copied machines).
With FLOCKS=FOLDER a `flock` is seen by processes of the same host alone, as on a file
system of which each host keeps its own locks; GRACE, HEARTBEAT and KIND (of volume) are set from the environment.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from pathlib import Path
from typing import Any

from reasoning.io import hosts, spool
from storage import locks, volumes


def become(host: str) -> None:
    settings: Any = os.environ
    os.environ["REASONING_HOST_ID"] = settings.get("IDENTITY", host)
    hosts.GRACE = float(settings.get("GRACE", "300"))
    hosts.HEARTBEAT = spool.HEARTBEAT = float(settings.get("HEARTBEAT", "5"))  # type: ignore[attr-defined]
    hosts.FENCE = spool.FENCE = hosts.GRACE / 2.5  # type: ignore[attr-defined]
    locks.SETTLE = 0.2
    if kind := settings.get("KIND"):
        volumes.volume_kind = lambda layout: kind
        locks.check_volume = lambda layout, verb: kind  # type: ignore[attr-defined]
        import storage.log.land

        storage.log.land.volume_kind = lambda layout: kind  # type: ignore[attr-defined]
    if folder := settings.get("FLOCKS"):
        keep_locks_apart(Path(folder) / host)


def keep_locks_apart(folder: Path) -> None:
    """Let `flock` lock a file of this host's folder instead, until the descriptor is closed."""
    folder.mkdir(parents=True, exist_ok=True)
    real, close, held = fcntl.flock, os.close, dict[int, int]()

    def flock(fd: int, how: int) -> None:
        if fd not in held:
            held[fd] = os.open(folder / str(os.fstat(fd).st_ino), os.O_RDWR | os.O_CREAT)
        real(held[fd], how)

    def close_both(fd: int) -> None:
        close(fd)
        if fd in held:
            close(held.pop(fd))

    fcntl.flock, os.close = flock, close_both  # type: ignore[assignment]


def agent(data: Path, seconds: float) -> None:
    """Write records, printing the id of each that was acknowledged."""
    from tests.storage.logs import make_decision

    writer = spool.SegmentWriter(data / "spool", max_age=1.0, sync_interval=0.2)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        record = make_decision()
        if writer.write(record):
            print(record.decision_id, flush=True)
        time.sleep(0.002)
    writer.close()
    print("dropped", sum(writer.dropped.values()), flush=True)


def repeat(verb: Any, data: Path, seconds: float) -> None:
    """Run a verb again and again; being refused is an answer, everything else raises."""
    from storage.errors import DataFolderBusy, DataFolderError, LandingError, LockLost

    end = time.monotonic() + seconds
    done = refused = 0
    while time.monotonic() < end:
        try:
            verb(data, lock_timeout=0.5)
            done += 1
        except (DataFolderBusy, DataFolderError, LandingError, LockLost):
            refused += 1
        time.sleep(0.05)
    print("done", done, "refused", refused, flush=True)


def main() -> None:
    from storage.backup import back_up
    from storage.log.compact import compact_decisions
    from storage.log.land import land_decisions

    role, data, host = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    seconds = float(sys.argv[4]) if len(sys.argv) > 4 else 3.0
    become(host)
    if role == "agent":
        agent(data, seconds)
    else:
        target = os.environ.get("TARGET", "")
        verbs = {
            "land": land_decisions,
            "compact": compact_decisions,
            "backup": lambda data, lock_timeout: back_up(data, target, lock_timeout=lock_timeout),
        }
        repeat(verbs[role], data, seconds)


if __name__ == "__main__":
    main()
