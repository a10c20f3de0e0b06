"""A dataset out of the decision log."""

from __future__ import annotations

from datetime import date
from typing import Annotated

from prefect import flow
from pydantic import Field

from quality.dataset import DEFAULT_LIMIT, Manifest
from tasks.model_tasks import export
from tasks.runs import DataFolder, DecisionTypeName, Moment, data_folder, utc


@flow(name="export_dataset")
async def export_dataset(
    decision_type: DecisionTypeName,
    data: DataFolder = None,
    since: date | None = None,
    until: date | None = None,
    limit: Annotated[int, Field(ge=1)] = DEFAULT_LIMIT,
    seed: int = 0,
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.1,
    holdout_share: Annotated[float, Field(gt=0, lt=1)] = 0.2,
    now: Moment = None,
) -> Manifest:
    """Select, label, redact, deduplicate, split by time, validate and write. Every dropped row has its reason in the
    manifest.

    Args:
        decision_type: Such as should_respond, planning or coding.
        data: The data folder. Empty: REASONING_DATA, or `data` in reasoning.toml, where the worker runs.
        since: The first day (UTC) to learn from. Empty: all there is.
        until: The last day (UTC), itself included.
        limit: Of more rows the latest are taken.
        seed: For what is drawn by lot.
        validation_share: Share of the time before the holdout that tuning is watched on.
        holdout_share: Share of the latest rows that no model is shown before it is judged on them.
        now: The time it is held to be, for replays. Empty: the time of the machine.
    """
    return export(
        data_folder(data),
        decision_type.replace("-", "_"),
        since=since,
        until=until,
        limit=limit,
        seed=seed,
        validation_share=validation_share,
        holdout_share=holdout_share,
        now=utc(now),
    )
