"""A model that earned it gets traffic."""

from __future__ import annotations

from typing import Annotated, Literal

from prefect import flow
from pydantic import Field

from reasoning.routes import Route
from tasks.model_tasks import promote
from tasks.promotion import DEADLINE_MS, LIVE_WEIGHT
from tasks.runs import DataFolder, Moment, data_folder, utc


@flow(name="promote_model")
async def promote_model(
    model: str,
    data: DataFolder = None,
    weight: Annotated[float, Field(gt=0, le=1)] = LIVE_WEIGHT,
    mode: Literal["live", "shadow"] = "live",
    deadline_ms: Annotated[float, Field(gt=0)] = DEADLINE_MS,
    min_confidence: Annotated[float, Field(ge=0, le=1)] = 0.0,
    shadow_original: bool = False,
    force: bool = False,
    now: Moment = None,
) -> Route:
    """Publish the route of a deployed model whose newest evaluation says promote, and undeploy the one it replaces.

    Args:
        model: The model's id, or a decision type for the one that is meant (an error lists them if several).
        data: The data folder. Empty: REASONING_DATA, or `data` in reasoning.toml, where the worker runs.
        weight: Its share of the decisions; small at first (a canary), the rest is the original's.
        mode: shadow answers in the background and serves nothing.
        deadline_ms: After so many milliseconds without an answer the original's is taken.
        min_confidence: Below this measured confidence the original's answer is taken.
        shadow_original: Let the original answer in the background what the model serves, to compare them.
        force: Without an evaluation, or against it.
        now: The time it is held to be, for replays. Empty: the time of the machine.
    """
    return promote(
        data_folder(data),
        model,
        weight=weight,
        mode=mode,
        deadline_ms=deadline_ms,
        min_confidence=min_confidence,
        shadow_original=shadow_original,
        force=force,
        now=utc(now),
    )
