"""What the guard goes by, and what one tick of it found and did."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal

from provider.lifecycle.routes import LEASE
from provider.serving import ServingSettings, TypeServing
from storage.ledger.ledger import Budget
from storage.ledger.rows import DeploymentState

Level = Literal["ok", "warn", "drain", "stop"]
LEVELS: tuple[Level, ...] = ("ok", "warn", "drain", "stop")
RUNNING_STATES = (DeploymentState.PROVISIONING, DeploymentState.DEGRADED, DeploymentState.READY)

DRAIN_SHARE = 0.95
"""Where a budget is as good as spent: what it covers is stopped."""


@dataclass(frozen=True, slots=True)
class GuardPolicy:
    """What the guard goes by. Shares are of a budget's limit."""

    idle: timedelta | None = timedelta(minutes=30)
    serving: ServingSettings | None = None
    """By decision type; then `idle` is not looked at."""
    lease: timedelta = LEASE
    warn_share: float = 0.80
    drain_share: float = DRAIN_SHARE

    @property
    def of_types(self) -> ServingSettings:
        """When the models of each decision type run."""
        if self.serving is not None:
            return self.serving
        return ServingSettings(TypeServing(idle_minutes=self.idle.total_seconds() / 60 if self.idle else None))


@dataclass(slots=True)
class GuardReport:
    """What one tick found and did. `lease` is `renewed`, `left` (to expire), or `none` when there are no routes."""

    now: datetime
    skipped: bool = False
    level: Level = "ok"
    charged_usd: Decimal = Decimal(0)
    budgets: list[Budget] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    lease: Literal["renewed", "left", "none"] = "none"
    lease_expires_at: datetime | None = None


def level_of(budget: Budget, policy: GuardPolicy) -> Level:
    """How far a budget is spent, by the policy's shares."""
    levels: tuple[tuple[Level, float], ...] = (("stop", 1), ("drain", policy.drain_share), ("warn", policy.warn_share))
    for level, share in levels:
        if budget.used_usd >= budget.limit_usd * Decimal(str(share)):
            return level
    return "ok"


def spending_budgets(budgets: Iterable[Budget]) -> list[Budget]:
    """The budgets of what was spent; that of an hour limits a rate."""
    return [budget for budget in budgets if budget.period != "hour"]
