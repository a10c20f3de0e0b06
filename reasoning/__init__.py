"""What runs beside an agent: decide, route, record.

`DecisionClient` (or `AsyncDecisionClient`), `@decision`, and the `Answer` that they give. A fallback that asks a model
reports what that cost by `Fallback` or `fallback_call`. See docs/guides/client.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reasoning.client import DecisionClient
from reasoning.config import Config, load_config
from reasoning.core import Answer
from reasoning.decorator import decision
from reasoning.errors import ReasoningError
from reasoning.fallback import Fallback, fallback_call

if TYPE_CHECKING:
    from reasoning.async_client import AsyncDecisionClient

__all__ = [
    "Answer",
    "AsyncDecisionClient",
    "Config",
    "DecisionClient",
    "Fallback",
    "ReasoningError",
    "decision",
    "fallback_call",
    "load_config",
]


def __getattr__(name: str) -> Any:
    if name == "AsyncDecisionClient":  # imports asyncio, which a sync agent need not pay for
        from reasoning.async_client import AsyncDecisionClient

        return AsyncDecisionClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
