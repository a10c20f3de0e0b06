"""A model is served no more."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow

from pipeline.parameters import UndeploySettings
from tasks.model_tasks import undeploy
from tasks.parameters import with_settings
from tasks.runs import DataFolder, Moment, data_folder, utc


@flow(name="undeploy_model")
@with_settings
async def undeploy_model(
    model: str, data: DataFolder = None, *, settings: UndeploySettings, now: Moment = None
) -> list[dict[str, Any]]:
    """Withdraw the model's route, let the questions under way end, stop it and delete what served it."""
    return [asdict(row) for row in undeploy(data_folder(data), model, why=settings.why, now=utc(now))]
