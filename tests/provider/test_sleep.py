"""Sleep and wake, moved by the guard's ticks: money stops soon after nobody asks, and only demand brings it back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from provider.lifecycle.guard import guard_costs
from provider.lifecycle.guard_report import GuardPolicy, GuardReport
from provider.lifecycle.reconcile import reconcile_provider
from provider.lifecycle.routes import publish_route
from provider.serving import Hours, ServingSettings, TypeServing, read_hours
from reasoning.serving.routes import Arm, Route, Routes, format_routes, read_routes
from storage.ledger.lives import Promotion, decide_promotion, drop_promotions
from storage.ledger.rows import Deployment, DeploymentRole, Model, required
from storage.ledger.sleeps import read_sleeps
from storage.log.land import land_decisions
from tests.provider.test_sharing import own
from tests.provider.world import Killed, World
from tests.storage.logs import make_decision, write_segment

RATE = Decimal("5.49")


class Sleeper:
    """An installation with promoted models, whose guard ticks every minute."""

    def __init__(self, world: World, **settings: object) -> None:
        self.world = world
        self.settings = TypeServing(**settings)  # type: ignore[arg-type]

    def promote(self, row: Deployment) -> None:
        now = self.world.now()
        custom = Arm("custom", "custom", 0.9, model=row.served_name, base_url=self.world.emulator.url)
        route = Route((custom, Arm("original", "original", 0.1)))
        name = required(row.decision_type, "a type")
        text = format_routes(Routes(issued_at=now, expires_at=now, routes={name: route})).decode()
        promotion = Promotion(
            decision_type=name,
            model_id=required(row.model_id, "a model"),
            routes=text,
            decided_at=now,
            published_at=now,
        )
        decide_promotion(self.world.ledger, promotion)
        publish_route(self.world.data / "routes.json", name, route, now=now)

    def ask(self, count: int = 1, name: str = "should_respond", model: str | None = None) -> None:
        """Log that decisions were asked for now: of a model, or of the fallback."""
        world = self.world
        values = {"decision_type": name, "source": "custom" if model else "original", "model": model}
        write_segment(world.data, [make_decision(world.now(), **values) for _ in range(count)])
        land_decisions(world.data, now=world.now())

    def tick(self, times: int = 1) -> GuardReport:
        """The last of so many ticks, a minute apart."""
        for _ in range(times):
            report = self.skip(1)
        return report

    def skip(self, minutes: float) -> GuardReport:
        """A tick after so many minutes without one."""
        world = self.world
        world.minutes(minutes)
        policy = GuardPolicy(serving=ServingSettings(self.settings))
        report = guard_costs(world.data, world.provider, policy=policy, ledger=world.ledger, now=world.now())
        assert report.errors == []
        return report

    def fall_asleep(self) -> None:
        """Let the idle minutes pass, and what then is taken down be gone."""
        self.skip(15)
        self.tick(2)
        assert self.world.ours() == []

    def routed(self) -> dict[str, str | None]:
        routes = read_routes(self.world.data / "routes.json").routes
        return {name: route.arms[0].model for name, route in routes.items()}

    def billed(self) -> Decimal:
        ids = {row.remote_id for row in self.world.ledger.find(Deployment) if row.remote_id}
        return self.world.emulator.bill(ids)


@pytest.mark.parametrize("kind", ["own", "attached"])
def test_a_quiet_model_sleeps_costs_nothing_and_wakes_by_demand(world: World, adapters: list[Model], kind: str) -> None:
    life = Sleeper(world)
    row = world.deploy(own(world, adapters[0]) if kind == "attached" else None)
    life.promote(row)
    life.ask(model=row.served_name)
    life.skip(14)
    assert life.routed() == {"should_respond": row.served_name}
    life.tick(3)  # two minutes after the idle ones all is down
    assert life.routed() == {}
    assert world.ours() == []
    quiet = life.billed()
    life.skip(60)
    assert life.billed() == quiet
    (sleep,) = read_sleeps(world.ledger)
    assert (sleep.why, sleep.saving_usd, sleep.woken_at) == ("idle", RATE, None)
    assert sleep.saved_usd(world.now()) == pytest.approx(RATE, rel=Decimal("0.15"))

    life.ask(9)  # not the first request, nor the ninth
    life.tick()
    assert world.ours() == []
    life.ask(1)
    assert [action for action in life.tick().actions if "waking" in action]
    assert life.routed() == {}  # the fallback answers while it starts
    assert [action for action in life.tick().actions if "awake" in action]
    (again,) = world.ledger.find(Deployment, model_id=row.model_id, state="ready")
    assert life.routed() == {"should_respond": again.served_name}
    answer = world.observer.chat.completions.create(
        model=required(again.served_name, "it"), messages=[{"role": "user", "content": "Ann: hi"}], max_tokens=20
    )
    assert "RESPOND" in answer.choices[0].message.content
    (sleep,) = read_sleeps(world.ledger)
    assert sleep.cold_start_seconds == 60
    life.skip(14)
    assert life.routed() != {}  # it has its idle minutes again


def test_the_saving_is_of_the_last_that_falls_asleep(world: World, adapters: list[Model]) -> None:
    life = Sleeper(world)
    first = world.deploy(own(world, adapters[0]))
    second = world.deploy(own(world, adapters[1], "planning"))
    for row in (first, second):
        life.promote(row)
    life.skip(5)
    life.ask(name="planning", model=second.served_name)
    life.skip(11)
    life.tick()
    assert life.routed() == {"planning": second.served_name}
    assert [row.state for row in world.ledger.find(Deployment, role=DeploymentRole.SHARED)] == ["ready"]
    life.skip(5)
    life.tick(2)
    assert world.ours() == []
    assert [(sleep.decision_type, sleep.saving_usd) for sleep in read_sleeps(world.ledger)] == [
        ("planning", RATE),
        ("should_respond", Decimal(0)),
    ]
    life.ask(10)
    life.tick(2)  # the replica runs again, so planning saves no more
    (saving,) = [sleep for sleep in read_sleeps(world.ledger) if sleep.decision_type == "planning"]
    assert saving.saves_until is not None and saving.woken_at is None


def test_a_calendar_puts_to_sleep_and_wakes_whatever_is_asked(world: World, adapters: list[Model]) -> None:
    now = world.now()
    closes = (now + timedelta(minutes=5)).time()
    opens = (now + timedelta(minutes=30)).time()
    life = Sleeper(world, serve_between=Hours(opens, closes, read_hours("x", "01:00-02:00 UTC").zone))
    row = world.deploy(own(world, adapters[0]))
    life.promote(row)
    life.skip(3)
    assert life.routed() != {}
    life.ask(5, model=row.served_name)
    life.skip(3)
    life.tick(2)
    assert life.routed() == {}
    assert world.ours() == []
    life.ask(50)
    life.tick()
    assert world.ours() == []  # its hours are over
    life.skip(22)
    life.tick(2)
    assert life.routed() == {"should_respond": row.served_name}
    assert [sleep.why for sleep in read_sleeps(world.ledger)] == ["calendar"]


def test_a_budget_refuses_to_wake_and_says_so(world: World, adapters: list[Model]) -> None:
    life = Sleeper(world)
    life.promote(world.deploy(own(world, adapters[0])))
    life.fall_asleep()
    world.ledger.set_budget("hour", "5")
    life.ask(10)
    report = life.tick()
    assert [warning for warning in report.warnings if "cannot be woken" in warning]
    assert world.ours() == []
    assert "hour budget" in str(read_sleeps(world.ledger)[0].refused)
    world.ledger.set_budget("hour", "6")
    life.tick(3)
    assert life.routed() != {}
    assert sum(row.hourly_usd for row in world.ledger.find(Deployment, state="ready")) == RATE  # of all, once


def test_a_candidate_is_stopped_and_does_not_come_back(world: World, adapters: list[Model]) -> None:
    life = Sleeper(world)
    world.deploy(own(world, adapters[0]))
    life.fall_asleep()
    life.ask(50)
    life.tick(2)
    assert (world.ours(), read_sleeps(world.ledger)) == ([], [])


def test_a_sleeping_model_that_was_undeployed_is_not_woken(world: World, adapters: list[Model]) -> None:
    life = Sleeper(world)
    row = world.deploy(own(world, adapters[0]))
    life.promote(row)
    life.fall_asleep()
    drop_promotions(world.ledger, model_id=required(row.model_id, "it"))
    life.ask(50)
    life.tick(3)
    assert world.ours() == []
    assert [sleep.ready_at is not None for sleep in read_sleeps(world.ledger)] == [True]


@pytest.mark.parametrize("path", ["/endpoints", "/deployments", "/adapters"])
def test_a_guard_that_dies_while_it_wakes_is_made_good(world: World, adapters: list[Model], path: str) -> None:
    life = Sleeper(world)
    row = world.deploy(own(world, adapters[0]))
    life.promote(row)
    life.fall_asleep()
    life.ask(10)
    world.kill_after("POST", path)
    with pytest.raises(Killed):
        life.tick()
    world.revive()
    life.tick(3)
    assert life.routed() == {"should_respond": row.served_name}
    assert len(world.ours()) == 1


def test_a_wake_whose_start_is_given_up_is_tried_again_later(world: World, adapters: list[Model]) -> None:
    life = Sleeper(world)
    life.promote(world.deploy(own(world, adapters[0])))
    life.fall_asleep()
    world.emulator.fault("adapter_error")
    life.ask(10)
    life.tick(4)
    assert life.routed() == {}
    assert world.ours() == []
    life.ask(10)
    life.tick(2)
    assert world.ours() == []  # not at once
    life.skip(8)
    life.ask(10)
    life.tick(3)
    assert life.routed() != {}


def test_a_dead_guard_wakes_nothing_and_reconciliation_leaves_sleepers_asleep(
    world: World, adapters: list[Model]
) -> None:
    life = Sleeper(world)
    life.promote(world.deploy(own(world, adapters[0])))
    life.fall_asleep()
    life.ask(50)
    for _ in range(3):
        world.minutes(10)
        report = reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now())
        assert report.orphans == []
    assert world.ours() == []


def test_times_are_those_of_the_zone_on_the_day_that_the_clock_is_changed() -> None:
    serving = TypeServing(serve_between=read_hours("x", "07:00-23:00 Europe/Berlin"))
    assert not serving.is_open(datetime(2026, 3, 28, 5, 30, tzinfo=UTC))  # 06:30 in winter
    assert serving.is_open(datetime(2026, 3, 29, 5, 30, tzinfo=UTC))  # 07:30 in summer
