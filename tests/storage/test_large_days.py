"""Compaction and erasure of days that take long to write: landing goes on beside them, and nothing gets lost."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import storage
from storage.erasure import erase
from storage.erasure.erase import erase_subject
from storage.layout import Layout
from storage.locks import data_lock
from storage.log import compact, rewrite
from storage.log.compact import choose_groups, compact_decisions
from storage.log.land import land_decisions
from storage.log.replace import SCRATCH, Method
from storage.log.table import HIDDEN
from tests.storage import faults
from tests.storage.logs import NOON, landed_ids, list_parquet, make_days, make_decision, make_feedback, write_segment

MB = 1 << 20
VERBS: dict[str, Callable[[Path], Any]] = {
    "compact": compact_decisions,
    "erase": lambda data: erase_subject(data, "ann"),
}


def add(data: Path, minute: int, subject: str, **values: Any) -> Any:
    """Land one decision and feedback on it; the decision."""
    decision = make_decision(NOON + timedelta(minutes=minute), subject_ids=[subject], **values)
    write_segment(data, [decision, make_feedback(decision_id=decision.decision_id)])
    land_decisions(data)
    return decision


def while_writing(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> list[list[Path]]:
    """Do something each time after files were read to be written anew. The list is filled with the files read."""
    write, written = rewrite._write, []

    def spy(con: Any, table: str, sources: list[Path], *rest: Any) -> None:
        written.append(sources)
        write(con, table, sources, *rest)
        act(len(written))

    monkeypatch.setattr(rewrite, "_write", spy)
    return written


def scratch_of(data: Path) -> list[Path]:
    staging = [path for name in ("decisions.staging", "feedback.staging") for path in (data / name).glob("*")]
    return [*data.glob(f"{SCRATCH}*"), *staging]


@pytest.mark.parametrize("verb", VERBS)
def test_no_file_is_written_under_the_lock_and_what_lands_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    bobs = [add(tmp_path, n, "bob").decision_id for n in range(2)]
    both = [make_decision(subject_ids=[name]) for name in ("ann", "bob")]
    write_segment(tmp_path, [*both, *(make_feedback(decision_id=decision.decision_id) for decision in both)])
    land_decisions(tmp_path)
    bobs.append(both[1].decision_id)

    def land(_: int) -> None:
        with data_lock(Layout(tmp_path), "probe", timeout=0):
            pass  # raises where the verb holds the lock
        bobs.append(add(tmp_path, 10 + len(bobs), "bob").decision_id)

    written = while_writing(monkeypatch, land)
    VERBS[verb](tmp_path)
    assert len(written) == 2  # a file of decisions, and one of feedback
    kept = {
        row[0] for row in storage.sql(tmp_path, "SELECT decision_id FROM decisions WHERE 'bob' IN subject_ids").rows
    }
    assert kept == set(bobs)
    assert len(landed_ids(tmp_path)) == len(bobs) + (verb == "compact")
    assert storage.sql(tmp_path, "SELECT count(*) FROM feedback").rows == [(len(landed_ids(tmp_path)),)]
    assert scratch_of(tmp_path) == []


@pytest.mark.parametrize("method", ["exchange", "manifest"])
def test_a_merge_leaves_the_other_files_of_its_day_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    add(tmp_path, 0, "bob", messages=[{"role": "user", "content": "x" * 50}])
    for n in (1, 2):
        add(tmp_path, n, "bob")
    before = {path: path.stat() for path in list_parquet(tmp_path)}
    (large, *_) = sorted(before, key=lambda path: path.stat().st_mtime)
    monkeypatch.setattr(compact, "TARGET_BYTES", 2 * before[large].st_size)
    monkeypatch.setattr(compact, "_sizes", lambda folder: sizes(folder, large))
    compact_decisions(tmp_path, method=method)
    after = list_parquet(tmp_path)
    assert large in after and large.stat().st_ino == before[large].st_ino
    assert len([path for path in after if path.parent == large.parent]) == 2
    assert len(landed_ids(tmp_path)) == 3


def sizes(folder: Path, large: Path) -> dict[Path, int]:
    return {path: large.stat().st_size if path == large else 1 for path in sorted(folder.iterdir())}


def test_an_erasure_writes_only_the_files_that_hold_the_person(tmp_path: Path) -> None:
    for n in range(3):
        add(tmp_path, n, "bob")
    add(tmp_path, 3, "ann")
    before = {path: path.stat().st_ino for path in list_parquet(tmp_path)}
    assert erase_subject(tmp_path, "ann").decisions == 1
    after = {path: path.stat().st_ino for path in list_parquet(tmp_path)}
    assert len(before) == 8 and len(after) == 6
    assert after.items() <= before.items()


def test_rows_of_the_person_that_land_during_an_erasure_are_erased_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob = [add(tmp_path, 0, "ann"), add(tmp_path, 1, "bob")][1]

    def land(count: int) -> None:
        if count < 20:  # for ever, but for an erasure that never ends
            ann = make_decision(NOON + timedelta(minutes=count + 1), subject_ids=["ann"])
            with data_lock(Layout(tmp_path), "probe", timeout=0):
                pass
            write_segment(tmp_path, [ann, make_decision(ann.ts, subject_ids=["carl"])])
            land_decisions(tmp_path)

    # Of the first file nothing but hers is left, which writes none: one of both.
    write_segment(tmp_path, [make_decision(subject_ids=[name]) for name in ("ann", "carl")])
    land_decisions(tmp_path)
    plans, make = [], erase._Planner.make

    def count_plans(self: Any) -> Any:
        plans.append(None)
        if len(plans) > erase._ATTEMPTS:  # under the lock by now: nobody can land
            monkeypatch.undo()
        return make(self)

    monkeypatch.setattr(erase._Planner, "make", count_plans)
    written = while_writing(monkeypatch, land)
    erase_subject(tmp_path, "ann")
    assert len(plans) == erase._ATTEMPTS + 1
    assert len({tuple(sources) for sources in written}) == len(written)  # none was written twice
    assert storage.sql(tmp_path, "SELECT count(*) FROM decisions WHERE 'ann' IN subject_ids").rows == [(0,)]
    assert storage.sql(tmp_path, "SELECT count(*) FROM decisions WHERE 'carl' IN subject_ids").rows == [
        (1 + len(written),)
    ]
    assert bob.decision_id in landed_ids(tmp_path)
    assert scratch_of(tmp_path) == []


def test_feedback_of_an_episode_stays_where_others_decisions_in_it_land_during_the_erasure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_segment(tmp_path, [make_decision(subject_ids=[n], episode_id=f"of {n}") for n in ("ann", "bob")])
    write_segment(tmp_path, [make_feedback(episode_id="of ann")])

    def land(count: int) -> None:
        if count == 1:
            write_segment(tmp_path, [make_decision(subject_ids=["bob"], episode_id="of ann")])
            land_decisions(tmp_path)

    while_writing(monkeypatch, land)
    report = erase_subject(tmp_path, "ann")
    assert (report.decisions, report.feedback) == (1, 0)
    assert storage.sql(tmp_path, "SELECT episode_id FROM feedback").rows == [("of ann",)]


@pytest.mark.parametrize("first", VERBS)
@pytest.mark.parametrize("second", VERBS)
def test_two_verbs_on_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str) -> None:
    bobs = make_days(1, 3, subject_ids=["bob"])
    for n, bob in enumerate(bobs):
        write_segment(tmp_path, [bob, make_decision(NOON + timedelta(minutes=n), subject_ids=["ann"])])
        land_decisions(tmp_path)
    reports = []

    def interfere(count: int) -> None:
        if count == 1:
            reports.append(VERBS[second](tmp_path))

    while_writing(monkeypatch, interfere)
    reports.append(VERBS[first](tmp_path))
    ids = landed_ids(tmp_path)
    assert set(ids) >= {bob.decision_id for bob in bobs}
    assert len(ids) == len(set(ids)) == (6 if first == second == "compact" else 3)
    assert scratch_of(tmp_path) == []
    if first == "compact":
        assert (reports[1].interrupted, reports[1].partitions) == (1, 0)


@pytest.mark.parametrize("verb", VERBS)
def test_a_scratch_folder_that_a_copied_machine_took_for_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    bobs = make_days(1, 2, subject_ids=["bob"])
    for n, bob in enumerate(bobs):
        write_segment(tmp_path, [bob, make_decision(NOON + timedelta(minutes=n), subject_ids=["ann"])])
        land_decisions(tmp_path)

    def delete(count: int) -> None:
        if count == 1:
            for path in tmp_path.glob(f"{SCRATCH}*"):
                shutil.rmtree(path)

    while_writing(monkeypatch, delete)
    report = VERBS[verb](tmp_path)
    ids = landed_ids(tmp_path)
    assert {bob.decision_id for bob in bobs} <= set(ids)
    assert len(ids) == (4 if verb == "compact" else 2)
    assert verb == "erase" or report.interrupted == 1


@pytest.mark.parametrize(
    ("verb", "method", "step", "done"),
    [
        ("compact", "exchange", "commit", False),
        ("compact", "exchange", "_discard", True),
        ("compact", "manifest", "_delete_hidden", True),
        ("erase", "exchange", "_carry_out", False),
        ("erase", "exchange", "empty_folder", True),
    ],
)
def test_a_kill_before_and_after_the_exchange(tmp_path: Path, verb: str, method: Method, step: str, done: bool) -> None:
    bobs = make_days(1, 3, subject_ids=["bob"])
    for n, bob in enumerate(bobs):
        ann = make_decision(NOON + timedelta(minutes=n), subject_ids=["ann"])
        write_segment(tmp_path, [bob, ann, make_feedback(decision_id=ann.decision_id, value="on ann")])
        land_decisions(tmp_path)
    before = list_parquet(tmp_path)
    with faults.started(faults.rewrite_until, tmp_path, verb, method, step) as process:
        process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(scratch_of(tmp_path)) > 0 or method == "manifest"
    assert bool(set(before) - set(list_parquet(tmp_path))) == (done and method != "manifest")
    expected = 3 if verb == "erase" and done else 6
    assert len(landed_ids(tmp_path)) == expected
    land_decisions(tmp_path)
    assert scratch_of(tmp_path) == []  # with the rows of the person that were in it
    assert len(landed_ids(tmp_path)) == len(set(landed_ids(tmp_path))) == expected
    VERBS[verb](tmp_path)
    assert set(landed_ids(tmp_path)) >= {bob.decision_id for bob in bobs}
    assert len(landed_ids(tmp_path)) == (3 if verb == "erase" else 6)
    assert len(list_parquet(tmp_path)) == (2 if verb == "compact" else 3)


def group(*sizes: int, min_files: int = 2) -> list[list[int]]:
    """The groups, as positions, that files of these sizes make."""
    files = {Path(str(n)): size for n, size in enumerate(sizes)}
    return [[int(path.name) for path in paths] for paths in choose_groups(files, min_files)]


def test_which_files_are_merged() -> None:
    assert group(1, 2, 3) == [[0, 1, 2]]
    assert group(1) == group() == []
    assert group(1, 2, min_files=3) == []
    assert group(100 * MB, 1000) == []  # late feedback does not rewrite an old day
    assert group(100 * MB, 1000, 1000) == [[1, 2]]
    assert group(7 * MB, 7 * MB, 1000, 1000) == [[2, 3], [0, 1]]
    assert group(70 * MB, 15 * MB, 3 * MB, 1_000_000) == [[0, 1, 2, 3]]
    assert group(128 * MB, 60 * MB, 60 * MB) == [[1, 2]]  # large enough
    assert group(*[100 * MB] * 6) == [[0, 1], [2, 3], [4, 5]]  # in the order in which they were written
    assert group(5000 * MB) == []


def test_the_bytes_written_grow_with_the_logarithm_of_the_landings() -> None:
    files, written, total = {Path("0"): 100 * MB}, 0, 0
    for n in range(1, 500):
        files[Path(str(n))] = MB // 8
        total += MB // 8
        for paths in list(choose_groups(files)):
            size = sum(files.pop(path) for path in paths)
            files[Path(f"{n} merged")] = size
            written += size
    assert len(files) <= 8
    assert written < 20 * total


@pytest.mark.parametrize("method", ["exchange", "manifest"])
def test_what_another_compaction_left_hidden_when_it_was_killed_is_not_shown_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    for n in range(2):
        add(tmp_path, n, "bob")

    def leave(count: int) -> None:
        if count == 1:
            (file, *_) = list_parquet(tmp_path)
            shutil.copy(file, file.with_name("data-garbage.parquet"))
            file.with_name(HIDDEN).write_text('["data-garbage.parquet"]')

    while_writing(monkeypatch, leave)
    assert compact_decisions(tmp_path, method=method).interrupted == 0
    assert len(landed_ids(tmp_path)) == 2
    assert [path.name for path in tmp_path.glob("decisions/*/*/*") if path.name[:5] != "data-"] == []
