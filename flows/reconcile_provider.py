"""The provider against the ledger."""

from __future__ import annotations

from prefect import flow

from pipeline.errors import FlowError
from pipeline.exclusive import exclusive_run
from provider.lifecycle.reconcile import ReconcileReport
from tasks.money_tasks import reconcile
from tasks.runs import DataFolder, IfBusy, Moment, data_folder, skipped, utc


@flow(name="reconcile_provider")
async def reconcile_provider(data: DataFolder = None, now: Moment = None, if_busy: IfBusy = "wait") -> ReconcileReport:
    """Find what runs at the provider and is ours but not in the ledger, stop and charge it, and compare the bill. What
    carries another installation's name is never touched.

    Args:
        data: The data folder. Empty: REASONING_DATA, or `data` in reasoning.toml, where the worker runs.
        now: The time it is held to be, for replays. Empty: the time of the machine.
        if_busy: When another run of this flow is at work: wait for it, or end at once.
    """
    folder = data_folder(data)
    with exclusive_run(folder, "reconcile_provider", if_busy) as ours:
        if not ours:
            return skipped("reconcile_provider")
        report = reconcile(folder, now=utc(now))
    if report.errors:
        raise FlowError("; ".join(report.errors))
    return report
