"""What is in the log to learn from, by decision type, before anything is exported."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import storage
from quality.dataset.label_policy import labels_query, load_label_policy
from quality.dataset.readiness import DataVerdict, judge_data

if TYPE_CHECKING:
    import duckdb

_TYPES = "SELECT DISTINCT decision_type FROM decisions ORDER BY 1"
_QUERY = """
SELECT decision_type, CASE WHEN ruled_out THEN 'ruled_out' ELSE coalesce(label_source, 'none') END AS source,
       coalesce(label ->> '$.action', label ->> '$.actions', '') AS answer,
       count(*) AS questions, min(ts) AS first, max(ts) AS last,
       count(*) FILTER (ts > $day_before AND ts <= $now) AS last_day
FROM ({labels}) GROUP BY ALL ORDER BY ALL
"""
_EPISODES = """
SELECT count(DISTINCT coalesce(episode_id, request_id::VARCHAR)) FROM ({labels})
WHERE label_source IN ('demonstration', 'outcome', 'original') AND NOT ruled_out
"""
_USABLE = ("demonstration", "outcome", "original")


@dataclass(frozen=True, slots=True)
class LogStatistics:
    """One decision type: its questions in all, in the last 24 hours and by label source.

    Two more sources are `none` (no label) and `ruled_out` (the only answer is one that feedback called wrong).

    The verdict is an upper bound: an export drops duplicates and more.
    """

    decision_type: str
    questions: int
    last_day: int
    label_sources: dict[str, int]
    first: datetime
    last: datetime
    verdict: DataVerdict


def summarize_log(data: Path | str, *, now: datetime | None = None) -> list[LogStatistics]:
    """The statistics of every decision type in the log. Raises `DataFolderError`."""
    now = now or datetime.now(UTC)

    def count(log: duckdb.DuckDBPyConnection) -> tuple[list[tuple[Any, ...]], dict[str, int]]:
        rows: list[tuple[Any, ...]] = []
        episodes: dict[str, int] = {}
        for (decision_type,) in log.execute(_TYPES).fetchall():
            labels = labels_query(load_label_policy(decision_type), "l.decision_type = $decision_type")
            of_type = {"decision_type": decision_type}
            times = {"now": now, "day_before": now - timedelta(days=1)}
            rows += log.execute(_QUERY.format(labels=labels), of_type | times).fetchall()
            ((episodes[decision_type],),) = log.execute(_EPISODES.format(labels=labels), of_type).fetchall()
        return rows, episodes

    rows, episodes = storage.read(data, count)
    found = []
    for decision_type in dict.fromkeys(row[0] for row in rows):
        own = [row[1:] for row in rows if row[0] == decision_type]
        sources: dict[str, int] = {}
        answers: dict[str, int] = {}
        usable = []
        for row in own:
            source, answer, questions = row[:3]
            sources[source] = sources.get(source, 0) + questions
            if source in _USABLE:
                usable.append(row)
                answers[answer] = answers.get(answer, 0) + questions
        verdict = judge_data(
            rows=sum(row[2] for row in usable),
            episodes=episodes[decision_type],
            # Code has no classes: its answers are all different.
            classes=answers if any(answers) else {},
            first=min((row[3] for row in usable), default=None),
            last=max((row[4] for row in usable), default=None),
            now=now,
        )
        found.append(
            LogStatistics(
                decision_type,
                questions=sum(sources.values()),
                last_day=sum(row[5] for row in own),
                label_sources=sources,
                first=min(row[3] for row in own),
                last=max(row[4] for row in own),
                verdict=verdict,
            )
        )
    return found
