"""What runs beside an agent: decide, route, record.

`DecisionClient` (or `AsyncDecisionClient`), `@decision`, and the `Answer` that they give. A fallback that asks a model
reports what that cost by `Fallback` or `fallback_call`. See docs/guides/client.md; `boolean`, `choice`, `score` and
`@typed_decision` are of docs/guides/typed-questions.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reasoning.client import DecisionClient
from reasoning.config import Config, load_config
from reasoning.core import Answer
from reasoning.decorator import decision
from reasoning.errors import ReasoningError
from reasoning.fallback import Fallback, fallback_call
from reasoning.questions import boolean, choice, score
from reasoning.typed_decorator import typed_decision

if TYPE_CHECKING:
    from reasoning.async_client import AsyncDecisionClient

__all__ = [
    "Answer",
    "AsyncDecisionClient",
    "Config",
    "DecisionClient",
    "Fallback",
    "ReasoningError",
    "boolean",
    "choice",
    "decision",
    "fallback_call",
    "load_config",
    "score",
    "typed_decision",
]


def __getattr__(name: str) -> Any:
    if name == "AsyncDecisionClient":  # imports asyncio, which a sync agent need not pay for
        from reasoning.async_client import AsyncDecisionClient

        return AsyncDecisionClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
