"""A person's rows leave everything that is kept."""

from __future__ import annotations

from prefect import flow

from storage.erasure.erase import EraseReport
from tasks.log_tasks import erase
from tasks.runs import DataFolder, Moment, data_folder, utc


@flow(name="erase_subject")
async def erase_subject(subject_id: str, data: DataFolder = None, now: Moment = None) -> EraseReport:
    """Erase a person's rows from log, spool, quarantine and datasets, and name the models that were trained on them:
    erasing does not reach into their weights.

    Args:
        subject_id: The person, as named in the decisions' `subject_ids`. Prefect keeps it as this run's parameter.
        data: The data folder. Empty: REASONING_DATA, or `data` in reasoning.toml, where the worker runs.
        now: The time it is held to be, for replays. Empty: the time of the machine.
    """
    return erase(data_folder(data), subject_id, now=utc(now))
