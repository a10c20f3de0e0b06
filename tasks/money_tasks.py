"""The watch over the money as Prefect tasks."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from prefect import task

from provider.guard import GuardReport
from provider.reconcile import ReconcileReport
from tasks import money
from tasks.reports import hide
from tasks.runs import ONCE, REPEATABLE, publish


@task(**ONCE)  # the next tick comes within a minute, and makes up for this one
def guard(data: Path, *, idle_minutes: int | None, lease_minutes: float, now: datetime | None = None) -> GuardReport:
    report = money.guard(data, idle_minutes=idle_minutes, lease_minutes=lease_minutes, now=now)
    publish("guard", hide(report, "budgets"), title="What the guard found and did")
    publish("budgets", report.budgets, title="Budgets")
    return report


@task(**REPEATABLE)
def reconcile(data: Path, *, now: datetime | None = None) -> ReconcileReport:
    report = money.reconcile(data, now=now)
    publish("reconciliation", report, title="The provider against the ledger")
    return report
