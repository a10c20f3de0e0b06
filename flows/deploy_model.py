"""A model is served, without traffic yet."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow

from pipeline.parameters import DeploySettings
from tasks.model_tasks import deploy
from tasks.parameters import with_settings
from tasks.runs import DataFolder, Moment, data_folder, utc


@flow(name="deploy_model")
@with_settings
async def deploy_model(
    model: str, data: DataFolder = None, *, settings: DeploySettings, now: Moment = None
) -> dict[str, Any]:
    """Run a fine-tuned model on an endpoint of its own and wait until it answers. It costs by the minute from then on;
    if it does not become ready it is taken down again.
    """
    return asdict(deploy(data_folder(data), model, replicas=settings.replicas, now=utc(now)))
