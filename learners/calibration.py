"""Calibration: probabilities that say how often a decision is right, and how many decisions that lets one automate."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax


def automated(confidence: np.ndarray, right: np.ndarray, error: float = 0.05) -> tuple[float, float]:
    """The largest share of decisions, the surest first, with at most `error` of them wrong; and the least confidence.

    Returns (0, infinity) where no such share is. Equal confidences are taken together or not at all.
    """
    order = np.argsort(-confidence, kind="stable")
    wrong = np.cumsum(~right[order])
    count = np.arange(1, len(order) + 1)
    ends = np.append(np.diff(confidence[order]) != 0, True)
    good = np.flatnonzero((wrong <= error * count) & ends)
    if not len(good):
        return 0.0, float("inf")
    last = int(good[-1])
    return float((last + 1) / len(order)), float(confidence[order][last])


def cross_entropy(scores: np.ndarray, truth: np.ndarray) -> float:
    """Mean cross-entropy (nats)."""
    return float(-log_softmax(scores, axis=1)[np.arange(len(truth)), truth].mean())


def fit_temperature(scores: np.ndarray, truth: np.ndarray) -> float:
    """The temperature with the least loss on rows that were not fitted to (Guo et al., "On Calibration of Modern Neural
    Networks", 2017)."""
    found = minimize_scalar(
        lambda log_t: cross_entropy(scores / np.exp(log_t), truth), bounds=(-2, 2), method="bounded"
    )
    return float(np.exp(found.x))
