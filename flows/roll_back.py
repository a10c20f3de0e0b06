"""Bring back the model that served before."""

from __future__ import annotations

from prefect import flow

from pipeline.demotion import Rollback
from pipeline.parameters import RollbackSettings
from tasks.model_tasks import roll_back as roll_back_task
from tasks.parameters import with_settings
from tasks.runs import DataFolder, Moment, data_folder, utc


@flow(name="roll_back")
@with_settings
async def roll_back(
    decision_type: str, data: DataFolder = None, *, settings: RollbackSettings, now: Moment = None
) -> Rollback:
    """Withdraw the challenger, or the incumbent for the model that it had replaced; else the fallback answers."""
    return roll_back_task(data_folder(data), decision_type, settings, now=utc(now))
