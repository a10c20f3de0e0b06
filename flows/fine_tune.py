"""A model is trained on a dataset."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from tasks import model_tasks
from tasks.runs import DataFolder, Moment, data_folder, utc


@flow(name="fine_tune")
async def fine_tune(
    dataset: str,
    data: DataFolder = None,
    tier: str | None = None,
    n_epochs: Annotated[int, Field(ge=1, le=20)] = 3,
    again: bool = False,
    anyway: bool = False,
    now: Moment = None,
) -> dict[str, Any]:
    """Upload the dataset, submit one job within the budget, and follow it to its end. A run that was cut short is made
    good by another: the same dataset and parameters are not trained twice.

    Args:
        dataset: The dataset's id, or its folder.
        data: The data folder. Empty: REASONING_DATA, or `data` in reasoning.toml, where the worker runs.
        tier: small, medium, large, or a model's own name. Empty: the decision type's tier.
        n_epochs: How often the training rows are gone through.
        again: Train again even if the same was trained before.
        anyway: Train even a model that is certain to be refused afterwards.
        now: The time it is held to be, for replays. Empty: the time of the machine.
    """
    job = model_tasks.fine_tune(
        data_folder(data),
        dataset,
        tier=tier,
        parameters={"n_epochs": n_epochs},
        again=again,
        anyway=anyway,
        now=utc(now),
    )
    return asdict(job)
