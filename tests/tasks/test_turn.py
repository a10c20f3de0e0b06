"""The whole turn over the real rooms: killed and taken up again, promoted by canary, or dropped."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from pipeline import models
from pipeline.cycle import Verbs, last_cycle, run_cycle
from pipeline.models import undeploy
from pipeline.parameters import CycleSettings, PromoteSettings
from pipeline.promotion import promote_model
from provider.errors import ProviderRefused
from provider.lifecycle.guard import guard_costs
from provider.lifecycle.routes import publish_route
from provider.together.adapter import TogetherProvider
from provider.together.client import connect
from reasoning.errors import UnknownDecisionType
from reasoning.serving.routes import Arm, Route, read_routes
from storage.layout import Layout
from storage.ledger.ledger import open_ledger
from storage.ledger.lives import CycleOutcome, CycleRow, save_cycle
from storage.ledger.rows import Deployment, FineTuneJob, Model
from storage.log.land import land_decisions
from tests.tasks.rooms import NOON, start_emulator, write_answers, write_log


def _interrupt(data: Path) -> None:
    """Ctrl-C in the middle of the fine-tune."""

    def interrupt(*_: object) -> None:
        if _submitted(data):
            raise KeyboardInterrupt

    def fine_tune(*arguments: Any, **keywords: Any) -> Any:
        return models.fine_tune(*arguments, **keywords, progress=interrupt)

    with pytest.raises(KeyboardInterrupt):
        run_cycle(data, "should_respond", verbs=Verbs(fine_tune=fine_tune))


def _kill(data: Path) -> None:
    """kill -9 in the middle of the fine-tune."""
    command = [sys.executable, "-m", "cli.main", "turn", "should_respond", "--data", str(data)]
    with subprocess.Popen(command, env=os.environ) as process:
        deadline = time.monotonic() + 60
        while not _submitted(data):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()


def _submitted(data: Path) -> bool:
    if not (data / "ledger.sqlite").exists():
        return False
    with open_ledger(data) as ledger:
        return bool(ledger.find(FineTuneJob))


@pytest.mark.parametrize("end", [_interrupt, pytest.param(_kill, marks=pytest.mark.torture)])
def test_a_turn_cut_short_goes_on_where_it_was_and_its_canary_becomes_live(
    tmp_path: Path, local: str, end: Callable[[Path], None], caplog: pytest.LogCaptureFixture
):
    data = tmp_path / "data"
    write_log(data, episodes=130, turns=4)
    land_decisions(data)
    end(data)
    begun = last_cycle(data, "should_respond")
    assert begun is not None and begun.outcome == "under_way" and begun.dataset_id and not begun.evaluation_id

    turn = run_cycle(data, "should_respond", CycleSettings(canary_requests=5, any_price=True))
    assert turn.outcome == "canary", turn.why
    with open_ledger(data) as ledger:
        assert [job.state for job in ledger.find(FineTuneJob)] == ["completed"]
        assert len(ledger.find(Deployment, model_id=turn.model_id)) == 1
        assert [charge.kind for charge in ledger.charges()].count("training") == 1
        assert ledger.get(Model, turn.model_id).state == "canary"
    route = read_routes(Layout(data).routes).routes["should_respond"]
    assert {arm.name: arm.weight for arm in route.arms} == {"custom": 0.1, "original": 0.9}
    assert route.arms[0].base_url == local

    asked = run_cycle(data, "should_respond", CycleSettings(canary_requests=5, any_price=True))
    assert (asked.outcome, asked.why) == (
        "canary",
        "the canary was asked 0 questions: no labelled episode of 0 questions yet",
    )

    write_answers(data, experiment=route.experiment, model=route.arms[0].model, good=6, failed=0)
    land_decisions(data)
    turn = run_cycle(data, "should_respond", CycleSettings(canary_requests=5, any_price=True))
    assert turn.outcome == "canary"  # it failed to answer none, which says nothing of what it answered
    promote_model(data, turn.model_id)  # a person may decide
    turn = run_cycle(data, "should_respond", CycleSettings(canary_requests=5, any_price=True))
    assert turn.outcome == "promoted"
    assert "cooling down" in run_cycle(data, "should_respond").why
    live = read_routes(Layout(data).routes).routes["should_respond"]
    assert {arm.name: arm.weight for arm in live.arms} == {"custom": 0.9, "original": pytest.approx(0.1)}
    assert live.salt == route.salt  # so that the canary's episodes stay the model's

    with caplog.at_level(logging.INFO):
        chosen = promote_model(data, "should_respond", PromoteSettings(min_confidence="auto"))
    assert 0 <= chosen.min_confidence < 1
    assert f"from a confidence of {chosen.min_confidence:g} on, the model answers" in caplog.text

    assert [row.state for row in undeploy(data, "should_respond")] == ["deleted"]
    assert read_routes(Layout(data).routes).routes == {}


def test_a_revoked_key_takes_the_route_away_and_leaves_the_wish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Undeploy with a key that the provider refuses; the guard of a working one ends it."""
    data = tmp_path / "data"
    with start_emulator(tmp_path / "emulator", "--trainer", "majority") as url, connect(base_url=url) as client:
        monkeypatch.setenv("REASONING_PROVIDER_URL", url)
        with open_ledger(Layout(data).create().data) as ledger:
            object_id = _train(client, tmp_path)
            model = ledger.add(
                Model,
                state="trained",
                decision_type="should_respond",
                base_model="Qwen/Qwen3.5-2B",
                model_object_id=object_id,
            )
        row = models.deploy(data, model.id)
        arms = (Arm("custom", "custom", 1.0, model=row.served_name, base_url=url),)
        publish_route(Layout(data).routes, "should_respond", Route(arms))
        with open_ledger(data) as ledger:
            ledger.transition(Model, model.id, "promoted")
        httpx.post(f"{url}/emulator/faults", json={"kind": "401", "match": "* /v*", "times": 50})
        with pytest.raises(ProviderRefused, match=r"401.*the guard stops it once"):
            undeploy(data, model.id)
        assert read_routes(Layout(data).routes).routes == {}
        with open_ledger(data) as ledger:
            assert ledger.get(Model, model.id).state == "trained"
            assert ledger.get(Deployment, row.id).state == "draining"
        httpx.delete(f"{url}/emulator/faults")
        assert client.endpoints.list().data != []
        guard_costs(data, TogetherProvider(client))
        assert client.endpoints.list().data == []


def _train(client: Any, folder: Path) -> str:
    """Id of a model object at the provider."""
    lines = [
        {"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "a"}]} for i in range(9)
    ]
    (folder / "train.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    file = client.files.upload(folder / "train.jsonl", check=False)
    while client.files.retrieve(file.id).processing_status != "COMPLETED":
        time.sleep(0.02)
    job = client.fine_tuning.create(training_file=file.id, model="Qwen/Qwen3.5-2B", suffix="x", lora=True)
    while (found := client.fine_tuning.retrieve(job.id)).status != "completed":
        time.sleep(0.02)
    return str(found.api_model_object_id)


def test_a_model_that_is_not_better_is_dropped_and_nothing_runs_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = tmp_path / "data"
    write_log(data, episodes=110, turns=3)
    land_decisions(data)
    with start_emulator(tmp_path / "emulator", "--trainer", "majority") as url:
        monkeypatch.setenv("REASONING_PROVIDER_URL", url)
        turn = run_cycle(data, "should_respond")
        assert turn.outcome == "rejected"
        assert run_cycle(data, "should_respond").outcome == "not_due"
        later = NOON + timedelta(days=30)
        again = run_cycle(data, "should_respond", now=later)
        assert (again.outcome, again.why) == ("not_due", "0 of 200 new labelled decisions")
    with open_ledger(data) as ledger:
        assert [model.state for model in ledger.find(Model)] == ["rejected"]
        assert {deployment.state for deployment in ledger.find(Deployment)} == {"deleted"}
    assert not Layout(data).routes.exists() or read_routes(Layout(data).routes).routes == {}


def test_a_canary_that_fails_is_withdrawn(tmp_path: Path, local: str):
    data = tmp_path / "data"
    write_log(data, episodes=1, turns=1)
    land_decisions(data)
    with open_ledger(data) as ledger:
        ledger.add(Model, id="m1", state="canary", decision_type="should_respond", base_model="b", model_object_id="o")
    canary = CycleRow(
        decision_type="should_respond", outcome=CycleOutcome.CANARY, finished_at=NOON.isoformat(), model_id="m1"
    )
    with open_ledger(data) as ledger:
        save_cycle(ledger, canary)
    write_answers(data, experiment="should_respond-m1", model="p/m1", good=4, failed=2, since=NOON)
    land_decisions(data)
    later = NOON + timedelta(hours=1)
    turn = run_cycle(data, "should_respond", CycleSettings(canary_requests=6), now=later)
    assert (turn.outcome, turn.why) == ("rejected", "the canary failed to answer 2 of 6 questions")
    with open_ledger(data) as ledger:
        assert ledger.get(Model, "m1").state == "rejected"


def test_too_little_to_learn_from_ends_the_turn_before_anything_is_spent(tmp_path: Path):
    data = tmp_path / "data"
    write_log(data, episodes=3, turns=4)
    land_decisions(data)
    turn = run_cycle(data, "should_respond", CycleSettings(min_new_decisions=1), now=NOON)
    assert turn.outcome == "not_enough_data"
    assert "usable rows" in turn.why


def test_a_type_that_nobody_declared_touches_nothing(tmp_path: Path):
    with pytest.raises(UnknownDecisionType):
        run_cycle(tmp_path, "../should_respond")
    assert list(tmp_path.iterdir()) == []
