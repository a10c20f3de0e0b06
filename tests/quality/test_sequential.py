from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quality.evaluation.sequential import (
    Scores,
    confidence_bounds,
    limit_outliers,
    log_wealth,
    log_wealth_with_restarts,
)


def test_a_model_that_is_not_better_is_rarely_called_better_at_any_look():
    rng = np.random.default_rng(7)
    wrong = sum(
        log_wealth(Scores.within(rng.choice([-1, 0, 1], size=500, p=[0.2, 0.6, 0.2]))).max() >= np.log(20)
        for _ in range(400)
    )
    assert wrong <= 0.05 * 400


def test_restarts_keep_the_error():
    rng = np.random.default_rng(8)
    starts = np.arange(20, 600, 20)
    wrong = sum(
        log_wealth_with_restarts(Scores.within(rng.choice([-1, 1], size=600)), starts).max() >= np.log(20)
        for _ in range(300)
    )
    assert wrong <= 0.05 * 300


def test_a_change_after_a_long_good_time_shows_soon_with_restarts():
    rng = np.random.default_rng(1)
    good, bad = rng.choice([-1, 0, 1], size=2000, p=[0.05, 0.8, 0.15]), rng.choice([-1, 0, 1], 400, p=[0.2, 0.75, 0.05])
    scores = Scores.within(-np.r_[good, bad])
    starts = np.arange(100, 3000, 100).clip(max=len(scores))
    plain, restarted = log_wealth(scores), log_wealth_with_restarts(scores, starts)
    assert plain.max() < np.log(100)
    first = int(np.argmax(restarted >= np.log(100)))
    assert 2000 < first < 2300


def test_means_of_many_rows_are_clipped_so_that_more_can_be_staked():
    rng = np.random.default_rng(2)
    ones, tens = np.ones(200), np.full(200, 10.0)
    values = rng.binomial(10, 0.97, 200) / 10 - rng.binomial(10, 0.93, 200) / 10
    clipped, limit = limit_outliers(values, ones, tens)
    assert np.abs(clipped - values).max() < 0.2
    assert limit[-1] < 0.6
    scores = Scores(clipped, -limit, limit, ones)
    assert log_wealth(scores)[-1] > 1.3 * log_wealth(Scores.within(values))[-1] > 0
    single = rng.choice([-1.0, 0, 1], 200)
    assert (limit_outliers(single, ones, ones)[0] == single).all()


def test_bounds_close_in_on_the_mean():
    values = np.random.default_rng(1).choice([-1, 0, 1], size=3000, p=[0.1, 0.6, 0.3])
    low, high = confidence_bounds(Scores.within(values))
    assert 0.1 < low < 0.2 < high < 0.3
    assert confidence_bounds(Scores.within(np.empty(0))) == (-np.inf, np.inf)


def test_nothing_but_ties_proves_no_more_than_their_number():
    low, high = confidence_bounds(Scores.within(np.zeros(100)))
    assert low == pytest.approx(-high, abs=1e-6)
    assert 0.03 < high < 0.08


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=50), st.floats(0.1, 5))
def test_it_moves_with_the_scale(values, scale):
    one = log_wealth(Scores.within(np.array(values)))
    other = log_wealth(Scores.within(np.array(values) * scale, -scale, scale))
    assert other == pytest.approx(one, abs=1e-6)


def test_what_makes_no_sense():
    with pytest.raises(ValueError, match="within its limits"):
        Scores.within(np.array([2.0]))
    with pytest.raises(ValueError, match="alpha"):
        confidence_bounds(Scores.within(np.zeros(1)), alpha=0)
