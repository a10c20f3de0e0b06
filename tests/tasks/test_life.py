"""The life of a model: its states, who answers in each of them, and what ends it. Registered models, no processes."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import orjson
import pytest

import pipeline.life
from pipeline.cycle import demote_incumbent, last_cycle, run_cycle
from pipeline.errors import ModelMoved
from pipeline.life import move_model, read_lives
from pipeline.live_proof import prove_models
from pipeline.money import guard
from pipeline.parameters import CycleSettings
from pipeline.triggers import Trigger, find_due
from quality.evaluation.evaluate import Label, SourceAnswer, evaluate
from reasoning.serving.routes import choose_arm, read_routes
from storage.layout import Layout
from storage.ledger.ledger import Ledger, open_ledger
from storage.ledger.lives import CycleOutcome, CycleRow, Serving, promotions, save_cycle, served_models
from storage.ledger.reports import type_history
from storage.ledger.rows import Deployment, Model, ModelState
from tests.tasks.rooms import NOON
from tests.tasks.served import TYPE, add_model, move, shares, state_of, write_served

PROMOTED, CANARY, SHADOW = ModelState.PROMOTED, ModelState.CANARY, ModelState.SHADOW


def test_the_incumbent_serves_beside_a_canary_and_a_failed_challenger_leaves_all_as_it_was(
    tmp_path: Path, ledger: Ledger
) -> None:
    old, new = add_model(ledger, "old"), add_model(ledger, "new")
    move(tmp_path, ledger, "old", PROMOTED, serving=old)
    before = shares(tmp_path)
    assert before == {"endpoint/old": 0.9, None: 0.1}
    route_before = read_routes(Layout(tmp_path).routes).routes[TYPE]
    move(tmp_path, ledger, "new", CANARY, serving=Serving(arm=new.arm, salt="old"))
    assert shares(tmp_path) == {"endpoint/new": 0.1, "endpoint/old": 0.81, None: 0.09}
    route = read_routes(Layout(tmp_path).routes).routes[TYPE]
    keys = [f"episode-{n}" for n in range(400)]
    moved = [key for key in keys if choose_arm(route, key)[0].model != choose_arm(route_before, key)[0].model]
    canary = [key for key in keys if choose_arm(route, key)[0].model == "endpoint/new"]
    assert len(moved) <= len(canary) + 0.02 * len(keys)  # other episodes stay with who answered them
    move(tmp_path, ledger, "new", ModelState.REJECTED)
    assert shares(tmp_path) == before
    assert state_of(ledger, "old") == "promoted"
    assert read_routes(Layout(tmp_path).routes).routes[TYPE] == route_before


def test_a_challenger_in_the_shadow_takes_no_question_of_the_incumbent(tmp_path: Path, ledger: Ledger) -> None:
    old, new = add_model(ledger, "old"), add_model(ledger, "new")
    move(tmp_path, ledger, "old", PROMOTED, serving=old)
    move(tmp_path, ledger, "new", SHADOW, serving=new)
    assert shares(tmp_path) == {"endpoint/old": 0.9, None: 0.1}
    arms = read_routes(Layout(tmp_path).routes).routes[TYPE].arms
    assert [arm.model for arm in arms if arm.mode == "shadow"] == ["endpoint/new"]


def test_a_challenger_that_becomes_live_takes_the_place_and_keeps_its_episodes(tmp_path: Path, ledger: Ledger) -> None:
    old, new = add_model(ledger, "old"), add_model(ledger, "new")
    move(tmp_path, ledger, "old", PROMOTED, serving=old)
    move(tmp_path, ledger, "new", CANARY, serving=new)
    canary = read_routes(Layout(tmp_path).routes).routes[TYPE]
    moved = move_model(tmp_path, ledger, "new", PROMOTED, why="proven", numbers={"low": 0.01}, now=NOON)
    assert moved.replaced == ("old",)
    assert (state_of(ledger, "old"), state_of(ledger, "new")) == ("trained", "promoted")
    assert shares(tmp_path) == {"endpoint/new": 0.9, None: 0.1}
    live = read_routes(Layout(tmp_path).routes).routes[TYPE]
    for key in (f"episode-{n}" for n in range(200)):
        if choose_arm(canary, key)[0].model == "endpoint/new":
            assert choose_arm(live, key)[0].model == "endpoint/new"
    last = ledger.history(Model, "new")[-1]
    assert (last.from_state, last.to_state, last.why) == ("canary", "promoted", "proven")
    assert orjson.loads(last.numbers or "") == {"low": 0.01}


def test_of_two_movers_at_once_one_wins(tmp_path: Path, ledger: Ledger) -> None:
    serving = add_model(ledger, "new")
    move(tmp_path, ledger, "new", CANARY, serving=serving)
    move(tmp_path, ledger, "new", PROMOTED, expected=(CANARY,))
    with pytest.raises(ModelMoved, match="model new is promoted by now"):
        move(tmp_path, ledger, "new", ModelState.REJECTED, expected=(CANARY,))
    assert shares(tmp_path) == {"endpoint/new": 0.9, None: 0.1}


def _move_and_die(data: Path, name: str, to: ModelState, at: str) -> None:
    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(pipeline.life, at, die)
    with open_ledger(data, now=NOON) as ledger:
        move_model(data, ledger, name, to, why="killed", now=NOON)


@pytest.mark.parametrize(
    "to", [PROMOTED, ModelState.REJECTED, pytest.param(ModelState.TRAINED, marks=pytest.mark.torture)]
)
@pytest.mark.parametrize("at", ["derive_route", "decide_promotion", "publish_route", "keep_models", "mark_published"])
def test_killed_at_any_step_a_move_is_made_or_not_and_the_guard_writes_what_is_so(
    tmp_path: Path, ledger: Ledger, to: ModelState, at: str
) -> None:
    move(tmp_path, ledger, "new", CANARY, serving=add_model(ledger, "new"))
    process = get_context("fork").Process(target=_move_and_die, args=(tmp_path, "new", to, at))
    process.start()
    process.join()
    died = process.exitcode == -signal.SIGKILL
    decided = at not in ("derive_route", "decide_promotion")
    assert state_of(ledger, "new") == (to if decided else CANARY)
    guard(tmp_path, now=NOON + timedelta(minutes=1))
    if not decided:
        assert shares(tmp_path) == {"endpoint/new": 0.1, None: 0.9}
    elif to == PROMOTED:
        assert shares(tmp_path) == {"endpoint/new": 0.9, None: 0.1}
    else:
        assert shares(tmp_path) == {}
    assert promotions(ledger, only_unpublished=True) == []
    assert died or at in ("publish_route", "keep_models")
    assert bool(served_models(ledger)) == (not decided or to == PROMOTED)


@pytest.mark.parametrize(("right", "state"), [(0.0, "rejected"), (0.6, "promoted")])
def test_an_incumbent_that_an_evaluation_puts_below_the_fallback_is_demoted(
    tmp_path: Path, ledger: Ledger, right: float, state: str
) -> None:
    move(tmp_path, ledger, "old", PROMOTED, serving=add_model(ledger, "old"))
    truth = [{"action": ("RESPOND", "IGNORE")[n % 2]} for n in range(200)]
    wrong = [truth[n + 1 - 2 * (n % 2)] for n in range(200)]

    def answers(share: float) -> list[SourceAnswer]:
        return [SourceAnswer(truth[n] if n * 7919 % 100 < 100 * share else wrong[n]) for n in range(200)]

    evaluation = evaluate(
        TYPE,
        [Label(each, f"episode-{n}", "demonstration") for n, each in enumerate(truth)],
        {"candidate": answers(0.6), "incumbent": answers(right), "original": answers(0.584)},
        about={"incumbent_model_id": "old"},
        now=NOON,
    )
    demote_incumbent(tmp_path, evaluation, now=NOON)
    assert state_of(ledger, "old") == state
    assert shares(tmp_path) == ({} if state == "rejected" else {"endpoint/old": 0.9, None: 0.1})


# -- the live proof -------------------------------------------------------------------------------------------------


def test_a_canary_whose_valid_answers_are_all_wrong_is_withdrawn_and_the_incumbent_stays(
    tmp_path: Path, ledger: Ledger
) -> None:
    """It failed to answer no question, so the cycle gave it nine tenths of the traffic, and nothing saw it."""
    move(tmp_path, ledger, "old", PROMOTED, serving=add_model(ledger, "old"))
    move(tmp_path, ledger, "new", CANARY, serving=add_model(ledger, "new"))
    turn = CycleRow(decision_type=TYPE, outcome=CycleOutcome.CANARY, finished_at=NOON.isoformat(), model_id="new")
    save_cycle(ledger, turn)
    later = write_served(
        tmp_path, since=NOON, count=700, right={"endpoint/new": 0.0, "endpoint/old": 0.9, "original": 0.6}
    )
    turn = run_cycle(tmp_path, TYPE, CycleSettings(canary_requests=50), now=later)
    assert turn.outcome == "rejected"
    assert "worse than the fallback" in turn.why
    assert state_of(ledger, "new") == "rejected"
    assert shares(tmp_path) == {"endpoint/old": 0.9, None: 0.1}
    numbers = orjson.loads(ledger.history(Model, "new")[-1].numbers or "")
    assert numbers["episodes"] > 20
    assert [row.state for row in ledger.find(Deployment, model_id="new")] == ["draining"]


def test_a_good_canary_is_promoted_by_the_guard_and_the_cycle_sees_it(tmp_path: Path, ledger: Ledger) -> None:
    serving = add_model(ledger, "new")
    move(tmp_path, ledger, "new", CANARY, serving=Serving(arm=serving.arm, salt="new", canary_weight=0.3))
    save_cycle(
        ledger,
        CycleRow(decision_type=TYPE, outcome=CycleOutcome.CANARY, finished_at=NOON.isoformat(), model_id="new"),
    )
    early = run_cycle(tmp_path, TYPE, now=NOON + timedelta(minutes=1))
    assert (early.outcome, early.why) == (
        "canary",
        "the canary was asked 0 questions: no labelled episode of 0 questions yet",
    )
    later = write_served(tmp_path, since=NOON, count=900, right={"endpoint/new": 0.95, "original": 0.5})
    report = guard(tmp_path, now=later)
    assert [each for each in report.actions if each.startswith("model new is promoted")], report
    assert shares(tmp_path) == {"endpoint/new": 0.9, None: 0.1}
    turn = run_cycle(tmp_path, TYPE, now=later)
    assert turn.outcome == "promoted"
    kept = last_cycle(tmp_path, TYPE)
    assert kept is not None and kept.outcome == "promoted"


def test_a_challenger_as_good_as_the_fallback_but_worse_than_the_incumbent_is_not_promoted(
    tmp_path: Path, ledger: Ledger
) -> None:
    move(tmp_path, ledger, "old", PROMOTED, serving=add_model(ledger, "old"))
    serving = add_model(ledger, "new")
    move(tmp_path, ledger, "new", CANARY, serving=Serving(arm=serving.arm, salt="new", canary_weight=0.3))
    later = write_served(
        tmp_path, since=NOON, count=900, right={"endpoint/new": 0.65, "endpoint/old": 0.97, "original": 0.6}
    )
    (found,) = [each for each in prove_models(tmp_path, TYPE, now=later) if each.model_id == "new"]
    assert found.moved_to == ModelState.REJECTED
    assert found.reason.startswith("against the incumbent")
    assert shares(tmp_path) == {"endpoint/old": 0.9, None: 0.1}


def test_an_incumbent_is_tested_on_while_a_challenger_serves_beside_it(tmp_path: Path, ledger: Ledger) -> None:
    serving = add_model(ledger, "old")
    move(tmp_path, ledger, "old", PROMOTED, serving=Serving(arm=serving.arm, salt="old", weight=0.6))
    move(tmp_path, ledger, "new", CANARY, serving=add_model(ledger, "new"))
    later = write_served(
        tmp_path, since=NOON, count=700, right={"endpoint/new": 0.9, "endpoint/old": 0.3, "original": 0.9}
    )
    found = {each.model_id: each for each in prove_models(tmp_path, TYPE, now=later)}
    assert found["old"].moved_to == ModelState.REJECTED, found
    assert shares(tmp_path) == {"endpoint/new": 0.1, None: 0.9}
    lives = read_lives(ledger, TYPE)
    assert lives.incumbent is None and lives.challenger is not None and lives.challenger.model_id == "new"


def test_a_live_model_without_labels_shrinks_and_a_look_without_news_is_spared(tmp_path: Path, ledger: Ledger) -> None:
    move(tmp_path, ledger, "new", PROMOTED, serving=add_model(ledger, "new"))
    rights = {"endpoint/new": 0.9, "original": 0.9}
    later = write_served(tmp_path, since=NOON, count=30, right=rights, labelled=False)
    assert [each.action for each in prove_models(tmp_path, now=later, only_new=True)] == ["hold"]
    assert prove_models(tmp_path, now=later + timedelta(minutes=1), only_new=True) == []
    week = NOON + timedelta(days=8)
    report = guard(tmp_path, now=week)
    assert any("serving unproven since" in each for each in report.actions), report
    assert state_of(ledger, "new") == "degraded"
    assert shares(tmp_path) == {"endpoint/new": 0.1, None: 0.9}


def test_a_fault_of_the_proof_leaves_the_money_part_of_a_tick_as_it_is(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    move(tmp_path, ledger, "new", PROMOTED, serving=add_model(ledger, "new"))

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("too much")

    monkeypatch.setattr("pipeline.experiment.observe", fail)
    report = guard(tmp_path, now=NOON + timedelta(minutes=1))
    assert (report.lease, report.errors) == ("renewed", [])
    assert any("MemoryError: too much" in each for each in report.warnings)
    assert shares(tmp_path) == {"endpoint/new": 0.9, None: 0.1}


# -- when a cycle is due --------------------------------------------------------------------------------------------


def test_after_a_live_model_fell_a_cycle_is_due_with_fewer_labels_and_learns_from_the_change_on(
    tmp_path: Path, ledger: Ledger
) -> None:
    serving = add_model(ledger, "new")
    move(tmp_path, ledger, "new", PROMOTED, serving=Serving(arm=serving.arm, salt="new", weight=0.6))
    ended = CycleRow(
        decision_type=TYPE,
        outcome=CycleOutcome.PROMOTED,
        started_at=NOON.isoformat(),
        finished_at=NOON.isoformat(),
        why="better",
        due="520 new labelled decisions",
    )
    save_cycle(ledger, ended)
    write_served(tmp_path, since=NOON, count=150, right={"endpoint/new": 0.97, "original": 0.6})
    shift = NOON + timedelta(minutes=150)
    later = write_served(tmp_path, since=shift, count=300, right={"endpoint/new": 0.05, "original": 0.6})
    assert prove_models(tmp_path, TYPE, now=later)[0].moved_to == ModelState.REJECTED
    settings = CycleSettings(min_new_decisions=10_000)
    cooling = find_due(tmp_path, TYPE, ended, settings, now=later)
    assert cooling.trigger is None and "cooling down until" in cooling.why
    day = NOON + timedelta(hours=21)
    due = find_due(tmp_path, TYPE, ended, settings, now=day)
    assert due.trigger == Trigger.FALLEN
    assert "worse than the fallback" in due.why and "new labelled decisions" in due.why
    assert due.since is not None and abs(due.since - shift) < timedelta(minutes=30)
    by_hand = find_due(tmp_path, TYPE, ended, CycleSettings(since=NOON), now=day)
    assert (by_hand.trigger, by_hand.since) == (Trigger.NEW_DECISIONS, NOON)
    few = find_due(tmp_path, TYPE, ended, CycleSettings(min_new_decisions=10_000, min_changed_decisions=5_000), now=day)
    assert (few.trigger, few.why.partition(" of ")[2]) == (None, "10000 new labelled decisions")
    told = [(row["object"], row["to_state"], row["why"]) for row in type_history(ledger, TYPE)]
    assert ("cycles", "promoted", "better") in told
    assert ("models", "rejected", due.why.partition("(")[2].rpartition(")")[0]) in told
