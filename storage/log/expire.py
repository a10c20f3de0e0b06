"""Retention: delete data older than `[retention]` allows. By default everything is kept.

Age counts from the later of two days: that of the record, by the writer's clock, and that of its landing. So records
of a host with a slow clock are not deleted on the night they arrive. Days in the future do not count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from uuid import UUID

import duckdb
import pyarrow.parquet as pq

from reasoning.config import Retention
from reasoning.ids import uuid7_time
from storage.files import sync
from storage.layout import Layout, read_settings
from storage.locks import LOCK_TIMEOUT, data_lock
from storage.log.clock_watch import check_clock
from storage.log.clocks import ClockLimits, clock_limits, counting_day
from storage.log.home import check_folder
from storage.log.land import finish_landing
from storage.log.replace import remove_files
from storage.log.rewrite import rewrite_partition
from storage.log.schema import PARTITIONS, PartitionKey
from storage.log.table import landed_at, list_partitions, live_files, read_metadata
from storage.log.views import connect, refresh


@dataclass
class ExpireReport:
    """What one expiry deleted, or would delete in a dry run. `rows` by table.

    `before` is the first date of decisions that is kept; empty if decisions are kept forever. `configured` is false if
    no retention is set; nothing was deleted then. `labelled_kept` counts decisions that are older and were kept
    because they are labelled.
    """

    before: str
    dry_run: bool
    partitions: int = 0
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTITIONS, 0))
    bytes: int = 0
    quarantine_files: int = 0
    labelled_kept: int = 0
    configured: bool = True


def expire_decisions(
    data: Path | str,
    *,
    retention_days: int | None = None,
    retention: Retention | None = None,
    now: datetime | None = None,
    dry_run: bool = False,
    lock_timeout: float = LOCK_TIMEOUT,
) -> ExpireReport:
    """Delete what is older than the retention: files of whole days, and unlabelled decisions before labelled ones.

    `retention_days` sets one age for all tables, in place of `retention`, which is that of reasoning.toml by default. A
    decision's feedback goes with it, however late it came, unless feedback has an age of its own. Datasets, models and
    the ledger stay. A dry run counts the same and changes nothing, so what is still in the spool is not counted. Raises
    `DataFolderError`, `DataFolderBusy`, `LandingError`, `TableError`, and
    `ClockJumped` where the time of this machine is not plausible; a `now` that is given is not questioned.
    """
    if retention_days is not None:
        if retention_days < 1:
            raise ValueError(f"retention_days must be 1 or more, not {retention_days}")
        retention = Retention(decisions=retention_days, labelled_decisions=retention_days)
    retention = retention or read_settings().retention
    layout = Layout(data).check()
    check_folder(layout, "expiry")
    run = _Run(layout, retention, clock_limits(now), dry_run)
    if not retention.configured:
        run.report.configured = False
    elif dry_run:
        run.expire()
    else:
        layout.create()
        with data_lock(layout, "expiry", timeout=lock_timeout):
            finish_landing(layout, now=now)
            if now is None:
                check_clock(layout, run.limits, run.newest())
            run.expire()
    return run.report


class _Run:
    """One expiry: the first day kept of each table, and what was deleted so far."""

    def __init__(self, layout: Layout, retention: Retention, limits: ClockLimits, dry_run: bool) -> None:
        self.layout = layout
        self.limits = limits
        self.decisions = self._first(retention.decisions)
        self.labelled = self._first(retention.labelled_decisions)
        self.feedback = self._first(retention.feedback)
        self.quarantine = self._first(retention.quarantine) or self.decisions
        self.report = ExpireReport(self.decisions.isoformat() if self.decisions else "", dry_run)
        self.emptied: set[str] = set()  # dates of which a partition of decisions was deleted
        self.cut: set[str] = set()  # and of which only the unlabelled decisions were
        self._con: duckdb.DuckDBPyConnection | None = None

    def _first(self, days: int | None) -> date | None:
        """The first day that is kept."""
        today = self.limits.now.date()
        return None if days is None else today - timedelta(days=min(days, (today - date.min).days))

    def newest(self) -> date | None:
        """The newest day with decisions that is not in the future."""
        latest = self.limits.latest.date()
        days = (date.fromisoformat(key.date) for key in list_partitions(self.layout, "decisions"))
        return max((day for day in days if day <= latest), default=None)

    def expire(self) -> None:
        try:
            left = set()
            for key in list_partitions(self.layout, "decisions"):
                if not self._expire_decisions(key):
                    left.add(key.date)
            for key in list_partitions(self.layout, "feedback"):
                self._expire_feedback(key, left)
        finally:
            if self._con is not None:
                self._con.close()
        self._expire_quarantine()

    def _expire_decisions(self, key: PartitionKey) -> bool:
        """Whether no decision of the partition is left."""
        if self.decisions is None or (key.date >= self.decisions.isoformat() and not self._is_impossible(key)):
            return False
        files = self._ages(key)
        if not files:
            return True  # others' files are in it
        labelled = self.labelled or date.min  # `keep`
        gone = [path for path, age in files.items() if age < labelled]
        if gone:
            self._remove(key, gone)
            self.emptied.add(key.date)
        if len(gone) == len(files):
            return True
        if labelled < self.decisions and all(age < self.decisions for age in files.values()):
            self._cut(key)
        return False

    def _cut(self, key: PartitionKey) -> None:
        """Delete the unlabelled decisions of a partition, and the feedback on them."""
        con = self._connection()
        where = f"date = '{key.date}' AND decision_type = '{key.decision_type}'"
        # Feedback that labels nothing (a comment) goes with its decision; the request's other answers stay together.
        con.execute(f"INSERT INTO dropped SELECT decision_id FROM decisions WHERE {where} AND {_UNLABELLED}")  # noqa: S608
        total, dropped = con.execute(
            f"SELECT count(*), count(*) FILTER ({_UNLABELLED}) FROM decisions WHERE {where}"  # noqa: S608
        ).fetchall()[0]
        self.report.labelled_kept += total - dropped
        self.report.rows["decisions"] += dropped
        if not dropped:
            return
        self.cut.add(key.date)
        if not self.report.dry_run:
            rewrite_partition(con, self.layout, key, drop=_UNLABELLED)

    def _expire_feedback(self, key: PartitionKey, left: set[str]) -> None:
        if self.feedback is not None:
            if files := [path for path, age in self._ages(key).items() if age < self.feedback]:
                self._remove(key, files)
        elif self.decisions is not None and key.date not in left:
            # It goes with its decisions. Where there were none, it has an age of its own.
            files = [p for p, age in self._ages(key).items() if key.date in self.emptied or age < self.decisions]
            if files:
                self._remove(key, files)
        elif key.date in self.cut:
            con, about = self._connection(), "decision_id IN (SELECT decision_id FROM dropped)"
            query = f"SELECT count(*) FROM feedback_log WHERE date = '{key.date}' AND {about}"  # noqa: S608
            if dropped := con.execute(query).fetchall()[0][0]:
                self.report.rows["feedback"] += dropped
                if not self.report.dry_run:
                    rewrite_partition(con, self.layout, key, drop=about)

    def _expire_quarantine(self) -> None:
        found = self.report.quarantine_files
        for path in sorted(self.layout.quarantine.glob("*.jsonl")) if self.quarantine else ():
            status = path.stat()
            arrived = datetime.fromtimestamp(status.st_mtime, UTC).date()
            if counting_day(_segment_date(path) or arrived, arrived, self.limits) < (self.quarantine or date.min):
                self.report.quarantine_files += 1
                self.report.bytes += status.st_size
                if not self.report.dry_run:
                    path.unlink()
        if self.report.quarantine_files > found and not self.report.dry_run:
            sync(self.layout.quarantine)

    def _is_impossible(self, key: PartitionKey) -> bool:
        return key.date > self.limits.latest.date().isoformat()

    def _ages(self, key: PartitionKey) -> dict[Path, date]:
        """The files of a partition with the day that each counts from."""
        day = date.fromisoformat(key.date)
        return {
            path: counting_day(day, landed_at(path, read_metadata(path)).date(), self.limits)
            for path in live_files(self.layout.data / key.folder)
        }

    def _remove(self, key: PartitionKey, files: list[Path]) -> None:
        metadata: list[pq.FileMetaData] = [read_metadata(path) for path in files]
        self.report.partitions += 1
        self.report.rows[key.table] += sum(each.num_rows for each in metadata)
        self.report.bytes += sum(path.stat().st_size for path in files)
        if not self.report.dry_run:
            remove_files(self.layout, key, files)

    def _connection(self) -> duckdb.DuckDBPyConnection:
        if self._con is None:
            con = self._con = connect(self.layout.data, memory_limit="1GB")
            con.execute("""
                CREATE TEMP TABLE labelled AS
                SELECT DISTINCT d.request_id, NULL::VARCHAR AS episode_id
                FROM decisions AS d JOIN feedback_log AS f ON d.date = f.date AND d.decision_id = f.decision_id
                WHERE f.kind IN ('metric', 'demonstration')
                UNION ALL
                SELECT DISTINCT NULL, episode_id FROM feedback_log
                WHERE episode_id IS NOT NULL AND kind IN ('metric', 'demonstration')
            """)
            con.execute("CREATE TEMP TABLE dropped (decision_id UUID)")
        refresh(self._con, self.layout.data)  # without what was deleted since
        return self._con


_UNLABELLED = (
    "(request_id NOT IN (SELECT request_id FROM labelled WHERE request_id IS NOT NULL)"
    " AND coalesce(episode_id NOT IN (SELECT episode_id FROM labelled WHERE episode_id IS NOT NULL), true))"
)


def _segment_date(path: Path) -> date | None:
    try:
        return uuid7_time(UUID(path.name[:36])).date()
    except (ValueError, OverflowError):  # not named by the id of a segment
        return None
