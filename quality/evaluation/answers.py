"""What was right for a row, and what a source of answers said to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Label:
    """What was right for one row. `episode` is what the row is resampled with."""

    decision: dict[str, Any]
    episode: str
    source: str = "demonstration"


@dataclass(frozen=True, slots=True)
class SourceAnswer:
    """One source's answer to one row; `decision` is None where it failed, which counts as wrong.

    `confidence` is in 0..1, `latency_ms` in milliseconds, `cost_usd` in US dollars. `passed` tells whether code passed
    its tests, where the caller ran them. `weight` is 1 / probability of having been asked, in an A/B test.
    """

    decision: dict[str, Any] | None
    confidence: float | None = None
    latency_ms: float | None = None
    cost_usd: float | None = None
    passed: bool | None = None
    weight: float = 1.0
