"""Many small files of the decision log become few big ones."""

from __future__ import annotations

from prefect import flow

from pipeline.exclusive import exclusive_run
from pipeline.parameters import CompactSettings
from storage.log.compact import CompactReport
from tasks.log_tasks import compact
from tasks.parameters import with_settings
from tasks.runs import DataFolder, IfBusy, data_folder, skipped


@flow(name="compact_decisions")
@with_settings
async def compact_decisions(
    data: DataFolder = None, *, settings: CompactSettings, if_busy: IfBusy = "wait"
) -> CompactReport:
    """Rewrite every day of the log that lies in several files as one. Readers notice nothing."""
    folder = data_folder(data)
    with exclusive_run(folder, "compact_decisions", if_busy) as ours:
        return compact(folder, min_files=settings.min_files) if ours else skipped("compact_decisions")
