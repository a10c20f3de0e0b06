"""The watch over the money as Prefect tasks."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from pathlib import Path

from prefect import task

from pipeline import money
from pipeline.economy.pays import TypePays, pays, save_pays
from pipeline.economy.tables import pays_rows, way_rows
from pipeline.parameters import PaysSettings
from pipeline.reports import budget_rows, cost_fields, cost_rows, model_rows, without
from provider.lifecycle.guard_report import GuardReport
from provider.lifecycle.reconcile import ReconcileReport
from provider.lifecycle.status import cost_report, model_status
from storage.errors import LedgerError
from tasks.runs import ONCE, REPEATABLE, publish


@task(**ONCE)  # the next tick comes within a minute, and makes up for this one
def guard(data: Path, *, idle_minutes: int | None, lease_minutes: float, now: datetime | None = None) -> GuardReport:
    report = money.guard(data, idle_minutes=idle_minutes, lease_minutes=lease_minutes, now=now)
    publish("guard", without(report, "budgets"), title="What the guard found and did")
    with suppress(LedgerError):  # the guard has said so
        costs = cost_report(data, now=now)
        publish("costs", cost_fields(costs), title="What this month cost, and will cost at this rate")
        publish("costs-by-model", cost_rows(costs["models"]), title="What each model cost this month")
        publish("budgets", budget_rows(costs["budgets"]), title="Budgets, and when they are exhausted at this rate")
        publish("models", model_rows(model_status(data, now=now)), title="The models, and what they cost")
    return report


@task(**REPEATABLE)
def reconcile(data: Path, *, now: datetime | None = None) -> ReconcileReport:
    report = money.reconcile(data, now=now)
    publish("reconciliation", report, title="The provider against the ledger; money of hours with a complete bill")
    return report


@task(**REPEATABLE)
def estimate_value(data: Path, settings: PaysSettings, *, now: datetime | None = None) -> list[TypePays]:
    found = pays(data, settings=settings, now=now)
    save_pays(data, found, now=now)
    publish("pays", pays_rows(found), title="Does a model pay?")
    for each in found:
        publish(f"ways-{each.decision_type.lower().replace('_', '-')}", way_rows(each), title=each.why)
    return found
