"""Training, validation and holdout rows apart in time *and* by whole episodes.

A shuffle of rows lets a model be tested on the other half of conversations that it has learned, and on days that it has
seen. Here every training row is older than every validation row, which is older than every holdout row, and no episode
is in two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "validation", "holdout")
# How far a boundary may be moved (in share of the rows) to where it cuts through fewer episodes.
SLACK = 0.05


@dataclass(frozen=True, slots=True)
class Splits:
    """`assigned[i]` is the split of row i, or None where its episode lies mostly on the other side of a boundary.

    A row is in `train` before `validation_from`, in `holdout` from `holdout_from` on, else in `validation`. The
    boundaries are None when the rows cannot be parted.
    """

    assigned: list[str | None]
    validation_from: datetime | None
    holdout_from: datetime | None


@dataclass(frozen=True, slots=True)
class SplitNumbers:
    """`Splits` as numbers: 0 to 2 for `SPLITS`, -1 for None; times in microseconds."""

    assigned: NDArray[np.int8]
    validation_from: int | None
    holdout_from: int | None


_START = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def split_rows(
    times: Sequence[datetime],
    episodes: Sequence[str],
    *,
    validation_share: float = 0.1,
    holdout_share: float = 0.2,
) -> Splits:
    """`split_arrays` of times and names of episodes."""
    microseconds = np.array([(time - _START) // _MICROSECOND for time in times], dtype=np.int64)
    names = {episode: number for number, episode in enumerate(dict.fromkeys(episodes))}
    found = split_arrays(
        microseconds,
        np.array([names[episode] for episode in episodes], dtype=np.int64),
        validation_share=validation_share,
        holdout_share=holdout_share,
    )
    first, second = (
        None if us is None else _START + us * _MICROSECOND for us in (found.validation_from, found.holdout_from)
    )
    return Splits([SPLITS[number] if number >= 0 else None for number in found.assigned], first, second)


def split_arrays(
    times: NDArray[np.int64],
    episodes: NDArray[np.int64] | NDArray[np.uint64],
    *,
    validation_share: float = 0.1,
    holdout_share: float = 0.2,
) -> SplitNumbers:
    """Part rows, given each one's time (microseconds) and episode, by time and whole episodes.

    Boundaries stand near the wanted shares, where they cut the fewest rows off their episodes. An episode that a
    boundary cuts keeps the side on which most of its rows are (the earlier one on a tie); its other rows get none. The
    outcome does not depend on the order of the rows.
    """
    if validation_share <= 0 or holdout_share <= 0 or validation_share + holdout_share >= 1:
        raise ValueError(
            f"shares must be above 0 and leave something to train on: validation {validation_share}, "
            f"holdout {holdout_share}"
        )
    order = np.argsort(times, kind="stable")
    holdout_at = _choose_boundary(times[order], episodes[order], 1 - holdout_share)
    before = order[:holdout_at]
    validation_at = _choose_boundary(times[before], episodes[before], 1 - validation_share / (1 - holdout_share))
    if not validation_at or not holdout_at:
        return SplitNumbers(np.zeros(len(times), np.int8), None, None)
    validation_from, holdout_from = int(times[order[validation_at]]), int(times[order[holdout_at]])
    side = (times >= validation_from).astype(np.int8) + (times >= holdout_from)
    numbers = np.unique(episodes, return_inverse=True)[1]
    counts = np.bincount(numbers * len(SPLITS) + side, minlength=(int(numbers.max()) + 1) * len(SPLITS))
    home = counts.reshape(-1, len(SPLITS)).argmax(axis=1)  # the first of the largest
    return SplitNumbers(np.where(side == home[numbers], side, -1).astype(np.int8), validation_from, holdout_from)


def _choose_boundary(times: NDArray[np.int64], episodes: NDArray[np.int64] | NDArray[np.uint64], share: float) -> int:
    """How many of the rows, which are in the order of time, go before the boundary; 0 where no boundary parts them."""
    at = np.flatnonzero(times[1:] > times[:-1]) + 1
    if not len(at):
        return 0
    # Before a row, each episode has so many rows cut off: the fewer of those before it and those from it on.
    by_episode = np.argsort(episodes, kind="stable")
    own = episodes[by_episode]
    firsts = np.flatnonzero(np.concatenate([[True], own[1:] != own[:-1]]))
    sizes = np.diff(np.append(firsts, len(own)))
    rank, total = np.arange(len(own)) - np.repeat(firsts, sizes), np.repeat(sizes, sizes)
    change = np.empty(len(own), np.int64)
    change[by_episode] = np.minimum(rank + 1, total - rank - 1) - np.minimum(rank, total - rank)
    cut_off = np.cumsum(change)[at - 1]
    distance = np.abs(at - share * len(times))
    # Within the slack the fewest rows cut off decide, outside of it the distance.
    outside = np.maximum(distance - SLACK * len(times), 0)
    return int(at[np.lexsort((at, distance, cut_off, outside))[0]])
