"""Whether a model pays, for every decision type of the log."""

from __future__ import annotations

from prefect import flow

from pipeline.economy.pays import TypePays
from pipeline.exclusive import exclusive_run
from pipeline.parameters import PaysSettings
from tasks.money_tasks import estimate_value as estimate
from tasks.parameters import with_settings
from tasks.runs import DataFolder, IfBusy, Moment, data_folder, skipped, utc


@flow(name="estimate_value")
@with_settings
async def estimate_value(
    data: DataFolder = None,
    *,
    settings: PaysSettings,
    now: Moment = None,
    if_busy: IfBusy = "wait",
) -> list[TypePays]:
    """What each decision type costs now, what each way of serving a model for it would cost, and whether to train one.
    From the log alone: nothing is asked and nothing is spent.
    """
    folder = data_folder(data)
    with exclusive_run(folder, "estimate_value", if_busy) as ours:
        return estimate(folder, settings, now=utc(now)) if ours else skipped("estimate_value")
