"""A log with something for every verb to do, and whether it survived that one of them failed on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import duckdb
import orjson

import storage
from reasoning.io.spool import SegmentWriter
from reasoning.records import Decision, encode_record
from storage.erasure.erase import erase_subject
from storage.log.compact import compact_decisions
from storage.log.expire import expire_decisions
from storage.log.land import land_decisions
from storage.log.quarantine import read_quarantine
from storage.log.reland import reland_quarantine
from tests.storage.logs import (
    NOON,
    make_days,
    make_decision,
    make_feedback,
    write_dataset,
    write_lines,
    write_segment,
)

VERBS: dict[str, Callable[[Path], object]] = {
    "land": land_decisions,
    "compact": compact_decisions,
    "erase": lambda data: erase_subject(data, "ann"),
    "expire": lambda data: expire_decisions(data, retention_days=20, now=NOON + timedelta(days=2)),
    "reland": reland_quarantine,
}
BAD = [b"torn", b"bad"]


@dataclass
class Filled:
    """What a log holds when it is landed, by what becomes of it; the texts of `MENDED` are those in the quarantine."""

    kept: set[UUID]
    of_ann: set[UUID]
    old: set[UUID]
    mended: Decision

    def after(self, verb: str) -> set[UUID]:
        return (
            self.kept
            | (set() if verb == "erase" else self.of_ann)
            | (set() if verb == "expire" else self.old)
            | ({self.mended.decision_id} if verb == "reland" else set())
        )

    def quarantined(self, verb: str) -> list[bytes]:
        return sorted(BAD if verb == "reland" else [*BAD, encode_record(self.mended)])


def fill(data: Path) -> Filled:
    """Two files a partition, an expired one, a dataset, a sealed segment with a bad line, a dead writer's, a living
    one's, and in the quarantine a line that was mended by hand."""
    decisions = make_days(2, 3, subject_ids=["bob"])
    old = make_days(1, 2, NOON - timedelta(days=40))
    mended = make_decision(completion="mended")
    write_segment(data, [*decisions[0:5:2], *old])
    write_lines(data, [b"bad\n", b"mended\n"])
    land_decisions(data)
    (path,) = (data / "quarantine").iterdir()
    path.write_bytes(path.read_bytes().replace(b'"mended"', orjson.dumps(encode_record(mended).decode())))
    write_segment(data, [*decisions[1:4:2], make_feedback(decision_id=decisions[0].decision_id)])
    land_decisions(data)
    writer = SegmentWriter(data / "spool")
    writer.write(decisions[5])
    writer.close()
    (path,) = (data / "spool").glob("*.seal")
    path.write_bytes(path.read_bytes() + b"torn")
    path.rename(path.with_suffix(".open"))
    of_ann = make_days(1, 2, decision_type="planning", subject_ids=["ann"])
    write_segment(data, of_ann)
    write_dataset(data, [("train", decisions[0], "bob"), ("train", of_ann[0], "ann")])
    return Filled(
        {d.decision_id for d in decisions}, {d.decision_id for d in of_ann}, {d.decision_id for d in old}, mended
    )


def read_all(con: duckdb.DuckDBPyConnection) -> tuple[list[UUID], int]:
    ids = [row[0] for row in con.execute("SELECT decision_id FROM decisions").fetchall()]
    return ids, len(con.execute("FROM feedback_log").fetchall())


def check_survived(con: duckdb.DuckDBPyConnection, data: Path, filled: Filled, verb: str) -> None:
    """That a verb which failed left nothing wrong to be seen, and when it is run again nothing of the failure.

    `con` is any connection to a log: it costs more to open one than all the rest.
    """
    storage.refresh(con, data)
    ids, _ = read_all(con)
    assert len(ids) == len(set(ids))
    VERBS[verb](data)
    land_decisions(data)
    storage.refresh(con, data)
    ids, feedback = read_all(con)
    assert len(ids) == len(set(ids))
    assert set(ids) == filled.after(verb)
    assert feedback == 1
    raws = [raw for path in (data / "quarantine").iterdir() for _, raw in read_quarantine(path)]
    assert sorted(raws) == filled.quarantined(verb)
    (train,) = data.glob("datasets/*/d1/train.jsonl")
    assert len(train.read_bytes().splitlines()) == (1 if verb == "erase" else 2)
    folders = ["spool", "decisions.staging", "feedback.staging", "erasures"]
    assert [path for name in folders if (data / name).exists() for path in (data / name).iterdir()] == []
    assert [path for path in data.rglob("*") if path.suffix == ".tmp" or path.name.startswith((".erase", "_hid"))] == []
