"""Is the candidate better?"""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from pydantic import Field

from quality.evaluation import Evaluation
from quality.promotion import DEFAULT_MARGIN
from tasks.model_tasks import evaluate
from tasks.runs import DataFolder, Moment, data_folder, utc


@flow(name="evaluate_model")
async def evaluate_model(
    model: str,
    data: DataFolder = None,
    dataset: str | None = None,
    limit: Annotated[int, Field(ge=1)] | None = None,
    margin: Annotated[float, Field(ge=0)] = DEFAULT_MARGIN,
    now: Moment = None,
) -> Evaluation:
    """Ask candidate and incumbent every question of the holdout, compare them and the original, and reach a verdict.

    Args:
        model: The id of a deployed model, or a decision type for its candidate (an error lists them if several).
        data: The data folder. Empty: REASONING_DATA, or `data` in reasoning.toml, where the worker runs.
        dataset: Another dataset than the one it was trained on.
        limit: Only so many of the latest holdout rows.
        margin: How much worse still counts as equal, for a model that is cheaper.
        now: The time it is held to be, for replays. Empty: the time of the machine.
    """
    return evaluate(data_folder(data), model, dataset=dataset, limit=limit, margin=margin, now=utc(now))
