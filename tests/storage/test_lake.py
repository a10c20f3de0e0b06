"""The same contracts on both homes of the log: the folder, and a lake with its catalog in PostgreSQL.

The lake needs DuckDB's extensions, which PyPI has up to DuckDB 1.5.5: with another DuckDB its half is skipped.
"""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

import storage
from reasoning.records import Decision
from storage.backup import back_up
from storage.erasure import erase
from storage.erasure.erase import erase_subject
from storage.errors import DataFolderBusy, DataFolderError, LockLost, QueryRefused
from storage.lake.address import parse_log_url
from storage.layout import Layout
from storage.locks import check_held, data_lock
from storage.log.compact import compact_decisions
from storage.log.expire import expire_decisions
from storage.log.land import land_decisions
from storage.log.reland import reland_quarantine
from tests.postgres import fresh_database, run_postgres
from tests.storage import faults
from tests.storage.logs import (
    NOON,
    landed_ids,
    make_days,
    make_decision,
    make_feedback,
    segment_id,
    to_line,
    write_lines,
    write_segment,
)

EXTENSIONS = ("duckdb_extension_ducklake", "duckdb_extension_postgres_scanner")


def has_extensions() -> bool:
    for name in EXTENSIONS:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            return False
        if not (Path(spec.submodule_search_locations[0]) / "extensions" / f"v{duckdb.__version__}").exists():
            return False
    return True


needs_extensions = pytest.mark.skipif(
    not has_extensions(), reason=f"no extensions of DuckDB {duckdb.__version__}: run `make lake`"
)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with run_postgres() as url:
        yield url


@pytest.fixture
def lake(postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """REASONING_LOG names a lake; the folder of its files."""
    with fresh_database(postgres) as url:
        files = tmp_path / "lake"
        catalog = url.replace("postgresql+psycopg", "postgresql")
        monkeypatch.setenv("REASONING_LOG", f"ducklake:{catalog}{'&' if '?' in catalog else '?'}data=file://{files}")
        yield files


@pytest.fixture(params=["folder", pytest.param("ducklake", marks=needs_extensions)])
def home(request: pytest.FixtureRequest) -> str:
    if request.param == "ducklake":
        request.getfixturevalue("lake")
    return str(request.param)


VIEWS = ("decisions", "feedback_log", "feedback", "labelled_decisions", "costs", "models")


def show(data: Path) -> dict[str, Any]:
    """All rows of all views, with the columns' names and types."""
    shown = {}
    for view in VIEWS:
        found = storage.sql(data, f"FROM {view} ORDER BY ALL")
        order = sorted(range(len(found.columns)), key=lambda at: found.columns[at])
        shown[view] = (
            [(found.columns[at], found.types[at]) for at in order],
            sorted(repr([row[at] for at in order]) for row in found.rows),
        )
    return shown


def fill(data: Path) -> list[Decision]:
    decisions = make_days(2, 3, subject_ids=["ann"], tags={"n": "1"})
    others = make_days(1, 2, decision_type="planning")
    feedback = [make_feedback(decision_id=decisions[0].decision_id, value=n) for n in (True, 0.5)]
    taught = make_feedback(
        decision_id=decisions[1].decision_id, kind="demonstration", metric="demonstration", value='{"action":"STOP"}'
    )
    write_segment(data, [*decisions, *others, *feedback, taught])
    return [*decisions, *others]


@needs_extensions
def test_every_view_says_the_same_on_both_homes(lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, folder = tmp_path / "a", tmp_path / "b"
    fill(data)
    (segment,) = (data / "spool").iterdir()
    write_lines(folder, [segment.read_bytes()], segment.stem)
    assert land_decisions(data).decisions == 8
    assert list(data.glob("decisions/**/*.parquet")) == [] and list(lake.rglob("*.parquet"))
    in_lake = show(data)
    monkeypatch.delenv("REASONING_LOG")
    land_decisions(folder)
    assert in_lake == show(folder)
    assert len(in_lake["decisions"][1]) == 8


def test_a_record_lands_once_whatever_its_segment_is_called(home: str, tmp_path: Path) -> None:
    decisions = fill(tmp_path)
    (segment,) = (tmp_path / "spool").iterdir()
    lines = segment.read_bytes().splitlines(keepends=True)
    write_lines(tmp_path, lines[:5])  # a copy that was cut short, in the same landing
    land_decisions(tmp_path)
    conflict = make_decision(decision_id=decisions[0].decision_id, completion="another one")
    write_lines(tmp_path, [*lines, to_line(conflict), b"torn"], segment_id(2))
    report = land_decisions(tmp_path)
    assert (report.decisions, report.feedback, report.duplicates) == (0, 0, 11)
    assert {name.partition(":")[0] for name in report.quarantined} == {"conflict", "torn"}
    assert landed_ids(tmp_path) == sorted(decision.decision_id for decision in decisions)


@pytest.mark.parametrize("step", ["sync", "unlink"])
def test_a_lander_that_is_killed_before_or_after_its_commit(home: str, tmp_path: Path, step: str) -> None:
    decisions = fill(tmp_path)
    with faults.started(faults.land_until, tmp_path, step, os.environ.get("REASONING_LOG", "")) as process:
        process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(landed_ids(tmp_path)) == (0 if step == "sync" else 8)
    report = land_decisions(tmp_path)
    assert (report.decisions, report.duplicates) == ((8, 0) if step == "sync" else (0, 11))
    assert landed_ids(tmp_path) == sorted(decision.decision_id for decision in decisions)
    assert list((tmp_path / "decisions.staging").glob("*")) == []


@needs_extensions
def test_two_hosts_land_into_one_lake(lake: Path, tmp_path: Path) -> None:
    hosts = [tmp_path / "a", tmp_path / "b"]
    own = [make_days(1, 4, NOON + timedelta(minutes=n)) for n in range(2)]
    both = make_decision()
    log = os.environ["REASONING_LOG"]
    for data, decisions in zip(hosts, own, strict=True):
        for decision in decisions:
            write_segment(data, [decision])
        write_lines(data, [to_line(both)])
    running = [faults.started(faults.land_until, data, "never", log) for data in hosts]
    processes = [each.__enter__() for each in running]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    for each in running:
        each.__exit__(None, None, None)
    expected = sorted([both.decision_id, *(decision.decision_id for each in own for decision in each)])
    assert landed_ids(hosts[0]) == landed_ids(hosts[1]) == expected


@needs_extensions
def test_the_lock_is_the_catalogs_and_its_loss_is_noticed(lake: Path, tmp_path: Path, postgres: str) -> None:
    import psycopg

    other = Layout(tmp_path / "b").create()
    layout = Layout(tmp_path / "a").create()
    with pytest.raises(LockLost, match="lock of the lake is gone"), data_lock(layout, "landing"):
        with (
            pytest.raises(DataFolderBusy, match="perhaps of another host"),
            data_lock(other, "landing", timeout=0),
        ):
            pass
        with psycopg.connect(postgres, autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
        check_held(layout)
    with data_lock(other, "landing", timeout=5):
        pass


@needs_extensions
@pytest.mark.parametrize(
    "verb",
    [
        lambda data: expire_decisions(data, retention_days=1),
        reland_quarantine,
        lambda data: back_up(data, data.parent / "backup"),
    ],
)
def test_verbs_that_know_only_the_folder_refuse(lake: Path, tmp_path: Path, verb: Callable[[Path], object]) -> None:
    fill(tmp_path / "data")
    land_decisions(tmp_path / "data")
    before = landed_ids(tmp_path / "data")
    with pytest.raises(DataFolderError, match="does not know a log in a lake"):
        verb(tmp_path / "data")
    assert landed_ids(tmp_path / "data") == before
    with pytest.raises(QueryRefused, match="cannot be locked down yet"):
        storage.sql(tmp_path / "data", "FROM decisions", read_only=True)


def test_a_person_is_erased_from_the_tables_and_all_that_describes_them(home: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    ann = [make_decision(NOON + timedelta(seconds=n), subject_ids=["zz-ann"], completion="zz-ann") for n in range(3)]
    bob = make_days(2, 2, subject_ids=["bob"])
    on_it = [make_feedback(decision_id=each.decision_id, value="on zz-ann") for each in (*ann[:2], *bob[:1])]
    write_segment(data, [*ann[:2], *bob, *on_it, make_feedback(decision_id=bob[1].decision_id, author="zz-ann")])
    land_decisions(data)
    write_segment(data, [ann[2]])
    report = erase_subject(data, "zz-ann")
    assert (report.decisions, report.feedback) == (3, 3)
    assert landed_ids(data) == sorted(each.decision_id for each in bob)
    assert storage.sql(data, "SELECT decision_id, value FROM feedback").rows == [(bob[0].decision_id, '"on zz-ann"')]
    needles = [str(each.decision_id) for each in ann]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    texts = [repr(pq.ParquetFile(path).read().to_pylist()) if path.suffix == ".parquet" else "" for path in files]
    texts += [path.read_bytes().decode("latin-1") for path in files]
    if home == "ducklake":
        texts += dump_catalog()
        assert "ducklake_data_file" in texts[-1]
    assert [needle for needle in needles for text in texts if needle in text] == []
    assert erase_subject(data, "zz-ann").decisions == 0


@needs_extensions
def test_an_erasure_killed_between_deleting_rows_and_rewriting_files_is_finished_by_the_next(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    ann = make_decision(subject_ids=["zz-ann"], completion="zz-ann")
    write_segment(data, [ann, *make_days(1, 2)])
    land_decisions(data)

    def die(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(erase, "purge", die)
        with pytest.raises(KeyboardInterrupt):
            erase_subject(data, "zz-ann")
    assert str(ann.decision_id) in str([pq.ParquetFile(path).read().to_pylist() for path in lake.rglob("*.parquet")])
    assert erase_subject(data, "zz-ann").decisions == 0
    left = [pq.ParquetFile(path).read().to_pylist() for path in lake.rglob("*.parquet")]
    assert len(landed_ids(data)) == 2
    assert not [text for text in (str(left), *dump_catalog()) if str(ann.decision_id) in text]


def dump_catalog() -> list[str]:
    """All rows of all tables of the catalog's database."""
    import psycopg

    address = parse_log_url(os.environ["REASONING_LOG"])
    assert address is not None
    with psycopg.connect(address.catalog) as con:
        names = con.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        rows = {name: con.execute(f'SELECT * FROM "{name}"').fetchall() for (name,) in names}  # type: ignore[arg-type]
    return [repr(rows)]


def test_compaction_keeps_every_row(home: str, tmp_path: Path) -> None:
    decisions = make_days(1, 4)
    for decision in decisions:
        write_segment(tmp_path, [decision])
        land_decisions(tmp_path)
    before = show(tmp_path)
    report = compact_decisions(tmp_path)
    assert (report.files_before, report.files_after) == (4, 1)
    assert show(tmp_path) == before


SECRET = "pass-word-1"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket/log", "a bucket without a catalog"),
        (f"https://u:{SECRET}@bucket/log", "a bucket without a catalog"),
        ("/some/folder", "is no kind of log"),
        (f"ducklake:mysql://u:{SECRET}@h/d?data=s3://b/l", "several hosts need PostgreSQL"),
        (f"ducklake:postgresql://u:{SECRET}@h/d", "is none of file://, s3://, gs://"),
        (f"ducklake:postgresql://u:{SECRET}@h/d?data=file://relative/path", "is no absolute path"),
        (f"ducklake:postgresql://u:{SECRET}@h/d?nonsense", "is not a URL"),
    ],
)
def test_an_address_that_will_not_do_is_refused_without_its_password(url: str, message: str) -> None:
    with pytest.raises(DataFolderError, match=message) as caught:
        parse_log_url(url)
    assert SECRET not in str(caught.value)


def test_an_address() -> None:
    assert parse_log_url("") is None
    address = parse_log_url(f"ducklake:postgresql://u:{SECRET}@h:5/d?sslmode=require&data=s3://bucket/log/")
    assert address is not None
    assert address.catalog == f"postgresql://u:{SECRET}@h:5/d?sslmode=require"
    assert address.data == "s3://bucket/log/"
    assert SECRET not in repr(address)


def test_without_the_extensions_nothing_is_downloaded_and_the_mend_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("REASONING_LOG", f"ducklake:postgresql://u:{SECRET}@127.0.0.1:1/d?data=file:///nowhere")
    Layout(tmp_path).create()
    with pytest.raises(DataFolderError, match="is not installed here and is not downloaded: install duckdb-ext") as e:
        storage.sql(tmp_path, "FROM decisions")
    assert SECRET not in str(e.value)
    with pytest.raises(DataFolderError, match="cannot be reached") as e:
        land_decisions(tmp_path)
    assert SECRET not in str(e.value) and SECRET not in repr(e.value.__cause__)
