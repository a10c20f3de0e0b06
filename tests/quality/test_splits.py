from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quality.dataset.splits import SPLITS, split_rows

ORIGIN = datetime(2026, 1, 1, tzinfo=UTC)
ROWS = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 30)), max_size=200)


def _split(rows, **shares):
    return split_rows([ORIGIN + timedelta(minutes=m) for m, _ in rows], [str(e) for _, e in rows], **shares)


@given(ROWS, st.floats(0.05, 0.45), st.floats(0.05, 0.45))
def test_splits_are_apart_in_time_and_by_episode(rows, validation_share, holdout_share):
    splits = _split(rows, validation_share=validation_share, holdout_share=holdout_share)
    times: dict[str, list[int]] = {split: [] for split in SPLITS}
    home: dict[int, set[str]] = {}
    for (minute, episode), split in zip(rows, splits.assigned, strict=True):
        if split is not None:
            times[split].append(minute)
            home.setdefault(episode, set()).add(split)
    for earlier, later in (("train", "validation"), ("train", "holdout"), ("validation", "holdout")):
        if times[earlier] and times[later]:
            assert max(times[earlier]) < min(times[later])
    assert all(len(found) == 1 for found in home.values())
    # An episode is never lost altogether.
    assert set(home) == {episode for _, episode in rows}


@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(rows, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    straight, shuffled = _split(rows), _split([rows[i] for i in order])
    assert [straight.assigned[i] for i in order] == shuffled.assigned
    assert (straight.validation_from, straight.holdout_from) == (shuffled.validation_from, shuffled.holdout_from)


@given(st.integers(20, 300))
def test_shares_are_kept_where_episodes_are_short(count):
    splits = _split([(i, i) for i in range(count)], validation_share=0.1, holdout_share=0.2)
    assert splits.assigned.count("holdout") == pytest.approx(0.2 * count, abs=1)
    assert splits.assigned.count("validation") == pytest.approx(0.1 * count, abs=1)
    assert None not in splits.assigned


def test_a_boundary_goes_where_it_cuts_no_episode():
    # Ten rows an episode: the boundary nearest to 80 % of 95 rows (76) cuts one, 70 and 80 cut none.
    rows = [(i, i // 10) for i in range(95)]
    assert None not in _split(rows).assigned


def test_rows_of_one_moment_are_not_parted():
    splits = _split([(5, i) for i in range(100)])
    assert splits.holdout_from is None
    assert set(splits.assigned) == {"train"}


@pytest.mark.parametrize(("validation", "holdout"), [(0, 0.2), (0.1, 0), (0.5, 0.5), (-1, 0.1)])
def test_shares_that_leave_nothing_are_refused(validation, holdout):
    with pytest.raises(ValueError, match="shares must be above 0"):
        _split([(1, 1)], validation_share=validation, holdout_share=holdout)
