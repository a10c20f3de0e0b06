from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quality.evaluation.sequential import confidence_sequence


def test_it_covers_the_mean_at_all_times_at_once():
    rng = np.random.default_rng(7)
    missed = 0
    for _ in range(400):
        values = rng.choice([-1, 0, 1], size=400, p=[0.2, 0.5, 0.3])
        low, high = confidence_sequence(values)
        missed += not ((low <= 0.1) & (high >= 0.1)).all()
    assert missed <= 0.05 * 400


def test_a_difference_shows_in_the_end():
    values = np.random.default_rng(1).choice([-1, 0, 1], size=3000, p=[0.1, 0.6, 0.3])
    low, high = confidence_sequence(values)
    assert low[-1] > 0
    assert high[-1] - low[-1] < 0.2
    assert (np.diff(low) >= 0).all()
    assert (np.diff(high) <= 0).all()


@given(st.lists(st.floats(-1, 1), max_size=50), st.floats(0.1, 5))
def test_it_moves_with_the_scale(values, scale):
    low, high = confidence_sequence(values)
    wide_low, wide_high = confidence_sequence([scale * v for v in values], low=-scale, high=scale)
    assert wide_low == pytest.approx(scale * low, abs=1e-9)
    assert wide_high == pytest.approx(scale * high, abs=1e-9)


@pytest.mark.parametrize(("values", "options"), [([2], {}), ([0], {"low": 1, "high": 1}), ([0], {"alpha": 0})])
def test_what_makes_no_sense(values, options):
    with pytest.raises(ValueError, match="must be"):
        confidence_sequence(values, **options)
