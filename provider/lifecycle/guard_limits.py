"""Which deployments are to stop: where a budget is spent, or too little is left, and where nobody asks.

Every budget's state is told in the report.
"""

from __future__ import annotations

import math
from datetime import timedelta
from decimal import Decimal

from provider.lifecycle.deployments import READY_TIMEOUT
from provider.lifecycle.guard_report import LEVELS, RUNNING_STATES, GuardPolicy, GuardReport, level_of, spending_budgets
from provider.lifecycle.sleep import promoted_models, reason_to_sleep
from provider.money.metering import hourly_usd, runway_usd
from provider.providers import providers_where
from storage.errors import BudgetExceeded
from storage.ledger.ledger import Ledger
from storage.ledger.money import format_usd, minutes_usd
from storage.ledger.rows import Deployment, DeploymentRole, DeploymentState, SleepReason

UNREADY = READY_TIMEOUT + timedelta(minutes=5)
"""Who deploys gives up after READY_TIMEOUT; what is not ready after this, its process has died."""

StopReasons = dict[str, tuple[str, bool]]
"""Deployments by ledger id: why each is to stop, and whether at once instead of draining."""


def reasons_to_stop(
    ledger: Ledger, asleep: dict[str, SleepReason], policy: GuardPolicy, report: GuardReport
) -> StopReasons:
    """All deployments that are to stop now. `asleep` gets why those stop that are only put to sleep if promoted."""
    to_stop = _over_budget(ledger, policy, report)
    to_stop |= _out_of_runway(ledger, to_stop, report)
    to_stop |= _over_rate(ledger, to_stop, report)
    return to_stop | _idle(ledger, to_stop, asleep, policy, report)


def _in_doubt(ledger: Ledger) -> list[Deployment]:
    """Deployments whose create was sent and never answered. They may run, and cost from the moment it was sent."""
    return [row for row in ledger.find(Deployment, state=DeploymentState.INTENDED) if row.attempted_at is not None]


def _over_budget(ledger: Ledger, policy: GuardPolicy, report: GuardReport) -> StopReasons:
    """Deployments that a spent budget stops, with the reason and whether it is at once."""
    to_stop: StopReasons = {}
    for budget in spending_budgets(report.budgets):
        level = level_of(budget, policy)
        report.level = max(report.level, level, key=LEVELS.index)
        if level == "ok":
            continue
        said = f"{format_usd(budget.spent_usd)} of the {budget.name} budget of {format_usd(budget.limit_usd)} is spent"
        report.warnings.append(said)
        if level == "warn":
            continue
        for row in (*ledger.find(Deployment, state=(*RUNNING_STATES, DeploymentState.DRAINING)), *_in_doubt(ledger)):
            if budget.decision_type in (None, row.decision_type):
                immediately = level == "stop" or to_stop.get(row.id, ("", False))[1]
                to_stop[row.id] = (said, immediately)
    return to_stop


def _out_of_runway(ledger: Ledger, to_stop: StopReasons, report: GuardReport) -> StopReasons:
    """Deployments whose next minutes cannot be reserved any more. What is reserved already pays for the draining.

    Reserved is what runs: another hand may have scaled it up. For a create that was never answered, all that it may
    have cost since it was sent is reserved as well, because nothing of it can be charged yet.
    """
    found = {}
    for row in _in_doubt(ledger):
        if row.id in to_stop or row.reservation_id is None or row.attempted_at is None:
            continue
        minutes = max(math.ceil((report.now - row.attempted_at).total_seconds() / 60), 0)
        amount = minutes_usd(hourly_usd(row), minutes) + runway_usd(row)
        try:
            with ledger.transaction():  # whoever sent it may have had its answer meanwhile
                if ledger.get(Deployment, row.id).state == DeploymentState.INTENDED:
                    ledger.resize(row.reservation_id, amount, hourly_usd=hourly_usd(row), now=report.now)
        except BudgetExceeded as error:
            found[row.id] = (str(error), True)
    for row in ledger.find(Deployment, state=RUNNING_STATES):
        if row.id in to_stop or row.reservation_id is None:
            continue
        try:
            with ledger.transaction():  # undeployed meanwhile, its reservation is closed and must not open again
                if (row := ledger.get(Deployment, row.id)).state in RUNNING_STATES:
                    ledger.resize(row.reservation_id, runway_usd(row), hourly_usd=hourly_usd(row), now=report.now)
        except BudgetExceeded as error:
            found[row.id] = (str(error), False)
    return found


def _over_rate(ledger: Ledger, to_stop: StopReasons, report: GuardReport) -> StopReasons:
    """The newest deployments, until the rest runs within what an hour may cost."""
    found = {}
    for budget in report.budgets:
        if budget.period != "hour":
            continue
        running = [
            row
            for row in (*ledger.find(Deployment, state=RUNNING_STATES), *_in_doubt(ledger))
            if row.id not in to_stop and budget.decision_type in (None, row.decision_type) and row.hourly_usd
        ]
        rate = sum((hourly_usd(row) for row in running), Decimal(0))
        while running and rate > budget.limit_usd:
            row = running.pop()
            rate -= hourly_usd(row)
            found[row.id] = (f"more than {format_usd(budget.limit_usd)} an hour would run", False)
    return found


def _idle(
    ledger: Ledger,
    to_stop: StopReasons,
    asleep: dict[str, SleepReason],
    policy: GuardPolicy,
    report: GuardReport,
) -> StopReasons:
    """Deployments that nobody asked for too long, by our own log: the provider's idle stop may do nothing.

    Also those that do not get ready and that nobody waits for any more: they may begin to cost at any moment.
    What costs nothing by the hour or cannot be stopped stays (`Capabilities`): withdrawing it saves nothing. So does a
    shared replica, which ends with its last adapter.
    `asleep` gets why those stop that are only put to sleep if they are promoted.
    """
    found: StopReasons = {}
    settings, promoted = policy.of_types, promoted_models(ledger)
    stoppable = providers_where(lambda offered: offered.scale_to_zero and offered.hourly)
    for row in ledger.find(Deployment, provider=stoppable, state=RUNNING_STATES):
        if row.id in to_stop:
            continue
        if row.ready_at is None and not row.replicas:
            waited = report.now - row.created_at
            if waited >= max(policy.idle or UNREADY, UNREADY):
                found[row.id] = (f"not ready for {int(waited.total_seconds() // 60)} minutes", False)
        elif row.role != DeploymentRole.SHARED and (reason := reason_to_sleep(row, settings, promoted, report.now)):
            found[row.id], asleep[row.id] = (reason[1], False), reason[0]
    for row in ledger.find(Deployment, state=RUNNING_STATES, role=DeploymentRole.ATTACHED):
        if row.replica_id in found:
            found[row.id] = found[row.replica_id]
    return found
