"""The two records of the log: a decision (one per answer) and a feedback on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypedDict
from uuid import UUID

SCHEMA_VERSION = 1

Source = Literal["original", "custom"]
FeedbackKind = Literal["metric", "demonstration", "comment"]
FallbackReason = Literal[
    "disabled",
    "no_route",
    "lease_expired",
    "circuit_open",
    "timeout",
    "provider_error",
    "unparseable",
    "low_confidence",
    "over_budget",
]


class Message(TypedDict):
    """One chat message."""

    role: str
    content: str


@dataclass(slots=True)
class Decision:
    """One answer to one question. Columns and units: docs/architecture.md, "Records"."""

    decision_id: UUID
    request_id: UUID
    ts: datetime
    decision_type: str
    source: Source
    served: bool
    messages: list[Message]
    agent_id: str | None = None
    room_id: str | None = None
    episode_id: str | None = None
    subject_ids: list[str] = field(default_factory=list)
    model: str | None = None
    config_hash: str | None = None
    experiment: str | None = None
    arm: str | None = None
    arm_probability: float | None = None
    tools: list[dict[str, Any]] | None = None
    completion: str | None = None
    decision: dict[str, Any] | None = None
    confidence: float | None = None
    valid: bool = True
    fallback_reason: FallbackReason | None = None
    error: str | None = None
    latency_ms: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Feedback:
    """What was learned later about a decision or an episode. Exactly one of the two ids is set."""

    feedback_id: UUID
    ts: datetime
    metric: str
    value: float | bool | str
    kind: FeedbackKind = "metric"
    decision_id: UUID | None = None
    episode_id: str | None = None
    author: str | None = None
