"""Typed questions all the way: asked, labelled one by one, exported, trained and served here, evaluated, promoted."""

from __future__ import annotations

import json
import os
import random
import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline import evaluation
from pipeline.evaluation import evaluate_model
from pipeline.models import deploy, export, fine_tune
from pipeline.parameters import PromoteSettings
from pipeline.promotion import promote_model
from provider.local.folder import Folder, is_held
from quality.dataset.manifest import DatasetRow, read_rows
from quality.evaluation.evaluate import SourceAnswer
from reasoning import DecisionClient, Fallback, boolean, choice, score
from reasoning.config import load_config
from reasoning.decision_types import questions_type
from reasoning.questions import question_set
from storage.layout import Layout
from storage.log.land import land_decisions
from storage.log.views import sql

TEAMS = {"pipes": ["valve", "pump", "hose", "drain"], "power": ["fuse", "cable", "socket", "motor"]}
QUESTIONS = {
    "urgent": boolean("Does the line have to stop?"),
    "team": choice({"pipes": "faults of fluids", "power": "faults of electricity", "nobody": None}, "Who repairs it?"),
    "severity": score(["minor", "major"], "How bad is it?"),
}
WORDS = ["north", "hall", "gate", "roof", "shift", "belt", "line", "crew", "bench", "yard", "tower", "door", "lamp"]
ASKED = 265


def report(rng: random.Random) -> tuple[dict[str, str], dict[str, Any]]:
    """A note, and the right answers to it."""
    team, urgent = rng.choice(list(TEAMS)), rng.random() < 0.5
    words = [*rng.sample(WORDS, 6), rng.choice(TEAMS[team]), "burning" if urgent else "squeaking"]
    rng.shuffle(words)
    return {"note": " ".join(words)}, {"urgent": urgent, "team": team, "severity": int(urgent)}


def guess(state: dict[str, str]) -> Fallback:
    """The fallback, a hosted model that costs something: always the same answer."""
    return Fallback({"urgent": False, "team": "pipes", "severity": 0}, model="jev-1.14.0", cost_usd=0.001)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("REASONING_PROVIDER", "local")
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "data"
    folder = Folder(Layout(tmp_path / "data").data / "local")
    if is_held(folder.server_lock):
        os.kill(json.loads(folder.server.read_text())["pid"], signal.SIGKILL)


def write_log(data: Path) -> None:
    rng, now = random.Random(0), datetime.now(UTC) - timedelta(days=20)
    with DecisionClient(data, clock=lambda: now.timestamp()) as client:
        for number in range(ASKED):
            state, right = report(rng)
            answer = client.ask(state, QUESTIONS, guess, episode_id=f"e{number}")
            # Every third label says only who repairs it, and every sixth a minute later how bad it was.
            labels = [{"team": right["team"]}] if number % 3 == 0 else [right]
            labels += [{"severity": right["severity"]}] if number % 6 == 0 else []
            for label in labels:
                now += timedelta(minutes=1)
                assert client.demonstrate(answer.decision_id, label)
            now += timedelta(minutes=90)
    assert land_decisions(data).decisions == ASKED


def test_a_question_set_goes_from_the_agent_to_its_own_model_and_back(data: Path) -> None:
    name = question_set(QUESTIONS).type_name
    write_log(data)
    labels = sql(data, "SELECT json_keys(label), count(*) FROM labelled_decisions GROUP BY 1").rows
    counts = {tuple(sorted(keys)): count for keys, count in labels}
    assert counts[("severity", "team")] == pytest.approx(ASKED / 6, abs=1)  # what was said one by one adds up
    manifest = export(data, name)
    assert manifest.rows > 180
    config = load_config(data)
    check_prompts(config.decision_types[name], manifest.path, config)

    job = fine_tune(data, manifest.dataset_id, tier="local/linear")
    assert job.state == "completed"
    model_id = deploy(data, name).model_id
    assert model_id is not None
    found = evaluate_model(data, name)
    assert set(found.sources["candidate"].metrics) >= {"exact_match", "accuracy", "accuracy_team", "brier", "ece"}
    best = found.sources["candidate"].metrics["accuracy_team"]
    assert best is not None and best.value > 0.9
    # The classifiers see the state alone, so the order of the options cannot make a difference.
    assert found.about["position_bias"] == {"rows": found.rows, "changed": 0, "share": 0.0}
    assert found.about["verdict"]["decision"] == "promote", found.about["verdict"]

    promote_model(data, name, PromoteSettings(weight=1.0, deadline_ms=5000))
    with DecisionClient(data) as client:
        state, right = {"note": "burning cable north gate"}, {"severity": 1, "team": "power", "urgent": True}
        answer = client.ask(state, QUESTIONS, guess)
        assert (answer.source, answer.decision) == ("custom", right)
        told = answer.probabilities
        assert told is not None and {q: set(options) for q, options in told.items()} == {
            "severity": {"0", "1"},
            "team": {"nobody", "pipes", "power"},
            "urgent": {"false", "true"},
        }
        assert all(sum(options.values()) == pytest.approx(1.0) for options in told.values())
        assert told["team"]["power"] > 0.8
        # Other words are another type: it has no model, and its labels are its own.
        other = client.ask(state, QUESTIONS | {"urgent": boolean("Stop the line?")}, guess)
        assert (other.source, other.fallback_reason) == ("original", "no_route")
    land_decisions(data)
    rows = sql(data, "SELECT decision_type, probabilities FROM decisions WHERE ts > now() - INTERVAL 1 DAY")
    assert {row[0] == name: row[1] is not None for row in rows.rows} == {True: True, False: False}


def check_prompts(kind: Any, dataset: Path, config: Any) -> None:
    """Training prompts have their options in random order; those of tests are, byte for byte, what is served."""
    for split in ("validation", "holdout"):
        for row in read_rows(dataset, split, config=config):
            state = json.loads(row.messages[1]["content"])
            assert row.messages == kind.render({"state": state})
    taught = [row.messages[0]["content"] for row in read_rows(dataset, "train", config=config)]
    served = kind.render({"state": "x"})[0]["content"]
    assert len(set(taught)) > 6 and {tuple(sorted(t.splitlines())) for t in taught} == {
        tuple(sorted(served.splitlines()))
    }


def test_a_model_that_takes_the_first_option_is_told_from_one_that_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = questions_type(question_set({"team": QUESTIONS["team"], "area": choice(["east", "west"])}))
    rows = [
        DatasetRow(
            *("holdout", n, f"d{n}", f"e{n}", datetime.now(UTC), "demonstration"),
            messages=[{"role": m["role"], "content": m["content"]} for m in kind.render({"state": f"report {n}"})],
            label={"area": "east", "team": "pipes"},
            original=None,
            original_latency_ms=None,
            original_cost_usd=None,
        )
        for n in range(5)
    ]

    def first_option(_: object, exam: Any, *__: object) -> list[SourceAnswer | None]:
        firsts = [re.findall(r'\):[^\n]*\n- "(\w+)"', row.messages[0]["content"]) for row in exam.questions]
        return [SourceAnswer({"area": area, "team": team}) for area, team in firsts]

    def reader(_: object, exam: Any, *__: object) -> list[SourceAnswer | None]:
        return [SourceAnswer({"area": "east", "team": "pipes"}) for _ in exam.questions]

    for model, changed in ((first_option, 5), (reader, 0)):
        monkeypatch.setattr(evaluation, "_ask", model)
        exam = evaluation._Exam(kind, rows, 1.0, load_config(env={}), None)
        found = evaluation._measure_position_bias(None, exam, None, model(None, exam))  # type: ignore[arg-type]
        assert found == {"rows": 5, "changed": changed, "share": changed / 5}
