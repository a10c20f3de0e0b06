"""What a request asked of a model, and what came of it: the facts of its GenAI span (`gateway.ops.tracing`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway.protocols.forced import Turn

OURS = "custom-reasoning"
"""The provider of what our own models answer."""


@dataclass(slots=True)
class Inference:
    """One call of a model. `operation` and `provider` are words of OpenTelemetry's GenAI conventions.

    Tokens are None where nobody told them, or where an answer passed on unread. `turns` and `output` are there only
    where content is traced.
    """

    operation: str
    provider: str
    request_model: object = None
    response_model: str | None = None
    decision_type: str | None = None
    decision_id: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    reasoning_tokens: int | None = None
    finish_reason: str | None = None
    turns: Sequence[Turn] = ()
    output: Any = None


@dataclass(frozen=True, slots=True)
class FeedbackEvent:
    """Feedback that was recorded: the event `gen_ai.evaluation.result`."""

    metric: str
    value: Any
    decision_id: str | None = None
    episode_id: str | None = None
