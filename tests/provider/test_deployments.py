"""Deployments: started once, rolled back when they fail, drained and charged when they end."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from provider.completions import complete_many
from provider.errors import CreationInDoubt, DeploymentFailed, NoCapacity, ProviderRefused
from provider.lifecycle.deployments import deploy_model
from provider.lifecycle.guard import guard_costs
from provider.lifecycle.routes import publish_route, routed_models
from provider.lifecycle.shutdown import begin_shutdown, undeploy_model
from provider.pace import Pace
from provider.port import Sampling
from reasoning.serving.routes import Arm, Route
from storage.errors import BudgetExceeded
from storage.ledger.rows import Deployment
from tests.provider.world import Killed, World, conversation

ENDPOINTS = "POST /v2/projects/*/endpoints"
DEPLOYMENTS = "POST /v2/projects/*/endpoints/*/deployments"


def undeploy(world: World, deployment_id: str, **options):
    pace = Pace(now=world.now, wait=world.wait, poll_seconds=options.pop("poll_seconds", 5.0))
    return undeploy_model(world.provider, world.ledger, deployment_id, pace=pace, **options)


def test_a_model_is_served_asked_and_taken_down(world: World) -> None:
    row = world.deploy()
    assert row.state == "ready"
    answers = complete_many(
        world.provider,
        row.served_name,
        [conversation(f"hello {i}")[:2] for i in range(20)],
        Sampling(max_tokens=64, answer_format="label"),
        ledger=world.ledger,
        now=world.now(),
    )
    assert len(answers) == 20
    assert all(answer.error is None and "RESPOND" in answer.text for answer in answers)
    assert all(0 <= (answer.confidence or -1) <= 1 and answer.latency_ms for answer in answers)
    assert world.ledger.get(Deployment, row.id).last_request_at is not None
    world.minutes(10)
    row = undeploy(world, row.id)
    assert row.state == "deleted"
    assert world.ours() == []
    assert world.ledger.spent() >= world.emulator.bill({row.remote_id}) > Decimal("0.9")
    assert world.ledger.budgets(world.now())[0].reserved_usd == 0


def test_it_is_not_deployed_twice(world: World) -> None:
    row = world.deploy()
    assert world.deploy(row.model_id).id == row.id
    assert len(world.ours()) == 1


@pytest.mark.parametrize("kind", ["lost_response", "503", "429"])
@pytest.mark.parametrize("match", [ENDPOINTS, DEPLOYMENTS])
def test_trouble_while_creating_makes_one_endpoint_and_one_deployment(world: World, kind: str, match: str) -> None:
    model_id = world.model()
    world.emulator.fault(kind, match)
    row = world.deploy(model_id)
    (endpoint,) = world.ours()
    assert [deployment.id for deployment in endpoint.deployments] == [row.remote_id]


@pytest.mark.parametrize("match", ["GET /v2/projects/*/configs*", "GET /v2/public/inference-instance-types*"])
def test_trouble_with_configs_and_prices_is_waited_out(world: World, match: str) -> None:
    model_id = world.model()
    world.emulator.fault(503, match, times=5)  # more often than the SDK tries
    assert world.deploy(model_id).state == "ready"
    assert world.emulator.pending_faults() == 0


@pytest.mark.parametrize("path", ["/endpoints", "/deployments"])
def test_killed_while_creating_it_goes_on_with_the_same_deployment(world: World, path: str) -> None:
    model_id = world.model()
    world.kill_after("POST", path)
    with pytest.raises(Killed):
        world.deploy(model_id)
    world.revive()
    row = world.deploy(model_id)
    (endpoint,) = world.ours()
    assert [deployment.id for deployment in endpoint.deployments] == [row.remote_id]
    assert len(world.ledger.find(Deployment)) == 1


def test_a_refused_deployment_leaves_nothing(world: World) -> None:
    model_id = world.model()
    world.emulator.fault(400, DEPLOYMENTS)
    with pytest.raises(ProviderRefused, match="400"):
        world.deploy(model_id)
    assert world.ours() == []
    assert world.ledger.find(Deployment)[0].state == "deleted"
    assert world.ledger.budgets(world.now())[0].reserved_usd == 0


def test_in_doubt_for_good_it_is_rolled_back(world: World) -> None:
    model_id = world.model()
    world.emulator.fault(500, DEPLOYMENTS, times=4)
    with pytest.raises(CreationInDoubt):
        world.deploy(model_id)
    assert world.ours() == []


def test_a_slow_cold_start_is_waited_for(world: World) -> None:
    model_id = world.model()
    world.emulator.fault("slow_cold_start", seconds=1100)
    seen: list[str] = []
    row = deploy_model(
        world.provider,
        world.ledger,
        model_id,
        pace=Pace(poll_seconds=60, now=world.now, wait=world.wait, progress=lambda event: seen.append(event.message)),
    )
    assert row.state == "ready"
    assert "replicas are starting" in seen


def test_no_capacity_is_told_apart_from_failure(world: World) -> None:
    model_id = world.model()
    world.emulator.fault("no_capacity")
    with pytest.raises(NoCapacity, match="insufficient GPU capacity"):
        deploy_model(
            world.provider, world.ledger, model_id, pace=Pace(timeout=timedelta(0), now=world.now, wait=world.wait)
        )
    assert world.ours() == []
    world.emulator.fault("no_capacity")
    with pytest.raises(DeploymentFailed, match="within 6 hours"):
        deploy_model(
            world.provider, world.ledger, model_id, pace=Pace(poll_seconds=7 * 3600, now=world.now, wait=world.wait)
        )
    assert world.ours() == []
    assert world.ledger.budgets(world.now())[0].reserved_usd == 0


def test_no_budget_no_deployment(world: World) -> None:
    model_id = world.model()
    world.ledger.set_budget("hour", "5.48")
    with pytest.raises(BudgetExceeded, match=r"an hour, but of the hour budget of \$5\.48"):
        world.deploy(model_id)
    assert world.ours() == []


def test_every_replica_is_reserved_and_charged(world: World) -> None:
    model_id = world.model()

    def deploy(replicas: int) -> None:
        deploy_model(
            world.provider,
            world.ledger,
            model_id,
            replicas=replicas,
            pace=world.pace,
        )

    with pytest.raises(ValueError, match="at least one replica"):
        deploy(0)
    world.ledger.set_budget("hour", "10.97")
    with pytest.raises(BudgetExceeded, match=r"needs \$10\.98 an hour"):
        deploy(2)
    world.ledger.set_budget("hour", "10.98")
    deploy(2)
    guard_costs(world.data, world.provider, ledger=world.ledger, now=world.now())
    spent = world.ledger.spent()
    world.minutes(3)
    guard_costs(world.data, world.provider, ledger=world.ledger, now=world.now())
    assert world.ledger.spent() - spent == 2 * 3 * Decimal("5.49") / 60


def test_undeploy_withdraws_the_route_first(world: World) -> None:
    row = world.deploy()
    routes = world.data / "routes.json"
    custom = Arm("custom", "custom", 1.0, model=row.served_name, base_url=world.emulator.url)
    publish_route(routes, "should_respond", Route((custom, Arm("original", "original", 0.0))), now=world.now())
    assert routed_models(routes, now=world.now()) == {row.served_name}
    # The provider refuses the stop: the route must be gone all the same.
    world.emulator.fault(400, "PATCH /v2/projects/*/endpoints/*/deployments/*", times=1000)  # whatever form it has
    with pytest.raises(ProviderRefused):
        undeploy(world, row.id, routes_path=routes)
    world.emulator.clear_faults()
    assert routed_models(routes, now=world.now()) == frozenset()
    assert undeploy(world, row.id, routes_path=routes).state == "deleted"


def test_what_was_to_end_is_stopped_before_the_model_is_deployed_anew(world: World) -> None:
    """Who undeployed it died before the stop was sent."""
    row = world.deploy()
    begin_shutdown(world.ledger, row.id, why="test", now=world.now())
    again = world.deploy(row.model_id)
    assert [endpoint.name for endpoint in world.ours()] == [again.served_name]
    assert world.ledger.get(Deployment, row.id).state == "deleted"


@pytest.mark.parametrize(("deadline_ms", "drain"), [(800, 2), (15_000, 15), (3_600_000, 60)])
def test_requests_under_way_are_given_what_their_route_gives_them(
    world: World, deadline_ms: float, drain: float
) -> None:
    row = world.deploy()
    custom = Arm("custom", "custom", 1.0, model=row.served_name, base_url=world.emulator.url)
    routes, waits = world.data / "routes.json", []
    publish_route(routes, "should_respond", Route((custom,), deadline_ms=deadline_ms), now=world.now())

    def wait(seconds: float) -> None:
        waits.append((seconds, routed_models(routes, now=world.now())))
        world.wait(seconds)

    undeploy_model(world.provider, world.ledger, row.id, routes_path=routes, pace=Pace(now=world.now, wait=wait))
    assert waits[0] == (drain, frozenset())


@pytest.mark.parametrize("match", ["PATCH *", "DELETE *", "GET /v2/projects/*"])
@pytest.mark.parametrize("kind", ["lost_response", "409"])
def test_trouble_while_stopping_is_overcome(world: World, match: str, kind: str) -> None:
    row = world.deploy()
    world.emulator.fault(kind, match, should_retry=False) if kind == "409" else world.emulator.fault(kind, match)
    assert undeploy(world, row.id, poll_seconds=0).state == "deleted"
    assert world.ours() == []


def serve_with(world: World, deadline_ms: float) -> tuple[dict[str, Any], Path]:
    row = world.deploy()
    custom = Arm("custom", "custom", 1.0, model=row.served_name, base_url=world.emulator.url)
    routes = world.data / "routes.json"
    publish_route(routes, "should_respond", Route((custom,), deadline_ms=deadline_ms), now=world.now())
    return row, routes


def test_a_degraded_deployment_that_serves_drains_too(world: World) -> None:
    row, routes = serve_with(world, 15_000)
    world.ledger.transition(Deployment, row.id, "degraded", now=world.now())
    waits: list[float] = []
    undeploy_model(
        world.provider,
        world.ledger,
        row.id,
        routes_path=routes,
        pace=Pace(now=world.now, wait=lambda s: waits.append(s)),
    )
    assert waits[0] == 15


def test_draining_that_was_interrupted_goes_on(world: World) -> None:
    row, routes = serve_with(world, 30_000)

    def die(seconds: float) -> None:
        raise Killed

    with pytest.raises(Killed):
        undeploy_model(world.provider, world.ledger, row.id, routes_path=routes, pace=Pace(now=world.now, wait=die))
    world.wait(20)
    waits: list[float] = []
    undeploy_model(
        world.provider,
        world.ledger,
        row.id,
        routes_path=routes,
        pace=Pace(now=world.now, wait=lambda s: waits.append(s)),
    )
    assert waits[0] == pytest.approx(40)  # its route's deadline is gone with the route, so it may be the longest


@pytest.mark.parametrize("path", ["/endpoints/*", "/endpoints/*/deployments/*"])
def test_a_passing_404_is_not_taken_for_the_end(world: World, path: str) -> None:
    row = world.deploy()
    world.emulator.fault(404, f"PATCH /v2/projects/*{path}")
    assert undeploy(world, row.id, poll_seconds=0).state == "deleted"
    assert world.ours() == []
