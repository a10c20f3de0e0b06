"""Decision logs for the tests: records, segments and data folders."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from reasoning.ids import uuid7
from reasoning.io.segments import frame_line
from reasoning.io.spool import SegmentWriter
from reasoning.records import Decision, Feedback, encode_record

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def make_decision(ts: datetime = NOON, **values: Any) -> Decision:
    fields: dict[str, Any] = {
        "decision_id": uuid7(ts),
        "request_id": uuid7(ts),
        "ts": ts,
        "decision_type": "should_respond",
        "source": "original",
        "served": True,
        "messages": [{"role": "system", "content": "Decide."}, {"role": "user", "content": "Ann: hello"}],
        "agent_id": "agent",
        "completion": "<response><action>RESPOND</action></response>",
        "decision": {"action": "RESPOND"},
        "latency_ms": 1.5,
    }
    return Decision(**{**fields, **values})


def make_feedback(ts: datetime = NOON, **values: Any) -> Feedback:
    fields: dict[str, Any] = {"feedback_id": uuid7(ts), "ts": ts, "metric": "rating", "value": 1.0}
    return Feedback(**{**fields, **values})


def make_days(days: int, per_day: int, start: datetime = NOON, **values: Any) -> list[Decision]:
    return [
        make_decision(start + timedelta(days=day, seconds=second), **values)
        for day in range(days)
        for second in range(per_day)
    ]


def write_segment(data: Path, records: Sequence[Decision | Feedback]) -> None:
    writer = SegmentWriter(data / "spool")
    for record in records:
        assert writer.write(record)
    writer.close()


def segment_id(number: int = 0, ts: datetime = NOON) -> str:
    return f"{uuid7(ts)}-{number}"


def write_lines(data: Path, lines: list[bytes], name: str | None = None, suffix: str = ".seal") -> Path:
    """A segment of these bytes, whatever they are."""
    spool = data / "spool"
    spool.mkdir(parents=True, exist_ok=True)
    path = spool / f"{name or segment_id()}{suffix}"
    path.write_bytes(b"".join(lines))
    return path


def to_line(record: Decision | Feedback) -> bytes:
    return frame_line(encode_record(record))


def list_parquet(data: Path) -> list[Path]:
    return sorted(data.glob("decisions/**/*.parquet")) + sorted(data.glob("feedback/**/*.parquet"))


def landed_ids(data: Path) -> list[UUID]:
    import storage

    return [row[0] for row in storage.sql(data, "SELECT decision_id FROM decisions ORDER BY 1").rows]


def write_dataset(data: Path, rows: list[tuple[str, Decision, str]], name: str = "d1", *, old: bool = False) -> Path:
    """(split, decision, text) in the form of docs/concepts/architecture.md, or in that of before `subject_ids`."""
    folder = data / "datasets" / "should_respond" / name
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
                "decision_id": str(row[1].decision_id),
                "request_id": str(row[1].request_id),
                "episode_id": None,
                "ts": NOON,
                "label_source": "demonstration" if row[2] == "shown" else "original",
            }
            | ({} if old else {"subject_ids": row[1].subject_ids})
            for n, row in enumerate(mine)
        ]
    pq.write_table(pa.Table.from_pylist(side), folder / "rows.parquet")
    manifest = {
        "splits": splits,
        "dropped": {"invalid": 2},
        "faults": {"label: action 'zz-ann' is none of RESPOND": 2},
        "label_sources": {"original": len(rows)},
        "rows_sha256": "",
    }
    (folder / "manifest.json").write_bytes(orjson.dumps(manifest))
    return folder
