"""Training, validation and holdout rows apart in time *and* by whole episodes.

A shuffle of rows lets a model be tested on the other half of conversations that it has learned, and on days that it has
seen. Here every training row is older than every validation row, which is older than every holdout row, and no episode
is in two of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

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


def split_rows(
    times: Sequence[datetime],
    episodes: Sequence[str],
    *,
    validation_share: float = 0.1,
    holdout_share: float = 0.2,
) -> Splits:
    """Part rows, given each one's time and episode, by time and whole episodes.

    Boundaries stand near the wanted shares, where they cut the fewest rows off their episodes. An episode that a
    boundary cuts keeps the side on which most of its rows are (the earlier one on a tie); its other rows get None. The
    outcome does not depend on the order of the rows.
    """
    if validation_share <= 0 or holdout_share <= 0 or validation_share + holdout_share >= 1:
        raise ValueError(
            f"shares must be above 0 and leave something to train on: validation {validation_share}, "
            f"holdout {holdout_share}"
        )
    order = sorted(range(len(times)), key=lambda i: times[i])
    holdout_at = _choose_boundary(times, episodes, order, 1 - holdout_share)
    validation_at = _choose_boundary(times, episodes, order[:holdout_at], 1 - validation_share / (1 - holdout_share))
    if not validation_at or not holdout_at:
        return Splits(["train"] * len(times), None, None)
    validation_from, holdout_from = times[order[validation_at]], times[order[holdout_at]]

    def side(time: datetime) -> str:
        return "train" if time < validation_from else "validation" if time < holdout_from else "holdout"

    counts: dict[str, Counter[str]] = {}
    for time, episode in zip(times, episodes, strict=True):
        counts.setdefault(episode, Counter())[side(time)] += 1
    home = {
        episode: max(SPLITS, key=lambda split: (rows[split], -SPLITS.index(split))) for episode, rows in counts.items()
    }
    return Splits(
        [side(time) if side(time) == home[episode] else None for time, episode in zip(times, episodes, strict=True)],
        validation_from,
        holdout_from,
    )


def _choose_boundary(times: Sequence[datetime], episodes: Sequence[str], order: Sequence[int], share: float) -> int:
    """How many of the rows in `order` go before the boundary; 0 where no boundary parts them."""
    total = Counter(episodes[i] for i in order)
    before: Counter[str] = Counter()
    wanted = share * len(order)
    best, best_cost, cut_off = 0, None, 0
    for at, i in enumerate(order):
        if at and times[i] > times[order[at - 1]]:
            distance = abs(at - wanted)
            # Within the slack the fewest rows cut off decide, outside of it the distance.
            cost = (max(distance - SLACK * len(order), 0), cut_off, distance)
            if best_cost is None or cost < best_cost:
                best, best_cost = at, cost
        episode = episodes[i]
        cut_off -= min(before[episode], total[episode] - before[episode])
        before[episode] += 1
        cut_off += min(before[episode], total[episode] - before[episode])
    return best
