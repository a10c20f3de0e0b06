"""Many small files of the decision log become few big ones."""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from pydantic import Field

from storage.compact import CompactReport
from tasks.exclusive import taking_turns
from tasks.log_tasks import compact
from tasks.runs import DataFolder, IfBusy, data_folder, skipped


@flow(name="compact_decisions")
async def compact_decisions(
    data: DataFolder = None, min_files: Annotated[int, Field(ge=2)] = 2, if_busy: IfBusy = "wait"
) -> CompactReport:
    """Rewrite every day of the log that lies in several files as one. Readers notice nothing.

    Args:
        data: The data folder. Empty: REASONING_DATA, or `data` in reasoning.toml, where the worker runs.
        min_files: Days with fewer files are left as they are.
        if_busy: When another run of this flow is at work: wait for it, or end at once.
    """
    folder = data_folder(data)
    with taking_turns(folder, "compact_decisions", if_busy) as ours:
        return compact(folder, min_files=min_files) if ours else skipped("compact_decisions")
