"""Bring back the model that served before."""

from __future__ import annotations

from prefect import flow

from pipeline.demotion import Rollback
from pipeline.parameters import RollbackSettings
from tasks.model_tasks import rollback
from tasks.parameters import with_settings
from tasks.runs import DataFolder, Moment, data_folder, utc


@flow(name="rollback_type")
@with_settings
async def rollback_type(
    decision_type: str, data: DataFolder = None, *, settings: RollbackSettings, now: Moment = None
) -> Rollback:
    """Withdraw the challenger, or the incumbent for the model that it had replaced; else the fallback answers."""
    return rollback(data_folder(data), decision_type, settings, now=utc(now))
