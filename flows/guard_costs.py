"""The watch over the money."""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from pydantic import Field

from provider.guard import GuardReport
from tasks.errors import FlowError
from tasks.exclusive import taking_turns
from tasks.money_tasks import guard
from tasks.runs import DataFolder, IfBusy, Moment, data_folder, skipped, utc


@flow(name="guard_costs")
async def guard_costs(
    data: DataFolder = None,
    idle_minutes: Annotated[int, Field(ge=1)] | None = 30,
    lease_minutes: Annotated[float, Field(gt=0, le=60)] = 3,
    now: Moment = None,
    if_busy: IfBusy = "wait",
) -> GuardReport:
    """Charge what ran, enforce the budgets, stop what nobody uses, and renew the lease if all is well. The run fails
    when it is not: then the lease is left to expire, and every decision is the agents' own.

    Args:
        data: The data folder. Empty: REASONING_DATA, or `data` in reasoning.toml, where the worker runs.
        idle_minutes: After so long without a question a model is stopped. Empty: never.
        lease_minutes: How long the routes stay good without another run: a few times the schedule's interval.
        now: The time it is held to be, for replays. Empty: the time of the machine.
        if_busy: When another run of this flow is at work: wait for it, or end at once.
    """
    folder = data_folder(data)
    with taking_turns(folder, "guard_costs", if_busy) as ours:
        if not ours:
            return skipped("guard_costs")
        report = guard(folder, idle_minutes=idle_minutes, lease_minutes=lease_minutes, now=utc(now))
    if report.errors:
        raise FlowError("; ".join(report.errors))
    return report
