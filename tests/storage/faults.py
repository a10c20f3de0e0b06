"""Processes that the fault tests start and kill: `python -m tests.storage.faults <role> <data> …`."""

from __future__ import annotations

import itertools
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from reasoning.spool import SegmentWriter
from tests.storage.logs import make_decision


def write(data: Path, acknowledged: Path) -> None:
    """Record for ever; an id is acknowledged, by one write to a file of its own, after `write` returned True."""
    writer = SegmentWriter(data / "spool", max_bytes=20_000, sync_interval=0.05)
    fd = os.open(acknowledged, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    n = 0
    while True:
        n += 1
        ts = datetime.now(UTC) - timedelta(days=n % 3)
        decision = make_decision(ts, decision_type=("planning", "should_respond")[n % 2], episode_id="x" * (n % 700))
        if writer.write(decision):
            os.write(fd, decision.decision_id.bytes)


def land(data: Path) -> None:
    from storage.errors import DataFolderBusy
    from storage.land import land_decisions

    print("ready", flush=True)
    while True:
        try:
            land_decisions(data, lock_timeout=5)
        except DataFolderBusy:
            continue


def compact(data: Path, method: str) -> None:
    from storage.compact import compact_decisions
    from storage.errors import DataFolderBusy

    methods = itertools.cycle(["exchange", "manifest"] if method == "both" else [method])
    print("ready", flush=True)
    while True:
        try:
            compact_decisions(data, method=next(methods), lock_timeout=5)  # type: ignore[arg-type]
        except DataFolderBusy:
            continue


def churn(data: Path, method: str) -> None:
    """Rewrite every partition over and over, although it is one file already."""
    import storage
    from storage.layout import Layout
    from storage.locks import data_lock
    from storage.rewrite import recover, rewrite_partition
    from storage.table import list_partitions

    layout = Layout(data)
    with storage.connect(data, threads=1) as con:
        print("ready", flush=True)
        while True:
            for key in list_partitions(layout, "decisions"):
                with data_lock(layout, "churning"):
                    recover(layout)
                    rewrite_partition(con, layout, key, method=method)  # type: ignore[arg-type]


if __name__ == "__main__":
    role, folder, *rest = sys.argv[1:]
    if role == "write":
        write(Path(folder), Path(rest[0]))
    elif role == "land":
        land(Path(folder))
    elif role == "compact":
        compact(Path(folder), rest[0])
    elif role == "churn":
        churn(Path(folder), rest[0])
