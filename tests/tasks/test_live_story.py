"""The whole life on real parts: promoted, its world shifts, withdrawn by the guard, and the next cycle learns that."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import orjson
import pytest

from pipeline.cycle import plan_cycle, run_cycle
from pipeline.money import guard
from pipeline.parameters import CycleSettings
from provider.lifecycle.guard import GuardReport
from reasoning import DecisionClient
from reasoning.serving.routes import read_routes
from storage.layout import Layout
from storage.ledger.ledger import open_ledger
from storage.ledger.rows import Model
from storage.log.land import land_decisions
from tests.tasks.rooms import PEOPLE, remark, write_log

TYPE = "should_respond"
SETTINGS = CycleSettings(canary_weight=0.4, any_price=True)


def tick(data: Path, provider: str, now: datetime) -> GuardReport:
    """A tick of the guard at a time, which is that of the provider as well."""
    httpx.post(f"{provider}/emulator/clock", json={"now": now.isoformat()}).raise_for_status()
    return guard(data, idle_minutes=0, lease_minutes=60, now=now)


def talk(data: Path, name: str, *, questions: int, begin: datetime, named_is: str, seed: int) -> None:
    """Ask through the client, an episode every ten seconds, and let a person say what was right.

    The original answers by the toss of a coin. `named_is` is what is right where Robin is spoken to.
    """
    draw, now = random.Random(seed), [begin]
    other = {"RESPOND": "IGNORE", "IGNORE": "RESPOND"}[named_is]
    with DecisionClient(data, clock=lambda: now[0].timestamp()) as client:
        for n in range(questions):
            now[0] = begin + n * timedelta(seconds=10)
            speakers = draw.sample(PEOPLE, 2)
            named = draw.random() < 0.5
            said = [{"speaker": draw.choice(speakers), "text": remark(draw)} for _ in range(3)]
            said.append({"speaker": speakers[0], "text": ("Robin, " if named else f"{speakers[1]}, ") + remark(draw)})
            context = {"agent_name": "Robin", "messages": said}
            answer = client.decide(
                TYPE, context, lambda _: draw.choice(("RESPOND", "IGNORE")), episode_id=f"{name}-{n:04}"
            )
            assert client.demonstrate(answer.decision_id, named_is if named else other)
    land_decisions(data)


@pytest.mark.torture
@pytest.mark.timeout(600)
def test_a_good_model_is_promoted_its_world_shifts_it_is_withdrawn_and_the_next_cycle_learns_the_new_world(
    tmp_path: Path, local: str
) -> None:
    data, now = tmp_path / "data", datetime.now(UTC)
    write_log(data, episodes=130, turns=4, until=now)
    land_decisions(data)
    with open_ledger(data) as ledger:
        ledger.set_budget("day", "200")
        ledger.set_budget("month", "200")
    first = run_cycle(data, TYPE, SETTINGS)
    now = datetime.now(UTC)
    assert first.outcome == "canary", first.why
    assert first.due == "520 new labelled decisions"

    guard(data, idle_minutes=0, lease_minutes=60, now=now)
    talk(data, "good", questions=150, begin=now, named_is="RESPOND", seed=1)
    later = now + timedelta(hours=3)
    report = tick(data, local, later)
    assert [each for each in report.actions if "is promoted" in each], report

    # From here on Robin is to keep out of what is said to him. Every valid answer of the model is wrong.
    shift = later + timedelta(minutes=5)
    tick(data, local, shift)
    talk(data, "new", questions=330, begin=shift, named_is="IGNORE", seed=2)
    later = shift + timedelta(hours=3)
    report = tick(data, local, later)
    assert [each for each in report.actions if f"model {first.model_id} is rejected: worse" in each], report
    assert TYPE not in read_routes(Layout(data).routes).routes
    with open_ledger(data) as ledger:
        numbers = orjson.loads(ledger.history(Model, first.model_id)[-1].numbers or "{}")
    changed = datetime.fromisoformat(numbers["changed_at"])
    assert abs(changed - shift) < timedelta(minutes=30)

    for minutes in (5, 10):  # what served it is drained, and ended
        tick(data, local, later + timedelta(minutes=minutes))

    # The fallback answers alone until the cycle's cool-down is over.
    talk(data, "fallback", questions=250, begin=later + timedelta(hours=1), named_is="IGNORE", seed=3)
    day = later + timedelta(hours=21)
    settings = CycleSettings(canary_weight=0.4, any_price=True, min_new_decisions=100_000)
    plan = plan_cycle(data, TYPE, settings, now=day)
    assert any(note.startswith("due: a live model fell (worse than the fallback") for note in plan.notes), plan.notes
    httpx.post(f"{local}/emulator/clock", json={"now": day.isoformat()}).raise_for_status()
    ended = run_cycle(data, TYPE, settings, now=day)
    assert (ended.outcome, ended.model_id) == ("rejected", first.model_id)
    second = run_cycle(data, TYPE, settings, now=day)
    assert second.outcome == "canary", second.why
    with DecisionClient(data, clock=lambda: day.timestamp()) as client:
        answers = {
            text: [
                client.decide(
                    TYPE,
                    {"agent_name": "Robin", "messages": [{"speaker": "Ana", "text": text}]},
                    lambda _: "RESPOND",
                    episode_id=f"{text}-{n}",
                )
                for n in range(20)
            ]
            for text in ("Robin, what about the news?", "Ben, what about the news?")
        }
    by_model = {
        text: {each.decision["action"] for each in found if each.source == "custom"} for text, found in answers.items()
    }
    assert by_model == {"Robin, what about the news?": {"IGNORE"}, "Ben, what about the news?": {"RESPOND"}}
