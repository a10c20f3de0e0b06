"""The views: columns, labels, latest feedback, and readers beside those who replace files."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow.parquet as pq
import pytest

import storage
from reasoning.ids import uuid7
from storage.erasure.erase import erase_subject
from storage.errors import DataFolderError, TableError
from storage.layout import Layout
from storage.ledger.charges import ChargedTo
from storage.log.compact import compact_decisions
from storage.log.land import land_decisions
from storage.log.schema import sql_columns
from tests.storage.logs import (
    NOON,
    list_parquet,
    make_days,
    make_decision,
    make_feedback,
    write_dataset,
    write_segment,
)

VIEWS = ("decisions", "feedback", "feedback_log", "labelled_decisions", "costs", "models")


def query(data: Path, text: str) -> list[tuple[Any, ...]]:
    return storage.sql(data, text).rows


def label_of(data: Path, request_id: object) -> tuple[Any, ...]:
    (row,) = query(
        data, f"SELECT label, label_source, decision_id FROM labelled_decisions WHERE request_id = '{request_id}'"
    )
    return row


def test_an_empty_log_has_the_columns_of_a_full_one(tmp_path: Path) -> None:
    Layout(tmp_path).create()
    empty = {view: storage.sql(tmp_path, f"FROM {view}") for view in VIEWS}
    write_segment(tmp_path, [make_decision(), make_feedback(episode_id="e")])
    land_decisions(tmp_path)
    for view in VIEWS:
        full = storage.sql(tmp_path, f"FROM {view}")
        assert (full.columns, full.types) == (empty[view].columns, empty[view].types), view
        assert empty[view].rows == []
    assert list(zip(empty["decisions"].columns, empty["decisions"].types, strict=True))[:2] == [
        ("decision_id", "UUID"),
        ("request_id", "UUID"),
    ]
    assert empty["decisions"].columns == [name for name, _ in sql_columns("decisions")]


def test_the_latest_feedback_wins_in_whatever_order_it_came(tmp_path: Path) -> None:
    decision = make_decision(episode_id="e")
    for hours, value in ((2, "new"), (1, "old")):
        ts = NOON + timedelta(hours=hours)
        write_segment(
            tmp_path,
            [
                decision if hours == 2 else make_decision(),
                make_feedback(ts, decision_id=decision.decision_id, value=value),
                make_feedback(ts + timedelta(days=hours), episode_id="e", value=value),
            ],
        )
        land_decisions(tmp_path)
    assert query(tmp_path, "SELECT decision_id, episode_id, value FROM feedback ORDER BY episode_id NULLS FIRST") == [
        (decision.decision_id, None, '"new"'),
        (None, "e", '"new"'),
    ]
    assert query(tmp_path, "SELECT count(*) FROM feedback_log") == [(4,)]


def test_labels_rank_demonstration_before_original_before_custom(tmp_path: Path) -> None:
    def ask(second: int, *answers: dict[str, Any]) -> list[Any]:
        ts = NOON + timedelta(seconds=second)
        request_id = uuid7(ts)
        return [make_decision(ts, request_id=request_id, **answer) for answer in answers]

    respond, ignore = {"action": "RESPOND"}, {"action": "IGNORE"}
    custom = {"source": "custom", "model": "m", "decision": respond}
    shadow = {"served": False, "decision": ignore}
    only_custom = ask(1, custom)
    with_shadow = ask(2, custom, shadow)
    shown = ask(3, custom, shadow)
    failed = ask(4, {**custom, "served": False, "valid": False, "decision": None}, {"decision": ignore})
    bad_original = ask(5, custom, {**shadow, "valid": False})
    nothing = ask(6, {"valid": False, "decision": None})
    demonstration = make_feedback(
        NOON + timedelta(days=3),
        decision_id=shown[1].decision_id,  # not the row that was served
        metric="demonstration",
        kind="demonstration",
        value='{"action":"STOP"}',
    )
    no_object = make_feedback(
        decision_id=only_custom[0].decision_id, metric="demonstration", kind="demonstration", value="STOP"
    )
    write_segment(
        tmp_path,
        [*only_custom, *with_shadow, *shown, *failed, *bad_original, *nothing, demonstration, no_object],
    )
    land_decisions(tmp_path)
    assert query(tmp_path, "SELECT count(*), count(DISTINCT request_id) FROM labelled_decisions") == [(6, 6)]
    expected = [
        (only_custom, '{"action":"RESPOND"}', "custom", 0),
        (with_shadow, '{"action":"IGNORE"}', "original", 0),
        (shown, '{"action":"STOP"}', "demonstration", 0),
        (failed, '{"action":"IGNORE"}', "original", 1),
        (bad_original, '{"action":"RESPOND"}', "custom", 0),
        (nothing, None, None, 0),
    ]
    for rows, label, source, served in expected:
        assert label_of(tmp_path, rows[0].request_id) == (label, source, rows[served].decision_id)
    assert query(
        tmp_path,
        "SELECT original_decision, custom_decision, custom_model, answers FROM labelled_decisions "
        f"WHERE request_id = '{with_shadow[0].request_id}'",
    ) == [('{"action":"IGNORE"}', '{"action":"RESPOND"}', "m", 2)]


def test_numeric_feedback_comes_as_maps_with_the_row(tmp_path: Path) -> None:
    decision = make_decision(episode_id="e")
    of_decision = {"decision_id": decision.decision_id}
    write_segment(
        tmp_path,
        [
            decision,
            make_feedback(metric="stars", value=3, **of_decision),
            make_feedback(metric="good", value=True, **of_decision),
            make_feedback(metric="note", value="fine", kind="comment", **of_decision),
            make_feedback(metric="text", value="5", **of_decision),
            make_feedback(NOON + timedelta(days=40), episode_id="e", metric="witty", value=0.5),
        ],
    )
    land_decisions(tmp_path, now=NOON + timedelta(days=40))
    assert query(tmp_path, "SELECT feedback, episode_feedback FROM labelled_decisions") == [
        ({"stars": 3.0, "good": 1.0}, {"witty": 0.5})
    ]


def test_a_filter_on_type_and_date_reads_only_those_partitions(tmp_path: Path) -> None:
    write_segment(tmp_path, make_days(3, 2) + make_days(3, 2, decision_type="planning"))
    land_decisions(tmp_path)
    where = "WHERE decision_type = 'planning' AND date = DATE '2026-11-21'"
    for view in ("decisions", "labelled_decisions"):
        plan = query(tmp_path, f"EXPLAIN ANALYZE SELECT messages FROM {view} {where}")[0][1]
        scanned = re.findall(r"Scanning Files: (\d+)/6|Total Files Read: (\d+)", plan)
        assert scanned
        assert all("1" in counts for counts in scanned), plan


def test_files_of_older_schemas_read_with_null_where_they_lack_a_column(tmp_path: Path) -> None:
    write_segment(tmp_path, make_days(2, 2))
    land_decisions(tmp_path)
    old = list_parquet(tmp_path)[0]
    pq.write_table(pq.ParquetFile(old).read().drop_columns(["tags", "extra", "latency_ms"]), old)
    assert query(tmp_path, "SELECT tags, latency_ms, count(*) FROM decisions GROUP BY ALL ORDER BY ALL") == [
        ("{}", 1.5, 2),
        (None, None, 2),
    ]
    assert compact_decisions(tmp_path).partitions == 0
    write_segment(tmp_path, make_days(1, 1))
    land_decisions(tmp_path)
    assert compact_decisions(tmp_path).partitions == 1
    assert query(tmp_path, "SELECT count(*), count(tags) FROM decisions") == [(5, 3)]


def test_a_data_folder_may_have_any_name(tmp_path: Path) -> None:
    data = tmp_path / "it's [a] *?{b} 100% ünï"
    write_segment(data, make_days(1, 2))
    land_decisions(data)
    write_segment(data, make_days(1, 2))
    land_decisions(data)
    assert compact_decisions(data).partitions == 1
    assert query(data, "SELECT count(*) FROM decisions") == [(4,)]


def test_a_connection_shows_its_snapshot_until_it_is_refreshed(tmp_path: Path) -> None:
    write_segment(tmp_path, make_days(1, 1))
    land_decisions(tmp_path)
    with storage.connect(tmp_path, memory_limit="200MB", threads=1) as con:
        write_segment(tmp_path, make_days(1, 1))
        land_decisions(tmp_path)
        assert con.execute("SELECT count(*) FROM decisions").fetchall() == [(1,)]
        storage.refresh(con, tmp_path)
        assert con.execute("SELECT count(*) FROM decisions").fetchall() == [(2,)]
        compact_decisions(tmp_path)
        with pytest.raises(duckdb.IOException):
            con.execute("SELECT count(messages) FROM decisions").fetchall()
        storage.refresh(con, tmp_path)
        assert con.execute("SELECT count(*) FROM decisions").fetchall() == [(2,)]


def test_reading_starts_again_when_files_were_replaced_under_it(tmp_path: Path) -> None:
    write_segment(tmp_path, make_days(1, 1))
    land_decisions(tmp_path)
    write_segment(tmp_path, make_days(1, 1))
    land_decisions(tmp_path)
    calls = []

    def count(con: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
        calls.append(1)
        if len(calls) == 1:
            compact_decisions(tmp_path)
        return con.execute("SELECT count(messages) FROM decisions").fetchall()

    assert storage.read(tmp_path, count) == [(2,)]
    assert len(calls) == 2


def test_an_io_error_that_is_not_a_replacement_is_raised(tmp_path: Path) -> None:
    Layout(tmp_path).create()
    with pytest.raises(duckdb.IOException):
        storage.sql(tmp_path, "FROM read_csv('/nowhere.csv')")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write_segment(tmp_path, make_days(2, 2))
    land_decisions(tmp_path)
    path = list_parquet(tmp_path)[1]
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 40 + content[44:])  # the header of the first page
    with pytest.raises(TableError, match=re.escape(f"{path} cannot be read")):
        storage.sql(tmp_path, "SELECT count(DISTINCT decision_id) FROM decisions")


def open_files() -> list[str]:
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(str(descriptor.readlink()))
    return links


def test_no_file_stays_open_after_a_query(tmp_path: Path) -> None:
    write_segment(tmp_path, make_days(2, 2))
    land_decisions(tmp_path)
    with storage.connect(tmp_path) as con:
        con.execute("FROM decisions").fetchall()
        assert not [link for link in open_files() if link.startswith(str(tmp_path))]
    with (tmp_path / "probe").open("w"):
        assert str(tmp_path / "probe") in open_files()


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFolderError, match="there is no data folder"):
        storage.connect(tmp_path / "nowhere")


def test_costs_and_models_come_from_the_ledger_as_of_the_query(tmp_path: Path) -> None:
    from storage.ledger.ledger import open_ledger

    Layout(tmp_path).create()
    with storage.connect(tmp_path) as con:
        assert con.execute("FROM costs").fetchall() == con.execute("FROM models").fetchall() == []
        with open_ledger(tmp_path) as ledger:
            ledger.charge(
                "tokens",
                Decimal("0.000000001"),
                key="a",
                what="a token",
                now=NOON,
                of=ChargedTo(decision_type="planning"),
            )
            ledger.charge("training", Decimal(4), key="b", what="a job", now=NOON)
        assert con.execute("SELECT sum(amount_usd) FROM costs").fetchall() == [(Decimal("4.000000001"),)]
        assert con.execute("SELECT ts, kind, decision_type FROM costs ORDER BY kind").fetchall() == [
            (NOON, "tokens", "planning"),
            (NOON, "training", None),
        ]


def test_the_json_columns_are_json_for_duckdb(tmp_path: Path) -> None:
    write_segment(tmp_path, [make_decision(tags={"k": "v"}, tools=[{"a": 1}])])
    land_decisions(tmp_path)
    assert query(tmp_path, "SELECT decision ->> 'action', tags ->> 'k', tools -> '$[0].a' FROM decisions") == [
        ("RESPOND", "v", "1")
    ]
    assert orjson.loads(query(tmp_path, "SELECT label FROM labelled_decisions")[0][0]) == {"action": "RESPOND"}


def test_a_limit_says_that_there_is_more_and_a_text_without_a_query_is_refused(tmp_path: Path) -> None:
    Layout(tmp_path).create()
    assert storage.sql(tmp_path, "FROM range(3)", limit=2).rows == [(0,), (1,)]
    assert [storage.sql(tmp_path, "FROM range(3)", limit=limit).more for limit in (2, 3, None)] == [True, False, False]
    for text in ("", " ; ", "-- nothing"):
        with pytest.raises(ValueError, match="no query"):
            storage.sql(tmp_path, text)


def test_one_kind_of_feedback_takes_no_other_kinds_place_nor_an_unusable_answer_a_usable_ones(tmp_path: Path) -> None:
    decision = make_decision(episode_id="e", decision={"action": "IGNORE"})
    about: dict[str, Any] = {"decision_id": decision.decision_id}
    answer: dict[str, Any] = about | {"metric": "answer", "kind": "demonstration"}
    given = [
        make_feedback(**about, metric="rating", value=4.0),
        make_feedback(**about, metric="rating", kind="comment", value="nice"),
        make_feedback(**answer, value='{"action":"STOP"}'),
        make_feedback(**answer, value="I would have stopped"),
        make_feedback(**about, metric="answer", kind="comment", value="why?"),
        make_feedback(episode_id="e", metric="reward", value=1.0),
        make_feedback(episode_id="e", metric="reward", kind="comment", value="well done"),
    ]
    for seconds, feedback in enumerate(given):
        feedback.ts = NOON + timedelta(seconds=seconds)
    write_segment(tmp_path, [decision, *given])
    land_decisions(tmp_path)
    assert label_of(tmp_path, decision.request_id)[:2] == ('{"action":"STOP"}', "demonstration")
    (maps,) = query(tmp_path, "SELECT feedback, episode_feedback FROM labelled_decisions")
    assert maps == ({"rating": 4.0}, {"reward": 1.0})


@pytest.mark.parametrize("folder", ["agent_id=alpha", "date=2020-01-01", "run=5/ts=1/split=x"])
def test_a_path_that_looks_like_a_partition_changes_no_row(tmp_path: Path, folder: str) -> None:
    data = tmp_path / folder / "data"
    decisions = make_days(2, 2, agent_id="beta", subject_ids=["ann"])
    for decision in decisions:
        write_segment(data, [decision, make_feedback(decision_id=decision.decision_id)])
        land_decisions(data)
    compact_decisions(data)
    names = storage.sql(data, "FROM decisions").columns
    assert names == [name for name, _ in sql_columns("decisions")]
    (row,) = query(data, "SELECT count(*), any_value(agent_id), bool_and(served), count(DISTINCT date) FROM decisions")
    assert row == (4, "beta", True, 2)
    assert {kind for (kind,) in query(data, "SELECT decision_type FROM decisions")} == {"should_respond"}
    write_dataset(data, [("train", decisions[0], "text")])
    assert erase_subject(data, "ann").decisions == 4
    assert query(data, "FROM decisions") == []


@pytest.mark.parametrize("folder", ["plain", "run=5"])
def test_the_folder_says_the_partition_though_the_file_has_a_column_for_it(tmp_path: Path, folder: str) -> None:
    data = tmp_path / folder
    write_segment(data, [make_decision()])
    land_decisions(data)
    (path,) = list_parquet(data)
    pq.write_table(pq.ParquetFile(path).read().append_column("date", [["2020-01-01"]]), path)
    assert query(data, "SELECT date, agent_id FROM decisions") == [(NOON.date(), "agent")]


def test_a_table_is_never_a_variable(tmp_path: Path) -> None:
    Layout(tmp_path).create()
    for name in ("query", "con", "os"):
        with pytest.raises(duckdb.CatalogException, match=f"Table with name {name} does not exist"):
            query(tmp_path, f"FROM {name}")


def test_a_query_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    Layout(tmp_path).create()
    with pytest.raises(ValueError, match="not valid UTF-8"):
        query(tmp_path, "SELECT '\udcff'")


def test_a_folder_whose_name_is_not_utf_8_is_named(tmp_path: Path) -> None:
    folder = Path(f"{tmp_path}/\udcff")
    folder.mkdir()
    with pytest.raises(DataFolderError, match=r"udcff' is not UTF-8: rename it"):
        land_decisions(folder)


def test_an_interrupt_between_two_queries_ends_the_one_that_follows(tmp_path: Path) -> None:
    Layout(tmp_path).create()
    long = "SELECT count(*) FROM range(100000) AS a, range(50000) AS b WHERE a.range * b.range = -1"
    seen = threading.Event()
    threads = []

    def interrupt(*_: object) -> None:
        seen.set()
        raise KeyboardInterrupt

    def ask(con: duckdb.DuckDBPyConnection) -> None:
        threads.append(threading.current_thread())
        os.kill(os.getpid(), signal.SIGUSR1)
        assert seen.wait(5)
        time.sleep(0.05)  # in which a single interruption would come to nothing
        con.execute(long).fetchall()

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            storage.read(tmp_path, ask)
        assert time.monotonic() - started < 5
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert threads != [threading.main_thread()]  # where DuckDB would have to hear of the signal itself
