"""`reasoning log` and `reasoning show`: decisions as people look for them, landed or not."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import cli.log
from reasoning.ids import uuid7
from reasoning.io.spool import SegmentWriter
from reasoning.records import Decision, Feedback
from storage.ledger.ledger import open_ledger
from storage.ledger.lives import save_evaluation
from storage.ledger.rows import Deployment, FineTuneJob, Model, UploadedDataset
from storage.log.land import land_decisions
from storage.log.search import SHORTEST_ID, find_decision, recent_decisions
from tests.cli.test_commands import failure, reasoning

START = datetime(2026, 11, 20, 12, tzinfo=UTC)


def decision(number: int, **values: Any) -> Decision:
    ts = START + timedelta(seconds=number)
    values = {"source": "original", "served": True, "agent_id": "ada" if number % 2 else "bob"} | values
    return Decision(
        decision_id=uuid7(ts),
        request_id=values.pop("request_id", uuid7(ts)),
        ts=ts,
        decision_type=values.pop("decision_type", "should_respond"),
        messages=[{"role": "user", "content": f"Question {number}: \x1b[31mred?"}],
        completion=f"answer {number}",
        decision={"action": "RESPOND" if number % 2 else "IGNORE"},
        episode_id="talk",
        **values,
    )


def write(data: Path, *records: Decision | Feedback) -> None:
    writer = SegmentWriter(data / "spool")
    assert all(writer.write(record) for record in records)
    writer.close()


@pytest.fixture(scope="module")
def made() -> list[Decision]:
    """Eight decisions; the last was served by a model, with the fallback's answer beside it."""
    asked = decision(
        7, source="custom", model="rsn-x-1", confidence=0.9, experiment="exp", arm="m", arm_probability=0.5
    )
    beside = decision(8, served=False, request_id=asked.request_id, fallback_model="big")
    return [*(decision(number) for number in range(6)), decision(6, decision_type="planning"), asked, beside]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, made: list[Decision]) -> Path:
    """Four decisions have landed, the others are in the spool; the model has its dataset, job and evaluation."""
    folder = tmp_path_factory.mktemp("log") / "data"
    write(folder, *made[:4])
    land_decisions(folder)
    ts = START + timedelta(minutes=1)
    stars = Feedback(
        feedback_id=uuid7(ts),
        ts=ts,
        metric="stars",
        value=4,
        kind="metric",
        author="eva",
        decision_id=made[7].decision_id,
    )
    mood = Feedback(feedback_id=uuid7(ts), ts=ts, metric="mood", value="good", kind="comment", episode_id="talk")
    write(folder, *made[4:], stars, mood)
    with open_ledger(folder) as ledger:
        ledger.add(
            UploadedDataset,
            id="u1",
            state="ready",
            decision_type="should_respond",
            dataset="abcd1234",
            train_sha256="0",
            train_rows=100,
            validation_rows=10,
        )
        ledger.add(
            FineTuneJob,
            id="j1",
            state="completed",
            decision_type="should_respond",
            suffix="s",
            base_model="base",
            parameters="{}",
            estimate_usd=1,
        )
        model = {"id": "aaaa1111", "state": "promoted", "decision_type": "should_respond", "base_model": "base"}
        ledger.add(Model, **model, model_object_id="o", upload_id="u1", job_id="j1")
        ledger.add(Model, **(model | {"id": "aaaa2222", "decision_type": "planning"}), model_object_id="p")
        ledger.add(
            Deployment,
            state="ready",
            name="n",
            model_id="aaaa1111",
            model_object_id="o",
            config="c",
            hardware="h",
            hourly_usd=1,
            max_replicas=1,
            served_name="rsn-x-1",
        )
        verdict = {"model_id": "aaaa1111", "verdict": {"decision": "approve", "why": "better"}}
        save_evaluation(
            ledger, {"evaluation_id": "e1", "decision_type": "should_respond", "rows": 50, "about": verdict}
        )
    return folder


def test_the_latest_are_shown_before_and_after_landing(data: Path, made: list[Decision]) -> None:
    rows = json.loads(reasoning("log", "--data", data, "--json", "-n", "5").stdout)
    assert [row["decision_id"] for row in rows] == [str(each.decision_id) for each in made[3:8]]
    assert [row["landed"] for row in rows] == [True, False, False, False, False]
    lines = reasoning("log", "--data", data).stdout.splitlines()
    assert len(lines) == 8 and str(made[0].decision_id)[-12:] in lines[0] and "rsn-x-1 0.90" in lines[-1]


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        (["planning"], [6]),
        (["--agent", "ada"], [1, 3, 5, 7]),
        (["--source", "custom"], [7]),
        (["--model", "rsn-x-1"], [7]),
        (["--search", "QUESTION 2"], [2]),
        (["--search", "answer 5"], [5]),
        (["--since", "2026-11-20T12:00:02Z", "--until", "2026-11-20T12:00:04Z"], [2, 3, 4]),
        (["--since", "2026-12"], []),
        (["--episode", "other"], []),
    ],
)
def test_a_filter_holds_for_what_landed_and_what_did_not(
    data: Path, made: list[Decision], options: list[str], numbers: list[int]
) -> None:
    rows = json.loads(reasoning("log", *options, "--data", data, "--json").stdout)
    assert [row["decision_id"] for row in rows] == [str(made[number].decision_id) for number in numbers]


def test_csv_has_a_header_and_json_in_cells(data: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(reasoning("log", "--data", data, "--csv").stdout)))
    assert len(rows) == 8 and json.loads(rows[0]["decision"]) == {"action": "IGNORE"} and rows[0]["landed"] == "true"
    assert reasoning("log", "--data", data, "--csv", "--json").returncode == 2
    assert reasoning("sql", "SELECT 1 AS a, NULL AS b", "--data", data, "--csv").stdout == "a,b\n1,\n"


def test_following_prints_each_new_decision_once(
    data: Path, made: list[Decision], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    write(folder, made[0])
    looks = 0

    def sleep(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            write(folder, made[1])
        elif looks == 2:
            land_decisions(folder)
        elif looks == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli.log.time, "sleep", sleep)
    finished = reasoning("log", "-f", "--json", "--data", folder)
    assert finished.returncode == 130
    shown = [json.loads(line)["decision_id"] for line in finished.stdout.splitlines()]
    assert shown == [str(each.decision_id) for each in made[:2]]


@pytest.mark.parametrize("number", [0, 7])
def test_one_decision_is_found_by_id_beginning_end_and_request(data: Path, made: list[Decision], number: int) -> None:
    own = made[number]
    wanted = str(own.decision_id)
    for text in (wanted, wanted.upper(), wanted[-12:], wanted.replace("-", "")[-9:], wanted[:24], str(own.request_id)):
        assert find_decision(data, text) == wanted


def test_an_id_that_is_none_or_of_several_is_refused_with_what_to_do(data: Path, made: list[Decision]) -> None:
    several = failure(reasoning("show", str(made[0].decision_id)[:8], "--data", data))
    assert "could mean several" in several and str(made[1].decision_id) in several
    assert "there is no decision" in failure(reasoning("show", "ffffffffffff", "--data", data))
    for text in ("abc"[: SHORTEST_ID - 1], "not-an-id", "1" * 33, "' OR 1=1"):
        assert "reasoning log" in failure(reasoning("show", text, "--data", data))


def test_a_decision_in_full_has_its_feedback_other_answers_and_lineage(data: Path, made: list[Decision]) -> None:
    found = json.loads(reasoning("show", made[7].decision_id.hex[-10:], "--data", data, "--json").stdout)
    assert {(each["metric"], each["value"], each["of_episode"]) for each in found["feedback"]} == {
        ("stars", 4, False),
        ("mood", "good", True),
    }
    assert [each["decision_id"] for each in found["other_answers"]] == [str(made[8].decision_id)]
    lineage = found["lineage"]
    assert lineage["route"]["experiment"] == "exp" and lineage["route"]["still_routed"] is False
    assert (lineage["model"]["model_id"], lineage["model"]["job_id"]) == ("aaaa1111", "j1")
    assert lineage["dataset"] == {"dataset_id": "abcd1234", "train_rows": 100, "validation_rows": 10}
    assert lineage["evaluation"]["decision"] == "approve"
    told = reasoning("show", str(made[7].decision_id), "--data", data).stdout
    assert "\x1b[31m" not in told and "\\x1b[31mred?" in told and "abcd1234" in told


def test_the_beginning_of_a_models_id_is_enough_unless_it_is_that_of_two(data: Path) -> None:
    told = reasoning("models", "status", "aaaa11", "--data", data, "--json")
    assert json.loads(told.stdout)["model_id"] == "aaaa1111"
    assert "aaaa1111, aaaa2222" in failure(reasoning("models", "status", "aaaa", "--data", data))
    assert "no model" in failure(reasoning("models", "status", "aaa", "--data", data))


def test_an_erased_person_is_in_no_line(tmp_path: Path, made: list[Decision]) -> None:
    from storage.erasure.erase import erase_subject

    folder = tmp_path / "data"
    write(folder, decision(1, subject_ids=["eve"]), decision(2))
    erase_subject(folder, "eve")
    assert len(recent_decisions(folder)) == 1
