"""Sealed segments of the spool become rows of the decision log."""

from __future__ import annotations

from prefect import flow

from pipeline.exclusive import exclusive_run
from storage.log.land import LandReport
from tasks.log_tasks import land
from tasks.runs import DataFolder, IfBusy, Moment, data_folder, skipped, utc


@flow(name="land_decisions")
async def land_decisions(data: DataFolder = None, now: Moment = None, if_busy: IfBusy = "wait") -> LandReport:
    """Land every sealed segment exactly once; lines that cannot be read go to the quarantine with the reason.

    Args:
        data: The data folder. Empty: REASONING_DATA, or `data` in reasoning.toml, where the worker runs.
        now: The time it is held to be, for replays. Empty: the time of the machine.
        if_busy: When another run of this flow is at work: wait for it, or end at once.
    """
    folder = data_folder(data)
    with exclusive_run(folder, "land_decisions", if_busy) as ours:
        return land(folder, now=utc(now)) if ours else skipped("land_decisions")
