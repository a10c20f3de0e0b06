"""Rows of one source of answers, and metrics of them that a bootstrap over episodes can weight.

A metric takes weights of episodes (draws x episodes) and gives one value per draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quality.evaluation import metrics
from quality.evaluation.answers import SourceAnswer
from reasoning.decision_types import DecisionType

Metric = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Rows:
    """The labelled rows that a source answered.

    `pairs` are label and answer, `episode` the index of each row's episode, of `episodes`; `weight` that of the rows.
    """

    type: DecisionType
    pairs: Sequence[tuple[dict[str, Any], SourceAnswer]]
    episode: np.ndarray
    episodes: int
    weight: np.ndarray

    def per_episode(self, values: np.ndarray) -> np.ndarray:
        """Weighted sums of the rows' values: one line an episode."""
        sums = np.zeros((self.episodes, *values.shape[1:]))
        np.add.at(sums, self.episode, values * self.weight.reshape(-1, *[1] * (values.ndim - 1)))
        return sums

    def mean_of(self, values: Sequence[float | bool | None]) -> Metric:
        """The weighted mean of the rows' values that are known."""
        known = np.array([value is not None for value in values], dtype=float)
        sums = self.per_episode(np.stack([np.array([float(value or 0) for value in values]), known], axis=1))

        def compute(weights: np.ndarray) -> np.ndarray:
            drawn = weights @ sums
            return metrics.ratio(drawn[:, 0], drawn[:, 1])

        return compute

    def answer_class(self, decision: dict[str, Any]) -> str:
        """What a decision comes down to."""
        return self.type.form.answer_class(decision)


@dataclass(frozen=True, slots=True)
class FormMetrics:
    """How answers of a form are judged.

    `measure` gives the metrics by name. A source is judged by `primary`, or by `better_primary` where every source has
    that one. `less_is_better` names the metrics of errors. `by_label`: answers are one of the type's labels, so that an
    objective may weight them (`quality.evaluation.objectives`).
    """

    primary: str
    measure: Callable[[Rows], dict[str, Metric]]
    better_primary: str | None = None
    less_is_better: frozenset[str] = frozenset()
    by_label: bool = False


def measured_confidence(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """The confidence of every answer, 0 where there is none; and the numbers of the answers that have one."""
    measured = [a.confidence is not None and a.decision is not None for _, a in rows.pairs]
    confidence = np.array([a.confidence if a.confidence is not None else 0.0 for _, a in rows.pairs])
    return confidence, np.flatnonzero(measured)


def measure_calibration(rows: Rows, right: Sequence[bool] | np.ndarray) -> dict[str, Metric]:
    """`brier` and `ece` of the answers that have a confidence; nothing where none has one."""
    confidence, known = measured_confidence(rows)
    if not len(known):
        return {}
    correct = np.asarray(right, dtype=float)
    errors: list[float | bool | None] = [None] * len(rows.pairs)
    for i in known:
        errors[i] = float((confidence[i] - correct[i]) ** 2)
    bins = np.minimum((confidence * metrics.ECE_BINS).astype(int), metrics.ECE_BINS - 1)
    table = np.zeros((len(rows.pairs), 3, metrics.ECE_BINS))
    table[known, :, bins[known]] = np.stack([np.ones(len(known)), confidence[known], correct[known]], axis=1)
    binned = rows.per_episode(table)

    def calibration(weights: np.ndarray) -> np.ndarray:
        count, confident, true = np.moveaxis(np.tensordot(weights, binned, axes=1), 1, 0)
        return metrics.calibration_error(count, confident, true)

    return {"brier": rows.mean_of(errors), "ece": calibration}


def measure_exact_match(rows: Rows) -> dict[str, Metric]:
    """The share of answers of the label's class."""
    return {
        "exact_match": rows.mean_of(
            [
                answer.decision is not None and rows.type.form.agrees(label, answer.decision)
                for label, answer in rows.pairs
            ]
        )
    }
