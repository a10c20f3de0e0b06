"""A model is served, without traffic yet."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from tasks.model_tasks import deploy
from tasks.runs import DataFolder, Moment, data_folder, utc


@flow(name="deploy_model")
async def deploy_model(
    model: str, data: DataFolder = None, replicas: Annotated[int, Field(ge=1, le=8)] = 1, now: Moment = None
) -> dict[str, Any]:
    """Run a fine-tuned model on an endpoint of its own and wait until it answers. It costs by the minute from then on;
    if it does not become ready it is taken down again.

    Args:
        model: The model's id, or a decision type for the one that is meant (an error lists them if several).
        data: The data folder. Empty: REASONING_DATA, or `data` in reasoning.toml, where the worker runs.
        replicas: How many copies; each costs the same.
        now: The time it is held to be, for replays. Empty: the time of the machine.
    """
    return asdict(deploy(data_folder(data), model, replicas=replicas, now=utc(now)))
