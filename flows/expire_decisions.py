"""Days older than the retention leave the decision log."""

from __future__ import annotations

from prefect import flow

from pipeline.exclusive import exclusive_run
from pipeline.parameters import ExpireSettings
from storage.log.expire import ExpireReport
from tasks.log_tasks import expire
from tasks.parameters import with_settings
from tasks.runs import DataFolder, IfBusy, Moment, data_folder, skipped, utc


@flow(name="expire_decisions")
@with_settings
async def expire_decisions(
    data: DataFolder = None,
    *,
    settings: ExpireSettings,
    now: Moment = None,
    if_busy: IfBusy = "wait",
) -> ExpireReport:
    """Delete the decisions of days before the retention, their feedback and their quarantined lines. There is no way
    back: a dry run tells what would go.
    """
    folder = data_folder(data)
    with exclusive_run(folder, "expire_decisions", if_busy) as ours:
        return (
            expire(folder, retention_days=settings.retention_days, dry_run=settings.dry_run, now=utc(now))
            if ours
            else skipped("expire_decisions")
        )
