"""Filters and caps of an export, over a log landed for real."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import storage
from quality.dataset.export import export_dataset
from quality.dataset.filters import describe_filters, filter_condition, read_caps
from quality.dataset.label_policy import LabelPolicy
from quality.dataset.manifest import Manifest
from quality.dataset.selection import Choice, Window, select_rows
from quality.errors import FilterError
from quality.settings import ExportSettings, Source
from reasoning.ids import uuid7
from reasoning.records import Decision, Feedback
from storage.erasure.erase import erase_subject
from tests.quality.conftest import NOW
from tests.quality.log import conversations, land, records

TALKS = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Talks of two agents; every second is answered by a model as well, with a confidence; every third has a metric."""
    folder = tmp_path_factory.mktemp("filters") / "data"
    found: list[Decision | Feedback] = []
    for number, turn in enumerate(conversations(TALKS)):
        talk = number // 5
        if talk % 2:
            turn.custom, turn.custom_confidence, turn.served = turn.right, 0.25 + 0.5 * (number % 2), "custom"
        turn.extra = {"tags": {"team": "red" if talk % 2 else "blue", "n.m": "1"}, "subject_ids": [f"person-{talk}"]}
        made = records(turn)
        for record in made:
            if isinstance(record, Decision):
                record.agent_id = "ada" if talk % 4 < 2 else "bob"
                if record.source == "original":
                    record.fallback_model = "big-model"
        if talk % 3 == 0:
            ts = turn.ts + timedelta(minutes=2)
            made.append(
                Feedback(
                    feedback_id=uuid7(ts),
                    ts=ts,
                    metric="stars",
                    value=talk % 5,
                    kind="metric",
                    decision_id=next(each.decision_id for each in made if isinstance(each, Decision) and each.served),
                )
            )
        found += made
    land(folder, [found])
    return folder


def export(data: Path, **settings: Any) -> Manifest:
    return export_dataset(data, "should_respond", ExportSettings(**settings), now=NOW)


@pytest.fixture(scope="module")
def plain(data: Path) -> Manifest:
    return export(data)


def chosen(data: Path, work: Path, **settings: Any) -> list[dict[str, Any]]:
    """The questions that a filter lets through, as the log has them."""
    con, _ = select_rows(
        data,
        work,
        "should_respond",
        Window(None, None, NOW, None),
        Choice(
            policy=LabelPolicy(),
            label_sources=["demonstration"],
            enough=1,
            limit=10_000,
            wanted=filter_condition(ExportSettings(**settings)),
        ),
    )
    with con:
        ids = [str(each) for (each,) in con.execute("SELECT request_id FROM selected").fetchall()]
        left = TALKS * 5 - len(ids)
        assert con.execute("FROM unselected").fetchall() == ([("filtered", left)] if left else [])
    found = storage.sql(
        data,
        "SELECT agent_id, source, custom_model, coalesce(confidence, custom_confidence), tags, feedback['stars'] "
        "FROM labelled_decisions WHERE list_contains(?, request_id::VARCHAR)",
        [ids],
    )
    names = ("agent", "source", "model", "confidence", "tags", "stars")
    return [dict(zip(names, row, strict=True)) for row in found.rows]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"agent": ["bob"]}, lambda row: row["agent"] == "bob"),
        ({"answered_by": ["model-1"]}, lambda row: row["model"] == "model-1"),
        ({"source": Source.CUSTOM}, lambda row: row["source"] == "custom"),
        ({"min_confidence": 0.5}, lambda row: row["confidence"] >= 0.5),
        ({"max_confidence": 0.5}, lambda row: row["confidence"] <= 0.5),
        ({"feedback": ["stars >= 1", "stars < 4"]}, lambda row: 1 <= row["stars"] < 4),
        ({"tag": ["team=red", "n.m"]}, lambda row: '"red"' in row["tags"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_filter_keeps_what_is_wanted(data: Path, tmp_path: Path, settings: Any, wanted: Any) -> None:
    rows = chosen(data, tmp_path, **settings)
    assert 0 < len(rows) < TALKS * 5 and all(map(wanted, rows))


def test_a_filtered_export_accounts_for_every_row(data: Path, plain: Manifest) -> None:
    manifest = export(data, tag=["team=red"], min_confidence=0.1, answered_by=["big-model"])
    assert manifest.selected == TALKS * 5 == manifest.rows + sum(manifest.dropped.values())
    assert manifest.dropped["filtered"] == TALKS * 5 // 2
    assert manifest.query["filters"] == {"answered_by": ["big-model"], "min_confidence": 0.1, "tag": ["team=red"]}
    assert manifest.config_hash != plain.config_hash
    assert manifest.leaks.shared_episodes == manifest.leaks.shared_prompts == 0


def test_without_filters_the_hash_is_that_of_versions_without_them(plain: Manifest) -> None:
    assert "filters" not in plain.query and "filtered" not in plain.dropped
    assert describe_filters(ExportSettings(agent=[], tag=[], feedback=[], max_per=[])) == {}


def test_caps_thin_out_training_rows_alone(data: Path, plain: Manifest) -> None:
    capped = export(data, max_per=["answer=40", "episode=1"])
    train = pq.read_table(capped.path / "rows.parquet", filters=[("split", "=", "train")])
    assert max(Counter(train["episode_id"].to_pylist()).values()) == 1
    assert all(count <= 40 for count in capped.splits["train"].answers.values())
    for split in ("validation", "holdout"):
        assert capped.splits[split] == plain.splits[split]
    assert capped.dropped["over_represented"] == plain.splits["train"].rows - train.num_rows


def test_an_erased_person_leaves_a_filtered_dataset_as_well(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    turns = conversations(TALKS)
    for number, turn in enumerate(turns):
        turn.extra = {"subject_ids": [f"person-{number // 5}"], "tags": {"even": "1"} if number // 5 % 2 == 0 else {}}
    land(folder, [[record for turn in turns for record in records(turn)]])
    path = export(folder, tag=["even"]).path
    assert any("person-0" in each for each in pq.read_table(path / "rows.parquet")["subject_ids"].to_pylist())
    erase_subject(folder, "person-0")
    assert not any("person-0" in each for each in pq.read_table(path / "rows.parquet")["subject_ids"].to_pylist())


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"feedback": ["stars > '); DROP"]}, "helpful >= 0.5"),
        ({"tag": ['a"b=1']}, "NAME=VALUE"),
        ({"min_confidence": 0.9, "max_confidence": 0.1}, "swap"),
        ({"max_per": ["person=5"]}, "answer, agent, room"),
        ({"max_per": ["agent=0"]}, "agent=500"),
        ({"max_per": ["agent=5", "agent=6"]}, "twice"),
    ],
)
def test_what_cannot_be_read_is_refused(data: Path, settings: Any, why: str) -> None:
    with pytest.raises(FilterError, match=why):
        export(data, **settings)


@pytest.mark.parametrize(
    "settings", [{"agent": ["x') OR ('1'='1"]}, {"tag": ["team=red' OR '1'='1"]}, {"tag": ["a'b"]}]
)
def test_values_are_texts_not_sql(data: Path, tmp_path: Path, settings: Any) -> None:
    assert chosen(data, tmp_path, **settings) == []


def test_a_row_without_what_is_asked_for_is_not_wanted() -> None:
    assert filter_condition(ExportSettings()) == "true"
    assert filter_condition(ExportSettings(min_confidence=0.5)).startswith("coalesce(")
    assert read_caps(None) == []
