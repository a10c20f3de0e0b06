"""Days older than the retention leave the decision log."""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from pydantic import Field

from storage.expire import ExpireReport
from tasks.exclusive import taking_turns
from tasks.log_tasks import expire
from tasks.runs import DataFolder, IfBusy, Moment, data_folder, skipped, utc


@flow(name="expire_decisions")
async def expire_decisions(
    data: DataFolder = None,
    retention_days: Annotated[int, Field(ge=1)] | None = None,
    dry_run: bool = False,
    now: Moment = None,
    if_busy: IfBusy = "wait",
) -> ExpireReport:
    """Delete the decisions of days before the retention, their feedback and their quarantined lines. There is no way
    back: a dry run tells what would go.

    Args:
        data: The data folder. Empty: REASONING_DATA, or `data` in reasoning.toml, where the worker runs.
        retention_days: How many days back everything is kept. Empty: `[retention]` of reasoning.toml; without that
            setting nothing is deleted.
        dry_run: Only count.
        now: The time it is held to be, for replays. Empty: the time of the machine.
        if_busy: When another run of this flow is at work: wait for it, or end at once.
    """
    folder = data_folder(data)
    with taking_turns(folder, "expire_decisions", if_busy) as ours:
        return (
            expire(folder, retention_days=retention_days, dry_run=dry_run, now=utc(now))
            if ours
            else skipped("expire_decisions")
        )
