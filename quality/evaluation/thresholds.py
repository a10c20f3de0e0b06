"""How sure must a model be to be asked? Chosen on validation rows, never on the holdout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from scipy.special import betaincinv

from quality.errors import EvaluationError
from quality.evaluation.evaluate import Label, SourceAnswer, is_right, score
from quality.evaluation.form_metrics import get_metrics
from quality.evaluation.objectives import Objective
from reasoning.decision_types import DecisionType, get_decision_type

GRID = tuple(step / 50 for step in range(50))
# Quality within this of the best is as good: more coverage is then worth more.
TOLERANCE = 0.005


@dataclass(frozen=True, slots=True)
class Point:
    """At `min_confidence`: the share of rows the model answers, and the quality of model and original together.

    `errors` is the share of wrong answers among those of the model, `errors_at_most` its upper bound.
    """

    min_confidence: float
    coverage: float
    quality: float
    errors: float = 0.0
    errors_at_most: float = 1.0


@dataclass(frozen=True, slots=True)
class Threshold:
    """The chosen point and all that were tried, by rising confidence."""

    metric: str
    chosen: Point
    curve: list[Point]
    saving_per_1000_usd: float | None = None
    """What 1,000 questions cost less than with the fallback alone; None where a cost is not known."""

    def describe(self) -> str:
        """What the choice means, in a sentence."""
        chosen, saving = self.chosen, self.saving_per_1000_usd
        saved = "" if saving is None else f"; 1,000 questions cost ${saving:.4f} less"
        return (
            f"from a confidence of {chosen.min_confidence:g} on, the model answers {chosen.coverage:.0%} of the "
            f"questions, "
            f"{chosen.errors:.1%} of them wrong; {self.metric} is {chosen.quality:.3f} with the fallback's answers, "
            f"{self.curve[0].quality:.3f} if the model answers all{saved}"
        )


def choose_threshold(
    decision_type: str | DecisionType,
    labels: Sequence[Label],
    candidate: Sequence[SourceAnswer],
    original: Sequence[SourceAnswer],
    objective: Objective | None = None,
) -> Threshold:
    """The lowest minimum confidence whose quality is within 0.005 of the best, on the rows of `labels`.

    With an error budget (`objective`): the lowest at which, of the answers that the model gives, an upper bound of the
    share of wrong ones (one-sided, 90 %: Clopper and Pearson, Biometrika 1934) is within the budget; where there is
    none, the highest. Below the minimum, and where the candidate failed or has no confidence (unless the minimum is 0),
    the original answers: as at serving. Raises `EvaluationError` without rows, or where the lists are of different
    lengths.
    """
    kind = get_decision_type(decision_type) if isinstance(decision_type, str) else decision_type
    if not labels or not len(labels) == len(candidate) == len(original):
        raise EvaluationError(
            f"as many answers as labels are needed, and one at least: {len(labels)} labels, {len(candidate)} answers "
            f"of the candidate, {len(original)} of the original"
        )
    objective = objective or Objective()
    metric = objective.metric_of(kind) or get_metrics(kind.answer).primary
    right = [is_right(kind, label.decision, ours.decision) for label, ours in zip(labels, candidate, strict=True)]
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
        count = sum(asked)
        wrong = sum(ask and not good for ask, good in zip(asked, right, strict=True))
        curve.append(
            Point(
                minimum,
                count / len(asked),
                round(score(kind, labels, mixed, objective)[metric], 6),
                errors=wrong / count if count else 0.0,
                errors_at_most=float(betaincinv(wrong + 1, count - wrong, 0.9)) if wrong < count else 1.0,
            )
        )
    if objective.error_budget is not None:
        within = (point for point in curve if point.errors_at_most <= objective.error_budget)
        chosen = next(within, curve[-1])
    else:
        best = max(point.quality for point in curve)
        chosen = next(point for point in curve if point.quality >= best - TOLERANCE)
    return Threshold(metric, chosen, curve, _saving(chosen, candidate, original))


def _saving(point: Point, candidate: Sequence[SourceAnswer], original: Sequence[SourceAnswer]) -> float | None:
    costs = [answer.cost_usd for answer in candidate if answer.decision is not None]
    others = [answer.cost_usd for answer in original if answer.decision is not None]
    if not costs or not others or None in costs or None in others:
        return None
    mean, other = (sum(filter(None, each)) / len(each) for each in (costs, others))
    return 1000 * point.coverage * (other - mean)
