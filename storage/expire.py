"""Retention: what is older than it may be is deleted, whole days at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from uuid import UUID

from reasoning.ids import uuid7_time
from storage.files import sync
from storage.land import finish_landing
from storage.layout import Layout
from storage.locks import LOCK_TIMEOUT, data_lock
from storage.rewrite import remove_partition
from storage.schema import PARTITIONS
from storage.table import list_partitions, live_files, read_metadata


@dataclass
class ExpireReport:
    """What one expiry deleted, or would delete in a dry run. `rows` by table; `before` is the first date kept."""

    before: str
    dry_run: bool
    partitions: int = 0
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTITIONS, 0))
    bytes: int = 0
    quarantine_files: int = 0


def expire_decisions(
    data: Path | str,
    *,
    retention_days: int,
    now: datetime | None = None,
    dry_run: bool = False,
    lock_timeout: float = LOCK_TIMEOUT,
) -> ExpireReport:
    """Delete the partitions of dates (UTC) more than `retention_days` days before today, and quarantined lines as old.

    A decision's feedback goes with it, however late it came: it is in the partition of the decision's date. Datasets,
    models and the ledger stay. A dry run counts the same and changes nothing, so what is still in the spool is not
    counted. Raises `DataFolderError`, `DataFolderBusy`, `LandingError` and `TableError`.
    """
    if retention_days < 1:
        raise ValueError(f"retention_days must be 1 or more, not {retention_days}")
    layout = Layout(data).check()
    today = (now or datetime.now(UTC)).astimezone(UTC).date()
    first = (today - timedelta(days=min(retention_days, (today - date.min).days))).isoformat()
    report = ExpireReport(before=first, dry_run=dry_run)
    if dry_run:
        _expire(layout, report)
        return report
    layout.create()
    with data_lock(layout, "expiry", timeout=lock_timeout):
        finish_landing(layout, now=now)
        _expire(layout, report)
    return report


def _expire(layout: Layout, report: ExpireReport) -> None:
    for table in PARTITIONS:
        for key in list_partitions(layout, table):
            if key.date >= report.before:
                continue
            files = live_files(layout.data / key.folder)
            if not files:
                continue  # others' files are in it
            report.partitions += 1
            report.rows[table] += sum(read_metadata(path).num_rows for path in files)
            report.bytes += sum(path.stat().st_size for path in files)
            if not report.dry_run:
                remove_partition(layout, key)
    for path in sorted(layout.quarantine.glob("*.jsonl")):
        if _segment_date(path) < report.before:
            report.quarantine_files += 1
            report.bytes += path.stat().st_size
            if not report.dry_run:
                path.unlink()
    if report.quarantine_files and not report.dry_run:
        sync(layout.quarantine)


def _segment_date(path: Path) -> str:
    try:
        return uuid7_time(UUID(path.name[:36])).date().isoformat()
    except (ValueError, OverflowError):  # not named by the id of a segment: by when it was written
        return datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat()
