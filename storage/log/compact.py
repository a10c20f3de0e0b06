"""Compaction: merge the small files of a partition, sorted by time. No row is lost, duplicated or changed.

Files of about `TARGET_BYTES` are made and then left alone. A file is merged only with others that are not small beside
it, so feedback that comes late to an old day does not rewrite the day each time: written bytes grow with the logarithm
of the number of landings.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import duckdb

from storage.files import scratch_folder
from storage.lake.upkeep import count_files, merge_files
from storage.layout import Layout
from storage.locks import LOCK_TIMEOUT, data_lock
from storage.log.home import lake_address
from storage.log.land import finish_landing
from storage.log.replace import SCRATCH, Method, own_folder
from storage.log.rewrite import FilesChanged, commit, empty_folder, write_anew
from storage.log.schema import PARTITIONS, PartitionKey
from storage.log.table import list_partitions, live_files
from storage.log.views import connect, open_engine
from storage.progress import OnProgress, Progress

TARGET_BYTES = 256 << 20
"""How large a merged file gets, about. One of half of it is left alone."""

_ALWAYS_BYTES = 1 << 20  # up to here a file is merged whatever the others are: that costs nothing
_RATIO = 4  # a file may be so many times as large as all smaller ones that it is merged with
_PAUSE = 0.05  # seconds: longer than a waiting process pauses between two attempts to take the lock


@dataclass
class CompactReport:
    """What one compaction did. Files and bytes are those of the partitions rewritten.

    `interrupted` counts merges that were given up because another verb replaced the files meanwhile; they are merged
    next time.
    """

    partitions: int = 0
    files_before: int = 0
    files_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    interrupted: int = 0


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
    """Merge the small files of every partition of both tables, where there are `min_files` or more to be merged.

    Files are written without the lock; it is held for milliseconds, to exchange them. `method` is how files are
    replaced (`storage.log.replace`): `auto` takes the exchange where the system has it. A lake merges its files itself,
    under the lock. Raises `DataFolderError`,
    `DataFolderBusy`, `LandingError` and `TableError`.
    """
    if min_files < 2:
        raise ValueError(f"min_files must be 2 or more, not {min_files}: one file is compact already")
    layout = Layout(data).check().create()
    report = CompactReport()
    if lake_address(layout) is not None:
        with data_lock(layout, "compaction", timeout=lock_timeout), connect(data, memory_limit=memory_limit) as con:
            finish_landing(layout)
            report.files_before, report.bytes_before = count_files(con)
            merge_files(con)
            report.files_after, report.bytes_after = count_files(con)
        return report
    with data_lock(layout, "compaction", timeout=lock_timeout):
        finish_landing(layout)
    keys = [key for table in PARTITIONS for key in list_partitions(layout, table)]
    with open_engine(memory_limit, threads) as con, scratch_folder(layout.data, SCRATCH) as scratch:
        for done, key in enumerate(keys, 1):
            _compact(_Run(con, layout, scratch, method, lock_timeout), key, min_files, report)
            if progress:
                progress(Progress(done, len(keys), "partitions"))
    return report


@dataclass(frozen=True)
class _Run:
    con: duckdb.DuckDBPyConnection
    layout: Layout
    scratch: Path
    method: Method
    lock_timeout: float


def _compact(run: _Run, key: PartitionKey, min_files: int, report: CompactReport) -> None:
    folder = run.layout.data / key.folder
    before = _sizes(folder)
    merged = False
    for group in choose_groups(before, min_files):
        own_folder(run.layout, key)
        try:
            rewrite = write_anew(run.con, key, group, run.scratch)
            with data_lock(run.layout, "compaction", timeout=run.lock_timeout):
                commit(run.layout, [rewrite], run.scratch, method=run.method)
        except FilesChanged:
            report.interrupted += 1
            break
        merged = True
        empty_folder(run.scratch)
        time.sleep(_PAUSE)
    if merged:
        after = _sizes(folder)
        report.partitions += 1
        report.files_before += len(before)
        report.files_after += len(after)
        report.bytes_before += sum(before.values())
        report.bytes_after += sum(after.values())


def _sizes(folder: Path) -> dict[Path, int]:
    """The files of a partition in the order in which they were written, about that of their rows, with their bytes."""
    found = []
    for path in live_files(folder):
        with suppress(FileNotFoundError):  # replaced meanwhile
            status = path.stat()
            found.append((status.st_mtime_ns, path, status.st_size))
    return {path: size for _, path, size in sorted(found)}


def choose_groups(sizes: dict[Path, int], min_files: int = 2) -> Iterator[list[Path]]:
    """Which files of a partition, of these sizes in bytes, are to become one file each.

    Those of half the target's size are left alone. The others make tiers: a file that is large beside all smaller ones
    of a tier begins the next one. Of each tier the files are taken in the order given until they make up the target.
    """
    tier: set[Path] = set()
    total = 0
    tiers = [tier]
    for path, size in sorted(sizes.items(), key=lambda item: item[1]):
        if size >= TARGET_BYTES // 2:
            break
        if tier and size > max(_ALWAYS_BYTES, _RATIO * total):
            tier, total = set(), 0
            tiers.append(tier)
        tier.add(path)
        total += size
    for tier in tiers:
        yield from _fill({path: size for path, size in sizes.items() if path in tier}, min_files)


def _fill(sizes: dict[Path, int], min_files: int) -> Iterator[list[Path]]:
    """Successive files that make up the target together, where they are `min_files` or more."""
    group: list[Path] = []
    filled = 0
    for path, size in sizes.items():
        if filled + size > TARGET_BYTES:
            if len(group) >= min_files:
                yield group
            group, filled = [], 0
        group.append(path)
        filled += size
    if len(group) >= min_files:
        yield group
