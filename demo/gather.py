"""Collect a demo's results from its data folder: log, ledger, datasets, evaluations."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import storage
from demo.result import Comparison, DecisionCount, FunnelResult, Place, SpendPoint, TrainingOutcome
from pipeline.models import find_dataset
from provider.providers import local_server_url
from quality.dataset.manifest import read_manifest
from quality.errors import EvaluationError
from quality.evaluation.evaluate import is_right
from quality.evaluation.experiments import evaluate_log
from quality.settings import ExperimentSettings
from reasoning.decision_types import get_decision_type
from storage.ledger.ledger import open_ledger
from storage.ledger.lives import CycleRow, read_evaluation
from storage.ledger.rows import LOCAL, Deployment, DeploymentState, FineTuneJob


def count_decisions(data: Path, turned_at: datetime) -> list[DecisionCount]:
    """Served decisions by type, phase and source."""
    result = storage.sql(
        data,
        """SELECT decision_type, CASE WHEN ts < $turned_at THEN 'collect' ELSE 'serve' END AS phase, source, count(*)
           FROM decisions WHERE served GROUP BY ALL ORDER BY ALL""",
        {"turned_at": turned_at},
    )
    return [DecisionCount(decision_type=t, phase=p, source=s, rows=n) for t, p, s, n in result.rows]


def read_funnels(data: Path, cycles: Sequence[CycleRow]) -> dict[str, FunnelResult]:
    """The funnel of each cycle's dataset."""
    funnels = {}
    for cycle in cycles:
        if cycle.dataset_id:
            manifest = read_manifest(find_dataset(data, cycle.dataset_id))
            funnels[cycle.decision_type] = FunnelResult(
                selected=manifest.selected,
                dropped=manifest.dropped,
                splits={name: split.rows for name, split in manifest.splits.items()},
                label_sources=manifest.label_sources,
            )
    return funnels


def read_trainings(data: Path, cycles: Sequence[CycleRow], seconds: dict[str, float]) -> list[TrainingOutcome]:
    """What each cycle's fine-tune was trained on and cost. `seconds`: the duration by type."""
    found = []
    with open_ledger(data) as ledger:
        for cycle in cycles:
            if cycle.job_id is None or cycle.dataset_id is None:
                continue
            job = ledger.get(FineTuneJob, cycle.job_id)
            charges = ledger.charges(job_id=cycle.job_id, kind="training")
            found.append(
                TrainingOutcome(
                    decision_type=cycle.decision_type,
                    model=cycle.model_id or "",
                    base_model=job.base_model,
                    rows=read_manifest(find_dataset(data, cycle.dataset_id)).splits["train"].rows,
                    tokens=sum(charge.quantity or 0 for charge in charges),
                    seconds=seconds.get(cycle.decision_type, 0.0),
                    cost_usd=str(sum((charge.amount_usd for charge in charges), Decimal(0))),
                )
            )
    return found


def compare(data: Path, cycles: Sequence[CycleRow], turned_at: datetime) -> list[Comparison]:
    """Fallback against model: on each cycle's holdout, and on the decisions that both answered since."""
    found = []
    for cycle in cycles:
        if cycle.evaluation_id:
            with open_ledger(data) as ledger:
                kept = read_evaluation(ledger, cycle.evaluation_id)
            evaluation = kept.content if kept is not None else {}
            found.append(
                Comparison(
                    decision_type=cycle.decision_type,
                    rows_of="holdout",
                    evaluation=evaluation,
                    verdict=f"{cycle.outcome}: {cycle.why}",
                )
            )
        try:
            served = evaluate_log(data, cycle.decision_type, ExperimentSettings(since=turned_at, design="shadow"))
        except EvaluationError:
            continue  # not promoted: no model answered
        found.append(
            Comparison(decision_type=cycle.decision_type, rows_of="served", evaluation=served.evaluation.as_dict())
        )
    return found


def read_calibration(data: Path, turned_at: datetime) -> dict[str, list[tuple[float, bool]]]:
    """The confidence of every model answer since the cycle, and whether it was right."""
    result = storage.sql(
        data,
        """SELECT decision_type, custom_confidence, custom_decision, demonstration FROM labelled_decisions
           WHERE ts >= $turned_at AND custom_confidence IS NOT NULL AND demonstration IS NOT NULL
             AND custom_decision IS NOT NULL
           ORDER BY ts""",
        {"turned_at": turned_at},
    )
    points: dict[str, list[tuple[float, bool]]] = {}
    for name, confidence, decision, truth in result.rows:
        kind = get_decision_type(name)
        right = is_right(kind, kind.normalize(json.loads(truth)), json.loads(decision))
        points.setdefault(name, []).append((confidence, bool(right)))
    return points


def read_latencies(data: Path) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of every served answer, by type and source."""
    result = storage.sql(
        data,
        """SELECT decision_type, source, list(latency_ms) FROM decisions
           WHERE served AND valid GROUP BY ALL ORDER BY ALL""",
    )
    found: dict[str, dict[str, list[float]]] = {}
    for name, source, latencies in result.rows:
        found.setdefault(name, {})[source] = latencies
    return found


def read_spend(data: Path) -> list[SpendPoint]:
    """What was spent in total by the time of each charge."""
    result = storage.sql(
        data,
        """SELECT ts, sum(sum(amount_usd)) OVER (ORDER BY ts) AS spent FROM costs GROUP BY ts ORDER BY ts""",
    )
    return [SpendPoint(ts=ts.isoformat(), spent_usd=str(spent)) for ts, spent in result.rows]


def list_places(data: Path, report: Path) -> list[Place]:
    """Where to look further."""
    folder, script = _relative(data), Path(sys.executable).with_name("reasoning")
    reasoning = _relative(script) if script.is_file() else "reasoning"
    query = "SELECT * FROM labelled_decisions LIMIT 5"
    return [
        Place(what="the report, to share", how=_relative(report)),
        Place(what="Data Docs of Great Expectations", how=f"{folder}/quality/index.html"),
        Place(what="ask the log", how=f'{reasoning} sql --data {folder} "{query}"'),
        Place(what="what it cost", how=f"{reasoning} costs report --data {folder} --period total"),
        Place(what="flows, runs, artifacts in Prefect", how=f"{reasoning} serve --data {folder}"),
        *_models_to_ask(data, reasoning, folder),
    ]


def _models_to_ask(data: Path, reasoning: str, folder: str) -> list[Place]:
    """The command that asks a model that the demo left serving."""
    url = local_server_url(data)
    with open_ledger(data) as ledger:
        ready = ledger.find(Deployment, state=DeploymentState.READY, provider=LOCAL)
    if url is None or not ready or ready[-1].decision_type is None:
        return []
    actions = [
        {"name": "REPLY", "description": "Answers in words."},
        {"name": "IGNORE", "description": "Does nothing."},
    ]
    messages = get_decision_type(ready[-1].decision_type).render(
        {"agent_name": "Nova", "messages": [{"speaker": "Ada", "text": "Nova, are you there?"}], "actions": actions}
    )
    body = json.dumps({"model": ready[-1].served_name, "messages": [dict(message) for message in messages]})
    return [
        Place(
            what="ask the model, which goes on serving", how=f"curl -s {url}/v1/chat/completions -d {shlex.quote(body)}"
        ),
        Place(what="stop it", how=f"{reasoning} undeploy {ready[-1].decision_type} --data {folder}"),
    ]


def _relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
