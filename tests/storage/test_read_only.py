"""What a query of somebody else's may do: read the log and the ledger's views, and nothing else."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

import storage
from storage.errors import QueryRefused
from storage.ledger.ledger import open_ledger
from storage.log import views
from storage.log.compact import compact_decisions
from storage.log.land import land_decisions
from storage.log.read_only import LogFiles
from tests.storage.logs import make_days, write_segment

SECRET = "rsn-secret-token"


def state_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but what SQLite writes when it is read."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("ledger.sqlite-")
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log") / "o[d]d=1" / "data"
    write_segment(folder, make_days(2, 3))
    land_decisions(folder)
    (folder / "gateway.token").write_text(SECRET)
    (folder / "decisions" / "notes.txt").write_text(SECRET)
    (folder.parent / "outside.csv").write_text(SECRET)
    with open_ledger(folder) as ledger:
        ledger.charge("training", "4", key="a", what="a job")
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[str]]]:
    """A listener that counts who connects."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        met: list[str] = []

        def listen() -> None:
            while True:
                try:
                    connection, address = listener.accept()
                except OSError:
                    return
                met.append(str(address))
                connection.close()

        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", met


READS = [
    "FROM read_text('{data}/gateway.token')",
    "FROM read_blob('{data}/ledger.sqlite')",
    "FROM read_text('{data}/decisions/notes.txt')",
    "FROM read_text('{data}/decisions/../gateway.token')",
    "FROM read_csv('{data}/../outside.csv', header = false)",
    "FROM '{data}/../outside.csv'",
    "FROM read_text('log://gateway.token')",
    "FROM read_text('log://decisions/../gateway.token')",
    "FROM read_text('log://{data}/gateway.token')",
    "FROM read_text('log://*')",
    "FROM read_text('log://**/*.token')",
    "FROM glob('{data}/*')",
    "FROM glob('/etc/*')",
    "FROM sniff_csv('/etc/passwd')",
    "FROM read_blob('/proc/self/environ')",
    "FROM parquet_metadata('/etc/passwd')",
    "SELECT (SELECT content FROM read_text('{data}/gateway.token')) AS token FROM decisions",
    "FROM query('FROM read_text(''{data}/gateway.token'')')",
    "FROM json_execute_serialized_sql(json_serialize_sql('FROM read_text(''{data}/gateway.token'')'))",
    "SELECT getenv('PATH')",
    "FROM read_duckdb('{data}/other.db')",
    "FROM read_csv('{url}/x.csv')",
    "FROM read_parquet('s3://bucket/x.parquet')",
    "FROM duckdb_secrets()",
    "FROM enable_logging(storage = 'file', storage_path = '{data}/log')",
    "FROM enable_profiling(save_location = '{data}/profile')",
]
STATEMENTS = [
    "COPY (SELECT 1) TO '{data}/x.csv'",
    "COPY (SELECT 1) TO 'log://decisions/x.csv'",
    "COPY (PIVOT costs ON kind USING count(*)) TO '{data}/decisions/x.csv'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{data}/x.csv'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO 'log://decisions/x.csv'",
    "EXPLAIN (ANALYZE) /* a */ COPY (SELECT 1) TO '{data}/decisions/x.csv'",
    "WITH x AS (COPY (SELECT 1) TO '{data}/decisions/x.csv') FROM x",
    "WITH x AS (COPY (SELECT 1) TO 'log://decisions/x.csv') FROM x",
    "WITH x AS (COPY (SELECT 1) TO 'log://decisions/x.parquet') FROM x",
    "FROM query('WITH x AS (COPY (SELECT 1) TO ''{data}/x.csv'') FROM x')",
    "SELECT 1; COPY (SELECT 1) TO '{data}/x.csv'",
    "-- SELECT\n COPY (SELECT 1) TO '{data}/x.csv'",
    "PREPARE p AS COPY (SELECT 1) TO '{data}/x.csv'; EXECUTE p",
    "CREATE MACRO m() AS TABLE FROM read_text('{data}/gateway.token'); FROM m()",
    "ATTACH '{data}/x.db'",
    "ATTACH '{data}/ledger.sqlite' (TYPE sqlite)",
    "EXPORT DATABASE '{data}/x'",
    "IMPORT DATABASE '{data}/x'",
    "INSTALL httpfs",
    "FORCE INSTALL httpfs FROM community",
    "LOAD httpfs",
    "LOAD '{data}/x.duckdb_extension'",
    "CREATE SECRET s (TYPE s3, KEY_ID 'a', SECRET 'b')",
    "CREATE PERSISTENT SECRET s (TYPE http, BEARER_TOKEN 'b')",
    "SET enable_external_access = true",
    "SET lock_configuration = false; SELECT 1",
    "RESET enable_external_access",
    "SET temp_directory = '{data}'",
    "PRAGMA enable_profiling",
    "PRAGMA import_database('{data}')",
    "CALL enable_logging(storage = 'file', storage_path = '{data}/log')",
    "VACUUM",
    "DROP VIEW decisions",
]


@pytest.mark.parametrize("query", READS + STATEMENTS)
def test_a_query_reaches_no_file_but_the_log_and_writes_none(
    data: Path, server: tuple[str, list[str]], query: str
) -> None:
    before, url = state_of(data.parent), server[0]
    try:
        rows = storage.sql(data, query.format(data=data, url=url), read_only=True).rows
    except (QueryRefused, duckdb.Error, ValueError) as error:
        assert SECRET not in str(error)
    else:
        assert query in READS and rows == []  # a pattern that nothing matches
    assert state_of(data.parent) == before
    assert server[1] == []


@pytest.mark.parametrize("query", STATEMENTS[:3] + STATEMENTS[4:5] + STATEMENTS[7:8] + READS[:1])
def test_a_refusal_names_what_opens_it(data: Path, query: str) -> None:
    with pytest.raises(QueryRefused, match="`reasoning sql --unsafe`"):
        storage.sql(data, query.format(data=data), read_only=True)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT count(*) FROM decisions",
        "FROM labelled_decisions ORDER BY decision_id",
        "FROM feedback ORDER BY ALL",
        "FROM feedback_log ORDER BY ALL",
        "FROM costs",
        "FROM models",
        "DESCRIBE decisions",
        "SHOW TABLES",
        "SUMMARIZE costs",
        "VALUES (1)",
        "WITH x AS (SELECT 1) FROM x",
        "PIVOT costs ON kind USING count(*)",
        "SELECT 1; SELECT 2",
        "SELECT decision ->> 'action' FROM decisions WHERE date = DATE '2026-11-20' ORDER BY decision_id",
    ],
)
def test_what_reads_the_views_says_the_same_as_without_the_lock(data: Path, query: str) -> None:
    assert storage.sql(data, query, read_only=True) == storage.sql(data, query)


def test_a_query_is_explained(data: Path) -> None:
    assert storage.sql(data, "EXPLAIN ANALYZE SELECT count(*) FROM decisions", read_only=True).rows


def test_a_query_that_needs_more_memory_than_it_has_spills(data: Path) -> None:
    query = "SELECT count(*) FROM (SELECT md5(range::VARCHAR) AS m FROM range(1500000) ORDER BY m)"
    assert storage.sql(data, query, read_only=True, memory_limit="40MB", threads=1).rows == [(1_500_000,)]


def test_files_that_are_replaced_under_a_query_are_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_segment(tmp_path, make_days(1, 2))
    land_decisions(tmp_path)
    write_segment(tmp_path, make_days(1, 2))
    land_decisions(tmp_path)
    show, shown = views._show, []

    def show_and_replace(*arguments: object) -> None:
        show(*arguments)  # type: ignore[arg-type]
        shown.append(1)
        if len(shown) == 3:  # the first two are when the connection is made
            compact_decisions(tmp_path)

    monkeypatch.setattr(views, "_show", show_and_replace)
    assert storage.sql(tmp_path, "SELECT count(messages) FROM decisions", read_only=True).rows == [(4,)]
    assert len(shown) > 3


def test_without_the_lock_a_query_writes_where_it_says(data: Path, tmp_path: Path) -> None:
    storage.sql(data, f"COPY (SELECT 1 AS a) TO '{tmp_path}/x.csv'")
    assert (tmp_path / "x.csv").read_text() == "a\n1\n"


def test_each_thread_reads_a_file_where_it_has_sought_itself(tmp_path: Path) -> None:
    """DuckDB seeks and reads from several threads, and lets go of Python's lock in between."""
    path = tmp_path / "decisions" / "part.parquet"
    path.parent.mkdir()
    path.write_bytes(b"0123456789")
    files = LogFiles(tmp_path)
    files.show([path])
    with files.open(files.name(path).removeprefix("log://")) as file:
        file.seek(2)
        other = threading.Thread(target=file.seek, args=(7,))
        other.start()
        other.join()
        assert (file.read(3), file.tell()) == (b"234", 5)
        assert (file.seek(-2, os.SEEK_END), file.read(), file.read(1)) == (8, b"89", b"")
