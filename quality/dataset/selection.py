"""Choose the rows of an export: count all questions of a window, and copy the latest ones out of the log.

The log is read some days at a time. A first pass counts what becomes of the questions of each stretch of days, which
says how far back the latest rows reach that are to be looked at. A second pass reads the keys and labels of these days
alone, and then the texts of the rows that were chosen. So the scratch folder and memory do not grow with the log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import duckdb

import storage
from quality.dataset.label_policy import LabelPolicy, labels_query
from storage.log.views import sql_text

# So many times the limit of the latest rows are looked at: work is bounded by what is wanted, not by the log.
LOOKED_AT = 4

MEMORY_LIMIT = "640MB"
PART_ROWS = 4_096
"""Rows of a row group of texts, which one process prepares at a time."""
_CHUNK_ROWS = 32 * PART_ROWS
_STRETCH_ROWS = 1_000_000  # answers of the days that are read together, but for a day that has more

_FATE = """CASE
           WHEN l.ts > $now THEN 'after_now'
           WHEN l.ts < $expired_before THEN 'expired'
           WHEN NOT ({wanted}) THEN 'filtered'
           WHEN l.label IS NULL THEN 'no_label'
           WHEN l.label_source = 'custom' THEN 'self_label'
           WHEN l.ruled_out THEN 'ruled_out'
           WHEN json_extract_string(l.tags, '$.untranslated') IS NOT NULL THEN 'untranslated'
       END"""
_QUESTIONS = """({labels}) AS l
LEFT JOIN decisions AS o
    ON o.date = l.date AND o.decision_type = l.decision_type AND o.decision_id = l.original_decision_id"""
_COUNT = f"""
SELECT dropped, CASE WHEN dropped IS NULL THEN label_source END AS source, count(*)
FROM (SELECT l.label_source, {_FATE} AS dropped FROM {_QUESTIONS})
GROUP BY ALL
"""  # noqa: S608 - templates of ours
_SELECT = f"""
INSERT INTO scratch.selected
SELECT * EXCLUDE (dropped) FROM (
    SELECT $rows_before + row_number() OVER (ORDER BY l.ts, l.request_id) - 1 AS n,
           l.request_id, l.decision_id, l.date, l.ts, l.episode_id, l.label, l.label_source,
           l.tools IS NOT NULL AS has_tools,
           list_sort(list_distinct(list_append(l.subject_ids, l.demonstrated_by))) AS subject_ids,
           l.agent_id, l.room_id, coalesce(l.model, l.custom_model) AS model,
           l.original_decision, o.latency_ms AS original_latency_ms, o.cost_usd AS original_cost_usd,
           {_FATE} AS dropped
    FROM {_QUESTIONS}
)
WHERE dropped IS NULL AND list_contains($sources, label_source)
ORDER BY n DESC LIMIT $most
"""  # noqa: S608 - templates of ours
_TABLES = """
CREATE OR REPLACE TABLE scratch.selected (
    n BIGINT, request_id UUID, decision_id UUID, date DATE, ts TIMESTAMPTZ, episode_id VARCHAR, label VARCHAR,
    label_source VARCHAR, has_tools BOOLEAN, subject_ids VARCHAR[], agent_id VARCHAR, room_id VARCHAR, model VARCHAR,
    original_decision VARCHAR, original_latency_ms DOUBLE, original_cost_usd DOUBLE
);
CREATE OR REPLACE TABLE scratch.unselected (dropped VARCHAR, rows BIGINT)
"""
_WHERE = """l.decision_type = $decision_type AND l.date BETWEEN $first_day::DATE AND $last_day::DATE
  AND ($since::TIMESTAMPTZ IS NULL OR l.ts >= $since) AND ($before::TIMESTAMPTZ IS NULL OR l.ts < $before)"""
_COPY = """
COPY (
    SELECT s.n, hash(coalesce(s.episode_id, s.request_id::VARCHAR)) AS "group",
           to_json(d.messages)::VARCHAR AS messages, s.label, s.original_decision AS original, s.has_tools
    FROM scratch.selected AS s JOIN decisions AS d ON d.date = s.date AND d.decision_id = s.decision_id
    WHERE d.decision_type = $decision_type AND d.date BETWEEN $first AND $last AND s.n BETWEEN $from AND $to
    ORDER BY s.n
) TO {path} (FORMAT parquet, COMPRESSION lz4, ROW_GROUP_SIZE {rows})
"""


@dataclass(frozen=True, slots=True)
class Window:
    """The time whose decisions are exported: `since` <= ts < `before`, without what expired, seen at `now`."""

    since: datetime | None
    before: datetime | None
    now: datetime
    expired_before: datetime | None


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Successive days, with the number of questions before them, and what becomes of their own by fate and source."""

    first: date
    last: date
    rows_before: int
    fates: dict[tuple[str | None, str | None], int]

    def count(self, sources: Sequence[str]) -> int:
        return sum(rows for (dropped, source), rows in self.fates.items() if dropped is None and source in sources)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which rows of a window are chosen.

    Without `label_sources` it depends on how many labels there are: `enough` is so many that what was right suffices.
    `limit` is the most rows that are kept in the end. `wanted` is a condition of `quality.dataset.filters`.
    """

    policy: LabelPolicy
    label_sources: Sequence[str] | None
    enough: int
    limit: int
    wanted: str = "true"


def select_rows(
    data: Path | str,
    work: Path,
    decision_type: str,
    window: Window,
    chosen: Choice,
) -> tuple[duckdb.DuckDBPyConnection, list[str]]:
    """Choose the rows of one type in a window, and copy the latest ones out of the log into `work`.

    Chosen are four times as many rows as the limit lets through; of the others there are counts by reason, in the table
    `unselected`. Returns the scratch database and the label
    sources: those that are given, else `_choose_label_sources`.
    """
    scratch = work / "scratch.duckdb"

    def copy(log: duckdb.DuckDBPyConnection) -> list[str]:
        log.execute("SET enable_progress_bar = false")  # what is shown is the caller's business
        log.execute(f"ATTACH IF NOT EXISTS {sql_text(str(scratch))} AS scratch")
        log.execute(_TABLES)
        parameters: dict[str, Any] = {
            "decision_type": decision_type,
            "since": window.since,
            "before": window.before,
            "now": window.now,
            "expired_before": window.expired_before,
        }
        queries = {"labels": labels_query(chosen.policy, _WHERE), "wanted": chosen.wanted}
        stretches = list(_count_fates(log, window, parameters, _COUNT.format(**queries)))
        sources = list(chosen.label_sources or _choose_label_sources(stretches, chosen.enough))
        _select(log, stretches, parameters, _SELECT.format(**queries), sources, LOOKED_AT * chosen.limit)
        _copy_texts(log, work, decision_type)
        log.execute("DETACH scratch")
        return sources

    sources = storage.read(data, copy, memory_limit=MEMORY_LIMIT)
    con = duckdb.connect(str(scratch), config={"temp_directory": f"{scratch}.spill", "memory_limit": MEMORY_LIMIT})
    con.execute("SET enable_progress_bar = false")
    con.execute("SET TimeZone = 'UTC'")
    return con, sources


def _count_fates(
    log: duckdb.DuckDBPyConnection, window: Window, parameters: dict[str, Any], query: str
) -> Iterator[_Stretch]:
    """All days of the window with decisions, from the first on."""
    rows_before = 0
    for first, last in _list_stretches(log, window, parameters["decision_type"]):
        found = log.execute(query, parameters | {"first_day": first, "last_day": last}).fetchall()
        fates = {(dropped, source): rows for dropped, source, rows in found}
        yield _Stretch(first, last, rows_before, fates)
        rows_before += sum(fates.values())


def _list_stretches(log: duckdb.DuckDBPyConnection, window: Window, decision_type: str) -> list[tuple[date, date]]:
    """The first and the last day of each stretch. A question is of the day of its time (UTC)."""
    days = log.execute(
        """
        SELECT date, count(*) FROM decisions
        WHERE decision_type = $type
          AND ($since::DATE IS NULL OR date >= $since) AND ($before::DATE IS NULL OR date <= $before)
        GROUP BY date ORDER BY date
        """,
        {
            "type": decision_type,
            # DuckDB itself would cast by the zone of this machine.
            "since": None if window.since is None else window.since.date(),
            "before": None if window.before is None else window.before.date(),
        },
    ).fetchall()
    stretches: list[tuple[date, date]] = []
    total = 0
    for day, rows in days:
        if stretches and total + rows <= _STRETCH_ROWS:
            stretches[-1] = stretches[-1][0], day
            total += rows
        else:
            stretches.append((day, day))
            total = rows
    return stretches


def _select(
    log: duckdb.DuckDBPyConnection,
    stretches: list[_Stretch],
    parameters: dict[str, Any],
    query: str,
    sources: list[str],
    most: int,
) -> None:
    """Fill `selected` with the latest rows that are labelled by one of the sources, and `unselected`."""
    unselected: Counter[str] = Counter()
    left = most
    for stretch in reversed(stretches):
        fit = stretch.count(sources)
        if taken := min(fit, left):
            own = {"first_day": stretch.first, "last_day": stretch.last, "rows_before": stretch.rows_before}
            log.execute(query, parameters | own | {"sources": sources, "most": taken})
        left -= taken
        unselected["over_limit"] += fit - taken
        for (dropped, source), rows in stretch.fates.items():
            if dropped is not None or source not in sources:
                unselected[dropped or "weaker_label"] += rows
    for reason, rows in unselected.items():
        if rows:
            log.execute("INSERT INTO scratch.unselected VALUES (?, ?)", [reason, rows])


def _copy_texts(log: duckdb.DuckDBPyConnection, work: Path, decision_type: str) -> None:
    """Write the texts of the chosen rows in the order of their numbers, sorted a chunk at a time."""
    for stale in work.glob("raw-*.parquet"):  # of a snapshot that was replaced
        stale.unlink()
    chunks = log.execute(
        "SELECT n // ? AS chunk, min(n), max(n), min(date), max(date) FROM scratch.selected GROUP BY 1 ORDER BY 1",
        [_CHUNK_ROWS],
    ).fetchall()
    for number, (_, first_row, last_row, first, last) in enumerate(chunks):
        path = sql_text(str(work / f"raw-{number:05}.parquet"))
        log.execute(
            _COPY.format(path=path, rows=PART_ROWS),
            {"decision_type": decision_type, "from": first_row, "to": last_row, "first": first, "last": last},
        )


def _choose_label_sources(stretches: Sequence[_Stretch], enough: int) -> list[str]:
    """Demonstrations and outcomes alone where there are `enough` of them; else the original logic's answers as well.

    What really was right teaches more than what the original logic thought, which would only be imitated.
    """
    demonstrations = sum(each.count(["demonstration"]) for each in stretches)
    outcomes = sum(each.count(["outcome"]) for each in stretches)
    known = ["demonstration", *(["outcome"] if outcomes else [])]
    return known if demonstrations + outcomes >= enough else [*known, "original"]


def count_chosen(con: duckdb.DuckDBPyConnection) -> int:
    """How many rows `select_rows` has chosen."""
    return int(con.execute("SELECT count(*) FROM selected").fetchall()[0][0])
