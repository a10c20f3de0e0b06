"""Compaction and expiry: the same rows in fewer files, or none of the old ones."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import storage
from storage import files
from storage.erasure.erase import erase_subject
from storage.errors import TableError
from storage.layout import Layout
from storage.locks import data_lock
from storage.log import replace, rewrite
from storage.log.compact import compact_decisions
from storage.log.expire import expire_decisions
from storage.log.land import land_decisions
from storage.log.replace import Method
from storage.log.table import HIDDEN, SCHEMA_KEY, file_segments, landed_segments, live_files
from storage.progress import Progress
from tests.storage.logs import (
    NOON,
    landed_ids,
    list_parquet,
    make_days,
    make_decision,
    make_feedback,
    write_lines,
    write_segment,
)

METHODS: list[Method] = ["exchange", "manifest"]


def fill(data: Path, segments: int = 3) -> list[Any]:
    """The same two days in several files each, the later segments with the earlier rows."""
    decisions: list[Any] = []
    for n in reversed(range(segments)):
        chunk = make_days(2, 4, NOON + timedelta(minutes=n), subject_ids=["ann", "zoë"], tags={"n": str(n)})
        feedback = [make_feedback(decision_id=d.decision_id, value=n) for d in chunk]
        write_segment(data, [*chunk, *feedback])
        land_decisions(data)
        decisions += chunk
    return decisions


def everything(data: Path) -> list[tuple[Any, ...]]:
    return storage.sql(data, "FROM decisions ORDER BY decision_id").rows + (
        storage.sql(data, "FROM feedback_log ORDER BY feedback_id").rows
    )


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_compaction_keeps_every_row_and_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Method, large: bool
) -> None:
    if large:
        monkeypatch.setattr(rewrite, "_LARGE_ROW_BYTES", 0)
        monkeypatch.setattr(rewrite, "_ROW_GROUP_ROWS", 5)
    fill(tmp_path)
    before = everything(tmp_path)
    segments = {path: set(landed_segments(path)) for path in {p.parent for p in list_parquet(tmp_path)}}
    report = compact_decisions(tmp_path, method=method)
    assert (report.partitions, report.files_before, report.files_after) == (4, 12, 4)
    assert everything(tmp_path) == before
    assert {path.parent for path in list_parquet(tmp_path)} == set(segments)
    for path in list_parquet(tmp_path):
        assert set(file_segments(path)) == segments[path.parent]
        assert pq.read_metadata(path).row_group(0).column(0).compression == "ZSTD"
        times = pq.read_table(path, columns=["ts"])["ts"].to_pylist()
        assert times == sorted(times)
    assert compact_decisions(tmp_path, method=method).partitions == 0


def test_days_of_large_records_are_compacted_and_erased_within_the_memory_limit(tmp_path: Path) -> None:
    for batch in range(3):
        large = [
            make_decision(
                NOON + timedelta(seconds=3 * n + batch),
                subject_ids=["ann" if n % 2 else "bob"],
                messages=[{"role": "user", "content": f"{batch}{n} ".ljust(2_000_000, "x")}],
            )
            for n in range(8)
        ]
        write_segment(tmp_path, large)
        land_decisions(tmp_path)
    assert compact_decisions(tmp_path, memory_limit="60MB").files_after == 1
    assert erase_subject(tmp_path, "ann", memory_limit="60MB").decisions == 12
    query = "SELECT ts, left(messages[1].content, 5) FROM decisions"
    rows = storage.sql(tmp_path, query, memory_limit="300MB").rows
    assert len(rows) == 12
    assert [text.split()[0] for _, text in sorted(rows)] == [f"{b}{n}" for n in range(0, 8, 2) for b in range(3)]


@pytest.mark.parametrize("method", METHODS)
def test_a_compacted_segment_that_turns_up_again_is_skipped(tmp_path: Path, method: Method) -> None:
    write_segment(tmp_path, make_days(1, 3))
    (segment,) = (tmp_path / "spool").iterdir()
    content = segment.read_bytes()
    fill(tmp_path)
    compact_decisions(tmp_path, method=method)
    before = landed_ids(tmp_path)
    write_lines(tmp_path, [content], segment.stem)
    assert land_decisions(tmp_path).decisions == 0
    assert landed_ids(tmp_path) == before


def test_without_an_exchange_the_manifest_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_exchange(a: Path, b: Path) -> None:
        raise OSError(errno.EINVAL, "not on this filesystem")

    monkeypatch.setattr(replace, "exchange", no_exchange)
    fill(tmp_path)
    before = everything(tmp_path)
    with pytest.raises(OSError, match="not on this filesystem"):
        compact_decisions(tmp_path, method="exchange")
    assert everything(tmp_path) == before
    assert compact_decisions(tmp_path).files_after == 4
    assert everything(tmp_path) == before


@pytest.mark.parametrize("hidden_first", [True, False])
def test_a_manifest_cut_off_by_a_kill_is_settled(tmp_path: Path, hidden_first: bool) -> None:
    """Before the commit the new file goes, after it the old ones do; readers see one or the other all along."""
    fill(tmp_path, 2)
    before = everything(tmp_path)
    folder = list_parquet(tmp_path)[0].parent
    old = live_files(folder)
    names = {path.name for path in old}
    compact_decisions(tmp_path, method="manifest")
    (new,) = live_files(folder)
    for path in old:  # as the kill left them: both the new file and the old ones are there
        path.write_bytes(new.read_bytes())
    (folder / HIDDEN).write_text(str([new.name] if hidden_first else sorted(names)).replace("'", '"'))
    assert {path.name for path in live_files(folder)} == (names if hidden_first else {new.name})
    land_decisions(tmp_path)
    assert not (folder / HIDDEN).exists()
    assert {path.name for path in folder.iterdir()} == (names if hidden_first else {new.name})
    if not hidden_first:
        assert everything(tmp_path) == before


VERBS: dict[str, Callable[[Path], object]] = {
    "compact": compact_decisions,
    "erase": lambda data: erase_subject(data, "zoë"),
    "expire": lambda data: expire_decisions(data, retention_days=1, now=NOON + timedelta(days=9)),
}


@pytest.mark.parametrize(
    ("verb", "damage"),
    [
        *((verb, damage) for verb in VERBS for damage in ("cut short", "empty")),
        ("compact", "a page"),
        ("erase", "a page"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_all_stays(tmp_path: Path, verb: str, damage: str) -> None:
    for start in (NOON, NOON + timedelta(hours=1)):
        write_segment(tmp_path, make_days(1, 2, start, subject_ids=["zoë"]))
        land_decisions(tmp_path, now=start)
    broken = list_parquet(tmp_path)[1]
    content = broken.read_bytes()
    broken.write_bytes(
        {"cut short": content[:-20], "empty": b"", "a page": content[:4] + bytes(200) + content[204:]}[damage]
    )
    with pytest.raises(TableError, match=rf"{broken.name} cannot be read \(.+\); move it out of the table"):
        VERBS[verb](tmp_path)
    broken.write_bytes(content)
    assert len(landed_ids(tmp_path)) == 4
    VERBS[verb](tmp_path)
    assert len(landed_ids(tmp_path)) == (4 if verb == "compact" else 0)


@pytest.mark.parametrize("verb", ["compact", "erase"])
@pytest.mark.parametrize(("schema", "column"), [(b"2", "thinking"), (b"2", None), (b"1", "thinking")])
def test_a_file_of_a_newer_version_is_read_and_not_written_anew(
    tmp_path: Path, verb: str, schema: bytes, column: str | None
) -> None:
    others = make_days(1, 2, NOON + timedelta(hours=1), subject_ids=["ann"])
    write_segment(tmp_path, [*make_days(1, 2, subject_ids=["zoë"]), *others])
    land_decisions(tmp_path, now=NOON)
    write_segment(tmp_path, make_days(1, 1, NOON + timedelta(hours=2)))
    land_decisions(tmp_path, now=NOON)
    newer = list_parquet(tmp_path)[0]
    rows = pq.read_table(newer, partitioning=None)
    if column is not None:
        rows = rows.append_column(column, pa.array(["deep"] * 4))
    pq.write_table(rows.replace_schema_metadata({SCHEMA_KEY: schema}), newer)
    os.utime(newer, (NOON.timestamp(), NOON.timestamp()))
    content = newer.read_bytes()
    with pytest.raises(TableError, match=rf"{newer.name} has more in it than .* \(schema .*; upgrade custom-reasoning"):
        VERBS[verb](tmp_path)
    assert newer.read_bytes() == content
    if column is not None:
        assert storage.sql(tmp_path, f"SELECT count({column}), count(*) FROM decisions").rows == [(4, 5)]
    assert VERBS["expire"](tmp_path)
    assert landed_ids(tmp_path) == []


def test_a_wrong_row_count_leaves_the_partition_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    before = {path: path.read_bytes() for path in list_parquet(tmp_path)}
    scan = rewrite.scan
    monkeypatch.setattr(rewrite, "scan", lambda table, files: f"{scan(table, files)} LIMIT 3")
    with pytest.raises(TableError, match="stays as it is"):
        compact_decisions(tmp_path)
    assert {path: path.read_bytes() for path in list_parquet(tmp_path)} == before
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".staging") or path.name[:2] == ".r"]


def test_exchange_swaps_two_folders(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    files.exchange(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    with pytest.raises(FileNotFoundError):
        files.exchange(tmp_path / "a", tmp_path / "c")


def test_expiry_deletes_whole_days_and_counts_them(tmp_path: Path) -> None:
    decisions = make_days(10, 3)
    late = make_feedback(NOON + timedelta(days=9), decision_id=decisions[0].decision_id)
    write_segment(tmp_path, [make_decision(decision_type="planning")])
    write_lines(tmp_path, [b"torn"])
    for day in range(10):  # age counts from the landing as well
        write_segment(tmp_path, decisions[3 * day : 3 * day + 3])
        land_decisions(tmp_path, now=NOON + timedelta(days=day))
    now = NOON + timedelta(days=9)
    write_segment(tmp_path, [late])
    land_decisions(tmp_path, now=now)
    for path in (tmp_path / "quarantine").iterdir():
        os.utime(path, (NOON.timestamp(), NOON.timestamp()))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    dry = expire_decisions(tmp_path, retention_days=5, now=now, dry_run=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before
    wet = expire_decisions(tmp_path, retention_days=5, now=now)
    assert (dry.partitions, dry.rows, dry.bytes, dry.quarantine_files) == (
        wet.partitions,
        wet.rows,
        wet.bytes,
        wet.quarantine_files,
    )
    assert (wet.before, wet.partitions, wet.rows) == ("2026-11-24", 6, {"decisions": 13, "feedback": 1})
    assert wet.quarantine_files == 1
    assert storage.sql(tmp_path, "SELECT min(date)::VARCHAR, count(*) FROM decisions").rows == [("2026-11-24", 18)]
    assert expire_decisions(tmp_path, retention_days=5, now=now).partitions == 0


def test_expiry_leaves_what_is_not_ours(tmp_path: Path) -> None:
    Layout(tmp_path).create()
    for name in ("decisions/notes.txt", "decisions/decision_type=x/date=soon/y", "decisions/date=2000-01-01/y"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    expire_decisions(tmp_path, retention_days=1, now=NOON)
    compact_decisions(tmp_path)
    assert len([path for path in tmp_path.joinpath("decisions").rglob("*") if path.is_file()]) == 3


def test_a_retention_longer_than_there_are_dates_keeps_all(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    for days in (10**6, 10**12):
        report = expire_decisions(tmp_path, retention_days=days)
        assert (report.partitions, report.before) == (0, "0001-01-01")


def test_quarantined_lines_of_a_segment_of_an_impossible_time_expire_by_their_files_time(tmp_path: Path) -> None:
    write_lines(tmp_path, [b"garbage\n"], "ffffffff-ffff-7fff-bfff-ffffffffffff-1")
    land_decisions(tmp_path)
    assert expire_decisions(tmp_path, retention_days=30).quarantine_files == 0
    (path,) = (tmp_path / "quarantine").iterdir()
    os.utime(path, (0, 0))
    assert expire_decisions(tmp_path, retention_days=30).quarantine_files == 1


@pytest.mark.parametrize("days", [0, -1])
def test_a_retention_of_no_days_is_refused(tmp_path: Path, days: int) -> None:
    with pytest.raises(ValueError, match="retention_days"):
        expire_decisions(tmp_path, retention_days=days)


def test_landing_gets_its_turn_between_partitions(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    free = []

    def probe(event: Progress) -> None:
        with data_lock(Layout(tmp_path), "probe", timeout=0):
            free.append((event.done, event.total))

    compact_decisions(tmp_path, progress=probe)
    assert free == [(n, 4) for n in range(1, 5)]
