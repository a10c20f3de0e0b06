"""Take traffic from a model."""

from __future__ import annotations

from prefect import flow

from pipeline.demotion import Demotion
from pipeline.parameters import DemoteSettings
from tasks.model_tasks import demote
from tasks.parameters import with_settings
from tasks.runs import DataFolder, Moment, data_folder, utc


@flow(name="demote_model")
@with_settings
async def demote_model(
    model: str, data: DataFolder = None, *, settings: DemoteSettings, now: Moment = None
) -> Demotion:
    """Leave a model the canary's share until it is proven again, or the shadow, or reject it."""
    return demote(data_folder(data), model, settings, now=utc(now))
