"""Budgets that people can think in: what an amount buys, and which budgets contradict each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from prices.serving import Serving
from storage.ledger.charges import Period
from storage.ledger.ledger import Budget, Ledger
from storage.ledger.money import format_usd
from storage.ledger.rows import Deployment

_DAYS_A_MONTH = 30


@dataclass(frozen=True, slots=True)
class Machine:
    """What one replica costs an hour, by whose price, and how many decision types can share it."""

    hourly_usd: Decimal
    source: str
    sharers: int


def machine_of(ledger: Ledger, serving: Sequence[Serving]) -> Machine | None:
    """A replica as it was paid last in this ledger, else by list price. None where neither is known."""
    shared = [way for way in serving if way.kind == "adapters"]
    sharers = max((way.max_adapters or 1 for way in shared), default=1)
    deployments = [row for row in ledger.find(Deployment) if row.hourly_usd]
    if deployments:
        newest = max(deployments, key=lambda row: row.created_at)
        return Machine(newest.hourly_usd, f"as paid for {newest.name}", sharers)
    listed = next((way for way in serving if way.kind == "replica" and way.hourly_usd), None)
    if listed is None or listed.hourly_usd is None:
        return None
    return Machine(listed.hourly_usd, listed.source, sharers)


def describe_purchase(period: Period, limit_usd: Decimal, machine: Machine | None) -> str:
    """What a budget buys, in words: hours of a replica, or replicas at once for an hourly limit."""
    if machine is None:
        return "buys what is not known: no price of a replica is known"
    price = f"{format_usd(machine.hourly_usd)} an hour, {machine.source}"
    hours = limit_usd / machine.hourly_usd
    if period == "hour":
        count = int(hours)
        return f"{count} {'replica' if count == 1 else 'replicas'} at once ({price})"
    bought = f"{_number(hours)} h of one replica ({price})"
    if period == "month":
        bought += f", {_number(hours / _DAYS_A_MONTH)} h a day"
    if machine.sharers > 1:
        bought += f"; shared by {machine.sharers} types, {_number(hours * machine.sharers)} h of serving"
    return bought


def inconsistencies(budgets: Sequence[Budget], machine: Machine | None = None) -> list[str]:
    """What contradicts itself in the budgets: limits that never bind, and those that others use up early."""
    limits = {(budget.period, budget.decision_type): budget.limit_usd for budget in budgets}
    found = []
    for (period, kind), limit in limits.items():
        of = f" of {kind}" if kind else ""
        total = limits.get((period, None))
        if kind and total is not None and limit > total:
            found.append(f"{period}{of}: {format_usd(limit)} is more than {format_usd(total)} for all types together")
        month, whole = limits.get(("month", kind)), limits.get(("total", kind))
        if period == "day":
            for longer, most in (("month", month), ("total", whole)):
                if most is not None and limit > most:
                    found.append(f"day{of}: {format_usd(limit)} never binds, the {longer} has {format_usd(most)}")
            if month is not None and limit <= month < limit * _DAYS_A_MONTH:
                lasts = f"lasts {_number(month / limit)} days at {format_usd(limit)} a day"
                found.append(f"month{of}: {format_usd(month)} {lasts}")
        day = limits.get(("day", kind))
        if period == "hour" and day is not None and limit > day:
            found.append(f"hour{of}: {format_usd(limit)} an hour spends the day's {format_usd(day)} within one hour")
        if period == "hour" and day is not None and limit * 24 < day:
            found.append(
                f"day{of}: {format_usd(day)} never binds, {format_usd(limit)} an hour allow {format_usd(limit * 24)}"
            )
        if period == "total" and month is not None and limit < month:
            found.append(f"month{of}: {format_usd(month)} never binds, {format_usd(limit)} is all that may be spent")
        if period == "hour" and machine is not None and limit < machine.hourly_usd:
            found.append(f"hour{of}: {format_usd(limit)} buys no replica, one costs {format_usd(machine.hourly_usd)}")
    for period in ("day", "month"):
        parts = [limit for (each, kind), limit in limits.items() if each == period and kind]
        total = limits.get((period, None))
        if total is not None and len(parts) > 1 and sum(parts) > total and max(parts) <= total:
            found.append(
                f"{period}: the types' budgets come to {format_usd(sum(parts, Decimal(0)))} together, "
                f"more than the {format_usd(total)} of all"
            )
    return found


def _number(value: Decimal) -> str:
    return f"{value:,.1f}".removesuffix(".0")
