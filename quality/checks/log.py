"""Is the decision log in order? DuckDB counts, Great Expectations judges the counts."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import storage
from quality.checks.drift import PSI_LIMIT, measure_drift
from quality.checks.gate import Check, Profile, judge_profiles
from quality.checks.report import QualityReport
from storage.files import make_folder
from storage.layout import Layout

if TYPE_CHECKING:
    import duckdb

DAYS = 30
# How far an agent's clock may be ahead of ours.
CLOCK_SKEW = timedelta(minutes=5)

_PROFILE = """
WITH repeated AS (
    -- Landing compares the ids within a partition; here are also those of two types.
    SELECT decision_id FROM decisions WHERE date >= $first_date::DATE GROUP BY ALL HAVING count(*) > 1
)
SELECT decision_type, date::VARCHAR AS date,
       count(*) AS rows,
       count(*) FILTER (decision_id IN (FROM repeated)) AS repeated_ids,
       count(*) FILTER (request_id IS NULL OR decision_id IS NULL) AS missing_ids,
       count(*) FILTER (coalesce(len(messages), 0) = 0) AS missing_messages,
       count(*) FILTER (len(list_filter(messages, lambda m: trim(m.content) = '')) > 0) AS empty_messages,
       count(*) FILTER (valid AND decision IS NULL) AS valid_without_decision,
       -- An answer that was cut on its way went out in part: the gateway's tag says so, and it is no fault of the log.
       count(*) FILTER (NOT valid AND served AND json_extract_string(tags, '$.cut') IS NULL) AS invalid_served,
       count(*) FILTER (confidence NOT BETWEEN 0 AND 1) AS bad_confidence,
       count(*) FILTER (arm_probability <= 0 OR arm_probability > 1) AS bad_probability,
       count(*) FILTER (latency_ms < 0 OR input_tokens < 0 OR output_tokens < 0 OR cost_usd < 0) AS negative_figures,
       count(*) FILTER (source = 'custom' AND model IS NULL) AS nameless_models,
       count(*) FILTER (ts > $latest) AS future_rows,
       count(*) FILTER (episode_id IS NULL) / count(*) AS missing_episode_share,
       count(*) FILTER (source = 'custom' AND valid) / nullif(count(*) FILTER (source = 'custom'), 0) AS parse_rate,
       count(*) FILTER (source = 'custom' AND confidence IS NULL AND valid)
           / nullif(count(*) FILTER (source = 'custom' AND valid), 0) AS unmeasured_share,
       -- Of the questions that a custom model was to answer: without a route none was, and where a text is needed
       -- (`needs_text`) the fallback writes it by design.
       count(*) FILTER (served AND fallback_reason NOT IN ('no_route', 'disabled', 'needs_text'))
           / nullif(count(*) FILTER (served AND (source = 'custom'
                                                 OR fallback_reason NOT IN ('no_route', 'disabled', 'needs_text'))), 0)
           AS fallback_rate,
       quantile_cont(latency_ms, 0.95) FILTER (source = 'custom') AS latency_p95_ms
FROM decisions WHERE date >= $first_date::DATE
GROUP BY decision_type, date ORDER BY decision_type, date
"""
_LABELS = """
SELECT decision_type, sum(rows) AS rows, sum(rows) FILTER (labelled) / sum(rows) AS label_share,
       max(rows) FILTER (category IS NOT NULL) / sum(rows) FILTER (category IS NOT NULL) AS largest_label_share
FROM (
    SELECT decision_type, coalesce(label ->> '$.action', label ->> '$.actions') AS category,
           label IS NOT NULL AS labelled, count(*) AS rows
    FROM labelled_decisions WHERE date >= $first_date::DATE GROUP BY ALL
)
GROUP BY decision_type ORDER BY decision_type
"""
_PARTITIONS_EXPECTED = [
    Check("repeated_ids", "no decision is logged twice", "critical", max_value=0),
    Check("missing_ids", "every row has its ids", "critical", max_value=0),
    Check("missing_messages", "every row has the question's messages", "critical", max_value=0),
    Check("valid_without_decision", "what parsed has a decision", "critical", max_value=0),
    Check("invalid_served", "no answer that did not parse was served", "critical", max_value=0),
    Check("bad_confidence", "confidences are within 0..1", "critical", max_value=0),
    Check("bad_probability", "arm probabilities are above 0 and at most 1", "critical", max_value=0),
    Check("negative_figures", "latency, tokens and cost are not negative", "critical", max_value=0),
    Check("nameless_models", "a custom answer names its model", "critical", max_value=0),
    Check("empty_messages", "no message is empty", "warning", max_value=0),
    Check("future_rows", "no row is of the future (an agent's clock is wrong)", "warning", max_value=0),
    Check("missing_episode_share", "at most half of the rows have no episode", "warning", max_value=0.5),
    Check("parse_rate", "95 % of the custom models' answers parse", "warning", min_value=0.95),
    Check("unmeasured_share", "the custom models' confidence is measured", "info", max_value=0.5),
    Check(
        "fallback_rate",
        "at most 20 % of what a custom model was asked fell back to the original",
        "warning",
        max_value=0.2,
    ),
]
_TYPES_EXPECTED = [
    Check("largest_label_share", "no label makes up more than 95 %", "warning", max_value=0.95),
    Check("label_share", "half of the questions have a label", "info", min_value=0.5),
]
_DRIFT_EXPECTED = [
    Check(
        "significant_psi", f"the last day is like the week before (PSI <= {PSI_LIMIT})", "warning", max_value=PSI_LIMIT
    )
]


def check_decisions(data: Path | str, *, now: datetime | None = None, days: int = DAYS) -> QualityReport:
    """Check the last `days` days of the decision log, and write Data Docs to `<data>/quality`.

    One profile row per decision type and day, one per type for its labels, and one per measure of drift. An empty log
    fails: there is nothing in order about it. Raises `DataFolderError`.
    """
    now = now or datetime.now(UTC)
    layout = Layout(data).check()
    first_date = (now - timedelta(days=days)).date()

    def count(log: duckdb.DuckDBPyConnection) -> tuple[Any, Any, list[Any]]:
        return (
            log.execute(_PROFILE, {"latest": now + CLOCK_SKEW, "first_date": first_date}).fetchdf(),
            log.execute(_LABELS, {"first_date": first_date}).fetchdf(),
            measure_drift(log, now=now),
        )

    partitions, types, drifts = storage.read(data, count)
    import pandas as pd

    drift = pd.DataFrame([asdict(found) | {"significant_psi": found.significant_psi} for found in drifts])
    make_folder(layout.quality.parent)
    return judge_profiles(
        [
            Profile("partitions", partitions, ["decision_type", "date"], _PARTITIONS_EXPECTED),
            Profile("types", types, ["decision_type"], _TYPES_EXPECTED, may_be_empty=True),
            Profile("drift", drift, ["decision_type", "measure"], _DRIFT_EXPECTED, may_be_empty=True),
        ],
        docs=layout.quality,
    )
