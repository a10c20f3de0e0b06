"""What live traffic shows: the evaluation of logged answers, from a shadow arm or from an A/B test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

import storage
from quality.errors import EvaluationError
from quality.evaluation.evaluate import Estimate, Evaluation, Label, SourceAnswer, evaluate
from quality.evaluation.objectives import load_objective
from quality.evaluation.observations import compare_rows
from quality.evaluation.sequential import confidence_bounds
from quality.period import first_moment, moment_after
from quality.settings import Design, ExperimentSettings
from reasoning.decision_types import DecisionType, get_decision_type
from reasoning.errors import UnparseableAnswer

if TYPE_CHECKING:
    import duckdb

    from reasoning.config import Config

MAX_ROWS = 50_000

# Labels of the original's own making would show nothing, so only demonstrations are read.
_ROWS = """
SELECT l.ts, coalesce(l.episode_id, l.request_id::VARCHAR) AS episode, l.demonstration,
       epoch(l.demonstrated_at) AS known_at, CASE WHEN l.valid THEN l.decision END AS served,
       l.arm, l.arm_probability, l.decision, l.valid, l.source, l.confidence, l.latency_ms, l.cost_usd,
       l.fallback_reason IS NULL AND o.decision_id IS NOT NULL AND c.decision_id IS NOT NULL AS both,
       l.original_decision, o.latency_ms AS original_latency_ms, o.cost_usd AS original_cost_usd,
       l.custom_decision, l.custom_confidence, c.latency_ms AS custom_latency_ms, c.cost_usd AS custom_cost_usd
FROM labelled_decisions AS l
LEFT JOIN decisions AS o
    ON o.date = l.date AND o.decision_type = l.decision_type AND o.decision_id = l.original_decision_id
LEFT JOIN decisions AS c
    ON c.date = l.date AND c.decision_type = l.decision_type AND c.decision_id = l.custom_decision_id
WHERE l.decision_type = $decision_type AND l.demonstration IS NOT NULL AND l.served
  AND ($since::TIMESTAMPTZ IS NULL OR (l.ts >= $since AND l.date >= $since_date::DATE))
  AND ($before::TIMESTAMPTZ IS NULL OR (l.ts < $before AND l.date <= $before_date::DATE))
ORDER BY l.ts DESC, l.request_id DESC LIMIT $limit
"""


@dataclass(frozen=True, slots=True)
class Experiment:
    """The evaluation of the logged answers, and the sequential test: by how much is the model better than the fallback?

    `design` is `shadow` where both sides answered the same questions, `ab` where an arm was drawn. `sequential` may be
    looked at as often as one likes (`quality.evaluation.sequential`); it is in the objective of the type.
    """

    design: Design
    evaluation: Evaluation
    sequential: Estimate | None


def evaluate_log(
    data: Path | str,
    decision_type: str,
    settings: ExperimentSettings | None = None,
    *,
    now: datetime | None = None,
    config: Config | None = None,
) -> Experiment:
    """Compare the logged answers that `settings` selects (the latest 50,000 rows that have a demonstration).

    In the `shadow` design the sources are `original` and `custom`, on the questions that both answered. In the `ab`
    design the sources are the arms: what the agent got when that arm was drawn, fallbacks included, weighted by 1 /
    `arm_probability`. Raises `EvaluationError` if there is nothing to compare.
    """
    settings = settings or ExperimentSettings()
    kind = get_decision_type(decision_type, config)
    start, before = first_moment(settings.since), moment_after(settings.until)
    parameters = {
        "decision_type": decision_type,
        "since": start,
        "before": before,
        "since_date": start and start.date(),
        "before_date": before and before.date(),
        "limit": MAX_ROWS,
    }

    def fetch(log: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
        cursor = log.execute(_ROWS, parameters)
        names = [column[0] for column in cursor.description or []]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()][::-1]

    rows = []
    for row in storage.read(data, fetch):
        try:
            row["label"] = kind.normalize(orjson.loads(row["demonstration"]))
        except UnparseableAnswer:
            continue
        rows.append(row)
    design: Design = settings.design or ("shadow" if any(row["both"] for row in rows) else "ab")
    rows = [row for row in rows if (row["both"] if design == "shadow" else row["arm"] and row["arm_probability"])]
    if not rows:
        wanted = "was answered by both sides" if design == "shadow" else "has an arm that was drawn"
        raise EvaluationError(
            f"no labelled {decision_type} decision {wanted} in this time; give demonstrations as feedback"
        )
    labels = [Label(row["label"], row["episode"]) for row in rows]
    answers = _shadow_answers(rows) if design == "shadow" else _arm_answers(rows)
    if len(answers) < 2:
        raise EvaluationError(f"only the arm {next(iter(answers))!r} has labelled rows: there is nothing to compare")
    about = {"design": design, "first": rows[0]["ts"].isoformat(), "last": rows[-1]["ts"].isoformat()}
    evaluation = evaluate(
        kind, labels, answers, objective=load_objective(kind), now=now or datetime.now(UTC), about=about
    )
    return Experiment(design, evaluation, _sequential(kind, rows, design))


def _shadow_answers(rows: Sequence[dict[str, Any]]) -> dict[str, Sequence[SourceAnswer | None]]:
    return {
        side: [
            SourceAnswer(
                _decision(row[f"{side}_decision"]),
                row["custom_confidence"] if side == "custom" else None,
                row[f"{side}_latency_ms"],
                row[f"{side}_cost_usd"],
            )
            for row in rows
        ]
        for side in ("original", "custom")
    }


def _arm_answers(rows: Sequence[dict[str, Any]]) -> dict[str, Sequence[SourceAnswer | None]]:
    return {
        arm: [
            SourceAnswer(
                _decision(row["decision"]) if row["valid"] else None,
                row["confidence"],
                row["latency_ms"],
                row["cost_usd"],
                weight=1 / row["arm_probability"],
            )
            if row["arm"] == arm
            else None
            for row in rows
        ]
        for arm in sorted({row["arm"] for row in rows})
    }


def _decision(text: str | None) -> dict[str, Any] | None:
    return None if text is None else orjson.loads(text)


def _sequential(kind: DecisionType, rows: list[dict[str, Any]], design: Design) -> Estimate | None:
    """The difference of the model and the fallback in the objective of the type, looked at as often as one likes."""
    if design == "ab" and ("original" not in (arms := {row["arm"] for row in rows}) or len(arms) != 2):
        return None
    by_label_time = sorted(rows, key=lambda row: row["known_at"])
    _, difference, _ = compare_rows(kind, load_objective(kind), by_label_time, now=float("inf"))
    low, high = confidence_bounds(difference.scores)
    return Estimate(round(difference.scores.mean(), 6), round(low, 6), round(high, 6))
