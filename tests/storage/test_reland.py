"""The quarantine, landed again: once, and only what fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import orjson
import pytest

import reasoning.records
import storage
from reasoning.io.segments import frame_line
from reasoning.records import Decision, Feedback
from storage.errors import QuarantineError
from storage.log import reland
from storage.log.land import land_decisions
from storage.log.reland import reland_quarantine
from tests.storage.logs import landed_ids, make_days, make_feedback, to_line, write_lines


def of_schema(line: bytes, schema: int) -> bytes:
    return frame_line(orjson.dumps({**orjson.loads(line[9:]), "schema": schema, "mood": "new"}))


def quarantine_newer(data: Path, count: int = 3) -> list:
    decisions = make_days(1, count)
    write_lines(data, [b"no frame\n", *(of_schema(to_line(decision), 2) for decision in decisions)])
    assert land_decisions(data).quarantined == {"no frame": 1, "no record": count}
    return decisions


def test_lines_of_a_newer_schema_land_after_an_upgrade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decisions = quarantine_newer(tmp_path)
    report = reland_quarantine(tmp_path)
    assert (report.relanded, report.kept) == (0, {"no frame": 1, "no record": 3})
    (path,) = (tmp_path / "quarantine").iterdir()
    reason = f"no record: schema: 2 is not known here (1..1); upgrade custom-reasoning ({path.name}:2)"
    assert report.examples["no record"] == reason
    monkeypatch.setattr(reasoning.records, "SCHEMA_VERSION", 2)
    report = reland_quarantine(tmp_path)
    assert (report.relanded, report.kept) == (3, {"no frame": 1})
    assert landed_ids(tmp_path) == sorted(d.decision_id for d in decisions)
    assert storage.sql(tmp_path, "SELECT DISTINCT extra FROM decisions").rows == [('{"mood":"new"}',)]
    assert reland_quarantine(tmp_path).relanded == 0
    assert len(landed_ids(tmp_path)) == 3


def test_a_line_mended_by_hand_lands(tmp_path: Path) -> None:
    (decision,) = make_days(1, 1)
    line = to_line(decision)
    write_lines(tmp_path, [b"0" * 8 + line[8:]])
    land_decisions(tmp_path)
    (path,) = (tmp_path / "quarantine").iterdir()
    entry = orjson.loads(path.read_bytes())
    path.write_bytes(orjson.dumps({**entry, "raw": entry["raw"][9:]}))
    assert reland_quarantine(tmp_path).relanded == 1
    assert landed_ids(tmp_path) == [decision.decision_id]
    assert not list((tmp_path / "quarantine").iterdir())


@pytest.mark.parametrize(
    "line", [b"hello", b"[]", b'{"reason": "torn"}', b'{"line":1,"offset":0,"reason":"x","raw":5}']
)
def test_a_file_that_is_no_quarantine_is_named_and_left_alone(tmp_path: Path, line: bytes) -> None:
    quarantine_newer(tmp_path)
    path = tmp_path / "quarantine" / "0.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(QuarantineError, match=r"0\.jsonl, line 1: not an entry"):
        reland_quarantine(tmp_path)
    assert path.read_bytes() == line + b"\n"


@pytest.mark.parametrize("step", range(5))
def test_a_kill_at_any_step_neither_loses_nor_doubles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    decisions = quarantine_newer(tmp_path)
    monkeypatch.setattr(reasoning.records, "SCHEMA_VERSION", 2)
    calls = []

    def killing(name: str, function: object) -> object:
        def call(*arguments: object, **keywords: object) -> object:
            calls.append(name)
            if len(calls) == step + 1:
                raise KeyboardInterrupt
            return function(*arguments, **keywords)  # type: ignore[operator]

        return call

    with monkeypatch.context() as patch:
        for name in ("write_atomic", "finish_landing", "sync"):
            patch.setattr(reland, name, killing(name, getattr(reland, name)))
        with pytest.raises(KeyboardInterrupt):
            reland_quarantine(tmp_path)
    reland_quarantine(tmp_path)
    assert landed_ids(tmp_path) == sorted(d.decision_id for d in decisions)
    assert len(list((tmp_path / "quarantine").iterdir())) == 1


def damage(data: Path, *segments: tuple[str, Decision | Feedback]) -> None:
    """Land segments of one line each whose CRC does not fit, and mend the lines by hand."""
    for name, decision in segments:
        write_lines(data, [b"0" * 8 + to_line(decision)[8:]], name)
    land_decisions(data)
    for path in (data / "quarantine").iterdir():
        entry = orjson.loads(path.read_bytes())
        path.write_bytes(orjson.dumps({**entry, "raw": entry["raw"][9:]}) + b"\n")


def test_a_segment_named_like_a_second_attempt_is_no_plan_of_the_first(tmp_path: Path) -> None:
    decisions = make_days(1, 3)
    damage(tmp_path, *zip(["a", "a.r1", "a.r1.r2"], decisions, strict=True))
    assert len(list((tmp_path / "quarantine").iterdir())) == 3
    assert reland_quarantine(tmp_path).relanded == 3
    assert landed_ids(tmp_path) == sorted(decision.decision_id for decision in decisions)


def test_one_record_in_two_files_lands_once_and_two_of_one_id_do_not_both_count(tmp_path: Path) -> None:
    (decision,) = make_days(1, 1)
    other = replace(decision, latency_ms=7.0)
    damage(tmp_path, ("a", decision), ("b", decision), ("c", other))
    report = reland_quarantine(tmp_path)
    assert (report.relanded, report.duplicates, report.kept) == (1, 1, {"conflict": 1})
    assert landed_ids(tmp_path) == [decision.decision_id]


def test_what_lands_beside_one_another_is_landed_again_beside_one_another(tmp_path: Path) -> None:
    """A feedback's id is known within its day, a decision's within its type; the order of the fields says nothing."""
    decisions = make_days(2, 1)
    feedback = [make_feedback(decision_id=decision.decision_id) for decision in decisions]
    feedback[1].feedback_id = feedback[0].feedback_id
    planning = replace(decisions[0], decision_type="planning")
    damage(tmp_path, *zip("abcde", [*feedback, decisions[0], planning, decisions[0]], strict=True))
    path = tmp_path / "quarantine" / "e.jsonl"
    entry = orjson.loads(path.read_bytes())
    shuffled = orjson.dumps(orjson.loads(entry["raw"]), option=orjson.OPT_SORT_KEYS).decode()
    path.write_bytes(orjson.dumps({**entry, "raw": shuffled}))
    report = reland_quarantine(tmp_path)
    assert (report.relanded, report.duplicates, report.kept) == (4, 1, {})
    assert len(landed_ids(tmp_path)) == 2
    assert storage.sql(tmp_path, "SELECT count(*) FROM feedback_log").rows == [(2,)]
