from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from quality.evaluation import metrics

CLASSES = 3
PAIRS = st.lists(st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), min_size=1, max_size=60)


def _counts(pairs):
    counts = np.zeros((CLASSES, CLASSES))
    for wanted, given_ in pairs:
        counts[wanted, given_] += 1
    return counts


@given(PAIRS)
def test_label_metrics_are_those_of_scikit_learn(pairs):
    wanted, given_ = zip(*pairs, strict=True)
    counts = _counts(pairs)
    assert metrics.accuracy(counts) == pytest.approx(reference.accuracy_score(wanted, given_))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = reference.balanced_accuracy_score(wanted, given_)
    assert metrics.balanced_accuracy(counts) == pytest.approx(expected)
    ours = metrics.f1(counts, 0)
    theirs = reference.f1_score(wanted, given_, labels=[0], average="macro", zero_division=np.nan)
    assert ours == pytest.approx(theirs, nan_ok=True)


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), st.booleans(), st.integers(0, 4)), min_size=2)
)
def test_weighted_auc_is_that_of_scikit_learn(rows):
    scores, positive, weights = (np.array(column) for column in zip(*rows, strict=True))
    ours = metrics.auc(scores, positive, weights[None, :].astype(float))[0]
    if weights[positive].sum() == 0 or weights[~positive].sum() == 0:
        assert np.isnan(ours)
    else:
        assert ours == pytest.approx(reference.roc_auc_score(positive, scores, sample_weight=weights))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50))
def test_calibration_error_is_the_sum_over_bins(rows):
    table = np.zeros((3, metrics.ECE_BINS))
    for confidence, right in rows:
        bin_ = min(int(confidence * metrics.ECE_BINS), metrics.ECE_BINS - 1)
        table[:, bin_] += (1, confidence, right)
    by_hand = 0.0
    for bin_ in range(metrics.ECE_BINS):
        inside = [(c, r) for c, r in rows if min(int(c * metrics.ECE_BINS), metrics.ECE_BINS - 1) == bin_]
        if inside:
            gap = abs(np.mean([r for _, r in inside]) - np.mean([c for c, _ in inside]))
            by_hand += len(inside) / len(rows) * gap
    assert metrics.calibration_error(*table) == pytest.approx(by_hand)


def test_ratio_is_nan_where_there_is_nothing():
    assert np.isnan(metrics.ratio(np.array([1.0, 0.0]), np.array([0.0, 0.0]))).all()


NAMES = st.lists(st.sampled_from("abcde"), max_size=6)


@given(NAMES, NAMES)
def test_set_f1_and_order(label, answer):
    value = metrics.set_f1(label, answer)
    assert (value == 1) == (set(label) == set(answer))
    assert value == metrics.set_f1(answer, label)
    order = metrics.order_agreement(label, answer)
    assert order is None or 0 < order <= 1
    if len(set(label)) > 1:
        assert metrics.order_agreement(label, label) == 1


def test_order_counts_what_comes_in_the_same_order():
    assert metrics.order_agreement(["a", "b", "c"], ["c", "b", "a"]) == pytest.approx(1 / 3)
    assert metrics.order_agreement(["a", "b", "c"], ["x", "a", "c", "b"]) == pytest.approx(2 / 3)
    assert metrics.order_agreement(["a"], ["a"]) is None


@settings(max_examples=30)
@given(st.text(max_size=80), st.text(max_size=80))
def test_code_similarity_is_a_share(first, second):
    assert 0 <= metrics.code_similarity(first, second) <= 1
    assert metrics.code_similarity(first, first) == 1
