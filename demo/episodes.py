"""What an agent lives through: episodes of turns, each with what the right decision turned out to be."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Turn:
    """One decision to take. `truth` is unknown to the agent until `truth_ts`."""

    decision_type: str
    context: dict[str, Any]
    """What `DecisionClient.decide` is asked with."""
    truth: dict[str, Any]
    """The right decision, in the form of its type: `{"action": "RESPOND"}`, `{"actions": ["cd", "ls"], …}`."""
    ts: datetime
    """When the question came up (UTC)."""
    truth_ts: datetime
    """When the world had shown what was right (UTC, not before `ts`)."""
    episode_id: str
    room_id: str
    subject_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Episode:
    """One conversation or task. Splits keep it whole."""

    episode_id: str
    turns: tuple[Turn, ...]
    end: datetime
    """When it was over (UTC): the ratings come after it."""
    ratings: dict[str, float] = field(default_factory=dict)
    """What the people said of it, metric -> value."""
