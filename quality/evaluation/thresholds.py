"""How sure must a model be to be asked? Chosen on validation rows, never on the holdout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from quality.errors import EvaluationError
from quality.evaluation.evaluate import Answer, Label, score
from quality.evaluation.form_metrics import get_metrics
from reasoning.decision_types import DecisionType, get_decision_type

GRID = tuple(step / 50 for step in range(50))
# Quality within this of the best is as good: more coverage is then worth more.
TOLERANCE = 0.005


@dataclass(frozen=True, slots=True)
class Point:
    """At `min_confidence`: the share of rows the model answers, and the quality of model and original together."""

    min_confidence: float
    coverage: float
    quality: float


@dataclass(frozen=True, slots=True)
class Threshold:
    """The chosen point and all that were tried, by rising confidence."""

    metric: str
    chosen: Point
    curve: list[Point]


def choose_threshold(
    decision_type: str | DecisionType,
    labels: Sequence[Label],
    candidate: Sequence[Answer],
    original: Sequence[Answer],
) -> Threshold:
    """The lowest minimum confidence whose quality is within 0.005 of the best, on the rows of `labels`.

    Below it, and where the candidate failed or has no confidence (unless the minimum is 0), the original answers: as at
    serving. Raises `EvaluationError` without rows, or where the lists are of different lengths.
    """
    kind = get_decision_type(decision_type) if isinstance(decision_type, str) else decision_type
    if not labels or not len(labels) == len(candidate) == len(original):
        raise EvaluationError(
            f"as many answers as labels are needed, and one at least: {len(labels)} labels, {len(candidate)} answers "
            f"of the candidate, {len(original)} of the original"
        )
    metric = get_metrics(kind.answer).primary
    curve = []
    for minimum in GRID:
        asked = [
            answer.decision is not None and (minimum == 0 or (answer.confidence or 0.0) >= minimum)
            for answer in candidate
        ]
        mixed = [
            # A confidence would belong to one of the two only.
            replace(ours if ask else theirs, confidence=None)
            for ask, ours, theirs in zip(asked, candidate, original, strict=True)
        ]
        curve.append(Point(minimum, sum(asked) / len(asked), round(score(kind, labels, mixed)[metric], 6)))
    best = max(point.quality for point in curve)
    return Threshold(metric, next(point for point in curve if point.quality >= best - TOLERANCE), curve)
