"""Models that share a replica, through the real SDK over HTTP: places, the bill, failures and deaths."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from provider.errors import DeploymentFailed, ProviderUnavailable
from provider.lifecycle.guard import guard_costs
from provider.lifecycle.reconcile import reconcile_provider
from provider.lifecycle.sharing import attached_to
from provider.lifecycle.shutdown import undeploy_model
from provider.lifecycle.stop import stop_everything
from provider.pace import Pace
from storage.errors import BudgetExceeded
from storage.ledger.rows import Deployment, DeploymentRole, Model, required
from tests.provider.world import Killed, World

RATE = Decimal("5.49")
TYPES = ("should_respond", "planning", "coding")


def own(world: World, adapter: Model, decision_type: str = "should_respond") -> str:
    """A model of this installation with that adapter; returns its id."""
    row = world.ledger.add(
        Model,
        state="trained",
        decision_type=decision_type,
        base_model=adapter.base_model,
        model_object_id=adapter.model_object_id,
        adapter_object_id=adapter.adapter_object_id,
        adapter_name=adapter.adapter_name,
        now=world.now(),
    )
    return row.id


def replicas(world: World) -> list[Deployment]:
    """Shared deployments that are not gone, by the ledger."""
    rows = world.ledger.find(Deployment, role=DeploymentRole.SHARED)
    return [row for row in rows if row.state != "deleted"]


def attached(world: World) -> list[str]:
    """Adapters on our replicas, by the provider."""
    found = []
    for endpoint in world.ours():
        for deployment in world.observer.endpoints.deployments.list(endpoint.id):
            for each in world.observer.endpoints.adapters.list(endpoint.id, deployment.id):
                found.append(each.adapter_model_id)
    return sorted(found)


def guard(world: World) -> list[str]:
    report = guard_costs(world.data, world.provider, ledger=world.ledger, now=world.now())
    assert report.errors == []
    return report.actions


def undeploy(world: World, row: Deployment) -> None:
    undeploy_model(world.provider, world.ledger, row.id, pace=Pace(now=world.now, wait=world.wait), drain_seconds=0)


def test_types_and_candidates_share_one_replica_and_it_ends_with_the_last(world: World, adapters: list[Model]) -> None:
    rows = [world.deploy(own(world, adapter, name)) for adapter, name in zip(adapters, TYPES, strict=False)]
    assert [row.state for row in rows] == ["ready"] * 3
    assert [row.served_name for row in rows] == [adapter.adapter_name for adapter in adapters[:3]]
    (replica,) = replicas(world)
    assert (replica.max_adapters, replica.hourly_usd, replica.decision_type) == (5, RATE, None)
    assert len(world.ours()) == 1
    for row in rows:
        answer = world.observer.chat.completions.create(
            model=row.served_name, messages=[{"role": "user", "content": "Ann: hello"}], max_tokens=20
        )
        assert "RESPOND" in answer.choices[0].message.content
    world.minutes(30)
    guard(world)
    assert len(world.ledger.charges(kind="endpoint")) == len(world.ledger.charges(deployment_id=replica.id))
    for row in rows[:2]:
        undeploy(world, row)
        assert len(replicas(world)) == 1
    undeploy(world, rows[2])
    assert replicas(world) == []
    assert world.ours() == []
    charged = sum(charge.amount_usd for charge in world.ledger.charges(deployment_id=replica.id))
    assert abs(charged - world.emulator.bill({required(replica.remote_id, "it")})) <= RATE / 60
    world.await_bill()
    reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now())
    charged = sum(charge.amount_usd for charge in world.ledger.charges(deployment_id=replica.id))
    assert charged == world.emulator.bill({required(replica.remote_id, "it")})


@pytest.mark.parametrize("limit", ["told", "untold"])
def test_one_more_than_the_limit_gets_a_second_replica(world: World, adapters: list[Model], limit: str) -> None:
    full = "exhausted" if limit == "untold" else "precondition"
    world.emulator.forms(adapter_limit=limit, adapter_room="two", adapter_full=full)
    for adapter in adapters:
        world.deploy(own(world, adapter))
    first, second = replicas(world)
    assert first.max_adapters == 2
    assert [len(attached_to(world.ledger, row.id)) for row in (first, second)] == [2, 1]
    assert len(world.ours()) == 2


@pytest.mark.parametrize("fault", ["lost_response", "500", "429"])
def test_an_attachment_whose_answer_was_lost_is_made_once(world: World, adapters: list[Model], fault: str) -> None:
    world.emulator.fault(fault, match="POST */adapters")
    row = world.deploy(own(world, adapters[0]))
    assert row.state == "ready"
    assert attached(world) == [adapters[0].adapter_object_id]


def test_an_adapter_that_does_not_load_is_taken_down_and_costs_no_replica(world: World, adapters: list[Model]) -> None:
    world.emulator.fault("adapter_error")
    with pytest.raises(DeploymentFailed, match="was not loaded"):
        world.deploy(own(world, adapters[0]))
    assert replicas(world) == []
    assert world.ours() == []


def test_a_slow_adapter_is_waited_for(world: World, adapters: list[Model]) -> None:
    world.emulator.fault("slow_adapter", seconds=20)
    began = world.now()
    assert world.deploy(own(world, adapters[0])).state == "ready"
    assert world.now() - began >= timedelta(seconds=19)


def test_what_answers_as_its_base_is_not_served(world: World, adapters: list[Model]) -> None:
    world.emulator.forms(served="base")
    with pytest.raises(DeploymentFailed, match="as its base model"):
        world.deploy(own(world, adapters[0]))
    assert replicas(world) == []


def test_an_adapter_that_another_hand_detached_loses_its_route(world: World, adapters: list[Model]) -> None:
    row = world.deploy(own(world, adapters[0]))
    other = world.deploy(own(world, adapters[1]))
    (replica,) = replicas(world)
    where = {"endpoint_id": replica.endpoint_id, "deployment_id": replica.remote_id}
    adapter = world.observer.endpoints.adapters.retrieve(row.remote_id, **where)
    world.observer.endpoints.adapters.delete(adapter.id, etag=adapter.etag, **where)
    guard(world)
    assert world.ledger.get(Deployment, row.id).state == "deleted"
    assert world.ledger.get(Deployment, other.id).state == "ready"


def test_a_type_without_money_left_is_not_attached(world: World, adapters: list[Model]) -> None:
    world.deploy(own(world, adapters[0]))
    world.ledger.set_budget("day", "0", "planning")
    with pytest.raises(BudgetExceeded):
        world.deploy(own(world, adapters[1], "planning"))
    assert attached(world) == [adapters[0].adapter_object_id]


def test_a_spent_budget_of_all_stops_the_replica_and_all_on_it(world: World, adapters: list[Model]) -> None:
    for adapter in adapters[:2]:
        world.deploy(own(world, adapter))
    world.ledger.set_budget("total", "0.01")
    world.minutes(2)
    guard(world)
    world.minutes(1)
    guard(world)
    assert replicas(world) == []
    assert world.ours() == []
    assert {row.state for row in world.ledger.find(Deployment)} == {"deleted"}


def test_a_spent_budget_of_one_type_leaves_the_others(world: World, adapters: list[Model]) -> None:
    one = world.deploy(own(world, adapters[0]))
    other = world.deploy(own(world, adapters[1], "planning"))
    world.ledger.set_budget("total", "0", "planning")
    for _ in range(2):
        world.minutes(1)
        guard(world)
    assert world.ledger.get(Deployment, other.id).state == "deleted"
    assert world.ledger.get(Deployment, one.id).state == "ready"


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/endpoints"), ("POST", "/deployments"), ("POST", "/adapters"), ("PATCH", None)],
)
@pytest.mark.parametrize("again", ["called again", "reconciled"])
def test_a_death_while_attaching_is_resumed_or_undone(
    world: World, adapters: list[Model], method: str, path: str | None, again: str
) -> None:
    model = own(world, adapters[0])
    world.kill_after(method, path or "")
    with pytest.raises(Killed):
        world.deploy(model)
    world.revive()
    if again == "called again":
        assert world.deploy(model).state == "ready"
        assert attached(world) == [adapters[0].adapter_object_id]
        assert len(replicas(world)) == 1
        return
    for _ in range(2):
        world.minutes(31)
        reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now())
    world.minutes(11)
    reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now())
    assert replicas(world) == []
    assert world.ours() == []


@pytest.mark.parametrize(("method", "path"), [("DELETE", None), ("PATCH", None)])
def test_a_death_while_detaching_is_made_good_by_the_guard(
    world: World, adapters: list[Model], method: str, path: str | None
) -> None:
    row = world.deploy(own(world, adapters[0]))
    world.kill_after(method, path or "")
    with pytest.raises(Killed):
        undeploy(world, row)
    world.revive()
    for _ in range(2):
        world.minutes(1)
        guard(world)
    assert replicas(world) == []
    assert world.ours() == []


def test_strangers_on_our_replica_are_detached_and_an_unused_replica_ends(world: World, adapters: list[Model]) -> None:
    row = world.deploy(own(world, adapters[0]))
    (replica,) = replicas(world)
    world.observer.endpoints.adapters.create(
        endpoint_id=required(replica.endpoint_id, "it"),
        deployment_id=required(replica.remote_id, "it"),
        adapter_model_id=required(adapters[1].adapter_object_id, "it"),
    )
    report = reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now())
    assert [orphan for orphan in report.orphans if "adapter" in orphan]
    assert attached(world) == [row.model_object_id]


def test_stop_everything_stops_the_replica(world: World, adapters: list[Model]) -> None:
    for adapter in adapters[:2]:
        world.deploy(own(world, adapter))
    report = stop_everything(world.provider, world.data, wait=world.wait)
    assert report.is_clear
    assert [each.kind for each in report.found] == ["deployment"]
    world.minutes(1)
    guard(world)
    assert replicas(world) == []


def test_two_installations_on_one_account_do_not_touch_each_other(
    world: World, adapters: list[Model], tmp_path: object
) -> None:
    other = World(world.emulator, tmp_path / "other")  # type: ignore[operator]
    mine, theirs = world.deploy(own(world, adapters[0])), other.deploy(own(other, adapters[0]))
    reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now())
    undeploy(world, mine)
    assert world.ours() == []
    assert other.ledger.get(Deployment, theirs.id).state == "ready"
    assert attached(other) == [adapters[0].adapter_object_id]
    undeploy(other, theirs)
    other.close()


def test_a_provider_that_cannot_be_reached_leaves_nothing_behind(world: World, adapters: list[Model]) -> None:
    world.emulator.fault("503", match="GET */adapters", times=60)
    with pytest.raises((ProviderUnavailable, DeploymentFailed)):
        world.deploy(own(world, adapters[0]))
    world.emulator.clear_faults()
    for _ in range(2):
        world.minutes(1)
        guard(world)
    assert replicas(world) == []
    assert world.ours() == []
