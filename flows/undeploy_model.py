"""A model is served no more."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow

from tasks.model_tasks import undeploy
from tasks.runs import DataFolder, Moment, data_folder, utc


@flow(name="undeploy_model")
async def undeploy_model(
    model: str, data: DataFolder = None, why: str = "undeployed by the user", now: Moment = None
) -> list[dict[str, Any]]:
    """Withdraw the model's route, let the questions under way end, stop it and delete what served it.

    Args:
        model: The model's id, or a decision type for the one that is meant (an error lists them if several).
        data: The data folder. Empty: REASONING_DATA, or `data` in reasoning.toml, where the worker runs.
        why: Kept in the ledger.
        now: The time it is held to be, for replays. Empty: the time of the machine.
    """
    return [asdict(row) for row in undeploy(data_folder(data), model, why=why, now=utc(now))]
