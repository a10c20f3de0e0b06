"""Is the decision log in order?"""

from __future__ import annotations

from prefect import flow

from pipeline.errors import FlowError
from pipeline.exclusive import exclusive_run
from pipeline.parameters import CheckSettings
from quality.checks.report import QualityReport
from tasks.model_tasks import check
from tasks.parameters import with_settings
from tasks.runs import DataFolder, IfBusy, Moment, data_folder, skipped, utc


@flow(name="check_decisions")
@with_settings
async def check_decisions(
    data: DataFolder = None,
    *,
    settings: CheckSettings,
    now: Moment = None,
    if_busy: IfBusy = "wait",
) -> QualityReport:
    """Judge the latest days of the log: completeness, parse rate, label balance, drift. Data Docs are written to
    `quality/` in the data folder. The run fails when a critical expectation is not met.
    """
    folder = data_folder(data)
    with exclusive_run(folder, "check_decisions", if_busy) as ours:
        if not ours:
            return skipped("check_decisions")
        report = check(folder, days=settings.days, now=utc(now))
    if not report.success:
        raise FlowError("; ".join(each.expectation for each in report.failures if each.severity == "critical"))
    return report
