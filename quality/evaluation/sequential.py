"""Tests and intervals for the mean of a stream that may be looked at after every observation.

A fixed-size interval that is looked at daily until it excludes zero will exclude it by chance. Here a gambler bets on
each observation that the mean is above `null`, with a stake chosen before it. If the mean is at most `null`, the
expected wealth never grows, so it exceeds 1 / alpha at any time with a probability of at most alpha (Ville's
inequality): the wealth is an e-value. Waudby-Smith and Ramdas, "Estimating means of bounded random variables by
betting", JRSS B 86 (2024). The stakes are a fixed mixture (Cover's universal portfolio on a grid), so no variance is
estimated or assumed, and the guarantee holds at any sample size. `benchmarks/promotion.py` compares this test with
others, and shows how the grid was chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_BISECTIONS = 24
_KEPT = 1 / 3
_PRIOR_SCORES = 5


@dataclass(frozen=True, slots=True)
class Stakes:
    """Fractions of the largest stake that cannot ruin the gambler, and how the money is divided among them."""

    fractions: tuple[float, ...]
    shares: tuple[float, ...]

    @property
    def log_shares(self) -> np.ndarray:
        """One line a stake."""
        shares = np.array(self.shares, dtype=float)
        logs: np.ndarray = np.log(shares / shares.sum())[:, None]
        return logs


# Small fractions suit small differences; the largest suits episodes of many rows, whose means vary little.
ANY_DIFFERENCE = Stakes((0.03, 0.08, 0.2, 0.5, 0.97), (1, 1, 1, 1, 3))
# For a loss of about ten points, of which one row or many are an episode.
LARGE_DIFFERENCE = Stakes((0.1, 0.35, 0.97), (1, 3, 2))


@dataclass(frozen=True, slots=True)
class Scores:
    """What was observed of a quantity, one value an episode, in the order in which the values became known.

    Each value lies between its `low` and its `high`, and counts by its `weight` in 0..1; these three are known before
    the value. All are arrays of the same length. Raises ValueError for a value outside of its limits.
    """

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    weight: np.ndarray

    def __post_init__(self) -> None:
        """Check the limits."""
        inside = (self.values >= self.low - 1e-9) & (self.values <= self.high + 1e-9)
        if not (inside.all() and (self.weight >= 0).all() and (self.weight <= 1).all()):
            raise ValueError("every score must be within its limits, and its weight within 0 and 1")

    def __len__(self) -> int:
        return len(self.values)

    @staticmethod
    def within(values: np.ndarray, low: float = -1.0, high: float = 1.0) -> Scores:
        """Scores with the same limits, and the same weight."""
        ones = np.ones(len(values))
        return Scores(np.asarray(values, dtype=float), low * ones, high * ones, ones)

    def negated(self) -> Scores:
        """The same with the opposite sign, to test in the other direction."""
        return Scores(-self.values, -self.high, -self.low, self.weight)

    def last(self, count: int) -> Scores:
        """The last `count` of them."""
        begin = max(len(self) - count, 0)
        return Scores(self.values[begin:], self.low[begin:], self.high[begin:], self.weight[begin:])

    def first(self, count: int) -> Scores:
        """The first `count` of them."""
        return Scores(self.values[:count], self.low[:count], self.high[:count], self.weight[:count])

    def mean(self) -> float:
        """The weighted mean; NaN of nothing."""
        total = float(self.weight.sum())
        return float((self.values * self.weight).sum()) / total if total else float("nan")


def limit_outliers(values: np.ndarray, bound: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of `rows` paired differences, which lie within +-`bound`, and limits that they were clipped to.

    A mean of many rows hardly ever comes near its bound, but a gambler who must fear it can stake little. So a mean is
    clipped to four standard deviations of those before (at first a quarter of the bound counts as one), and never below
    two rows. The test is then exact for the clipped mean. The last axis is that of time.
    """
    squares = values**2
    before = np.cumsum(squares, axis=-1) - squares
    count = np.arange(values.shape[-1])
    spread = np.sqrt((_PRIOR_SCORES * (bound / 4) ** 2 + before) / (_PRIOR_SCORES + count))
    limit = np.minimum(bound, np.maximum(4 * spread, 2 * bound / rows))
    return np.clip(values, -limit, limit), limit


def log_wealth(scores: Scores, null: float = 0.0, stakes: Stakes = ANY_DIFFERENCE) -> np.ndarray:
    """Running logarithm of the e-value against "the mean is at most `null`", after each score."""
    wealth: np.ndarray = np.logaddexp.reduce(_log_wealth_by_stake(scores, null, stakes) + stakes.log_shares, axis=0)
    return wealth


def log_wealth_with_restarts(
    scores: Scores, starts: np.ndarray, null: float = 0.0, stakes: Stakes = LARGE_DIFFERENCE
) -> np.ndarray:
    """As `log_wealth`, but quick to notice a change: a third of the money is kept for later starts.

    `starts` are indices of scores; their number is fixed beforehand, and one that is not reached yet is the number of
    scores. The kept money is staked in equal parts from each of `starts` on. Money that is not staked yet counts as
    wealth, so the guarantee is the same (a mixture over the time of change: Shin, Ramdas and Rinaldo, "E-detectors",
    2023).
    """
    if not len(starts) or not len(scores):
        return log_wealth(scores, null, stakes)
    by_stake = _log_wealth_by_stake(scores, null, stakes)
    before = np.concatenate([np.zeros((len(by_stake), 1)), by_stake], axis=1)
    total: np.ndarray = np.logaddexp.reduce(by_stake + stakes.log_shares, axis=0) + np.log(1 - _KEPT)
    for start in starts:
        since = np.zeros(len(scores))
        since[start:] = np.logaddexp.reduce(by_stake[:, start:] - before[:, [start]] + stakes.log_shares, axis=0)
        total = np.logaddexp(total, since + np.log(_KEPT / len(starts)))
    return total


def confidence_bounds(scores: Scores, alpha: float = 0.05) -> tuple[float, float]:
    """Lower and upper bound of the mean, valid at all times at once with probability 1 - `alpha`.

    Infinite without scores. Raises ValueError for an alpha outside of 0..1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1: {alpha}")
    return _lower_bound(scores, alpha / 2), -_lower_bound(scores.negated(), alpha / 2)


def _lower_bound(scores: Scores, alpha: float) -> float:
    """The least mean that was never rejected. The wealth falls as the null rises, so it is found by bisection."""
    if not len(scores):
        return -np.inf
    low, high = float(scores.low.min()), float(scores.high.max())
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if log_wealth(scores, middle).max() >= -np.log(alpha):
            low = middle
        else:
            high = middle
    return low


def _log_wealth_by_stake(scores: Scores, null: float, stakes: Stakes) -> np.ndarray:
    """(stakes x scores). A null below all that a score can be costs nothing to reject, and is not bet on."""
    reach = null - scores.low
    possible = reach > 1e-9
    gain = np.where(possible, scores.weight * (scores.values - null) / np.where(possible, reach, 1.0), 0.0)
    wealth: np.ndarray = np.cumsum(np.log1p(np.array(stakes.fractions)[:, None] * gain), axis=1)
    return wealth
