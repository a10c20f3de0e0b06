"""Is the decision log in order?"""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from pydantic import Field

from quality.report import QualityReport
from tasks.errors import FlowError
from tasks.exclusive import taking_turns
from tasks.model_tasks import check
from tasks.runs import DataFolder, IfBusy, Moment, data_folder, skipped, utc


@flow(name="check_decisions")
async def check_decisions(
    data: DataFolder = None,
    days: Annotated[int, Field(ge=1)] = 30,
    now: Moment = None,
    if_busy: IfBusy = "wait",
) -> QualityReport:
    """Judge the latest days of the log: completeness, parse rate, label balance, drift. Data Docs are written to
    `quality/` in the data folder. The run fails when a critical expectation is not met.

    Args:
        data: The data folder. Empty: REASONING_DATA, or `data` in reasoning.toml, where the worker runs.
        days: How many days back to look.
        now: The time it is held to be, for replays. Empty: the time of the machine.
        if_busy: When another run of this flow is at work: wait for it, or end at once.
    """
    folder = data_folder(data)
    with taking_turns(folder, "check_decisions", if_busy) as ours:
        if not ours:
            return skipped("check_decisions")
        report = check(folder, days=days, now=utc(now))
    if not report.success:
        raise FlowError("; ".join(each.expectation for each in report.failures if each.severity == "critical"))
    return report
