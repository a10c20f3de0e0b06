"""The watch over the money, as verbs on a data folder."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from provider.errors import ProviderError
from provider.lifecycle.guard import UNREACHABLE, GuardPolicy, GuardReport, guard_costs, needs_provider
from provider.lifecycle.reconcile import ReconcileReport, reconcile_provider
from provider.providers import open_provider
from storage.ledger.ledger import open_ledger


def guard(
    data: Path, *, idle_minutes: int | None = 30, lease_minutes: float = 3, now: datetime | None = None
) -> GuardReport:
    """One tick of the guard, also when the provider cannot be reached: then it meters the log and renews nothing."""
    policy = GuardPolicy(
        idle=timedelta(minutes=idle_minutes) if idle_minutes else None, lease=timedelta(minutes=lease_minutes)
    )
    try:
        provider = open_provider(data, timeout=15)  # seconds: the next tick comes within a minute
    except ProviderError as error:
        report = guard_costs(data, None, policy=policy, now=now)
        if UNREACHABLE in report.errors:  # where only registered models serve, nobody misses it
            report.errors.append(str(error))
        return report
    with provider:
        return guard_costs(data, provider, policy=policy, now=now)


def reconcile(data: Path, *, now: datetime | None = None) -> ReconcileReport:
    """What runs at the provider against the ledger. Raises `ProviderError` where it cannot be asked, but must be."""
    try:
        provider = open_provider(data)
    except ProviderError:
        with open_ledger(data) as ledger:
            if needs_provider(ledger):
                raise
        return reconcile_provider(data, None, now=now)
    with provider:
        return reconcile_provider(data, provider, now=now)
