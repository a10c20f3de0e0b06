"""Shall a candidate serve? Better beyond doubt, or as good within a margin and cheaper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from scipy.special import stdtrit

from quality.errors import EvaluationError
from quality.evaluation.error_budget import MONTHLY_ERROR, Allowance
from quality.evaluation.evaluate import Estimate, Evaluation
from quality.settings import DEFAULT_MARGIN

if TYPE_CHECKING:
    from pathlib import Path

    from quality.dataset.manifest import DatasetRow
    from reasoning.config import Config

MIN_ROWS = 50
MIN_EPISODES = 20
MAX_FAILED_SHARE = 0.05
# Standard deviation of the difference of two sources by episode, as seen on the demo's rooms: 7 points are found in .97
# of 86 episodes. An evaluation measures its own.
TYPICAL_SPREAD = 0.17


@dataclass(frozen=True, slots=True)
class PromotionDecision:
    """`promote` gives the candidate traffic, `keep` leaves things as they are, `refuse` says that it is worse."""

    decision: Literal["promote", "keep", "refuse"]
    why: str
    basis: Literal["better", "not_worse"] | None = None
    """What a promoted candidate was found to be."""
    alpha: float | None = None
    """The probability of a worthless promotion that this verdict had (`quality.evaluation.error_budget`)."""

    @property
    def promote(self) -> bool:
        """Shall the candidate serve?"""
        return self.decision == "promote"


@dataclass(frozen=True, slots=True)
class Prospect:
    """What a holdout can show at best: told before a model is trained, as its verdict follows from it.

    `rows` and `episodes` are those that the evaluation will keep. `original_cost_usd` is the mean cost of an answer of
    the original, None where it is not known of any.
    """

    rows: int
    episodes: int
    independent: bool
    original_answers: int
    original_cost_usd: float | None


def foresee(rows: Sequence[DatasetRow]) -> Prospect:
    """What the rows of a holdout can show, by the rules of `evaluate`: the original's own labels count only alone."""
    kept = [row for row in rows if row.label_source != "original"]
    independent = bool(kept)
    kept = kept or list(rows)
    costs = [row.original_cost_usd for row in kept if row.original is not None and row.original_cost_usd is not None]
    return Prospect(
        rows=len(kept),
        episodes=len({row.episode for row in kept}),
        independent=independent,
        original_answers=sum(row.original is not None for row in kept),
        original_cost_usd=sum(costs) / len(costs) if costs else None,
    )


def certain_refusals(
    prospect: Prospect, *, cost_usd: float | None = None, incumbent_cost_usd: float | None = None, priced: bool = False
) -> list[str]:
    """Why no model can be promoted on this holdout, however good; empty where one can.

    With `priced` also by cost: `cost_usd` is what an answer of the candidate will cost (None: not known, since nothing
    was asked lately), `incumbent_cost_usd` the same of the incumbent where one serves.
    """
    found = []
    if prospect.rows < MIN_ROWS or prospect.episodes < MIN_EPISODES:
        found.append(
            f"the holdout has {prospect.rows} rows of {prospect.episodes} episodes, and the verdict needs {MIN_ROWS} "
            f"of {MIN_EPISODES}: log more, or export with a greater --holdout-share"
        )
    if not prospect.original_answers:
        found.append("the original answered none of the holdout's questions, so there is nothing to compare with")
    if prospect.independent:
        return found
    only = "all labels are the original's own answers, so a model can only be promoted for being cheaper"
    remedy = "give demonstrations as feedback"
    other = prospect.original_cost_usd if incumbent_cost_usd is None else incumbent_cost_usd
    against = "the original" if incumbent_cost_usd is None else "the incumbent"
    if other is None:
        found.append(f"{only}, and what the original costs is not known: {remedy}, or log cost_usd with the decisions")
    elif priced and (cost_usd is None or cost_usd >= other):
        costs = "an amount that is not known, as nothing was asked lately" if cost_usd is None else f"${cost_usd:.6f}"
        found.append(f"{only}, and an answer of it will cost {costs}, against ${other:.6f} of {against}: {remedy}")
    return found


def promotion_warnings(dataset: Path, config: Config | None = None) -> list[str]:
    """What is certain, or harder, for every model of a dataset, as known when it is exported. Raises `DatasetError`."""
    from quality.dataset.manifest import read_rows

    prospect = foresee(read_rows(dataset, "holdout", config=config))
    refusals = certain_refusals(prospect)
    return [f"A model of it is certain to be refused: {each}." for each in refusals] + prospect_notes(prospect)


def detectable(episodes: int, *, alpha: float = MONTHLY_ERROR / 3, spread: float = TYPICAL_SPREAD) -> float:
    """The least difference that a holdout shows in four of five cases; `spread` is its deviation by episode."""
    if episodes < 2:
        return math.inf
    quantiles = stdtrit(episodes - 1, 1 - alpha) + stdtrit(episodes - 1, 0.8)
    return float(quantiles) * spread / math.sqrt(episodes)


def episodes_to_detect(difference: float) -> int:
    """How many episodes a holdout needs, to show a difference in four of five cases."""
    low, high = 1, 2
    while detectable(high) > difference and high < 10**8:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if detectable(middle) <= difference else (middle, high)
    return high


def prospect_notes(prospect: Prospect) -> list[str]:
    """What the holdout can show, and what makes a promotion harder, though not impossible."""
    found = []
    if prospect.episodes >= MIN_EPISODES:
        found.append(
            f"With {prospect.episodes} episodes in the holdout, an improvement of "
            f"{100 * detectable(prospect.episodes):.0f} points is seen in four of five cases; of 5 points "
            f"with {episodes_to_detect(0.05)} episodes, and 'as good within {DEFAULT_MARGIN:g}' with "
            f"{episodes_to_detect(DEFAULT_MARGIN)}."
        )
    if 0 < prospect.original_answers < prospect.rows / 2:
        found.append(
            f"The fallback answered {prospect.original_answers} of {prospect.rows} rows of the holdout: whether a "
            "model is not worse than it is hard to tell. Let it answer in the shadow (--shadow-original)."
        )
    if not prospect.independent:
        found.append("All labels are the original's own answers: a model can be as good and cheaper, never better.")
    elif prospect.original_cost_usd is None:
        found.append("What the original costs is not known: a model must be better beyond doubt; as good not enough.")
    return found


def judge(
    evaluation: Evaluation,
    *,
    candidate: str = "candidate",
    against: str | None = None,
    margin: float = DEFAULT_MARGIN,
    allowance: Allowance | None = None,
) -> PromotionDecision:
    """Judge `candidate` by the evaluation's primary metric, against what serves now.

    That is `incumbent` where it was evaluated, else `original`. Promoted is what is better (the lower bound of the
    difference above zero), or what is not worse by more than `margin` (the lower bound above -margin) and costs less.
    The bounds err with the probability of `allowance`. What replaces an incumbent must also not be worse than the
    fallback by more than the margin, and neither than the last model that was better, with all losses since.
    """
    allowance = allowance or Allowance()
    verdict = _judge(evaluation, candidate, against, margin, allowance)
    return replace(verdict, alpha=round(allowance.alpha, 9))


def _judge(
    evaluation: Evaluation, candidate: str, against: str | None, margin: float, allowance: Allowance
) -> PromotionDecision:
    against = against or ("incumbent" if "incumbent" in evaluation.sources else "original")
    for source in (candidate, against):
        if source not in evaluation.sources:
            raise EvaluationError(f"{source!r} was not evaluated; there are {', '.join(evaluation.sources)}")
    if margin < 0:
        raise ValueError(f"margin: {margin} is below 0")
    result = evaluation.sources[candidate]
    if result.failed > MAX_FAILED_SHARE * result.rows:
        return PromotionDecision(
            "refuse", f"{result.failed} of {result.rows} answers of {candidate} failed or did not parse"
        )
    if evaluation.rows < MIN_ROWS or evaluation.episodes < MIN_EPISODES:
        return PromotionDecision(
            "keep",
            f"{evaluation.rows} rows of {evaluation.episodes} episodes prove nothing: "
            f"{MIN_ROWS} of {MIN_EPISODES} are needed",
        )
    difference = evaluation.difference(candidate, against)
    if difference is None:
        return PromotionDecision(
            "keep", f"{evaluation.primary} is undefined for {candidate} or {against} on these rows"
        )
    verdict = _compare(evaluation, candidate, against, difference, margin, allowance)
    if verdict.promote and "original" in evaluation.sources and "original" not in (candidate, against):
        doubt = _doubt_of_floor(evaluation, candidate, difference, margin, allowance)
        if doubt:
            return PromotionDecision("keep", f"{verdict.why}; but {doubt}")
    return verdict


def _compare(
    evaluation: Evaluation, candidate: str, against: str, difference: Estimate, margin: float, allowance: Allowance
) -> PromotionDecision:
    low, high = difference.lower(allowance.alpha), difference.high
    said = f"{candidate} against {against}: {_say(evaluation, difference)}{_say_allowance(allowance, low)}"
    if low > 0 and evaluation.independent:
        return PromotionDecision("promote", f"better. {said}", basis="better")
    if high < 0 and difference.low <= -margin:
        return PromotionDecision("refuse", f"worse. {said}")
    if low <= -margin:
        return PromotionDecision("keep", f"not proven: the interval reaches from worse to better. {said}")
    cost = evaluation.sources[candidate].cost_per_1000_usd
    other = evaluation.sources[against].cost_per_1000_usd
    if cost is None or other is None or cost >= other:
        return PromotionDecision("keep", f"as good within {margin:g}, but not cheaper. {said}")
    total = allowance.cumulative(difference)
    if allowance.losses and total.lower(allowance.alpha) <= -margin:
        return PromotionDecision(
            "keep",
            f"as good within {margin:g} as what serves; but the small losses of {len(allowance.losses) + 1} promotions "
            f"for being cheaper may add up to more: {_say(evaluation, total)} to the last that was better",
        )
    return PromotionDecision(
        "promote",
        f"as good within {margin:g}, and cheaper (${cost:.4f} against ${other:.4f} per 1,000). {said}",
        basis="not_worse",
    )


def _doubt_of_floor(
    evaluation: Evaluation, candidate: str, difference: Estimate, margin: float, allowance: Allowance
) -> str | None:
    """Why the candidate may be worse than the fallback, None where it is not; and what is missing to tell.

    Where the fallback answered few rows, what is known of the incumbent against it is used as well: each bound errs
    with half of the probability.
    """
    floor, record = evaluation.difference(candidate, "original"), allowance.incumbent_floor
    low = floor.lower(allowance.alpha) if floor is not None else -math.inf
    if record is not None:
        low = max(low, difference.lower(allowance.alpha / 2) + record.lower(allowance.alpha / 2))
    if low > -margin:
        return None
    answered = evaluation.sources["original"].rows
    doubt = f"it may be worse than the original: {_say(evaluation, floor)}"
    if answered < evaluation.rows:
        doubt += (
            f" on the {answered} of {evaluation.rows} rows that it answered; let it answer in the shadow of the model "
            "(--shadow-original) to tell"
        )
    return doubt


def _say_allowance(allowance: Allowance, low: float) -> str:
    """The lower bound that counts, where other evaluations have used up a part of the error."""
    if not allowance.earlier and not allowance.reuses:
        return ""
    reuse = f", of a holdout that judged {allowance.reuses} models before" if allowance.reuses else ""
    return f"; lower bound {low:+.3f} at {allowance.alpha:.2%}, after {allowance.earlier} evaluations in 30 days{reuse}"


def _say(evaluation: Evaluation, estimate: Estimate | None) -> str:
    if estimate is None:
        return f"{evaluation.primary} is undefined"
    return f"{evaluation.primary} {estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"
