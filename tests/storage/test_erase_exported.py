"""Erasure from what is made of the log: a real export, its Data Docs, and an evaluation."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq

import storage
from quality.dataset.export import export_dataset
from quality.dataset.manifest import read_manifest, read_rows
from quality.evaluation.evaluate import Label, SourceAnswer, evaluate
from storage.erasure.erase import erase_subject
from storage.ledger.ledger import open_ledger
from storage.ledger.lives import save_evaluation
from storage.log.expire import expire_decisions
from tests.quality.log import START, conversations, land, records
from tests.storage.test_erase import occurrences


def test_a_person_leaves_an_export_whose_decisions_have_expired(tmp_path: Path) -> None:
    data = tmp_path / "data"
    turns = conversations(60)
    hers = {f"episode-0-{number}" for number in range(0, 60, 6)}
    for turn in turns:
        if turn.episode in hers:
            turn.context["messages"][-1]["speaker"] = "zz-ann"
            turn.extra["subject_ids"] = ["p0", "zz-ann"]
    log = [records(turn) for turn in turns]
    for _, demonstration in log[::7]:
        demonstration.author = "zz-label"
    land(data, [[record for pair in log for record in pair]])
    now = START + timedelta(days=20)
    manifest = export_dataset(data, "should_respond", now=now)
    questions = read_rows(manifest.path, "holdout")
    labels = [Label(row.label, row.episode, row.label_source) for row in questions]
    evaluation = evaluate("should_respond", labels, {"candidate": [SourceAnswer(row.label) for row in questions]})
    with open_ledger(data) as ledger:  # its file is among those that are searched for her below
        save_evaluation(ledger, evaluation.as_dict())
    expire_decisions(data, retention_days=1, now=now + timedelta(days=60))
    assert storage.sql(data, "SELECT count(*) FROM decisions").rows == [(0,)]

    # No text gets into what is reported of the data: the files, and nothing else, are to be rewritten.
    named = {path.name for path in occurrences(data, b"zz-ann")}
    assert named == {"train.jsonl", "validation.jsonl", "holdout.jsonl", "rows.parquet"}
    side = pq.read_table(manifest.path / "rows.parquet").to_pylist()
    for subject in ("zz-ann", "zz-label"):  # who is in the context, who said what was right
        before, side = side, [row for row in side if subject not in row["subject_ids"]]
        assert 0 < len(side) < len(before)
        report = erase_subject(data, subject, now=now)
        assert report.datasets == {f"should_respond/{manifest.dataset_id}": len(before) - len(side)}
        assert occurrences(data, subject.encode()) == []
        left = read_manifest(manifest.path)  # which compares every file with its hash
        assert left.rows == len(side)
        assert left.selected == left.rows + sum(left.dropped.values())
        rows = [row for split in ("train", "validation", "holdout") for row in read_rows(manifest.path, split)]
        assert [row.decision_id for row in rows] == [row["decision_id"] for row in side]
        assert sum(split.episodes for split in left.splits.values()) == len({row.episode for row in rows})
