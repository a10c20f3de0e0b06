"""Files of every past schema version stay readable: segments, landed and compacted Parquet, beside those of today."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import storage
from reasoning.records import SCHEMA_VERSION
from storage.layout import Layout
from storage.log.compact import compact_decisions
from storage.log.land import land_decisions
from tests.storage.logs import NOON, make_decision, make_feedback, write_segment

FIXTURES = Path(__file__).parent / "fixtures"
VERSIONS = sorted(path.name for path in FIXTURES.glob("v*"))


def load(data: Path, version: str, form: str) -> None:
    Layout(data).create()
    if form == "segment":
        shutil.copy(FIXTURES / version / "segment.seal", data / "spool" / "01a1f8d3-ea7b-7000-8000-000000000009-1.seal")
        assert land_decisions(data).quarantined == {}
    else:
        shutil.copytree(FIXTURES / version / form, data, dirs_exist_ok=True)


def rows(data: Path, query: str) -> list[dict[str, Any]]:
    result = storage.sql(data, query)
    return [dict(zip(result.columns, row, strict=True)) for row in result.rows]


def test_there_are_files_of_every_version() -> None:
    assert [f"v{n}" for n in range(1, SCHEMA_VERSION + 1)] == VERSIONS


@pytest.mark.parametrize("form", ["segment", "landed", "compacted"])
@pytest.mark.parametrize("version", VERSIONS)
def test_files_of_a_version_read_beside_those_of_today(tmp_path: Path, version: str, form: str) -> None:
    load(tmp_path, version, form)
    write_segment(tmp_path, [make_decision(NOON), make_feedback(episode_id="today")])
    land_decisions(tmp_path)
    for _ in range(2):
        full, bare = rows(
            tmp_path, "FROM decisions WHERE agent_id IS DISTINCT FROM 'agent' OR room_id = 'room' ORDER BY decision_id"
        )
        assert full["messages"] == [{"role": "user", "content": "Ann: héllo\n\0🎉"}]
        assert (full["model"], full["confidence"], full["subject_ids"]) == ("slug/model", 0.75, ["ann"])
        assert (bare["decision_type"], bare["messages"], bare["decision"]) == ("planning", [], None)
        assert rows(tmp_path, "SELECT count(*) AS n FROM decisions") == [{"n": 3}]
        assert rows(tmp_path, "SELECT count(*) AS n FROM feedback_log") == [{"n": 4}]
        (labelled,) = rows(tmp_path, "FROM labelled_decisions WHERE room_id = 'room'")
        assert (labelled["label"], labelled["label_source"]) == ('{"action":"STOP"}', "demonstration")
        assert (labelled["feedback"], labelled["episode_feedback"]) == ({"rating": 0.5}, {"good": 1.0})
        compact_decisions(tmp_path)


@pytest.mark.parametrize("form", ["segment", "landed", "compacted"])
@pytest.mark.parametrize("version", VERSIONS)
def test_records_of_a_version_that_come_again_are_known(tmp_path: Path, version: str, form: str) -> None:
    load(tmp_path, version, form)
    for path in tmp_path.glob("feedback/*/*.parquet"):  # as of before a column was there
        pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["extra"]), path)
    shutil.copy(FIXTURES / version / "segment.seal", tmp_path / "spool" / "copy.seal")
    report = land_decisions(tmp_path)
    assert (report.decisions, report.feedback, report.duplicates, report.quarantined) == (0, 0, 5, {})
