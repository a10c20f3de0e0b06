"""Episodes: the turns that an agent sees, each with the decision that turned out to be right."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Turn:
    """One decision to make. `truth` is unknown to the agent until `truth_ts`."""

    decision_type: str
    context: dict[str, Any]
    """The context passed to `DecisionClient.decide`."""
    truth: dict[str, Any]
    """The right decision, in the form of its type: `{"action": "RESPOND"}`, `{"actions": ["cd", "ls"], …}`."""
    ts: datetime
    """When the decision was due (UTC)."""
    truth_ts: datetime
    """When the outcome was known (UTC, not before `ts`)."""
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
    """The people's feedback: metric -> value."""
