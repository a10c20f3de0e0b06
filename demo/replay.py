"""Replay episodes: the agent decides, and learns later what was right."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any

from demo.episodes import Episode, Turn
from demo.originals import ORIGINALS
from reasoning.client import Answer, DecisionClient


class ReplayClock:
    """The replay's time, in seconds since the epoch when called. It never goes back."""

    def __init__(self, start: datetime) -> None:
        self._now = start

    def __call__(self) -> float:
        return self._now.timestamp()

    @property
    def now(self) -> datetime:
        """The time (UTC)."""
        return self._now

    def move_to(self, moment: datetime) -> None:
        """Move to `moment`, unless it is already later."""
        self._now = max(self._now, moment.astimezone(UTC))


@dataclass(frozen=True, slots=True)
class Served:
    """The agent's answer and the decision that turned out to be right."""

    turn: Turn
    answer: Answer


@dataclass(slots=True)
class Replay:
    """Asks `client` every turn in order, and sends feedback once the outcome is known.

    Outcomes after the last turn are sent by `finish`.
    """

    client: DecisionClient
    clock: Callable[[datetime], None]
    _later: list[tuple[datetime, int, Callable[[], Any]]] = field(default_factory=list)
    _number: Iterator[int] = field(default_factory=count)

    def run(self, episodes: Iterable[Episode]) -> Iterator[Served]:
        """One answer after the other."""
        episodes = list(episodes)
        for episode in episodes:
            for metric, value in episode.ratings.items():
                self._tell_later(episode.end, self._rating(episode, metric, value))
        for turn in sorted((turn for episode in episodes for turn in episode.turns), key=lambda turn: turn.ts):
            self._tell(until=turn.ts)
            self.clock(turn.ts)
            answer = self.client.decide(
                turn.decision_type,
                turn.context,
                ORIGINALS[turn.decision_type],
                episode_id=turn.episode_id,
                room_id=turn.room_id,
                subject_ids=turn.subject_ids,
            )
            self._tell_later(turn.truth_ts, self._demonstration(turn, answer))
            yield Served(turn, answer)

    def finish(self) -> None:
        """Send the feedback that is still due."""
        self._tell(until=None)

    def _tell_later(self, moment: datetime, tell: Callable[[], Any]) -> None:
        heapq.heappush(self._later, (moment, next(self._number), tell))

    def _tell(self, until: datetime | None) -> None:
        while self._later and (until is None or self._later[0][0] <= until):
            moment, _, tell = heapq.heappop(self._later)
            self.clock(moment)
            tell()

    def _demonstration(self, turn: Turn, answer: Answer) -> Callable[[], Any]:
        return lambda: self.client.demonstrate(answer.decision_id, turn.truth)

    def _rating(self, episode: Episode, metric: str, value: float) -> Callable[[], Any]:
        return lambda: self.client.feedback(metric, value, episode_id=episode.episode_id)
