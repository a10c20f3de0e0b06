"""Intervals of any metric over episodes: leave out one at a time, and Student's t (CR3).

The variance is that of the values without one episode each, around the value of all: the cluster-robust CR3 estimate
(MacKinnon, Nielsen and Webb, "Fast and reliable jackknife and bootstrap methods for cluster-robust inference", Journal
of Applied Econometrics 38, 2023), with Student's t of one degree of freedom less than there are episodes. It covers
better than percentiles of a bootstrap where episodes are few (`benchmarks/promotion.py`). Of more than 1,000 episodes,
1,000 groups are left out instead (Kott, Journal of Official Statistics 17, 2001).

Where nearly all episodes say the same, their variance says nothing. With fewer than 10 that differ, the variance of a
rare episode that was not seen yet is added, so that of n equal episodes of one row the interval reaches to about
3.7 / n, the exact one of a proportion; of longer episodes it is one row that might differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from quality.evaluation.form_metrics.rows import Metric

_MOST_GROUPS = 1_000
_CHUNK = 100
_FEW_DIFFERENT = 10
_UNSEEN = 3.4  # (3.7 / 1.96)^2, for one that was seen: less with Student's t


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval. `se` is its standard error, of `df` degrees of freedom; None in older records."""

    value: float
    low: float
    high: float
    se: float | None = None
    df: float | None = None

    def lower(self, alpha: float) -> float:
        """The lower bound that the true value is below with a probability of `alpha`."""
        return self.value - self._reach(alpha)

    def upper(self, alpha: float) -> float:
        """The upper bound that the true value is above with a probability of `alpha`."""
        return self.value + self._reach(alpha)

    @property
    def error(self) -> float:
        """The standard error; of an older record by its interval."""
        return self.se if self.se is not None else (self.high - self.low) / 2 / 1.96

    def _reach(self, alpha: float) -> float:
        return float(stdtrit(self.df if self.df is not None else np.inf, 1 - alpha)) * self.error


def leave_out(episodes: int) -> np.ndarray:
    """Weights of episodes: a line of ones, then a line without each group of episodes (of one each up to 1,000)."""
    groups = min(episodes, _MOST_GROUPS)
    weights = np.ones((groups + 1, episodes))
    group = np.random.default_rng(0).permutation(episodes) % groups
    weights[group + 1, np.arange(episodes)] = 0
    return weights


def in_chunks(measures: Mapping[str, Metric], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric for every line of weights."""
    parts = [weights[start : start + _CHUNK] for start in range(0, len(weights), _CHUNK)]
    return {metric: np.concatenate([compute(part) for part in parts]) for metric, compute in measures.items()}


def jackknife(values: np.ndarray, counted: np.ndarray | None = None, unit: float = 1.0) -> Estimate | None:
    """The estimate of a metric from its values for the weights of `leave_out`; None where it is undefined.

    `counted` tells which of the groups have rows (all by default). `unit` is by how much an episode differs at least
    from another: one over its number of rows.
    """
    value, without = float(values[0]), values[1:]
    without = without[~np.isnan(without) if counted is None else ~np.isnan(without) & counted]
    if np.isnan(value):
        return None
    groups = len(without)
    if groups < 2:
        return Estimate(round(value, 6), round(value - 1, 6), round(value + 1, 6), se=1.0, df=1)  # says nothing
    apart = (groups - 1) * (value - without)  # by how much each episode is above the value
    variance = (groups - 1) / groups * float(((without - value) ** 2).sum())
    differs = np.abs(apart - np.median(apart))
    different = int((differs > 1e-9).sum())
    if different < _FEW_DIFFERENT:
        variance += _UNSEEN * (float(differs.max()) if different else unit) ** 2 / groups**2
    se, df = variance**0.5, groups - 1
    reach = float(stdtrit(df, 0.975)) * se
    return Estimate(round(value, 6), round(value - reach, 6), round(value + reach, 6), round(se, 9), df)
