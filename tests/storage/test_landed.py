"""A record lands once, whatever copies of its segment turn up, and none of it is lost over that."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import storage
from reasoning.io.segments import frame_line
from storage.errors import TableError
from storage.layout import Layout
from storage.log import land
from storage.log.compact import compact_decisions
from storage.log.land import land_decisions
from storage.log.quarantine import read_quarantine
from storage.log.reland import reland_quarantine
from tests.storage.logs import (
    NOON,
    landed_ids,
    list_parquet,
    make_days,
    make_decision,
    make_feedback,
    segment_id,
    to_line,
    write_lines,
)


def compact(data: Path) -> None:
    land_decisions(data)
    write_lines(data, [to_line(make_decision(NOON.replace(hour=1)))])  # two files, or there is nothing to compact
    land_decisions(data)
    assert compact_decisions(data).partitions


@pytest.mark.parametrize("between", [land_decisions, compact, lambda data: None], ids=["land", "compact", "nothing"])
def test_a_copy_under_another_name_lands_once(tmp_path: Path, between: Callable[[Path], object]) -> None:
    lines = [
        to_line(record) for record in [*make_days(2, 3), make_feedback(episode_id="e"), make_feedback(episode_id="f")]
    ]
    write_lines(tmp_path, lines)
    between(tmp_path)
    before = len(landed_ids(tmp_path))
    write_lines(tmp_path, lines[::-1])
    report = land_decisions(tmp_path)
    assert report.duplicates == 8
    assert report.quarantined == {}
    assert len(landed_ids(tmp_path)) == (before or 6)
    assert storage.sql(tmp_path, "SELECT count(*) FROM feedback_log").rows == [(2,)]


@pytest.mark.parametrize("name", [None, segment_id()], ids=["another name", "the same name"])
def test_what_a_copy_has_more_lands(tmp_path: Path, name: str | None) -> None:
    """The first one was cut short, as by a `scp` that landing overtook."""
    decisions = make_days(1, 5)
    content = b"".join(map(to_line, decisions))
    write_lines(tmp_path, [content[: len(content) // 2]], name)
    report = land_decisions(tmp_path)
    assert (report.decisions, report.quarantined) == (2, {"torn": 1})
    write_lines(tmp_path, [content], name)
    report = land_decisions(tmp_path)
    assert (report.decisions, report.duplicates) == (3, 2)
    assert landed_ids(tmp_path) == sorted(d.decision_id for d in decisions)


def test_another_record_of_the_same_id_is_quarantined(tmp_path: Path) -> None:
    first = make_decision(completion="one")
    second = make_decision(decision_id=first.decision_id, request_id=first.request_id, completion="two", confidence=0.5)
    third = make_decision(decision_id=first.decision_id, request_id=first.request_id, completion="three")
    other = make_decision()
    write_lines(tmp_path, [to_line(first)])
    land_decisions(tmp_path)
    segment = write_lines(tmp_path, [to_line(other), to_line(second), to_line(first), to_line(third)]).stem
    report = land_decisions(tmp_path)
    assert (report.decisions, report.duplicates, report.quarantined) == (1, 1, {"conflict": 2})
    path = tmp_path / "quarantine" / f"{segment}.jsonl"
    (entry, raw), (_, another) = read_quarantine(path)
    assert [raw + b"\n", another + b"\n"] == [to_line(second), to_line(third)]
    differ = f"conflict: another record has the decision_id {first.decision_id}: completion, confidence differ"
    assert (entry["reason"], entry["line"], entry["offset"]) == (differ, 2, len(to_line(other)))

    relanded = reland_quarantine(tmp_path)
    assert (relanded.relanded, relanded.kept) == (0, {"conflict": 2})
    mended = make_decision(completion="two")
    path.write_bytes(orjson.dumps({**entry, "raw": to_line(mended).decode()[9:]}) + b"\n")
    assert reland_quarantine(tmp_path).relanded == 1
    assert landed_ids(tmp_path) == sorted([first.decision_id, other.decision_id, mended.decision_id])


def test_what_was_quarantined_and_has_landed_since_leaves_the_quarantine(tmp_path: Path) -> None:
    """A line was damaged on its way, then its segment came again."""
    line = to_line(make_decision())
    write_lines(tmp_path, [frame_line(b"x")[:8] + line[8:]])
    assert land_decisions(tmp_path).quarantined == {"CRC mismatch": 1}
    write_lines(tmp_path, [line])
    land_decisions(tmp_path)
    (path,) = (tmp_path / "quarantine").iterdir()
    entry = orjson.loads(path.read_bytes())
    path.write_bytes(orjson.dumps({**entry, "raw": line.decode()}) + b"\n")
    report = reland_quarantine(tmp_path)
    assert (report.relanded, report.duplicates, report.kept) == (0, 1, {})
    assert len(landed_ids(tmp_path)) == 1
    assert not list((tmp_path / "quarantine").iterdir())


def test_only_row_groups_that_may_have_the_ids_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decisions = make_days(1, 60)
    for start in (0, 30, 60):
        write_lines(tmp_path, [to_line(decision) for decision in decisions[start % 60 : start % 60 + 30]])
        report = land_decisions(tmp_path)
        for path in list_parquet(tmp_path)[:1]:
            content = path.read_bytes()
            path.write_bytes(b"PAR1" + bytes(100) + content[104:])  # the ids, if somebody reads them
        if start == 30:
            assert (report.decisions, report.duplicates) == (30, 0)
            break
    write_lines(tmp_path, [to_line(decisions[0])])
    with pytest.raises(TableError, match="move it out of the table"):
        land_decisions(tmp_path)
    assert len(list((tmp_path / "spool").iterdir())) == 1


LOG = make_days(1, 8)
CHANGED = [make_decision(d.ts, decision_id=d.decision_id, request_id=d.request_id, completion="2") for d in LOG]
numbers = st.lists(st.sampled_from([*range(8), *range(8), *range(8, 16)]), min_size=1, max_size=12)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(numbers, st.sampled_from(["", "land", "land", "compact"])), min_size=1, max_size=4))
def test_every_record_lands_once_or_is_in_the_quarantine(history: list[tuple[list[int], str]]) -> None:
    """`numbers` are of the records of a segment: those of `LOG`, and then others that have their ids."""
    records = [*LOG, *CHANGED]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        patch.setattr(land, "_CHUNK_BYTES", 2000)
        patch.setattr(land, "ROW_GROUP_ROWS", 3)  # several writes to a file
        patch.setattr(land, "_FILE_ROWS", 7)
        data = Path(folder)
        landed = duplicates = quarantined = 0
        for segment, then in [*history, ([0], "land")]:
            write_lines(data, [to_line(records[number]) for number in segment])
            if then:
                report = land_decisions(data)
                landed += report.decisions
                duplicates += report.duplicates
                quarantined += report.quarantined.get("conflict", 0)
            if then == "compact":
                compact_decisions(data)
        written = [number for segment, _ in history for number in segment] + [0]
        found = dict(storage.sql(data, "SELECT decision_id, completion FROM decisions").rows)
        assert found.keys() == {records[number].decision_id for number in written}
        assert landed_ids(data) == sorted(found)
        assert landed == len(found)
        assert landed + duplicates + quarantined == len(written)
        told = [raw for path in (data / "quarantine").iterdir() for _, raw in read_quarantine(path)]
        assert len(told) == quarantined
        for number in written:
            record = records[number]
            assert found[record.decision_id] == record.completion or to_line(record)[:-1] in told


def test_segments_of_any_name_land(tmp_path: Path) -> None:
    names = [b"a b", b"it's [1-2]*?", b"two\nlines", b"a\xff", b"x" * 250, b".hidden", "\u00fc \U0001f600".encode()]
    spool = os.fsencode(Layout(tmp_path).create().spool)
    paths = [Path(os.fsdecode(spool + b"/" + name[:250] + b".seal")) for name in names]
    decisions = make_days(1, 2 * len(names))
    for path, first in zip(paths, decisions[::2], strict=True):
        path.write_bytes(to_line(first) + b"bad\n")
    land_decisions(tmp_path)
    for path, first, second in zip(paths, decisions[::2], decisions[1::2], strict=True):
        path.write_bytes(to_line(first) + to_line(second) + b"worse\nbad\n")
    assert land_decisions(tmp_path).duplicates == len(names)
    assert landed_ids(tmp_path) == sorted(decision.decision_id for decision in decisions)
    for path in (tmp_path / "quarantine").iterdir():
        assert sorted(raw for _, raw in read_quarantine(path)) == [b"bad", b"bad", b"worse"]  # each where it was
    assert reland_quarantine(tmp_path).kept == {"no frame": 3 * len(names)}


def test_a_dead_writers_segment_does_not_replace_a_copy_of_it(tmp_path: Path) -> None:
    decisions = make_days(1, 2)
    name = segment_id()
    write_lines(tmp_path, [to_line(decision) for decision in decisions], name)
    write_lines(tmp_path, [to_line(decisions[0])], name, ".open")
    assert land_decisions(tmp_path).duplicates == 1
    assert len(landed_ids(tmp_path)) == 2
