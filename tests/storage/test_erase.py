"""Erasure: nothing of the subject is left, nothing of anyone else is gone."""

from __future__ import annotations

import fcntl
import hashlib
from datetime import timedelta
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import storage
from reasoning.spool import SegmentWriter, frame_line
from storage import erase
from storage.erase import erase_subject
from storage.land import land_decisions
from storage.quarantine import read_quarantine
from tests.storage.logs import NOON, landed_ids, make_decision, make_feedback, to_line, write_lines, write_segment


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


def write_dataset(data: Path, rows: list[tuple[str, str, str]]) -> Path:
    """(split, decision_id, text) in the form that docs/architecture.md gives."""
    folder = data / "datasets" / "should_respond" / "d1"
    folder.mkdir(parents=True)
    splits = {}
    side = []
    for split in ("train", "validation", "holdout"):
        mine = [row for row in rows if row[0] == split]
        content = b"".join(
            orjson.dumps({"messages": [{"role": "user", "content": text}]}) + b"\n" for _, _, text in mine
        )
        (folder / f"{split}.jsonl").write_bytes(content)
        splits[split] = {"rows": len(mine), "sha256": hashlib.sha256(content).hexdigest(), "answers": {"x": 1}}
        side += [
            {
                "split": split,
                "line": n,
                "decision_id": row[1],
                "episode_id": None,
                "ts": NOON,
                "label_source": "original",
            }
            for n, row in enumerate(mine)
        ]
    pq.write_table(pa.Table.from_pylist(side), folder / "rows.parquet")
    manifest = {
        "splits": splits,
        "dropped": {"invalid": 2},
        "label_sources": {"original": len(rows)},
        "rows_sha256": "",
    }
    (folder / "manifest.json").write_bytes(orjson.dumps(manifest))
    return folder


def test_log_spool_quarantine_and_datasets_are_cleared_and_models_named(tmp_path: Path) -> None:
    from storage.ledger import open_ledger

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
            ("train", str(landed[1].decision_id), "bob"),
            ("train", str(landed[0].decision_id), "zz-ann"),
            ("train", str(make_decision().decision_id), "carl"),
            ("holdout", str(landed[3].decision_id), "bob"),
        ],
    )
    with open_ledger(tmp_path) as ledger:
        facts = {"decision_type": "should_respond", "now": NOON}
        for name in ("d1", "d2"):  # of which d1 has rows of hers
            ledger.add(
                "datasets",
                id=name,
                state="ready",
                dataset=name,
                train_sha256="",
                train_rows=3,
                validation_rows=0,
                **facts,
            )
            ledger.add(
                "models", id=f"m-{name}", state="trained", dataset_id=name, base_model="b", model_object_id="o", **facts
            )
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
    assert report.models == ["m-d1"]
    manifest = orjson.loads((folder / "manifest.json").read_bytes())
    assert manifest["dropped"] == {"invalid": 2, "erased": 1}
    assert manifest["splits"]["train"]["rows"] == 2
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
    write_dataset(tmp_path, [("train", str(decisions[0].decision_id), "zz-ann")])
    rewrite = erase.rewrite_partition

    def fail(con: object, layout: object, key: object, **arguments: object) -> int:
        if key.table == "decisions":  # type: ignore[attr-defined]
            raise OSError(5, "Input/output error")
        return rewrite(con, layout, key, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(erase, "rewrite_partition", fail)
    with pytest.raises(OSError, match="Input/output"):
        erase_subject(tmp_path, "zz-ann")
    monkeypatch.undo()
    assert erase_subject(tmp_path, "zz-ann").decisions == 1
    assert occurrences(tmp_path, b"zz-ann") == []


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4])
def test_feedback_is_found_again_after_a_kill_at_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    """Feedback that landed on a decision still in the spool, and the other way round."""
    landed, spooled = make_pair(1)[0], make_pair(2)[0]
    write_segment(tmp_path, [landed, make_feedback(decision_id=spooled.decision_id, value="on zz-ann, landed")])
    land_decisions(tmp_path)
    writer, other = SegmentWriter(tmp_path / "spool"), SegmentWriter(tmp_path / "spool")
    assert writer.write(spooled)
    assert other.write(make_feedback(decision_id=landed.decision_id, value="on zz-ann, spooled"))
    steps = []

    def killing(function: object) -> object:
        def call(*arguments: object, **keywords: object) -> object:
            steps.append(function)
            if len(steps) == stop_at:
                raise KeyboardInterrupt
            return function(*arguments, **keywords)  # type: ignore[operator]

        return call

    with monkeypatch.context() as patch:
        for name in ("rewrite_partition", "_erase_spool"):
            patch.setattr(erase, name, killing(getattr(erase, name)))
        with pytest.raises(KeyboardInterrupt):
            erase_subject(tmp_path, "zz-ann")
    erase_subject(tmp_path, "zz-ann")
    assert occurrences(tmp_path, b"zz-ann") == []
    writer.close()
    other.close()


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
