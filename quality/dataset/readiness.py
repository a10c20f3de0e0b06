"""How fit a body of labelled decisions is to learn from, in one word, with advice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

Level = Literal["Insufficient", "Limited", "Narrow", "Stale", "Good", "Excellent"]

INSUFFICIENT_BELOW = 50
LIMITED_BELOW = 200
EXCELLENT_ABOVE = 1000
NARROW_EPISODES = 10
NARROW_SPAN = timedelta(days=1)
NARROW_CLASS_SHARE = 0.98
STALE_AFTER = timedelta(days=14)


@dataclass(frozen=True, slots=True)
class DataVerdict:
    """The level, what it rests on, and what would raise it. Nothing may be trained on `Insufficient` data."""

    level: Level
    rows: int
    episodes: int
    advice: list[str]


def judge_data(
    *,
    rows: int,
    episodes: int,
    classes: Mapping[str, int],
    first: datetime | None,
    last: datetime | None,
    now: datetime,
) -> DataVerdict:
    """Judge `rows` labelled decisions of `episodes` episodes from `first` to `last`, `classes` counting their answers.

    The level is the worst that applies: Insufficient below 50 rows, Limited below 200, Narrow (fewer than 10 episodes,
    less than a day, or one answer in more than 98 % of the rows), Stale (nothing within 14 days of `now`), Good, and
    Excellent above 1,000 rows.
    """
    if rows < INSUFFICIENT_BELOW or first is None or last is None:
        missing = INSUFFICIENT_BELOW - rows
        return DataVerdict(
            "Insufficient", rows, episodes, [f"Label at least {missing} more decisions: give feedback, or log more."]
        )
    narrow = []
    if episodes < NARROW_EPISODES:
        narrow.append(f"They come from {episodes} episodes: collect from at least {NARROW_EPISODES}.")
    if last - first < NARROW_SPAN:
        narrow.append("They span less than a day: collect over several days.")
    answer, count = max(classes.items(), key=lambda item: (item[1], item[0]), default=("", 0))
    if count > NARROW_CLASS_SHARE * rows:
        narrow.append(f"{count} of {rows} are {answer!r}: collect decisions that turned out otherwise.")
    stale = []
    if now - last > STALE_AFTER:
        stale.append(f"The latest is {(now - last).days} days old: collect newer ones.")
    advice = narrow + stale
    if rows < LIMITED_BELOW:
        return DataVerdict(
            "Limited",
            rows,
            episodes,
            [f"{LIMITED_BELOW - rows} more rows would make the result less uncertain.", *advice],
        )
    level: Level = "Narrow" if narrow else "Stale" if stale else "Excellent" if rows > EXCELLENT_ABOVE else "Good"
    return DataVerdict(level, rows, episodes, advice)
