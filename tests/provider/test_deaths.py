"""Processes that are really killed between any two calls, and fresh ones that make it good."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from provider.lifecycle.reconcile import reconcile_provider
from provider.lifecycle.shutdown import undeploy_model
from provider.pace import Pace
from storage.ledger.rows import Deployment, FineTuneJob, Model
from tests.provider import deaths
from tests.provider.deaths import Command, Death
from tests.provider.world import World

KILLED = -signal.SIGKILL
ENDPOINT = "POST /v2/projects/*/endpoints"
DEPLOYMENT = "POST /v2/projects/*/endpoints/*/deployments"


def run(world: World, command: Command, argument: str, death: Death | None = None) -> int:
    return deaths.run(command, world.emulator, world.data, argument, death)


def make_good(world: World) -> None:
    """What the schedule does meanwhile."""
    assert reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now()).errors == []


def settle(world: World) -> None:
    """Everything down, the bill complete: it is what was charged, and nothing is held any more."""
    world.minutes(1)  # so that the bill names what runs
    for row in world.ledger.find(Deployment, state="ready"):
        undeploy_model(world.provider, world.ledger, row.id, drain_seconds=0, pace=Pace(now=world.now, wait=world.wait))
    world.await_bill()
    make_good(world)
    rows = (*world.ledger.find(Deployment), *world.ledger.find(FineTuneJob))
    assert world.ledger.spent() == world.emulator.bill({row.remote_id for row in rows})
    assert world.ledger.budgets(world.now())[0].reserved_usd == 0
    assert world.ours() == []


def die_training(world: World, death: Death, *, between: bool) -> int:
    dataset = world.upload()
    code = run(world, deaths.fine_tune, dataset.id, death)
    if between:
        make_good(world)
    assert run(world, deaths.fine_tune, dataset.id) == 0
    (job,) = world.ledger.find(FineTuneJob)
    assert [remote.id for remote in world.our_jobs()] == [job.remote_id]
    assert (job.state, len(world.ledger.find(Model))) == ("completed", 1)
    settle(world)
    return code


def die_deploying(world: World, death: Death, *, between: bool) -> int:
    model_id = world.model()
    code = run(world, deaths.deploy, model_id, death)
    if between:
        make_good(world)
    assert run(world, deaths.deploy, model_id) == 0
    (row,) = world.ledger.find(Deployment)
    (endpoint,) = world.ours()
    assert [deployment.id for deployment in endpoint.deployments] == [row.remote_id]
    assert row.state == "ready"
    settle(world)
    return code


def die_undeploying(world: World, death: Death, *, between: bool) -> int:
    row = world.deploy()
    world.minutes(3)
    code = run(world, deaths.undeploy, row.id, death)
    if between:
        make_good(world)
    assert run(world, deaths.undeploy, row.id) == 0
    settle(world)
    return code


LIVES = {"training": die_training, "deploying": die_deploying, "undeploying": die_undeploying}


@pytest.mark.parametrize(
    ("life", "death", "between"),
    [
        pytest.param("training", Death("POST /v1/fine-tunes"), False, marks=pytest.mark.torture),
        ("training", Death("POST /v1/fine-tunes", answered=True), True),
        # While it is followed.
        pytest.param("training", Death("GET /v1/fine-tunes/ft-*", answered=True), False, marks=pytest.mark.torture),
        pytest.param("deploying", Death(ENDPOINT, answered=True), False, marks=pytest.mark.torture),
        ("deploying", Death(DEPLOYMENT, answered=True), True),
        pytest.param("undeploying", Death("PATCH *", nth=2, answered=True), False, marks=pytest.mark.torture),
        pytest.param("undeploying", Death("DELETE *", answered=True), True, marks=pytest.mark.torture),
    ],
    ids=str,
)
def test_killed_and_begun_again_nothing_is_done_twice(world: World, life: str, death: Death, between: bool) -> None:
    assert LIVES[life](world, death, between=between) == KILLED


@pytest.mark.torture
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("between", [False, True], ids=["begun again", "reconciled, begun again"])
@pytest.mark.parametrize("answered", [False, True], ids=["before the call", "after the call"])
@pytest.mark.parametrize("life", LIVES)
def test_killed_at_every_request(world: World, tmp_path: Path, life: str, answered: bool, between: bool) -> None:
    for nth in range(1, 100):
        own = World(world.emulator, tmp_path / f"life-{nth}")
        own.trained_object = world.trained_object
        if LIVES[life](own, Death(nth=nth, answered=answered), between=between) == 0:
            assert nth > 5  # it came through: there were no more requests to die at
            return
    raise AssertionError("it never came to its end")


@pytest.mark.torture
@pytest.mark.parametrize("command", [deaths.guard, deaths.reconcile])
def test_killed_guards_and_reconciliations_leave_nothing(world: World, command: Command) -> None:
    row = world.deploy()
    world.minutes(31)  # idle, and unwatched: it is to go
    for nth in range(1, 4):
        run(world, command, str(world.data), Death(nth=nth, answered=True))
    for _ in range(2):
        world.minutes(1)
        assert run(world, command, str(world.data)) == 0
    assert world.ledger.get(Deployment, row.id).state == "deleted"
    settle(world)


def test_ctrl_c_in_a_deployment_takes_it_down_at_once(world: World) -> None:
    model_id = world.model()
    assert run(world, deaths.deploy, model_id, Death(DEPLOYMENT, answered=True, signal=signal.SIGINT)) == 1
    assert world.ours() == []
    (row,) = world.ledger.find(Deployment)
    assert (row.state, row.reason) == ("deleted", "interrupted while it started")
    settle(world)


@pytest.mark.torture
def test_ctrl_c_leaves_alone_what_another_process_deploys(world: World) -> None:
    model_id = world.model()
    world.emulator.fault("slow_cold_start", seconds=100)
    assert run(world, deaths.deploy, model_id, Death(DEPLOYMENT, answered=True)) == KILLED
    again = Death("GET /v2/projects/*/endpoints/*/deployments/*", nth=2, signal=signal.SIGINT)
    assert run(world, deaths.deploy, model_id, again) == 1
    assert run(world, deaths.deploy, model_id) == 0
    settle(world)


def test_ctrl_c_at_the_command_line_names_what_goes_on(world: World) -> None:
    world.upload()
    world.emulator.fault("training_slow", seconds=30)
    command = [sys.executable, "-m", "cli.main", "fine-tune", "dataset-1", "--anyway", "--data", str(world.data)]
    process = subprocess.Popen(
        command, env=os.environ | {"REASONING_PROVIDER_URL": world.emulator.url}, stderr=subprocess.PIPE, text=True
    )
    # Not before it was followed once: pydantic, while it builds what the SDK parses answers with, takes a
    # KeyboardInterrupt for an error of the schema.
    while not (jobs := world.ledger.find(FineTuneJob, state="running")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert f"`reasoning models cancel {jobs[0].id}`" in said
    assert "$4.00" in said
    assert run(world, deaths.cancel, jobs[0].id) == 0
