"""Give a deployed model traffic."""

from __future__ import annotations

from prefect import flow

from pipeline.parameters import PromoteSettings
from reasoning.serving.routes import Route
from tasks.model_tasks import promote
from tasks.parameters import with_settings
from tasks.runs import DataFolder, Moment, data_folder, utc


@flow(name="promote_model")
@with_settings
async def promote_model(model: str, data: DataFolder = None, *, settings: PromoteSettings, now: Moment = None) -> Route:
    """Publish the route of a deployed model whose newest evaluation says promote, and undeploy the one it replaces."""
    return promote(data_folder(data), model, settings=settings, now=utc(now))
