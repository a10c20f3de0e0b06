"""The verbs on datasets and models as Prefect tasks: with progress, reports as artifacts, retries where they fit."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from prefect import task
from prefect.logging import get_run_logger

from pipeline import demotion, evaluation, models, promotion
from pipeline.parameters import DemoteSettings, EvaluateSettings, PromoteSettings, RollbackSettings
from pipeline.reports import evaluation_rows, without
from quality.checks.log import check_decisions
from quality.checks.report import QualityReport
from quality.dataset.manifest import Manifest
from quality.evaluation.evaluate import Evaluation
from quality.evaluation.model_card import as_markdown, read_card
from quality.evaluation.promotion import promotion_warnings
from quality.settings import ExportSettings
from reasoning.config import load_config
from reasoning.serving.routes import Route
from storage.ledger.lives import CycleRow
from storage.ledger.rows import Deployment, FineTuneJob
from tasks.runs import ONCE, REPEATABLE, publish, publish_markdown, run_progress


@task(**REPEATABLE)
def check(data: Path, *, days: int, now: datetime | None = None) -> QualityReport:
    report = check_decisions(data, days=days, now=now)
    publish("quality", without(report, "failures"), title="Is the decision log in order?")
    publish("quality-failures", report.failures, title="Expectations that were not met")
    return report


@task(**REPEATABLE)
def export(
    data: Path, decision_type: str, settings: ExportSettings | None = None, *, now: datetime | None = None
) -> Manifest:
    progress = run_progress("export-progress", f"Exporting {decision_type}")
    manifest = models.export(data, decision_type, settings, now=now, progress=progress)
    publish("dataset", without(manifest, "query", "quality", "splits"), title=f"Dataset {manifest.dataset_id}")
    publish(
        "dataset-splits",
        [
            {"split": name, "rows": split.rows, "episodes": split.episodes, "first": split.first, "last": split.last}
            for name, split in manifest.splits.items()
        ],
        title=f"Splits of dataset {manifest.dataset_id}",
    )
    for warning in promotion_warnings(manifest.path, load_config(data)):
        get_run_logger().warning(warning)
    return manifest


@task(**ONCE)
def fine_tune(data: Path, dataset: str, **options: Any) -> FineTuneJob:
    job = models.fine_tune(data, dataset, progress=run_progress("fine-tune-progress", "Fine-tuning"), **options)
    publish("fine-tune", asdict(job), title=f"Fine-tune {job.suffix}")
    return job


@task(**ONCE)
def deploy(data: Path, model: str, **options: Any) -> Deployment:
    row = models.deploy(data, model, progress=run_progress("deployment-progress", "Deploying"), **options)
    publish("deployment", asdict(row), title=f"Deployment {row.name}")
    return row


@task(**REPEATABLE)
def undeploy(data: Path, model: str, **options: Any) -> list[Deployment]:
    rows = models.undeploy(data, model, progress=run_progress("undeployment-progress", "Undeploying"), **options)
    publish("undeployed", [asdict(row) for row in rows], title=f"What served {model}")
    return rows


@task(**REPEATABLE)
def evaluate(
    data: Path, model: str, settings: EvaluateSettings | None = None, *, now: datetime | None = None
) -> Evaluation:
    progress = run_progress("evaluation-progress", "Evaluating")
    found = evaluation.evaluate_model(data, model, settings, now=now, progress=progress)
    publish("verdict", found.about["verdict"] | {"notes": found.notes}, title=f"Verdict on {found.about['model_id']}")
    card = read_card(found.about["card"])
    publish_markdown("model-card", as_markdown(card), title=f"Card of {card.model_id}")
    publish("evaluation", evaluation_rows(found), title=f"{found.rows:,} holdout rows, 95 % intervals")
    return found


@task(**REPEATABLE)
def promote(data: Path, model: str, settings: PromoteSettings | None = None, *, now: datetime | None = None) -> Route:
    route = promotion.promote_model(data, model, settings, now=now)
    publish("route", list(route.arms), title=f"Arms of {route.experiment}")
    return route


@task(**REPEATABLE)
def demote(data: Path, model: str, settings: DemoteSettings, *, now: datetime | None = None) -> demotion.Demotion:
    found = demotion.demote_model(data, model, settings, now=now)
    publish("demoted", without(found, "route"), title=f"{found.model_id} is {found.to_state}")
    return found


@task(**ONCE)
def rollback(
    data: Path, decision_type: str, settings: RollbackSettings, *, now: datetime | None = None
) -> demotion.Rollback:
    progress = run_progress("rollback-progress", f"Rolling back {decision_type}")
    found = demotion.roll_back(data, decision_type, settings, now=now, progress=progress)
    publish("rolled-back", without(found, "route"), title=f"{decision_type} is rolled back")
    return found


@task(**REPEATABLE)
def reject(
    data: Path, model_id: str, *, why: str, numbers: dict[str, Any] | None = None, now: datetime | None = None
) -> None:
    promotion.reject_model(data, model_id, why=why, numbers=numbers, now=now)
    publish("rejected", {"model_id": model_id, "why": why}, title=f"{model_id} is rejected")


@task(**REPEATABLE)
def tell(cycles: list[CycleRow]) -> None:
    """Where the cycles stand, as an artifact."""
    publish("turns", cycles, title="The flywheel")
