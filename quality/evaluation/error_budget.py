"""By how much an evaluation may err, given those before it: so that many cycles together promote little by mistake.

A test that errs in 2.5 % of cases promotes a worthless candidate in half of all months if it is repeated daily. So the
evaluations of a decision type share 5 % in any 30 days. Each may use a third of what is left, divided by one more than
the number of other models that its holdout has judged before: who looks at a holdout again and again finds what fits
it. The sum never exceeds the budget, so by the union bound the probability of a worthless promotion in 30 days does not
either, whatever depends on what.

`benchmarks/promotion.py` simulates it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from quality.evaluation.intervals import Estimate

MONTHLY_ERROR = 0.05
_PERIOD = timedelta(days=30)
_SHARE = 1 / 3
_BEFORE_BUDGETS = 0.025  # what an evaluation of versions without budgets spent


@dataclass(frozen=True, slots=True)
class Trial:
    """An earlier evaluation. `basis` is what the model was found to be: `better`, `not_worse`, None if not promoted.

    `holdout` are the times of the first and the last row of its holdout (RFC 3339). `difference` is that to what it was
    to replace, `floor` that to the fallback, in the metric of that evaluation.
    """

    at: datetime
    alpha: float
    model_id: str | None
    dataset_id: str | None
    holdout: tuple[str, str] | None
    primary: str
    basis: str | None
    difference: Estimate | None
    floor: Estimate | None


@dataclass(frozen=True, slots=True)
class Allowance:
    """What an evaluation may conclude from. `alpha` is the probability of a worthless promotion that it may have.

    `earlier` and `reuses` count the evaluations of the last 30 days and the other models that the holdout has judged.
    `losses` are the differences of the models that were promoted for being not worse, one after the other, since the
    last that was better. `incumbent_floor` is how much better than the fallback the incumbent was found to be.
    """

    alpha: float = 0.025
    earlier: int = 0
    reuses: int = 0
    losses: tuple[Estimate, ...] = ()
    incumbent_floor: Estimate | None = None

    def cumulative(self, difference: Estimate) -> Estimate:
        """The difference to the last model that was promoted for being better: that of each step, added up."""
        value = difference.value + sum(each.value for each in self.losses)
        se = math.hypot(difference.error, *(each.error for each in self.losses))
        return Estimate(value, value - 1.96 * se, value + 1.96 * se, se, difference.df)


def read_trial(content: Mapping[str, Any]) -> Trial | None:
    """The trial of a recorded evaluation (`Evaluation.as_dict`); None where it has no verdict or time."""
    about = content.get("about") or {}
    verdict, at = about.get("verdict"), content.get("created_at")
    if not isinstance(verdict, dict) or not isinstance(at, str):
        return None
    against = "incumbent" if "incumbent" in content.get("sources", {}) else "original"
    basis = verdict.get("basis")
    if basis is None and verdict.get("decision") == "promote":  # of a version that did not say
        basis = "not_worse" if str(verdict.get("why", "")).startswith("as good") else "better"
    return Trial(
        at=datetime.fromisoformat(at),
        alpha=verdict.get("alpha") or _BEFORE_BUDGETS,
        model_id=about.get("model_id"),
        dataset_id=about.get("dataset_id"),
        holdout=tuple(about["holdout"]) if about.get("holdout") else None,
        primary=str(content.get("primary")),
        basis=basis if verdict.get("decision") == "promote" else None,
        difference=_difference(content, against),
        floor=_difference(content, "original"),
    )


def _difference(content: Mapping[str, Any], against: str) -> Estimate | None:
    found = content.get("differences", {}).get(f"candidate - {against}", {}).get(content.get("primary"))
    return Estimate(**found) if found else None


def allow(
    contents: Iterable[Mapping[str, Any]],
    *,
    about: Mapping[str, Any],
    primary: str,
    now: datetime,
) -> Allowance:
    """What an evaluation may use up, given the recorded ones of its type (`contents`).

    `about` is what is recorded with it: model, dataset, incumbent and the times of the holdout. The same model on the
    same holdout is the same trial again and costs nothing more.
    """
    model_id, dataset_id, incumbent_id = (about.get(f"{x}_id") for x in ("model", "dataset", "incumbent_model"))
    holdout = tuple(about["holdout"]) if about.get("holdout") else None
    trials = [trial for each in contents if (trial := read_trial(each)) is not None and trial.at <= now]
    trials.sort(key=lambda trial: trial.at)
    own = [trial for trial in trials if (trial.model_id, trial.dataset_id) == (model_id, dataset_id)]
    others = [trial for trial in trials if (trial.model_id, trial.dataset_id) != (model_id, dataset_id)]
    recent = _once([trial for trial in others if trial.at > now - _PERIOD])
    spent = sum(trial.alpha for trial in recent)
    reuses = len({t.model_id for t in others if t.dataset_id == dataset_id or _mostly_within(holdout, t.holdout)})
    left = max(MONTHLY_ERROR - spent, 0) * _SHARE / (1 + reuses)
    return Allowance(
        alpha=min(own[0].alpha, left) if own and own[0].at > now - _PERIOD else left,
        earlier=len(recent),
        reuses=reuses,
        losses=_losses(others, primary),
        incumbent_floor=next(
            (t.floor for t in reversed(others) if incumbent_id and t.model_id == incumbent_id and t.primary == primary),
            None,
        ),
    )


def _mostly_within(holdout: tuple[Any, ...] | None, other: tuple[Any, ...] | None) -> bool:
    """Does more than half of the time of a holdout belong to that of another?"""
    if not holdout or not other:
        return False
    first, last, other_first, other_last = (datetime.fromisoformat(t).timestamp() for t in (*holdout, *other))
    return min(last, other_last) - max(first, other_first) > (last - first) / 2


def _once(trials: Sequence[Trial]) -> list[Trial]:
    """The first trial of each model on each holdout."""
    return list({(trial.model_id, trial.dataset_id): trial for trial in reversed(trials)}.values())


def _losses(trials: Sequence[Trial], primary: str) -> tuple[Estimate, ...]:
    """Differences of the models that were promoted for being not worse, since the last that was better."""
    found: list[Estimate] = []
    for trial in trials:
        if trial.basis == "better":
            found = []
        elif trial.basis == "not_worse" and trial.difference is not None and trial.primary == primary:
            found.append(trial.difference)
    return tuple(found)
