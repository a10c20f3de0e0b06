"""An interval that may be looked at after every observation, for a test on live traffic.

A fixed-size interval that is looked at daily until it excludes zero will do so by chance. A confidence sequence covers
the mean at all times at once with probability 1 - alpha, so the test may stop whenever it is clear.

Predictable plug-in empirical Bernstein sequence: Waudby-Smith and Ramdas, "Estimating means of bounded random variables
by betting", JRSS B 86 (2024), Theorem 2, with the running intersection. The observations need only be bounded and have
the same conditional mean; they may depend on each other otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_MAX_BET = 0.5


def confidence_sequence(
    values: Sequence[float], *, low: float = -1.0, high: float = 1.0, alpha: float = 0.05
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds of the mean after each of `values`, which must lie in [low, high] and be in order of time.

    Raises ValueError for a value outside, or limits or an alpha that make no sense.
    """
    if not low < high or not 0 < alpha < 1:
        raise ValueError(f"low {low} must be below high {high}, and alpha {alpha} between 0 and 1")
    x = (np.asarray(values, dtype=float) - low) / (high - low)
    if len(x) and not ((x >= 0) & (x <= 1)).all():
        raise ValueError(f"values must be within {low} and {high}")
    t = np.arange(1, len(x) + 1)
    mean = (0.5 + np.cumsum(x)) / (t + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (t + 1)
    # What is bet on an observation may only rest on those before it.
    mean_before, variance_before = np.r_[0.5, mean[:-1]], np.r_[0.25, variance[:-1]]
    bet = np.minimum(np.sqrt(2 * np.log(2 / alpha) / (variance_before * t * np.log1p(t))), _MAX_BET)
    spread = 4 * (x - mean_before) ** 2
    cost = (-np.log1p(-bet) - bet) / 4
    total = np.cumsum(bet)
    centre = np.cumsum(bet * x) / total
    margin = (np.log(2 / alpha) + np.cumsum(spread * cost)) / total
    lower = np.maximum.accumulate(np.clip(centre - margin, 0, 1))
    upper = np.minimum.accumulate(np.clip(centre + margin, 0, 1))
    return low + (high - low) * lower, low + (high - low) * upper
