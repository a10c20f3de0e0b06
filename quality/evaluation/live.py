"""What is to become of a model that answers live questions: promote, hold, withdraw, or shrink to the canary's share.

`decide` is a pure function of what the log shows (`quality.evaluation.observations.observe`) and a policy. It may be
called as often as one likes: its errors are bounded over all calls together (`quality.evaluation.sequential`).

* Promote: the model's difference to the fallback is above -margin (0 to be better), with an error of at most
  `promote_alpha` over the whole test.
* Withdraw: one of the harms is beyond its bound, with an error of at most `withdraw_alpha` in any 30 days from the
  start of the test, all harms together. The evidence starts anew every 30 days, and part of it every day, so that a
  model that was good for long is withdrawn soon after its world has changed.
* Shrink: the model's own quality fell below what its evaluation showed, or below what it showed itself while it served
  (an error of at most `shrink_alpha` in 30 days), or no labels come in, so that it is unproven. By arm this is several
  times faster than the comparison with a fallback that answers a tenth of the questions, but it does not tell a worse
  model from a harder world: so it leaves the model the canary's share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np

from quality.evaluation.sequential import (
    LARGE_DIFFERENCE,
    Scores,
    confidence_bounds,
    log_wealth,
    log_wealth_with_restarts,
)
from quality.settings import DEFAULT_MARGIN, Design

Stage = Literal["shadow", "canary", "live"]
Action = Literal["promote", "hold", "withdraw", "shrink"]

_PERIOD_DAYS = 30
_LEAST_RECORD = 50
"""Episodes that a model must have answered before a day to have a record to fall from."""
_RECORD_Z, _RECORD_TOLERANCE = 2.6, 0.01
SETTLE_SECONDS = 3_600.0
"""For so long after the first label of an episode others are waited for; together they are one score."""
# How the error of a false withdrawal is divided. Failures and slow answers need no labels: there are enough of them.
QUALITY_SHARE, _FAILED, _SLOW, _LEVEL = 0.8, 0.05, 0.05, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class LivePolicy:
    """The bounds of a live test.

    `margin`: by how much less than the fallback still counts as equal, in the objective's units; 0 where the model must
    be better. `shrink_alpha` is the error of a fall from a model's own record, in 30 days. `reference` is the quality
    that the model's evaluation proved (its lower limit), None if not known; `level_tolerance` is by how much less is
    tolerated. Shares are of the model's answers. `max_cost_ratio` is to the cost of the fallback; None: cost is no
    matter. After `unproven_days` without a label the model is unproven, and `when_unproven` is done.
    """

    margin: float = DEFAULT_MARGIN
    promote_alpha: float = 0.05
    withdraw_alpha: float = 0.01
    shrink_alpha: float = 0.01
    max_failed_share: float = 0.05
    max_slow_share: float = 0.05
    max_cost_ratio: float | None = None
    reference: float | None = None
    level_tolerance: float = DEFAULT_MARGIN
    unproven_days: float = 7.0
    when_unproven: Literal["shrink", "hold", "withdraw"] = "shrink"


@dataclass(frozen=True, slots=True)
class Stream:
    """Scores of episodes, and when each became known (seconds since the epoch, rising)."""

    scores: Scores = field(default_factory=lambda: Scores.within(np.empty(0)))
    known_at: np.ndarray = field(default_factory=lambda: np.empty(0))

    def since(self, begin: float) -> Stream:
        """Those that became known at `begin` or later."""
        first = int(np.searchsorted(self.known_at, begin))
        return Stream(self.scores.last(len(self.scores) - first), self.known_at[first:])

    def negated(self) -> Stream:
        """The same with the opposite sign."""
        return Stream(self.scores.negated(), self.known_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """What the log shows of one model since the start of its test.

    `difference` is the model's quality less that of `against`, `level` the model's own, in the units of `objective`.
    `failed` and `slow` are shares of its answers, from all questions, with or without a label. All are by episode.
    """

    since: datetime
    against: str = "the fallback"
    design: Design | None = None
    objective: str = ""
    difference: Stream = field(default_factory=Stream)
    level: Stream = field(default_factory=Stream)
    failed: Stream = field(default_factory=Stream)
    slow: Stream = field(default_factory=Stream)
    questions: int = 0
    labelled: int = 0
    last_label: datetime | None = None
    cost_per_1000_usd: float | None = None
    fallback_cost_per_1000_usd: float | None = None


@dataclass(frozen=True, slots=True)
class LiveDecision:
    """What is to be done, why, and the figures behind it (plain numbers, for the ledger)."""

    action: Action
    reason: str
    numbers: dict[str, Any]


def decide(observations: Observations, policy: LivePolicy, *, stage: Stage, now: datetime) -> LiveDecision:
    """Decide by what the log shows so far. A harm comes before everything else; what is not proven is held."""
    numbers = _figures(observations, policy)
    begin = period_start(observations.since, now)
    for name, evidence, bar, said in _harms(observations, policy, begin):
        numbers[f"evidence_{name}"] = round(evidence, 3)
        if evidence >= bar:
            if name == "worse":
                worse = observations.difference.since(begin).negated()
                numbers["changed_at"] = _changed_at(worse, policy.margin)
            return LiveDecision("withdraw", said, numbers)
    dear = _cost_harm(observations, policy)
    if dear is not None:
        return LiveDecision("withdraw", dear, numbers)
    said = _describe(observations, numbers)
    if stage != "live":
        needed = -math.log(policy.promote_alpha)
        running = log_wealth(observations.difference.scores, -policy.margin)
        evidence = float(running[-1]) if len(running) else 0.0
        numbers |= {"evidence_promote": round(evidence, 3), "evidence_needed": round(needed, 3)}
        if evidence >= needed:
            claim = f"as good within {policy.margin:g}" if policy.margin else "better"
            return LiveDecision("promote", f"{claim}. {said}", numbers)
    if stage == "shadow":
        return LiveDecision("hold", said, numbers)
    return _judge_standing(observations, policy, numbers, said, now, is_live=stage == "live")


def _judge_standing(
    observations: Observations, policy: LivePolicy, numbers: dict[str, Any], said: str, now: datetime, *, is_live: bool
) -> LiveDecision:
    """Hold a model that serves, unless it is unproven, or fell below its evaluation or its own record."""
    begin = period_start(observations.since, now)
    if policy.reference is not None:
        floor = policy.reference - policy.level_tolerance
        level = observations.level.since(begin)
        evidence = _recent_evidence(level.negated(), begin, -floor)
        numbers["evidence_level"] = round(evidence, 3)
        if evidence >= -math.log(policy.withdraw_alpha * _LEVEL):
            numbers["changed_at"] = _changed_at(level.negated(), -floor)
            return LiveDecision(
                "shrink",
                f"its own {observations.objective} is {level.scores.mean():.3f}; "
                f"its evaluation proved {policy.reference:.3f}",
                numbers,
            )
    fall = _fall_from_own_record(observations, begin)
    if fall is not None:
        numbers |= {"evidence_fall": round(fall.evidence, 3), "before": round(fall.before, 6)}
        if is_live and fall.evidence >= -math.log(policy.shrink_alpha):
            numbers["changed_at"] = datetime.fromtimestamp(fall.changed_at - SETTLE_SECONDS, UTC).isoformat()
            said = f"its own {observations.objective} fell from {fall.before:.3f} to {fall.now:.3f} while it served"
            return LiveDecision("shrink", said, numbers)
    unproven = max(observations.since, observations.last_label or observations.since)
    if now - unproven > timedelta(days=policy.unproven_days):
        numbers["unproven_since"] = unproven.isoformat()
        return LiveDecision(
            policy.when_unproven,
            f"serving unproven since {unproven.astimezone(UTC):%Y-%m-%d %H:%M}Z: no label came in; give demonstrations",
            numbers,
        )
    return LiveDecision("hold", said, numbers)


@dataclass(frozen=True, slots=True)
class _Fall:
    """Evidence that a model's quality fell below what it showed before; the means before and after `changed_at`."""

    evidence: float
    before: float
    now: float
    changed_at: float


def fall_evidence(stream: Stream, begin: float) -> np.ndarray:
    """Running log wealth against "the mean since a day is not below what was seen before it", days from `begin` on.

    What was seen before a day is taken at the lower end of its interval, less a tolerance. An equal part of the money
    is staked from each day of the period on, so it is an e-value but for the error of those intervals.
    """
    values, total = stream.scores, np.full(len(stream.scores), -np.inf)
    days = begin + 86_400 * np.arange(_PERIOD_DAYS)
    for start in np.searchsorted(stream.known_at, days):
        since = np.zeros(len(values))
        if _LEAST_RECORD <= start < len(values):
            after = values.last(len(values) - start).negated()
            since[start:] = log_wealth(after, -_lower_record(values.first(start)), LARGE_DIFFERENCE)
        total = np.logaddexp(total, since - math.log(_PERIOD_DAYS))
    return total


def _lower_record(scores: Scores) -> float:
    """The lower end of the interval of a mean, less the tolerance, within the limits of the scores."""
    low = float(scores.low.min())
    spread = max(float(scores.values.std(ddof=1)), 1 / len(scores))
    return max(scores.mean() - _RECORD_Z * spread / math.sqrt(len(scores)) - _RECORD_TOLERANCE, low)


def _fall_from_own_record(observations: Observations, begin: float) -> _Fall | None:
    """None where the model has no record yet."""
    stream = observations.level
    if len(stream.scores) <= _LEAST_RECORD:
        return None
    evidence = float(fall_evidence(stream, begin).max())
    changed_at = change_point(stream.negated(), -(stream.scores.mean() + stream.scores.last(_LEAST_RECORD).mean()) / 2)
    first = int(np.searchsorted(stream.known_at, changed_at))
    before = stream.scores.first(first).mean() if first else stream.scores.mean()
    return _Fall(evidence, before, stream.scores.last(len(stream.scores) - first).mean(), changed_at)


def path_so_far(stream: Stream, alpha: float = 0.05, points: int = 20) -> list[dict[str, Any]]:
    """How the difference and its interval came about: at most `points` moments, the last included."""
    count = len(stream.scores)
    rows = []
    for seen in sorted({round(count * (point + 1) / points) for point in range(points)} - {0}):
        part = stream.scores.first(seen)
        low, high = confidence_bounds(part, alpha)
        rows.append(
            {
                "known_at": datetime.fromtimestamp(stream.known_at[seen - 1], UTC),
                "episodes": seen,
                "difference": round(part.mean(), 6),
                "low": round(low, 6),
                "high": round(high, 6),
            }
        )
    return rows


def _harms(observations: Observations, policy: LivePolicy, begin: float) -> list[tuple[str, float, float, str]]:
    """Name, log evidence, the bar that it must reach, and what to say of each harm."""

    def bar(share: float) -> float:
        return -math.log(policy.withdraw_alpha * share)

    worse = observations.difference.since(begin)
    failed, slow = observations.failed.since(begin), observations.slow.since(begin)
    by = f" by more than {policy.margin:g}" if policy.margin else ""
    return [
        (
            "worse",
            _recent_evidence(worse.negated(), begin, policy.margin),
            bar(QUALITY_SHARE),
            f"worse than {observations.against}{by}: {observations.objective} {worse.scores.mean():+.3f} "
            f"over {len(worse.scores)} episodes",
        ),
        (
            "failed",
            _recent_evidence(failed, begin, policy.max_failed_share),
            bar(_FAILED),
            f"{failed.scores.mean():.1%} of its answers failed; the bound is {policy.max_failed_share:.1%}",
        ),
        (
            "slow",
            _recent_evidence(slow, begin, policy.max_slow_share),
            bar(_SLOW),
            f"{slow.scores.mean():.1%} of its answers are too slow; the bound is {policy.max_slow_share:.1%}",
        ),
    ]


def harm_evidence(stream: Stream, begin: float, null: float) -> np.ndarray:
    """Running log wealth against "the mean is at most `null`", with a start on each day of the period from `begin`."""
    days = begin + 86_400 * np.arange(1, _PERIOD_DAYS)
    return log_wealth_with_restarts(stream.scores, np.searchsorted(stream.known_at, days), null)


def change_point(stream: Stream, null: float) -> float:
    """When the mean rose above `null`, most likely (seconds since the epoch): where the cumulated excess is least.

    That is the estimate of Page's CUSUM. A stream that was above from its start on has changed at its first score.
    """
    excess = np.cumsum(stream.scores.weight * (stream.scores.values - null))
    return float(stream.known_at[int(np.argmin(np.r_[0.0, excess[:-1]]))])


def _changed_at(stream: Stream, null: float) -> str:
    """The change point as a time of decisions, RFC 3339. A score is known when its labels have settled."""
    return datetime.fromtimestamp(change_point(stream, null) - SETTLE_SECONDS, UTC).isoformat()


def _recent_evidence(stream: Stream, begin: float, null: float) -> float:
    """The greatest evidence of the period."""
    return float(harm_evidence(stream, begin, null).max()) if len(stream.scores) else 0.0


def _cost_harm(observations: Observations, policy: LivePolicy) -> str | None:
    cost, other = observations.cost_per_1000_usd, observations.fallback_cost_per_1000_usd
    if policy.max_cost_ratio is None or cost is None or other is None or cost <= policy.max_cost_ratio * other:
        return None
    return f"1,000 answers cost ${cost:.4f}; the bound is {policy.max_cost_ratio:g} times the fallback's ${other:.4f}"


def period_start(since: datetime, now: datetime) -> float:
    """When the 30 days of `now` began, counted from `since` (seconds since the epoch)."""
    periods = max((now - since) // timedelta(days=_PERIOD_DAYS), 0)
    return (since + periods * timedelta(days=_PERIOD_DAYS)).timestamp()


def _figures(observations: Observations, policy: LivePolicy) -> dict[str, Any]:
    scores = observations.difference.scores
    low, high = confidence_bounds(scores, policy.promote_alpha)
    known = bool(len(scores))
    return {
        "design": observations.design,
        "objective": observations.objective,
        "margin": policy.margin,
        "questions": observations.questions,
        "labelled": observations.labelled,
        "episodes": len(scores),
        "difference": round(scores.mean(), 6) if known else None,
        "low": round(low, 6) if known else None,
        "high": round(high, 6) if known else None,
        "level": round(observations.level.scores.mean(), 6) if len(observations.level.scores) else None,
        "failed_share": round(observations.failed.scores.mean(), 6) if len(observations.failed.scores) else None,
        "slow_share": round(observations.slow.scores.mean(), 6) if len(observations.slow.scores) else None,
        "last_label": observations.last_label.isoformat() if observations.last_label else None,
    }


def _describe(observations: Observations, numbers: dict[str, Any]) -> str:
    if not numbers["episodes"]:
        return f"no labelled episode of {observations.questions} questions yet"
    return (
        f"{observations.objective} {numbers['difference']:+.3f} [{numbers['low']:+.3f}, {numbers['high']:+.3f}] "
        f"over {numbers['episodes']} episodes ({numbers['design']})"
    )
