"""What a decision type is judged by: the same for its live test, its threshold and the evaluation of a model.

reasoning.toml, `[objectives.<decision type>]`:

=================  ===================================================================================================
key                meaning
=================  ===================================================================================================
`metric`           `accuracy`, `balanced_accuracy` (the default of labels), `f1` of the first label, or `utility`
`costs`            for `utility`: `{LABEL = {ANSWER = cost}}`, what it costs to answer ANSWER where LABEL was right;
                   what is not named costs 0. A failed answer costs as much as the dearest answer to that label
`error_budget`     the share of wrong answers that is allowed among those that a model gives; the threshold then
                   automates as much as it can within it
=================  ===================================================================================================

The same section has the bounds of the live test (`quality.evaluation.policies`).

Answer forms other than labels are judged by their own metric (`quality.evaluation.form_metrics`); they take an
`error_budget` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quality.errors import EvaluationError
from quality.evaluation.form_metrics import get_metrics
from reasoning.config import settings_file
from reasoning.decision_types import DecisionType
from reasoning.toml_tables import number, read_toml, refuse_unknown, table

METRICS = ("accuracy", "balanced_accuracy", "f1", "utility")
# A class rarer than this counts as if it were this frequent: a single row must not decide a live test.
_LEAST_SHARE = 0.05
_KEYS = ("metric", "costs", "error_budget")
_POLICY_KEYS = ("max_failed_share", "max_slow_share", "max_cost_ratio", "unproven_days", "when_unproven")


@dataclass(frozen=True, slots=True)
class Objective:
    """`metric` is one of `METRICS`; None leaves it to the answer form. `costs` by label and answer; see the module."""

    metric: str | None = None
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    error_budget: float | None = None

    def metric_of(self, kind: DecisionType) -> str | None:
        """The name of the metric in an evaluation; None where the answer form has its own."""
        if not get_metrics(kind.answer).by_label:
            return None
        metric = self.metric or "balanced_accuracy"
        return f"f1_{kind.labels[0].lower()}" if metric == "f1" else metric

    def cost_table(self, labels: tuple[str, ...]) -> np.ndarray:
        """Costs (labels x answers); the last column is for failed answers."""
        costs = np.array([[float(self.costs.get(label, {}).get(answer, 0)) for answer in labels] for label in labels])
        return np.concatenate([costs, costs.max(axis=1, keepdims=True)], axis=1)

    def utilities(self, labels: tuple[str, ...], confusion: np.ndarray) -> np.ndarray:
        """What each answer to each label is worth, so that a model with the greater mean has the greater metric.

        `confusion` (..., labels, answers) counts what the fallback answered before; the result has the same shape.
        Metrics that are no mean of rows are written as one at those counts: balanced accuracy weights each label by
        the inverse of its share, F1 is 2 TP - F (2 TP + FP + FN) with the fallback's F.
        """
        count = len(labels)
        right = np.zeros((count, count + 1))
        right[np.arange(count), np.arange(count)] = 1
        if self.metric == "accuracy":
            return np.broadcast_to(right, confusion.shape)
        if self.metric == "utility":
            return np.broadcast_to(-self.cost_table(labels), confusion.shape)
        if self.metric == "f1":
            return _f1_utilities(confusion)
        support = confusion.sum(axis=-1)
        share = (support + 1) / (support.sum(axis=-1, keepdims=True) + count)
        seen = np.maximum((support > 0).sum(axis=-1, keepdims=True), 2)
        # A label that never came counts as in accuracy, until it has.
        weight = np.where(support > 0, 1 / (seen * np.maximum(share, _LEAST_SHARE)), 1.0)
        worth: np.ndarray = right * weight[..., None]
        return worth


def _f1_utilities(confusion: np.ndarray) -> np.ndarray:
    """Of the first label. Divided by what F1's denominator is a row, so that differences are differences of F1."""
    counts = confusion + 1 / confusion.shape[-1]  # no division by 0 before the first row
    true = counts[..., 0, 0]
    involved = counts[..., 0, :].sum(axis=-1) + counts[..., :, 0].sum(axis=-1)
    f1 = (2 * true / involved)[..., None, None]
    per_row = np.maximum(involved / counts.sum(axis=(-2, -1)), _LEAST_SHARE)[..., None, None]
    worth: np.ndarray = np.zeros(confusion.shape)
    worth[..., 0, :] -= f1[..., 0]
    worth[..., :, 0] -= f1[..., 0]
    worth[..., 0, 0] += 2
    worth /= per_row
    return worth


def read_section(kind: DecisionType, path: Path | None = None) -> tuple[str, dict[str, Any]]:
    """`[objectives.<decision type>]` of reasoning.toml with its place, for errors; empty without one."""
    file = path or settings_file()
    place = f"{file}: [objectives.{kind.name}]"
    try:
        raw = read_toml(file, EvaluationError)
    except FileNotFoundError:
        return place, {}
    objectives = table(file, "objectives", raw.get("objectives", {}), EvaluationError)
    own = table(file, f"objectives.{kind.name}", objectives.get(kind.name, {}), EvaluationError)
    refuse_unknown(place, own, (*_KEYS, *_POLICY_KEYS), EvaluationError)
    return place, own


def load_objective(kind: DecisionType, path: Path | None = None) -> Objective:
    """The objective of a decision type in reasoning.toml; the default without one. Raises `EvaluationError`."""
    place, own = read_section(kind, path)
    metric, costs = own.get("metric"), own.get("costs", {})
    if (metric or costs) and not get_metrics(kind.answer).by_label:
        raise EvaluationError(f"{place}: metric and costs are for labels; a {kind.answer} has its own metric")
    if metric is not None and metric not in METRICS:
        raise EvaluationError(f"{place} metric: {metric!r} is not known; known are {', '.join(METRICS)}")
    if (metric == "utility") != bool(costs):
        raise EvaluationError(f"{place}: `costs` and the metric `utility` need each other; give both or neither")
    budget = own.get("error_budget")
    if budget is not None:
        budget = number(f"{place} error_budget", budget, float, 0, 1, EvaluationError)
    return Objective(metric, _read_costs(place, kind, costs), budget)


def _read_costs(place: str, kind: DecisionType, costs: Any) -> dict[str, dict[str, float]]:
    if not isinstance(costs, dict) or not all(isinstance(row, dict) for row in costs.values()):
        raise EvaluationError(f"{place} costs: a table of tables is needed, such as {{YES = {{NO = 5}}}}")
    for name in [*costs, *(answer for row in costs.values() for answer in row)]:
        if name not in kind.labels:
            raise EvaluationError(f"{place} costs: {name!r} is no answer of {kind.name}: {', '.join(kind.labels)}")
    return {
        label: {
            answer: number(f"{place} costs.{label}.{answer}", cost, float, 0, 1e9, EvaluationError)
            for answer, cost in row.items()
        }
        for label, row in costs.items()
    }
