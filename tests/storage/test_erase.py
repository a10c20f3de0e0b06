"""Erasure: nothing of the subject is left, nothing of anyone else is gone."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import orjson
import pyarrow.parquet as pq
import pytest

import storage
from reasoning.io.segments import frame_line
from reasoning.io.spool import SegmentWriter
from reasoning.records import Decision, Feedback, encode_record
from storage.erasure import erase
from storage.erasure.erase import erase_subject
from storage.errors import DatasetError
from storage.ledger.rows import Model, UploadedDataset
from storage.log.land import land_decisions
from storage.log.quarantine import read_quarantine
from storage.log.reland import reland_quarantine
from storage.log.rewrite import Rewrite
from tests.storage import faults
from tests.storage.logs import (
    NOON,
    landed_ids,
    make_decision,
    make_feedback,
    to_line,
    write_dataset,
    write_lines,
    write_segment,
)


def occurrences(data: Path, needle: bytes) -> list[Path]:
    """Files that hold the needle, Parquet read as rows."""
    found = []
    for path in data.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if path.suffix == ".parquet":
                content += orjson.dumps(pq.ParquetFile(path).read().to_pylist(), default=str)
            if needle in content:
                found.append(path)
    return found


def make_pair(second: int, **values: object) -> list:
    ann = make_decision(
        NOON + timedelta(seconds=second),
        subject_ids=["zz-ann", "bob"],
        messages=[{"role": "user", "content": "zz-ann: my secret"}],
        **values,
    )
    other = make_decision(NOON + timedelta(seconds=second), subject_ids=["bob"], **values)
    return [ann, other]


def add_models(data: Path, *datasets: str) -> None:
    """A model trained on each dataset, which was uploaded."""
    from storage.ledger.ledger import open_ledger

    with open_ledger(data) as ledger:
        facts = {"decision_type": "should_respond", "now": NOON}
        for name in datasets:
            counts = {"train_sha256": "", "train_rows": 3, "validation_rows": 0}
            ledger.add(
                UploadedDataset,
                id=name,
                state="ready",
                dataset=name,
                train_file_id=f"file-{name}",
                **counts,
                **facts,
            )
            ledger.add(
                Model, id=f"m-{name}", state="trained", upload_id=name, base_model="b", model_object_id="o", **facts
            )


def test_log_spool_quarantine_and_datasets_are_cleared_and_models_named(tmp_path: Path) -> None:
    landed = [*make_pair(1), *make_pair(2, decision_type="planning")]
    feedback = [
        make_feedback(decision_id=landed[0].decision_id, value="on zz-ann's decision"),
        make_feedback(decision_id=landed[1].decision_id, author="zz-ann"),
        make_feedback(decision_id=landed[1].decision_id, metric="kept"),
    ]
    write_segment(tmp_path, [*landed, *feedback])
    write_lines(tmp_path, [b"no JSON at all\n", to_line(make_pair(3)[0])[:-30]])
    land_decisions(tmp_path)
    folder = write_dataset(
        tmp_path,
        [
            ("train", landed[1], "bob"),
            ("train", landed[0], "zz-ann"),
            ("train", make_decision(), "carl"),
            ("holdout", landed[3], "bob"),
        ],
    )
    add_models(tmp_path, "d1", "d2")  # of which d1 has rows of hers
    sealed = make_pair(4)
    write_segment(tmp_path, sealed)
    writer = SegmentWriter(tmp_path / "spool")
    spooled = make_pair(5)
    assert all(writer.write(record) for record in spooled)
    assert writer.write(make_feedback(decision_id=spooled[0].decision_id, value="zz-ann again"))

    report = erase_subject(tmp_path, "zz-ann", now=NOON)

    assert occurrences(tmp_path, b"zz-ann") == []
    assert (report.decisions, report.feedback, report.spool, report.quarantine) == (3, 2, 2, 1)
    assert report.unreadable == 1
    assert report.datasets == {"should_respond/d1": 1}
    assert (report.models, report.provider_files) == (["m-d1"], ["file-d1"])
    assert (report.undecided, report.resumed) == ({}, False)
    manifest = orjson.loads((folder / "manifest.json").read_bytes())
    assert manifest["dropped"] == {"invalid": 2, "erased": 1}
    assert manifest["faults"] == {"not kept since an erasure": 2}
    train = manifest["splits"]["train"]
    assert (train["rows"], train["episodes"], train["first"]) == (2, 2, "2026-11-20T12:00:00.000000Z")
    for split in ("train", "validation", "holdout"):
        content = (folder / f"{split}.jsonl").read_bytes()
        assert manifest["splits"][split]["sha256"] == hashlib.sha256(content).hexdigest()
    assert [(r["split"], r["line"]) for r in pq.read_table(folder / "rows.parquet").to_pylist()] == [
        ("train", 0),
        ("train", 1),
        ("holdout", 0),
    ]
    assert (folder / "train.jsonl").read_bytes().splitlines()[1].endswith(b'"carl"}]}')

    assert writer.write(make_decision(NOON + timedelta(seconds=6)))  # the writer goes on, undisturbed
    writer.close()
    after = land_decisions(tmp_path)
    assert (after.decisions, after.feedback, after.quarantined) == (2, 0, {})
    assert {landed[1].decision_id, landed[3].decision_id, sealed[1].decision_id, spooled[1].decision_id} < set(
        landed_ids(tmp_path)
    )
    assert storage.sql(tmp_path, "SELECT metric FROM feedback").rows == [("kept",)]
    again = erase_subject(tmp_path, "zz-ann")
    assert (again.decisions, again.feedback, again.spool, again.quarantine, again.datasets) == (0, 0, 0, 0, {})


def test_an_episodes_feedback_goes_with_its_last_decision(tmp_path: Path) -> None:
    mixed, alone = make_pair(1, episode_id="mixed"), make_pair(2, episode_id="alone")[:1]
    write_segment(tmp_path, [*mixed, *alone, *(make_feedback(episode_id=e) for e in ("mixed", "alone", "other"))])
    erase_subject(tmp_path, "zz-ann")
    assert storage.sql(tmp_path, "SELECT episode_id FROM feedback ORDER BY 1").rows == [("mixed",), ("other",)]


def test_a_subject_with_quotes_is_erased_and_its_prefix_is_not(tmp_path: Path) -> None:
    name = 'o\'brien "x" ; DROP VIEW decisions --'
    kept = make_decision(subject_ids=["o'brien"])
    write_segment(tmp_path, [make_decision(subject_ids=[name]), kept])
    assert erase_subject(tmp_path, name).decisions == 1
    assert landed_ids(tmp_path) == [kept.decision_id]


def test_an_erasure_that_failed_is_finished_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decisions = make_pair(1)
    write_segment(tmp_path, [*decisions, make_feedback(decision_id=decisions[0].decision_id, value="zz-ann")])
    land_decisions(tmp_path)
    write_dataset(tmp_path, [("train", decisions[0], "zz-ann")])
    commit = erase.commit

    def fail(layout: object, rewrites: list[Rewrite], scratch: object) -> None:
        if rewrites[0].key.table == "decisions":
            raise OSError(5, "Input/output error")
        commit(layout, rewrites, scratch)  # type: ignore[arg-type]

    monkeypatch.setattr(erase, "commit", fail)
    with pytest.raises(OSError, match="Input/output"):
        erase_subject(tmp_path, "zz-ann")
    monkeypatch.undo()
    assert erase_subject(tmp_path, "zz-ann").decisions == 1
    assert occurrences(tmp_path, b"zz-ann") == []


def fill_everything(data: Path) -> tuple[list[Decision], list[Feedback], list[UUID]]:
    """Rows of hers wherever rows are; a decision in the spool that feedback has landed on, and the other way round.

    What is still to be written to the spool, and the ids of what is others'.
    """
    landed, spooled, expired = make_pair(1), make_pair(2), make_pair(3)
    write_segment(data, [*landed, make_feedback(decision_id=spooled[0].decision_id, value="on zz-ann, landed")])
    write_lines(data, [to_line(make_pair(4)[0])[:-1], b"garbage\n"])
    land_decisions(data)
    write_dataset(data, [("train", landed[0], "zz-ann"), ("train", landed[1], "bob"), ("train", spooled[1], "bob")])
    write_dataset(data, [("train", expired[1], "bob"), ("holdout", expired[0], "zz-ann")], "d2")
    write_dataset(data, [("train", expired[1], "bob")], "d3")
    add_models(data, "d1", "d2", "d3")
    feedback = make_feedback(decision_id=landed[0].decision_id, value="on zz-ann, spooled")
    return spooled, [feedback], [landed[1].decision_id, spooled[1].decision_id]


def kill_erasures(folder: Path, steps: Iterable[int]) -> int:
    """SIGKILL a process that erases before each of these steps, and erase again. Returns how many were killed."""
    template = folder / "template"
    spooled, feedback, kept = fill_everything(template)
    for step in steps:
        data = folder / str(step)
        shutil.copytree(template, data)
        writers = SegmentWriter(data / "spool"), SegmentWriter(data / "spool")
        assert all(writers[0].write(record) for record in spooled) and writers[1].write(feedback[0])
        with faults.started(faults.erase_until, data, "zz-ann", step) as process:
            process.join()
        if process.exitcode == 0:
            return step
        assert process.exitcode == -signal.SIGKILL
        report = erase_subject(data, "zz-ann")
        for writer in writers:
            writer.close()
        assert occurrences(data, b"zz-ann") == [], step
        # The models of what the killed one got to are named all the same.
        assert (report.models, report.provider_files) == (["m-d1", "m-d2"], ["file-d1", "file-d2"]), step
        assert report.datasets == {"should_respond/d1": 1, "should_respond/d2": 1}
        assert report.resumed == (step > 0)
        assert not list((data / "erasures").iterdir())
        for name, lines in (("d1", 2), ("d2", 1), ("d3", 1)):
            dataset = data / "datasets" / "should_respond" / name
            rows = pq.read_table(dataset / "rows.parquet").num_rows
            assert rows == lines == sum(len(path.read_bytes().splitlines()) for path in dataset.glob("*.jsonl"))
        land_decisions(data)
        assert landed_ids(data) == kept
    return len(list(steps))


def test_a_killed_erasure_is_finished_by_the_next(tmp_path: Path) -> None:
    assert kill_erasures(tmp_path, [1, 4, 7, 9]) == 4


@pytest.mark.torture
def test_an_erasure_killed_at_every_step_is_finished_by_the_next(tmp_path: Path) -> None:
    steps = kill_erasures(tmp_path, range(100))
    assert 9 < steps < 100
    print(steps, "erasures killed")


def test_dataset_rows_are_found_after_their_decisions_expired(tmp_path: Path) -> None:
    old, shown, live = make_pair(1), make_pair(2)[1], make_pair(3)[1]
    write_segment(tmp_path, [live, make_feedback(decision_id=live.decision_id, **SHOWN)])
    land_decisions(tmp_path)
    shown.subject_ids = ["bob", "zz-ann"]  # as an export says it of who demonstrated
    rows = [
        ("train", old[0], "zz-ann"),
        ("holdout", old[1], "bob"),
        ("train", shown, "shown"),
        ("train", live, "shown"),
    ]
    write_dataset(tmp_path, rows)
    report = erase_subject(tmp_path, "zz-ann")
    assert (report.datasets, report.undecided) == ({"should_respond/d1": 3}, {})
    assert (report.decisions, report.feedback) == (0, 1)


SHOWN = {"metric": "demonstration", "kind": "demonstration", "author": "zz-ann", "value": '{"action":"STOP"}'}


def test_of_an_older_dataset_what_the_text_does_not_tell_is_counted_and_kept(tmp_path: Path) -> None:
    expired, (hers, others) = make_pair(1), make_pair(2)
    write_segment(tmp_path, [hers, others])
    land_decisions(tmp_path)
    rows = [
        ("train", expired[0], "Bob: is zz-ann in?"),
        ("train", expired[1], "zz-anna: yes"),
        ("holdout", hers, "nobody is named"),
        ("holdout", others, "zz-ann is named in a decision that is not about her"),
    ]
    folder = write_dataset(tmp_path, rows, old=True)
    report = erase_subject(tmp_path, "zz-ann")
    assert (report.datasets, report.undecided) == ({"should_respond/d1": 2}, {"should_respond/d1": 1})
    assert [b"zz-anna" in line for line in (folder / "train.jsonl").read_bytes().splitlines()] == [True]
    assert (folder / "holdout.jsonl").read_bytes().count(b"zz-ann") == 1
    assert erase_subject(tmp_path, "zz-ann").undecided == {"should_respond/d1": 1}


def test_what_a_killed_export_left_is_removed_and_a_running_ones_is_not(tmp_path: Path) -> None:
    write_segment(tmp_path, make_pair(1))
    homes = [tmp_path / "datasets" / "should_respond" / f".export-{n}" for n in range(2)]
    for home in homes:
        home.mkdir(parents=True)
        (home / "scratch.duckdb").write_text("zz-ann: my secret")
    held = os.open(homes[1], os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    erase_subject(tmp_path, "zz-ann")
    os.close(held)
    assert [home.exists() for home in homes] == [False, True]


def test_quarantined_lines_of_others_stay_and_odd_ones_do_no_harm(tmp_path: Path) -> None:
    def changed(**values: object) -> bytes:
        row = orjson.loads(to_line(make_decision(source="oracle"))[9:])
        return frame_line(orjson.dumps({**row, **values}))

    mine = [changed(subject_ids=["ann"]), changed(subject_ids="ann"), changed(record="feedback", author="ann")]
    others = [
        changed(subject_ids=["joanna"]),
        changed(subject_ids=5),
        changed(record="feedback", decision_id=["a"], episode_id={}),
        changed(record=["ann's"]),
    ]
    write_lines(tmp_path, mine + others)
    write_lines(tmp_path, [changed(subject_ids=5, episode_id=["e"]), changed(record={})], suffix=".open")
    held = next((tmp_path / "spool").glob("*.open")).open()
    fcntl.flock(held, fcntl.LOCK_EX)
    with held:
        report = erase_subject(tmp_path, "ann")
    assert (report.quarantine, report.unreadable) == (3, 0)
    (path,) = (tmp_path / "quarantine").iterdir()
    assert [raw + b"\n" for _, raw in read_quarantine(path)] == others


def test_a_subject_nobody_knows_and_an_empty_one(tmp_path: Path) -> None:
    write_segment(tmp_path, make_pair(1))
    report = erase_subject(tmp_path, "nobody")
    assert (report.decisions, report.feedback, report.spool) == (0, 0, 0)
    assert len(landed_ids(tmp_path)) == 2
    with pytest.raises(ValueError, match="subject_id is empty"):
        erase_subject(tmp_path, "")


def quarantine(data: Path, *payloads: bytes, mended: bool = False) -> Path:
    """Land lines that are damaged; `mended`: somebody has made bare JSON of them since."""
    write_lines(data, [b"0" * 8 + b" " + payload + b"\n" for payload in payloads])
    land_decisions(data)
    (path,) = (data / "quarantine").iterdir()
    if mended:
        entries = [entry | {"raw": raw[9:].decode()} for entry, raw in read_quarantine(path)]
        path.write_bytes(b"".join(orjson.dumps(entry) + b"\n" for entry in entries))
    return path


@pytest.mark.parametrize(("subject", "other"), [("ann", "hannah"), ("caf\u00e9", "cafe\u0301"), ("user", "a\\n")])
def test_a_line_that_was_mended_by_hand_goes_by_its_subjects(tmp_path: Path, subject: str, other: str) -> None:
    mine = json.dumps(orjson.loads(encode_record(make_decision(subject_ids=[subject]))))  # with \u escapes
    theirs = encode_record(make_decision(subject_ids=[other], messages=[{"role": "user", "content": subject}]))
    quarantine(tmp_path, mine.encode(), theirs, mended=True)
    report = erase_subject(tmp_path, subject)
    assert (report.quarantine, report.unreadable) == (1, 0)
    assert reland_quarantine(tmp_path).relanded == 1
    assert storage.sql(tmp_path, "SELECT subject_ids FROM decisions").rows == [([other],)]


def test_a_name_that_every_record_has_somewhere_takes_no_line_of_others_that_can_be_read(tmp_path: Path) -> None:
    bobs = [encode_record(make_decision(subject_ids=["bob"])) for _ in range(2)]
    damaged = b"0" * 8 + b" " + bobs[1] + b"\n"
    unauthored = encode_record(make_feedback(episode_id="e")).replace(b'"schema":1', b'"schema":2')
    newer = bobs[0].replace(b'"schema":1', b'"schema":2')
    write_lines(tmp_path, [frame_line(newer), frame_line(unauthored), damaged])
    land_decisions(tmp_path)
    for subject in ("user", "original", "None"):  # nobody, as Python writes it
        assert erase_subject(tmp_path, subject).quarantine == 0
    assert erase_subject(tmp_path, "bob").quarantine == 2


def changed(*drop: str, **values: object) -> bytes:
    row = {**orjson.loads(encode_record(make_decision())), **values}
    return orjson.dumps({name: value for name, value in row.items() if name not in drop})


@pytest.mark.parametrize("open_", [False, True])
def test_a_line_goes_that_tells_in_another_form_whose_it_is(tmp_path: Path, open_: bool) -> None:
    mine = [
        changed(subject_ids=[{"id": "4711"}]),  # of the wrong form, which is why it does not land
        changed(subject_ids=[4711]),
        changed("subject_ids", schema=2, subjects=["4711"]),  # a newer version's name for it
        changed(record="outcome", about="4711"),  # or its record
        b'{"a":"4711"}',  # shorter than what erasure would leave of it
    ]
    others = [changed(subject_ids=[{"id": "47110"}]), encode_record(make_decision(subject_ids=["bob"]))]
    path = write_lines(tmp_path, list(map(frame_line, mine + others)), suffix=".open" if open_ else ".seal")
    with path.open() as held:
        if open_:  # its writer lives
            fcntl.flock(held, fcntl.LOCK_EX)
        report = erase_subject(tmp_path, "4711")
    assert (report.spool, report.quarantine) == ((5, 0) if open_ else (0, 5))
    land_decisions(tmp_path)
    kept = b"".join(path.read_bytes() for path in (tmp_path / "quarantine").iterdir())
    assert (kept.count(b"4711"), kept.count(b"47110"), len(landed_ids(tmp_path))) == (1, 1, 1)


def test_a_mended_line_that_cannot_be_read_goes_by_the_escapes_of_the_id(tmp_path: Path) -> None:
    quarantine(tmp_path, json.dumps(orjson.loads(changed(subject_ids=["caf\u00e9"]))).encode()[:-1], mended=True)
    assert erase_subject(tmp_path, "caf\u00e9").quarantine == 1


def test_feedback_goes_with_a_damaged_decision_that_has_lost_the_name_of_its_subjects(tmp_path: Path) -> None:
    decision = make_decision(subject_ids=["zz-ann"])
    quarantine(tmp_path, encode_record(decision).replace(b"subject_ids", b"subject_idz"))
    feedback = make_feedback(decision_id=decision.decision_id, value="zz-ann was rude")
    write_segment(tmp_path, [feedback])
    write_lines(tmp_path, [b"0" * 8 + b" " + encode_record(feedback).replace(b"author", b"auth0r") + b"\n"])
    report = erase_subject(tmp_path, "zz-ann")
    assert (report.feedback, report.quarantine) == (1, 2)
    assert occurrences(tmp_path, b"zz-ann") == []


@pytest.mark.parametrize("open_", [False, True])
def test_a_decision_of_a_newer_client_goes_with_the_feedback_on_it(tmp_path: Path, open_: bool) -> None:
    decision = make_decision(subject_ids=["zz-ann"], episode_id="e")
    newer = frame_line(encode_record(decision).replace(b'"schema":1', b'"schema":2', 1))
    feedback = [make_feedback(metric="m", kind="comment", value="zz-ann was rude", decision_id=decision.decision_id)]
    feedback.append(make_feedback(metric="m", kind="comment", value="zz-ann again", episode_id="e"))
    write_segment(tmp_path, feedback)
    path = write_lines(tmp_path, [newer], suffix=".open" if open_ else ".seal")
    with path.open() as held:
        if open_:  # its writer lives
            fcntl.flock(held, fcntl.LOCK_EX)
        report = erase_subject(tmp_path, "zz-ann")
    assert (report.feedback, report.spool, report.quarantine) == (2, int(open_), int(not open_))
    assert occurrences(tmp_path, b"zz-ann") == []


def test_a_kill_after_the_feedback_leaves_the_quarantined_decision_by_which_it_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decision = make_decision(subject_ids=["zz-ann"])
    on_it = [make_feedback(decision_id=decision.decision_id, metric="m", kind="comment", value="zz-ann")] * 1
    quarantine(tmp_path, encode_record(decision))
    write_segment(tmp_path, on_it)

    def die(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(erase, "commit", die)
        with pytest.raises(KeyboardInterrupt):
            erase_subject(tmp_path, "zz-ann")
    assert erase_subject(tmp_path, "zz-ann").feedback == 1
    assert occurrences(tmp_path, b"zz-ann") == []


def test_a_lone_surrogate_is_erased_by_the_name_that_the_log_keeps(tmp_path: Path) -> None:
    write_segment(tmp_path, [make_decision(subject_ids=["\ud83d"])])
    assert erase_subject(tmp_path, "\ud83d").decisions == 1


@pytest.mark.parametrize("part", ["manifest.json", "rows.parquet", "train.jsonl"])
@pytest.mark.parametrize("content", [None, b"garbage", b"{}"])
def test_a_damaged_dataset_is_named_and_nothing_is_held_for_erased(
    tmp_path: Path, part: str, content: bytes | None
) -> None:
    decision = make_decision(subject_ids=["zz-ann"])
    write_segment(tmp_path, [decision])
    dataset = write_dataset(tmp_path, [("train", decision, "zz-ann said so")])
    before = (dataset / part).read_bytes()
    (dataset / part).unlink()
    if content:
        (dataset / part).write_bytes(content)
    if part == "train.jsonl" and content:
        assert erase_subject(tmp_path, "zz-ann").decisions == 1  # nobody says what was in that line
        return
    with pytest.raises(DatasetError, match=rf"the dataset .*{dataset.name} cannot be read"):
        erase_subject(tmp_path, "zz-ann")
    assert len(landed_ids(tmp_path)) == 1
    (dataset / part).write_bytes(before)
    assert erase_subject(tmp_path, "zz-ann").decisions == 1
    assert occurrences(tmp_path, b"zz-ann") == []


def test_a_folder_with_nothing_but_lines_is_a_damaged_dataset(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, [("train", make_decision(subject_ids=["zz-ann"]), "zz-ann said so")])
    for part in ("manifest.json", "rows.parquet"):
        (dataset / part).unlink()
    with pytest.raises(DatasetError, match="put back what is damaged, or delete the folder"):
        erase_subject(tmp_path, "zz-ann")
