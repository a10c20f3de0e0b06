"""Compaction: merge the small files of a partition into one, sorted by time. No row is lost, duplicated or changed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import duckdb

from storage.layout import Layout
from storage.locks import LOCK_TIMEOUT, data_lock
from storage.log.land import finish_landing
from storage.log.rewrite import Method, rewrite_partition
from storage.log.schema import PARTITIONS, PartitionKey
from storage.log.table import list_files, list_partitions, live_files, naming_unreadable
from storage.log.views import connect
from storage.progress import OnProgress, Progress


@dataclass
class CompactReport:
    """What one compaction did. Bytes are those of the partitions rewritten."""

    partitions: int = 0
    files_before: int = 0
    files_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0


def compact_decisions(
    data: Path | str,
    *,
    min_files: int = 2,
    method: Method = "auto",
    memory_limit: str = "1GB",
    threads: int | None = None,
    progress: OnProgress | None = None,
    lock_timeout: float = LOCK_TIMEOUT,
) -> CompactReport:
    """Rewrite every partition of both tables that has `min_files` files or more as one file.

    The lock is held for one partition at a time, so that landing can run in between. `method` is how a
    partition is replaced (`storage.log.rewrite`): `auto` takes the exchange where the system has it. Raises
    `DataFolderError`, `DataFolderBusy`, `LandingError` and `TableError`.
    """
    if min_files < 2:
        raise ValueError(f"min_files must be 2 or more, not {min_files}: one file is compact already")
    layout = Layout(data).check().create()
    report = CompactReport()
    keys = [key for table in PARTITIONS for key in list_partitions(layout, table)]
    files = (path for table in PARTITIONS for path in list_files(layout, table))
    with naming_unreadable(files):
        con = connect(data, memory_limit=memory_limit, threads=threads)
    with con:
        for done, key in enumerate(keys, 1):
            if len(live_files(layout.data / key.folder)) >= min_files:
                with data_lock(layout, "compaction", timeout=lock_timeout):
                    finish_landing(layout)
                    _compact(con, layout, key, min_files, method, report)
                time.sleep(0.05)  # longer than a waiting process pauses between two attempts to take the lock
            if progress:
                progress(Progress(done, len(keys), "partitions"))
    return report


def _compact(
    con: duckdb.DuckDBPyConnection,
    layout: Layout,
    key: PartitionKey,
    min_files: int,
    method: Method,
    report: CompactReport,
) -> None:
    folder = layout.data / key.folder
    before = live_files(folder)
    if len(before) < min_files:
        return
    size = sum(path.stat().st_size for path in before)
    rewrite_partition(con, layout, key, method=method)
    after = live_files(folder)
    report.partitions += 1
    report.files_before += len(before)
    report.files_after += len(after)
    report.bytes_before += size
    report.bytes_after += sum(path.stat().st_size for path in after)
