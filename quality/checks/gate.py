"""Great Expectations judges profiles: small frames with one row per partition, split or measure.

Great Expectations cannot read DuckDB, and need not: what is expected of millions of rows is expected of their counts.
It takes four seconds to import, so it is not imported before a gate runs.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quality.checks.data_docs import render_page, write_data_docs
from quality.checks.report import Failure, QualityReport, Severity

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Check:
    """That every value of `column` (NULL apart) lies within `min_value` and `max_value`, inclusive."""

    column: str
    meaning: str
    severity: Severity
    min_value: float | None = None
    max_value: float | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """A frame to be judged. `keys` are the columns that name a row. An empty frame fails unless `may_be_empty`."""

    name: str
    frame: pd.DataFrame
    keys: Sequence[str]
    expected: Sequence[Check]
    may_be_empty: bool = False


def judge_profiles(profiles: Sequence[Profile], *, docs: Path | None = None) -> QualityReport:
    """Judge every profile; write Data Docs that read offline into the folder `docs` (replacing what is there)."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}  # type: ignore[assignment]
    source = context.data_sources.add_pandas("profiles")
    failures: list[Failure] = []
    pages: dict[str, str] = {}
    checked = 0
    for profile in profiles:
        # The row count comes first: on an empty frame every other expectation is met.
        checked += 1
        if profile.frame.empty:
            if not profile.may_be_empty:
                failures.append(Failure(profile.name, f"the {profile.name} have rows", "critical", 0))
            continue
        result = _judge(gx, context, source, profile)
        checked += len(profile.expected)
        failures += _failures(profile, result)
        if docs is not None:
            pages[profile.name] = render_page(result)
    success = not any(failure.severity == "critical" for failure in failures)
    report = QualityReport(success, checked, failures, None if docs is None else docs / "index.html")
    if docs is not None:
        write_data_docs(docs, report, pages)
    return report


def _judge(gx: Any, context: Any, source: Any, profile: Profile) -> Any:
    suite = gx.ExpectationSuite(name=profile.name)
    suite.add_expectation(
        gx.expectations.ExpectTableRowCountToBeBetween(min_value=1, severity="critical", description="there are rows")
    )
    for expected in profile.expected:
        suite.add_expectation(
            gx.expectations.ExpectColumnValuesToBeBetween(
                column=expected.column,
                min_value=expected.min_value,
                max_value=expected.max_value,
                severity=expected.severity,
                description=expected.meaning,
            )
        )
    batch = source.add_dataframe_asset(profile.name).add_batch_definition_whole_dataframe("all")
    validation = context.validation_definitions.add(
        gx.ValidationDefinition(name=profile.name, data=batch, suite=context.suites.add(suite))
    )
    return validation.run(
        batch_parameters={"dataframe": profile.frame},
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": list(profile.keys)},
    )


def _failures(profile: Profile, result: Any) -> list[Failure]:
    failures = []
    for item in result.results:
        if item.success:
            continue
        config = item.expectation_config
        where: list[str] = []
        observed: Any
        if messages := _exceptions(item.exception_info or {}):
            observed = messages[0]
        elif config.type == "expect_table_row_count_to_be_between":
            observed = item.result["observed_value"]
        else:
            rows = item.result["unexpected_index_list"]
            where = [" ".join(str(row[key]) for key in profile.keys) for row in rows]
            observed = [_plain(row[config.kwargs["column"]]) for row in rows]
        failures.append(Failure(profile.name, config.description, config.severity.value, observed, where))
    order = {expected.meaning: number for number, expected in enumerate(profile.expected)}
    return sorted(failures, key=lambda failure: order.get(failure.expectation, -1))


def _exceptions(info: dict[str, Any]) -> list[str]:
    """Messages of what was raised: an expectation on a missing column does not fail by a value but by an exception."""
    if "raised_exception" in info:
        return [info["exception_message"]] if info["raised_exception"] else []
    return [entry["exception_message"] for entry in info.values() if entry.get("raised_exception")]


def _plain(value: Any) -> Any:
    number = value.item() if hasattr(value, "item") else value
    return round(number, 6) if isinstance(number, float) and math.isfinite(number) else number
