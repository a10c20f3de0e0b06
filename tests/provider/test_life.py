"""Whatever happens to commands, provider and processes: see `tests/provider/life.py` for what must hold."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from provider.together.client import connect
from tests.postgres import fresh_database, run_postgres
from tests.provider.life import CREATES, FAULTS, Life
from tests.provider.world import Emulator, World

MakeWorld = Callable[[], World]


class Lives(RuleBasedStateMachine):
    make_world: MakeWorld
    forms = itertools.cycle(["resource", "typed", "absent", "path", "endpoint", "hardware"])
    """Of the bill; one after the other, so that what else happens is drawn as ever."""

    def __init__(self) -> None:
        super().__init__()
        self.life = Life(type(self).make_world(), limit=Decimal(15))
        self.life.world.model()
        self.life.world.emulator.bill_form(attributes=next(self.forms))

    @rule()
    def upload_and_train(self) -> None:
        self.life.upload()
        self.life.train()

    @rule()
    def train_again(self) -> None:
        self.life.train()

    @rule()
    def deploy(self) -> None:
        self.life.deploy()

    @rule()
    def deploy_the_one_before(self) -> None:
        self.life.deploy(2)

    @rule()
    def undeploy(self) -> None:
        self.life.undeploy()

    @rule()
    def cancel(self) -> None:
        self.life.cancel()

    @rule()
    def stopped_by_the_provider(self) -> None:
        self.life.stopped_by_the_provider()

    @rule()
    def use(self) -> None:
        self.life.use()

    @rule(minutes=st.sampled_from([1, 3, 12, 40]))
    def pass_time(self, minutes: int) -> None:
        self.life.wait(minutes * 60)

    @rule()
    def reconcile(self) -> None:
        self.life.reconcile()

    @rule(fault=st.sampled_from(FAULTS), times=st.integers(1, 4))
    def fault(self, fault: tuple[str, str | None], times: int) -> None:
        self.life.fault(*fault, times=times)

    @rule(request=st.integers(1, 12), answered=st.booleans())
    def kill_while_deploying(self, request: int, answered: bool) -> None:
        self.life.kill(self.life.deploy, request=request, answered=answered)

    @rule(request=st.integers(1, 12), answered=st.booleans())
    def kill_while_stopping(self, request: int, answered: bool) -> None:
        self.life.kill(self.life.undeploy, request=request, answered=answered)

    @rule(request=st.integers(1, 8), answered=st.booleans())
    def kill_while_training(self, request: int, answered: bool) -> None:
        self.life.kill(self.life.train, request=request, answered=answered)

    @rule(create=st.sampled_from(CREATES))
    def die_creating(self, create: tuple[str, str]) -> None:
        command, path = create
        if command == "train":
            self.life.upload()
        self.life.die_creating(getattr(self.life, command), path)

    @rule(create=st.sampled_from(CREATES), kind=st.sampled_from(["lost_response", "500", "hang"]))
    def lose_the_answer_to_a_create(self, create: tuple[str, str], kind: str) -> None:
        command, path = create
        if command == "train":
            self.life.upload()
        self.life.fault(kind, f"POST *{path}")
        getattr(self.life, command)()

    @rule()
    def reconcile_twice(self) -> None:
        self.life.reconcile_twice()

    @precondition(lambda self: self.life.guard_alive)
    @rule()
    def guard_dies(self) -> None:
        self.life.guard_alive = False

    @precondition(lambda self: not self.life.guard_alive)
    @rule()
    def guard_lives(self) -> None:
        self.life.guard_alive = True
        self.life.guard()

    @invariant()
    def nothing_twice(self) -> None:
        self.life.check()

    def teardown(self) -> None:
        self.life.end()
        self.life.world.close()


@pytest.fixture
def make_world(emulator: Emulator, trained_object: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeWorld:
    monkeypatch.delenv("REASONING_LEDGER_URL", raising=False)
    made = iter(range(10**6))

    def make() -> World:
        emulator.clear_faults()
        world = World(emulator, tmp_path / f"life-{next(made)}")
        world.client.close()
        world.client = connect(base_url=emulator.url, timeout=2)  # a hang costs two seconds
        world.trained_object = trained_object
        return world

    return make


def run(make_world: MakeWorld, *, examples: int, steps: int) -> None:
    Lives.make_world = staticmethod(make_world)  # type: ignore[assignment]
    run_state_machine_as_test(
        Lives,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],  # shrinking costs minutes against a real process
            derandomize=True,
            database=None,
        ),
    )


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_long_lives_on_postgresql(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    with run_postgres() as server, contextlib.ExitStack() as databases:

        def make() -> World:
            monkeypatch.setenv("REASONING_LEDGER_URL", databases.enter_context(fresh_database(server)))
            return make_world()

        run(make, examples=int(os.environ.get("TORTURE_LIVES", "50")) // 5, steps=40)


@pytest.mark.parametrize(
    "form", ["resource", *(pytest.param(form, marks=pytest.mark.torture) for form in ("path", "endpoint", "absent"))]
)
def test_a_life_in_which_each_thing_goes_wrong_once(make_world: MakeWorld, emulator: Emulator, form: str) -> None:
    """What chance finds in long lives only, in a row: each of the invariants has something to hold against."""
    emulator.bill_form(attributes=form)
    life = Life(make_world(), limit=Decimal(30))
    life.world.model()
    for command, path in CREATES:
        life.upload()
        life.fault("lost_response", f"POST *{path}")
        getattr(life, command)()
        life.check()
        life.undeploy()
        life.upload()
        life.guard_alive = False
        life.die_creating(getattr(life, command), path)
        life.reconcile_twice()
        life.guard_alive = True
        life.guard()
        life.check()
        life.undeploy()
    life.deploy()
    life.fault("503", "GET *", times=3)
    life.wait(60)
    life.guard_alive = False
    life.wait(300)
    life.check()
    life.stopped_by_the_provider()
    life.wait(1200)  # unseen, and not billed
    life.guard_alive = True
    life.guard()
    life.deploy()
    life.raise_limit(life.world.ledger.spent() + Decimal("1"))
    while life.world.ours():
        life.use()  # so that only the budget can end it
        life.wait(60)
    life.check()
    life.end()
    life.world.close()


def test_a_short_life(make_world: MakeWorld) -> None:
    run(make_world, examples=1, steps=12)


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_long_lives(make_world: MakeWorld) -> None:
    run(make_world, examples=int(os.environ.get("TORTURE_LIVES", "50")), steps=40)
