"""Every query of docs/guides/sql.md runs, and answers something."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

import storage
from reasoning.ids import uuid7
from storage.log.land import land_decisions
from tests.storage.logs import NOON, make_decision, make_feedback, write_segment

PAGE = Path(__file__).parents[2].joinpath("docs", "guides", "sql.md").read_text()
QUERIES = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
STOCK = re.findall(r"```duckdb\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from storage.ledger.ledger import open_ledger

    folder = tmp_path_factory.mktemp("sql")
    records: list[Any] = []
    for n in range(40):
        ts = NOON + timedelta(hours=n)
        shared = {
            "request_id": uuid7(ts),
            "episode_id": f"episode-{n % 4}",
            "experiment": "e",
            "arm": ("custom", "original")[n % 2],
            "messages": [{"role": "user", "content": f"question {n % 5}"}],
        }
        action = {"action": ("RESPOND", "IGNORE")[n % 3 == 0]}
        custom = {
            "source": "custom",
            "model": "m",
            "confidence": n / 40,
            "input_tokens": 9,
            "output_tokens": 1,
            "cost_usd": 1e-6,
        }
        records += [
            make_decision(ts, **shared, **custom, served=n % 2 == 0, decision={"action": "RESPOND"}),
            make_decision(ts, **shared, served=n % 2 == 1, decision=action, fallback_reason=("timeout", None)[n % 2]),
        ]
        of_decision = {"decision_id": records[-1].decision_id}
        shown = '{"action":"RESPOND"}'
        records += [
            make_feedback(ts, **of_decision, metric="demonstration", kind="demonstration", value=shown),
            make_feedback(ts, **of_decision, metric="note", kind="comment", value="why?", author="ann"),
            make_feedback(ts, episode_id=shared["episode_id"], metric="rating", value=n % 5),
        ]
    write_segment(folder / "reasoning-data", records)
    land_decisions(folder / "reasoning-data")
    with open_ledger(folder / "reasoning-data") as ledger:
        ledger.charge("training", Decimal(4), key="job", what="a job", now=NOON)
    return folder / "reasoning-data"


def test_the_page_has_a_dozen_queries() -> None:
    assert len(QUERIES) >= 12
    assert len(STOCK) == 2


@pytest.mark.parametrize("query", QUERIES, ids=[query.split("\n")[0][:50] for query in QUERIES])
def test_a_query_of_the_page_answers(data: Path, query: str) -> None:
    ids = re.findall(r"'([0-9a-f-]{36})'", query)
    if ids:
        (known,) = storage.sql(data, "SELECT decision_id::VARCHAR FROM decisions LIMIT 1").rows[0]
        query = query.replace(ids[0], known)
    result = storage.sql(data, query)
    assert result.rows
    assert any(any(value is not None for value in row) for row in result.rows)


@pytest.mark.parametrize("query", STOCK)
def test_a_stock_duckdb_reads_the_log(data: Path, query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data.parent)
    with duckdb.connect() as con:
        assert con.execute(query).fetchall()
    if "COPY" in query:
        assert (data.parent / "should_respond.jsonl").read_text().count("\n") == 40
