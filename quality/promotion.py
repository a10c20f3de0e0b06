"""Shall a candidate serve? Better beyond doubt, or as good within a margin and cheaper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quality.errors import EvaluationError
from quality.evaluation import Estimate, Evaluation

DEFAULT_MARGIN = 0.02
MIN_ROWS = 50
MIN_EPISODES = 20
MAX_FAILED_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Verdict:
    """`promote` gives the candidate traffic, `keep` leaves things as they are, `refuse` says that it is worse."""

    decision: Literal["promote", "keep", "refuse"]
    why: str

    @property
    def promote(self) -> bool:
        """Shall the candidate serve?"""
        return self.decision == "promote"


def judge(
    evaluation: Evaluation,
    *,
    candidate: str = "candidate",
    against: str | None = None,
    margin: float = DEFAULT_MARGIN,
) -> Verdict:
    """Judge `candidate` by the evaluation's primary metric, against what serves now.

    That is `incumbent` where it was evaluated, else `original`. Promoted is what is better with the interval of the
    difference above zero, or what is not worse by more than `margin` (the interval above -margin) and costs less. What
    is to replace an incumbent must also not be worse than the original by more than the margin.
    """
    against = against or ("incumbent" if "incumbent" in evaluation.sources else "original")
    for source in (candidate, against):
        if source not in evaluation.sources:
            raise EvaluationError(f"{source!r} was not evaluated; there are {', '.join(evaluation.sources)}")
    if margin < 0:
        raise ValueError(f"margin: {margin} is below 0")
    result = evaluation.sources[candidate]
    if result.failed > MAX_FAILED_SHARE * result.rows:
        return Verdict("refuse", f"{result.failed} of {result.rows} answers of {candidate} failed or did not parse")
    if evaluation.rows < MIN_ROWS or evaluation.episodes < MIN_EPISODES:
        return Verdict(
            "keep",
            f"{evaluation.rows} rows of {evaluation.episodes} episodes prove nothing: "
            f"{MIN_ROWS} of {MIN_EPISODES} are needed",
        )
    difference = evaluation.difference(candidate, against)
    if difference is None:
        return Verdict("keep", f"{evaluation.primary} is undefined for {candidate} or {against} on these rows")
    verdict = _compare(evaluation, candidate, against, difference, margin)
    if verdict.promote and "original" in evaluation.sources and "original" not in (candidate, against):
        floor = evaluation.difference(candidate, "original")
        if floor is None or floor.low <= -margin:
            return Verdict("keep", f"{verdict.why}; but it may be worse than the original: {_say(evaluation, floor)}")
    return verdict


def _compare(evaluation: Evaluation, candidate: str, against: str, difference: Estimate, margin: float) -> Verdict:
    said = f"{candidate} against {against}: {_say(evaluation, difference)}"
    if difference.low > 0 and evaluation.independent:
        return Verdict("promote", f"better. {said}")
    if difference.high < 0 and difference.low <= -margin:
        return Verdict("refuse", f"worse. {said}")
    if difference.low > -margin:
        cost = evaluation.sources[candidate].cost_per_1000_usd
        other = evaluation.sources[against].cost_per_1000_usd
        if cost is not None and other is not None and cost < other:
            return Verdict(
                "promote",
                f"as good within {margin:g}, and cheaper (${cost:.4f} against ${other:.4f} per 1,000). {said}",
            )
        return Verdict("keep", f"as good within {margin:g}, but not cheaper. {said}")
    return Verdict("keep", f"not proven: the interval reaches from worse to better. {said}")


def _say(evaluation: Evaluation, estimate: Estimate | None) -> str:
    if estimate is None:
        return f"{evaluation.primary} is undefined"
    return f"{evaluation.primary} {estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"
