"""Metrics of labels: accuracies over the table of labels and answers, and how well confidence fits them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from quality.evaluation import metrics
from quality.evaluation.form_metrics.rows import FormMetrics, Metric, Rows, measure_calibration, measured_confidence


def measure(rows: Rows) -> dict[str, Metric]:
    """`accuracy`, `balanced_accuracy`, F1 of the first label; of answers with a confidence `brier`, `ece` and `auc`."""
    classes = {name: i for i, name in enumerate(rows.type.labels)}
    nothing = len(classes)  # the class of a failed answer: right for no label
    wanted = np.array([classes[rows.answer_class(label)] for label, _ in rows.pairs])
    given = np.array([nothing if a.decision is None else classes[rows.answer_class(a.decision)] for _, a in rows.pairs])
    cells = np.zeros((len(rows.pairs), nothing + 1, nothing + 1))
    cells[np.arange(len(rows.pairs)), wanted, given] = 1
    sums = rows.per_episode(cells)

    def over_counts(metric: Callable[[np.ndarray], np.ndarray]) -> Metric:
        return lambda weights: metric(np.tensordot(weights, sums, axes=1))

    found = {
        "accuracy": over_counts(metrics.accuracy),
        "balanced_accuracy": over_counts(metrics.balanced_accuracy),
        # The first label of a type is the one that acts: RESPOND.
        f"f1_{rows.type.labels[0].lower()}": over_counts(lambda counts: metrics.f1(counts, 0)),
    }
    return found | _measure_confidence(rows, wanted, given)


def _measure_confidence(rows: Rows, wanted: np.ndarray, given: np.ndarray) -> dict[str, Metric]:
    found = measure_calibration(rows, wanted == given)
    if not found:
        return {}
    confidence, known = measured_confidence(rows)
    score = np.where(given == 0, confidence, 1 - confidence)[known]
    positive = wanted[known] == 0

    def auc(weights: np.ndarray) -> np.ndarray:
        return metrics.auc(score, positive, weights[:, rows.episode[known]] * rows.weight[known])

    return found | {"auc": auc}


METRICS = FormMetrics(
    primary="balanced_accuracy", measure=measure, less_is_better=frozenset(("brier", "ece")), by_label=True
)
