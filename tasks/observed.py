"""The verbs as Prefect tasks: the same work, its progress, its report as an artifact, and retries where they fit."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from prefect import task

from provider.guard import GuardReport
from provider.reconcile import ReconcileReport
from quality.checks import check_decisions
from quality.dataset import Manifest
from quality.evaluation import Evaluation
from quality.report import QualityReport
from reasoning.routes import Route
from storage.compact import CompactReport, compact_decisions
from storage.erase import EraseReport, erase_subject
from storage.expire import ExpireReport, expire_decisions
from storage.land import LandReport, land_decisions
from tasks import evaluation, models, money, promotion
from tasks.reports import evaluation_rows, hide
from tasks.runs import ONCE, REPEATABLE, publish, run_progress

# -- the decision log -------------------------------------------------------------------------------------------------


@task(**REPEATABLE)
def land(data: Path, *, now: datetime | None = None) -> LandReport:
    report = land_decisions(data, now=now, progress=run_progress("landing-progress", "Landing"))
    publish("landing", report, title="What was landed")
    return report


@task(**REPEATABLE)
def compact(data: Path, *, min_files: int) -> CompactReport:
    report = compact_decisions(data, min_files=min_files, progress=run_progress("compaction-progress", "Compacting"))
    publish("compaction", report, title="What was compacted")
    return report


@task(**REPEATABLE)
def expire(data: Path, *, retention_days: int, dry_run: bool, now: datetime | None = None) -> ExpireReport:
    report = expire_decisions(data, retention_days=retention_days, dry_run=dry_run, now=now)
    publish("expiry", report, title="What would expire" if dry_run else "What expired")
    return report


@task(**REPEATABLE)
def erase(data: Path, subject_id: str, *, now: datetime | None = None) -> EraseReport:
    report = erase_subject(data, subject_id, now=now, progress=run_progress("erasure-progress", "Erasing"))
    # An artifact outlives the erasure: the name of whoever wanted to be forgotten is not kept in one.
    publish("erasure", hide(report, "subject_id"), title="What was erased")
    return report


@task(**REPEATABLE)
def check(data: Path, *, days: int, now: datetime | None = None) -> QualityReport:
    report = check_decisions(data, days=days, now=now)
    publish("quality", hide(report, "failures"), title="Is the decision log in order?")
    publish("quality-failures", report.failures, title="Expectations that were not met")
    return report


# -- models -----------------------------------------------------------------------------------------------------------


@task(**REPEATABLE)
def export(data: Path, decision_type: str, **options: Any) -> Manifest:
    progress = run_progress("export-progress", f"Exporting {decision_type}")
    manifest = models.export(data, decision_type, progress=progress, **options)
    publish("dataset", hide(manifest, "query", "quality", "splits"), title=f"Dataset {manifest.dataset_id}")
    publish(
        "dataset-splits",
        [
            {"split": name, "rows": split.rows, "episodes": split.episodes, "first": split.first, "last": split.last}
            for name, split in manifest.splits.items()
        ],
        title=f"Splits of dataset {manifest.dataset_id}",
    )
    return manifest


@task(**ONCE)
def fine_tune(data: Path, dataset: str, **options: Any) -> dict[str, Any]:
    job = models.fine_tune(data, dataset, progress=run_progress("fine-tune-progress", "Fine-tuning"), **options)
    publish("fine-tune", job, title=f"Fine-tune {job['suffix']}")
    return job


@task(**ONCE)
def deploy(data: Path, model: str, **options: Any) -> dict[str, Any]:
    row = models.deploy(data, model, progress=run_progress("deployment-progress", "Deploying"), **options)
    publish("deployment", row, title=f"Deployment {row['name']}")
    return row


@task(**REPEATABLE)
def undeploy(data: Path, model: str, **options: Any) -> list[dict[str, Any]]:
    rows = models.undeploy(data, model, progress=run_progress("undeployment-progress", "Undeploying"), **options)
    publish("undeployed", rows, title=f"What served {model}")
    return rows


@task(**REPEATABLE)
def evaluate(data: Path, model: str, **options: Any) -> Evaluation:
    found = evaluation.evaluate_model(
        data, model, progress=run_progress("evaluation-progress", "Evaluating"), **options
    )
    publish("verdict", found.about["verdict"] | {"notes": found.notes}, title=f"Verdict on {found.about['model_id']}")
    publish("evaluation", evaluation_rows(found), title=f"{found.rows:,} holdout rows, 95 % intervals")
    return found


@task(**REPEATABLE)
def promote(data: Path, model: str, **options: Any) -> Route:
    route = promotion.promote_model(data, model, **options)
    publish("route", list(route.arms), title=f"Arms of {route.experiment}")
    return route


@task(**REPEATABLE)
def reject(data: Path, model_id: str, *, why: str, now: datetime | None = None) -> None:
    promotion.reject_model(data, model_id, why=why, now=now)
    publish("rejected", {"model_id": model_id, "why": why}, title=f"{model_id} is rejected")


# -- money ------------------------------------------------------------------------------------------------------------


@task(**ONCE)  # the next tick comes within a minute, and makes up for this one
def guard(data: Path, *, idle_minutes: int | None, lease_minutes: float, now: datetime | None = None) -> GuardReport:
    report = money.guard(data, idle_minutes=idle_minutes, lease_minutes=lease_minutes, now=now)
    publish("guard", hide(report, "budgets"), title="What the guard found and did")
    publish("budgets", report.budgets, title="Budgets")
    return report


@task(**REPEATABLE)
def reconcile(data: Path, *, now: datetime | None = None) -> ReconcileReport:
    report = money.reconcile(data, now=now)
    publish("reconciliation", report, title="The provider against the ledger")
    return report
