"""Recorded workloads: decision logs of a known volume, cost and quality, written as files of the log."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb

from storage.layout import Layout

NOW = datetime(2026, 11, 23, tzinfo=UTC)
"""A Monday, 00:00."""

_DECISION = {
    "should_respond": '{"action":"RESPOND"}',
    "planning": '{"thought":"t","actions":["REPLY"],"providers":[],"text":"hi"}',
}


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Decisions of one type, evenly spread over `hours` of each of the last `days` days (of the week, 0 is Monday).

    700 input and 45 output tokens each. `cost_usd` is what the fallback reported. `demonstrated` of the decisions have
    a demonstration, with which the fallback agrees in the share `quality`.
    """

    decision_type: str = "should_respond"
    days: int = 7
    weekdays: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6)
    hours: tuple[int, ...] = tuple(range(24))
    per_hour: int
    model: str | None = None
    cost_usd: float | None = None
    tokens: bool = True
    demonstrated: int = 0
    quality: float = 1.0


def record(data: Path, *workloads: Recorded) -> Path:
    """Write the workloads into a data folder. Its path."""
    layout = Layout(data)
    layout.create()
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'")
    for number, each in enumerate(workloads):
        decision = _DECISION.get(each.decision_type, _DECISION["should_respond"])
        for back in range(each.days, 0, -1):
            day = NOW - timedelta(days=back)
            if day.weekday() not in each.weekdays:
                continue
            con.execute(
                """
                CREATE OR REPLACE TABLE d AS
                SELECT uuidv7() AS decision_id, uuidv7() AS request_id,
                       $day + to_hours(hour) + to_microseconds((n * 3600e6 / $per_hour)::BIGINT) AS ts,
                       'original' AS source, true AS served, true AS valid, $decision AS decision,
                       '<response>' AS completion, [{'role': 'user', 'content': 'Ann: hi'}] AS messages,
                       CASE WHEN $tokens THEN 700 END AS input_tokens, CASE WHEN $tokens THEN 45 END AS output_tokens,
                       $model::VARCHAR AS fallback_model, $cost::DOUBLE AS cost_usd,
                       CASE WHEN $cost IS NOT NULL THEN 'reported' END AS price_source,
                       'e' || (n % 50) AS episode_id
                FROM (SELECT unnest($hours) AS hour), range($per_hour) AS t(n)
                """,
                {
                    "day": day,
                    "per_hour": each.per_hour,
                    "hours": list(each.hours),
                    "decision": decision,
                    "tokens": each.tokens,
                    "model": each.model,
                    "cost": each.cost_usd,
                },
            )
            date = f"{day:%Y-%m-%d}"
            folder = data / "decisions" / f"decision_type={each.decision_type}" / f"date={date}"
            _write(con, "FROM d", folder / f"part-{number}.parquet")
            if each.demonstrated:
                _demonstrate(con, each, data / "feedback" / f"date={date}" / f"part-{number}.parquet")
    return data


def _demonstrate(con: duckdb.DuckDBPyConnection, each: Recorded, path: Path) -> None:
    """Every day's share of the demonstrations; every so many of them say something else than the fallback."""
    share = each.demonstrated // each.days
    _write(
        con,
        f"""
        SELECT uuidv7() AS feedback_id, decision_id, ts, 'demonstration' AS metric, 'demonstration' AS kind,
               to_json(CASE WHEN row_number() OVER (ORDER BY ts) <= {round(share * each.quality)}
                            THEN decision ELSE '{{"action":"STOP"}}' END)::VARCHAR AS value
        FROM (FROM d ORDER BY ts LIMIT {share})
        """,
        path,
    )


def _write(con: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    con.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet)")
