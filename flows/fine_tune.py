"""A model is trained on a dataset."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow

from pipeline.parameters import FineTuneSettings
from tasks import model_tasks
from tasks.parameters import with_settings
from tasks.runs import DataFolder, Moment, data_folder, utc


@flow(name="fine_tune")
@with_settings
async def fine_tune(
    dataset: str,
    data: DataFolder = None,
    *,
    settings: FineTuneSettings,
    now: Moment = None,
) -> dict[str, Any]:
    """Upload the dataset, submit one job within the budget, and follow it to its end. A run that was cut short is made
    good by another: the same dataset and parameters are not trained twice.
    """
    job = model_tasks.fine_tune(
        data_folder(data),
        dataset,
        tier=settings.tier,
        parameters={"n_epochs": settings.n_epochs},
        again=settings.again,
        anyway=settings.anyway,
        now=utc(now),
    )
    return asdict(job)
