"""The verbs on the decision log as Prefect tasks: with progress, the report as an artifact, and retries."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from prefect import task

from pipeline.reports import without
from storage.erasure.erase import EraseReport, erase_subject
from storage.log.compact import CompactReport, compact_decisions
from storage.log.expire import ExpireReport, expire_decisions
from storage.log.land import LandReport, land_decisions
from storage.log.reland import RelandReport, reland_quarantine
from tasks.runs import REPEATABLE, publish, run_progress


@task(**REPEATABLE)
def land(data: Path, *, now: datetime | None = None) -> LandReport:
    report = land_decisions(data, now=now, progress=run_progress("landing-progress", "Landing"))
    publish("landing", report, title="What was landed")
    return report


@task(**REPEATABLE)
def reland(data: Path, *, now: datetime | None = None) -> RelandReport:
    report = reland_quarantine(data, now=now, progress=run_progress("relanding-progress", "Landing the quarantine"))
    # The examples quote what was recorded, which an artifact would keep.
    publish("relanding", without(report, "examples"), title="What was landed from the quarantine")
    return report


@task(**REPEATABLE)
def compact(data: Path, *, min_files: int) -> CompactReport:
    report = compact_decisions(data, min_files=min_files, progress=run_progress("compaction-progress", "Compacting"))
    publish("compaction", report, title="What was compacted")
    return report


@task(**REPEATABLE)
def expire(data: Path, *, retention_days: int | None, dry_run: bool, now: datetime | None = None) -> ExpireReport:
    report = expire_decisions(data, retention_days=retention_days, dry_run=dry_run, now=now)
    title = "What would expire" if dry_run else "What expired"
    publish("expiry", report, title=title if report.configured else "No retention is configured: nothing expired")
    return report


@task(**REPEATABLE)
def erase(data: Path, subject_id: str, *, now: datetime | None = None) -> EraseReport:
    report = erase_subject(data, subject_id, now=now, progress=run_progress("erasure-progress", "Erasing"))
    # An artifact outlives the erasure: the name of whoever wanted to be forgotten is not kept in one.
    publish("erasure", without(report, "subject_id"), title="What was erased")
    return report
