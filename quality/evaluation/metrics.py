"""Metrics as ratios of sums over rows, so that an episode's rows can be weighted together.

A bootstrap over episodes draws weights for episodes; every metric here is computed for all draws at once from
`weights @ sums`, where `sums` has one line per episode. (The AUC is no ratio of sums; it takes the rows' weights.)
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray

ECE_BINS = 10
_TOKEN = re.compile(r"\w+|[^\w\s]")


def ratio(numerator: Array, denominator: Array) -> Array:
    """numerator / denominator, NaN where the denominator is 0."""
    out = np.full(np.broadcast(numerator, denominator).shape, np.nan)
    divided: Array = np.divide(numerator, denominator, out=out, where=np.asarray(denominator) > 0)
    return divided


def accuracy(counts: Array) -> Array:
    """Share of right answers. `counts` is (..., classes of the label, classes of the answer)."""
    return ratio(np.trace(counts, axis1=-2, axis2=-1), counts.sum(axis=(-2, -1)))


def balanced_accuracy(counts: Array) -> Array:
    """Mean of the recalls of the classes that occur as labels."""
    support = counts.sum(axis=-1)
    recalls = ratio(np.diagonal(counts, axis1=-2, axis2=-1), support)
    return ratio(np.nansum(recalls, axis=-1), (support > 0).sum(axis=-1))


def f1(counts: Array, positive: int) -> Array:
    """F1 of one class: 2 TP / (2 TP + FP + FN)."""
    true = counts[..., positive, positive]
    wrong = counts[..., positive].sum(axis=-1) + counts[..., positive, :].sum(axis=-1) - 2 * true
    return ratio(2 * true, 2 * true + wrong)


def calibration_error(count: Array, confidence: Array, right: Array) -> Array:
    """Expected calibration error (Naeini et al., AAAI 2015): per bin of confidence (last axis) sums over its rows."""
    total = count.sum(axis=-1)
    return ratio(np.abs(right - confidence).sum(axis=-1), total)


def auc(scores: Array, positive: Array, weights: Array) -> Array:
    """Area under the ROC curve, ties counting half, for each line of `weights` (draws x rows)."""
    order = np.argsort(scores, kind="stable")
    scores, positive, weights = scores[order], positive[order], weights[:, order]
    starts = np.flatnonzero(np.r_[True, np.diff(scores) > 0])
    up = np.add.reduceat(weights * positive, starts, axis=1)
    down = np.add.reduceat(weights * ~positive, starts, axis=1)
    below = np.cumsum(down, axis=1) - down
    return ratio((up * (below + down / 2)).sum(axis=1), up.sum(axis=1) * down.sum(axis=1))


def set_f1(label: Sequence[str], answer: Sequence[str]) -> float:
    """F1 of two sets of names; 1 where both are empty."""
    wanted, given = set(label), set(answer)
    if not wanted and not given:
        return 1.0
    return 2 * len(wanted & given) / (len(wanted) + len(given))


def order_agreement(label: Sequence[str], answer: Sequence[str]) -> float | None:
    """Length of the longest common subsequence over that of the common names; None with fewer than two in common."""
    common = set(label) & set(answer)
    wanted = [name for name in label if name in common]
    given = [name for name in answer if name in common]
    if len(common) < 2:
        return None
    matcher = _longest_common_subsequence(wanted, given)
    return matcher / min(len(wanted), len(given))


def _longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    row = [0] * (len(second) + 1)
    for a in first:
        previous = 0
        for i, b in enumerate(second, 1):
            previous, row[i] = row[i], previous + 1 if a == b else max(row[i], row[i - 1])
    return row[-1]


def code_similarity(label: str, answer: str) -> float:
    """Share of tokens in common, in order (Ratcliff and Obershelp's ratio). Says nothing of whether the code works."""
    return difflib.SequenceMatcher(None, _TOKEN.findall(label), _TOKEN.findall(answer), autojunk=False).ratio()


def percentile(values: Sequence[Any], q: float) -> float | None:
    """The q-th percentile, None of nothing."""
    known = [value for value in values if value is not None]
    return float(np.percentile(known, q)) if known else None
