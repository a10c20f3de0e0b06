"""The watch over the money."""

from __future__ import annotations

from prefect import flow

from pipeline.errors import FlowError
from pipeline.exclusive import exclusive_run
from pipeline.parameters import GuardSettings
from provider.lifecycle.guard_report import GuardReport
from tasks.money_tasks import guard
from tasks.parameters import with_settings
from tasks.runs import DataFolder, IfBusy, Moment, data_folder, skipped, utc


@flow(name="guard_costs")
@with_settings
async def guard_costs(
    data: DataFolder = None,
    *,
    settings: GuardSettings,
    now: Moment = None,
    if_busy: IfBusy = "wait",
) -> GuardReport:
    """Charge what ran, enforce the budgets, stop what nobody uses, and renew the lease if all is well. The run fails
    when it is not: then the lease is left to expire, and every decision is the agents' own.
    """
    folder = data_folder(data)
    with exclusive_run(folder, "guard_costs", if_busy) as ours:
        if not ours:
            return skipped("guard_costs")
        report = guard(folder, idle_minutes=settings.idle_minutes, lease_minutes=settings.lease_minutes, now=utc(now))
    if report.errors:
        raise FlowError("; ".join(report.errors))
    return report
