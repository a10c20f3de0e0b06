"""What was quarantined and fits by now becomes rows of the decision log."""

from __future__ import annotations

from prefect import flow

from pipeline.exclusive import exclusive_run
from storage.log.reland import RelandReport
from tasks.log_tasks import reland
from tasks.runs import DataFolder, IfBusy, Moment, data_folder, skipped, utc


@flow(name="reland_quarantine")
async def reland_quarantine(data: DataFolder = None, now: Moment = None, if_busy: IfBusy = "wait") -> RelandReport:
    """Land every quarantined line again that fits by the rules of today: after an upgrade, or mended by hand.

    Args:
        data: The data folder. Empty: REASONING_DATA, or `data` in reasoning.toml, where the worker runs.
        now: The time it is held to be, for replays. Empty: the time of the machine.
        if_busy: When another run of this flow is at work: wait for it, or end at once.
    """
    folder = data_folder(data)
    with exclusive_run(folder, "reland_quarantine", if_busy) as ours:
        return reland(folder, now=utc(now)) if ours else skipped("reland_quarantine")
