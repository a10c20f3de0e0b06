"""The life of a deployment in every form that Together documents, or that two public sources describe differently."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
import together

from provider.completions import complete_many
from provider.errors import (
    DeploymentFailed,
    KeyRefused,
    NoCapacity,
    NotReady,
    NotServable,
    ProviderRefused,
    ProviderUnavailable,
)
from provider.lifecycle.deployment_state import sync_deployment
from provider.lifecycle.deployments import deploy_model
from provider.lifecycle.guard import guard_costs
from provider.lifecycle.guard_report import GuardReport
from provider.lifecycle.reconcile import reconcile_provider
from provider.lifecycle.routes import publish_route, routed_models
from provider.lifecycle.shutdown import begin_shutdown, undeploy_model
from provider.lifecycle.status import model_status
from provider.pace import Pace
from provider.port import Sampling
from provider.together.tiers import resolve_tier
from reasoning.decision_types import get_decision_type
from reasoning.errors import RoutesError
from reasoning.serving.routes import Arm, Route
from storage.errors import BudgetExceeded
from storage.ledger.rows import Deployment
from tests.provider.odd_answers import each, garble
from tests.provider.test_hangs import hanging
from tests.provider.test_reconcile import forget
from tests.provider.world import World, conversation

FORMS = [
    {},
    {"gpu_type": "vendor"},
    {"hardware": "label"},
    {"hardware": "opaque"},
    {"update_mask": "optional"},
    {"profiles": "several"},
    {"profiles": "several", "profile_config": "omitted", "gpu_type": "vendor"},
    {"thinking": "by_default", "failed": "stops"},
    {"etag": "required"},
]


def guard(world: World) -> GuardReport:
    return guard_costs(world.data, world.provider, ledger=world.ledger, now=world.now())


def undeploy(world: World, row: dict[str, Any], **options: Any) -> dict[str, Any]:
    pace = Pace(now=world.now, wait=world.wait, timeout=options.pop("timeout", None))
    return undeploy_model(world.provider, world.ledger, row.id, pace=pace, **options)


def remote(world: World, row: dict[str, Any]) -> Any:
    return world.observer.endpoints.deployments.retrieve(row.remote_id, endpoint_id=row.endpoint_id)


def route(world: World, row: dict[str, Any]) -> None:
    arms = (Arm("custom", "custom", 1.0, model=row.served_name, base_url=world.emulator.url),)
    publish_route(world.data / "routes.json", "should_respond", Route(arms), now=world.now())


@pytest.mark.parametrize("forms", FORMS, ids=lambda forms: "-".join(forms.values()) or "documented")
def test_a_model_is_served_watched_and_stopped_in_every_form(world: World, forms: dict[str, str]) -> None:
    world.emulator.forms(**forms)
    assert resolve_tier(world.client, "small").hourly_usd == Decimal("5.49")
    row = world.deploy()
    route(world, row)
    world.minutes(1)
    report = guard(world)
    assert (report.errors, report.lease) == ([], "renewed")
    assert world.ledger.get(Deployment, row.id).state == "ready"
    kind = get_decision_type("should_respond")
    (answer,) = complete_many(
        world.provider,
        row.served_name,
        [conversation("hi")[:2]],
        Sampling(max_tokens=kind.max_tokens, fields=kind.request_fields),
    )
    assert kind.parse(answer.text) == {"action": "RESPOND"}
    assert undeploy(world, row, routes_path=world.data / "routes.json").state == "deleted"
    assert world.ours() == []
    assert world.ledger.spent() >= world.emulator.bill({row.remote_id}) > 0
    assert world.ledger.budgets(world.now())[0].reserved_usd == 0


# -- hardware and configs ---------------------------------------------------------------------------------------------


def test_of_several_configs_precision_and_adapter_mode_decide_before_the_price(world: World) -> None:
    world.emulator.forms(profiles="several")
    base = resolve_tier(world.client, "small")
    assert base.config.endswith("_bf16_disabled")
    assert base.hardware == "1xnvidia-h100-80gb"
    assert world.deploy().config == base.config


def test_a_refused_config_makes_place_for_the_next_fittest(world: World) -> None:
    world.emulator.forms(profiles="several")
    model_id = world.model()
    world.emulator.fault(400, "POST */deployments", message="config cr_x is not compatible with the model")
    row = world.deploy(model_id)
    assert (row.state, row.config.rsplit("/", 1)[-1]) == ("ready", "cr_qwen35_2b_h100")
    world.emulator.fault(400, "POST */deployments", times=9, message="config cr_x is not compatible with the model")
    with pytest.raises(NotServable, match="No other certified config is left"):
        world.deploy(world.model())
    assert len(world.ours()) == 1
    assert world.ledger.budgets(world.now())[-1].reserved_usd > 0  # only the first one's


def test_a_config_that_failed_is_not_the_next_to_be_tried(world: World) -> None:
    world.emulator.forms(profiles="several")
    model_id = world.model()

    def hook(response: Any) -> None:
        if response.request.method == "GET" and "/deployments/dep_" in response.request.url.path:
            response.read()
            status = {"state": "DEPLOYMENT_STATE_FAILED", "message": "the adapter does not fit", "readyReplicas": 0}
            response._content = json.dumps({**response.json(), "status": status}).encode()

    world.client._client.event_hooks = {"response": [hook]}
    with pytest.raises(DeploymentFailed, match="the adapter does not fit"):
        world.deploy(model_id)
    world.revive()
    assert world.deploy(model_id).config.endswith("cr_qwen35_2b_h100")
    tried = {row.state: row.config.endswith("_bf16_disabled") for row in world.ledger.find(Deployment)}
    assert tried == {"deleted": True, "ready": False}


def test_what_was_trained_is_deployed_when_its_base_left_the_fine_tuning_offer(world: World) -> None:
    garble(world, "GET", "/v2/supported-models", each(products=["PRODUCT_DEDICATED"], status="DEPRECATED"))
    with pytest.raises(NotServable, match="cannot be fine-tuned"):
        resolve_tier(world.client, "small")
    assert world.deploy().state == "ready"
    garble(world, "GET", "/v2/supported-models", lambda answer: {**answer, "data": []})
    assert world.deploy(world.model()).state == "ready"


def test_hardware_is_known_where_lists_leave_it_out(world: World) -> None:
    """Neither the list of configs has selectors, nor the profile a GPU: the config itself tells."""

    def hook(response: Any) -> None:
        path = response.request.url.path
        if path.endswith(("/configs", "/supported-models")):
            response.read()
            answer = response.json()
            for item in answer["data"]:
                item["selectors"] = []
                for profile in item.get("deploymentProfiles", ()):
                    profile["gpuType"] = ""
            response._content = json.dumps(answer).encode()

    world.client._client.event_hooks = {"response": [hook]}
    assert resolve_tier(world.client, "small").hardware == "1xnvidia-h100-80gb"
    assert world.deploy().hardware == "1xnvidia-h100-80gb"


def test_without_any_config_nothing_is_spent(world: World) -> None:
    garble(world, "GET", "/v2/supported-models", lambda answer: {**answer, "data": []})
    world.client._client.event_hooks["response"].append(_empty("/configs"))
    with pytest.raises(NotServable, match="no certified config"):
        world.deploy()
    assert world.ours() == []
    assert world.ledger.find(Deployment) == []


def _empty(path: str) -> Callable[[Any], None]:
    def hook(response: Any) -> None:
        if response.request.url.path.endswith(path):
            response.read()
            response._content = b'{"object": "list", "data": []}'

    return hook


def on_hardware(world: World, hardware: Any) -> None:
    """What the provider says that deployments run on."""

    def hook(response: Any) -> None:
        path = response.request.url.path
        if response.request.method == "GET" and "/deployments/dep_" in path:
            response.read()
            response._content = json.dumps({**response.json(), "hardware": hardware}).encode()

    world.client._client.event_hooks = {"response": [hook]}


@pytest.mark.parametrize("hardware", ["1xH100", "1x NVIDIA H100 80GB", "pool-7", "H100", None, "", "x" * 5000])
def test_hardware_that_is_the_same_or_cannot_be_compared_is_not_torn_down(world: World, hardware: Any) -> None:
    on_hardware(world, hardware)
    row = world.deploy()
    report = guard(world)
    assert (row.state, report.errors) == ("ready", [])
    assert world.ledger.get(Deployment, row.id).hourly_usd == Decimal("5.49")


def test_other_hardware_is_charged_as_what_it_is_and_held_to_the_budget(world: World) -> None:
    on_hardware(world, "4xnvidia-h100-80gb")
    row = world.deploy()
    assert (row.hardware, row.hourly_usd) == ("4xnvidia-h100-80gb", Decimal("21.96"))
    undeploy(world, row)
    world.ledger.set_budget("hour", "10")
    with pytest.raises(BudgetExceeded):
        world.deploy(world.model())
    assert world.ours() == []


def test_other_hardware_without_a_known_price_is_stopped(world: World) -> None:
    on_hardware(world, "8xnvidia-b300-288gb")
    with pytest.raises(DeploymentFailed, match="which has no known price"):
        world.deploy()
    assert world.ours() == []


def test_a_price_that_doubles_is_seen_charged_and_held_to_the_budget(world: World) -> None:
    row = world.deploy()
    world.ledger.set_budget("hour", "10")
    assert guard(world).warnings == []
    garble(world, "GET", "/inference-instance-types", each(priceCentsPerHour=1098))
    report = guard(world)
    assert "costs $10.98 an hour now, $5.49 before" in report.warnings[0]
    assert report.errors == []
    assert any("draining" in action for action in report.actions)
    assert hourly(world, row) == Decimal("10.98")
    garble(world, "GET", "/inference-instance-types", each(priceCentsPerHour=100))
    guard(world)
    assert hourly(world, row) == Decimal("10.98")  # the bill tells whether it fell for what runs


def hourly(world: World, row: Deployment) -> Decimal:
    return world.ledger.get(Deployment, row.id).hourly_usd


@pytest.mark.parametrize("price", ["549", 549.0, "549.0"])
def test_a_price_is_read_however_json_writes_the_number(world: World, price: Any) -> None:
    garble(world, "GET", "/inference-instance-types", each(priceCentsPerHour=price))
    assert resolve_tier(world.client, "small").hourly_usd == Decimal("5.49")


@pytest.mark.parametrize("price", [0, None, "", "free", -1, "NaN", True])
def test_a_price_that_is_none_is_refused(world: World, price: Any) -> None:
    garble(world, "GET", "/inference-instance-types", each(priceCentsPerHour=price))
    with pytest.raises(NotServable, match="known price"):
        resolve_tier(world.client, "small")


def test_prices_that_cannot_be_read_take_no_lease(world: World) -> None:
    row = world.deploy()
    route(world, row)
    world.emulator.fault(500, "GET *inference-instance-types", times=3)
    report = guard(world)
    assert (report.errors, report.lease) == ([], "renewed")
    assert "today's prices" in report.warnings[0]


def test_a_deployment_that_serves_the_base_is_not_ours_and_goes(world: World) -> None:
    model_id = world.model()
    world.emulator.forms(served="base")
    with pytest.raises(DeploymentFailed, match="it serves the model ml_qwen35_2b, not ours"):
        world.deploy(model_id)
    assert world.ours() == []
    assert world.ledger.budgets(world.now())[0].reserved_usd == 0


@pytest.mark.parametrize("says", [{"model": None, "modelId": None}, {"model": "?", "modelId": ""}])
def test_a_deployment_that_does_not_say_what_it_serves_is_not_ready(world: World, says: dict[str, Any]) -> None:
    row = world.deploy()
    garble(world, "GET", row.remote_id, lambda answer: {**answer, **says})
    route(world, row)
    report = guard(world)
    assert "does not say which model it serves" in report.errors[0]
    assert report.lease == "left"


def test_a_model_that_the_provider_merged_under_another_id_is_ours(world: World) -> None:
    row = world.deploy()
    path = f"projects/{world.client.project_id}/models/ml_merged/revisions/1"
    garble(world, "GET", row.remote_id, lambda answer: {**answer, "model": path})
    assert guard(world).errors == []
    assert world.ledger.get(Deployment, row.id).state == "ready"


# -- stops ------------------------------------------------------------------------------------------------------------


def by_undeploy(world: World, row: dict[str, Any]) -> None:
    undeploy(world, row)


def by_budget(world: World, row: dict[str, Any]) -> None:
    world.ledger.set_budget("total", world.ledger.spent() or "0.01")
    guard(world)
    guard(world)


def by_dead_guard(world: World, row: dict[str, Any]) -> None:
    world.minutes(40)
    reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now())


def by_orphan(world: World, row: dict[str, Any]) -> None:
    forget(world)
    reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now())


def by_wish(world: World, row: dict[str, Any]) -> None:
    begin_shutdown(world.ledger, row.id, why="test", now=world.now())
    guard(world)


@pytest.mark.parametrize("traffic", ["accepted", "refused"])
@pytest.mark.parametrize("stop", [by_undeploy, by_budget, by_dead_guard, by_orphan, by_wish])
def test_no_stop_hangs_on_the_traffic(
    world: World, stop: Callable[[World, dict[str, Any]], None], traffic: str
) -> None:
    row = world.deploy()
    world.minutes(1)
    world.emulator.forms(traffic=traffic)
    stop(world, row)
    assert world.ours() == []


def test_a_roll_back_does_not_hang_on_the_traffic(world: World) -> None:
    model_id = world.model()
    world.emulator.forms(traffic="refused")
    world.emulator.fault("slow_cold_start", seconds=900)
    with pytest.raises(DeploymentFailed):
        deploy_model(
            world.provider, world.ledger, model_id, pace=Pace(timeout=timedelta(0), now=world.now, wait=world.wait)
        )
    assert world.ours() == []


@pytest.mark.parametrize("match", ["GET *", "PATCH */endpoints/ep_*", "DELETE *"])
def test_replicas_are_stopped_whatever_else_is_not_answered(world: World, match: str) -> None:
    row = world.deploy()
    if match.startswith("PATCH"):  # of the endpoint: those of its deployments are answered
        match = f"PATCH /v2/projects/{world.client.project_id}/endpoints/{row.endpoint_id}"
    with hanging(world, match), contextlib.suppress(ProviderUnavailable, NotReady):
        undeploy(world, row, drain_seconds=0, timeout=timedelta(0))
    if world.ours():
        assert remote(world, row).autoscaling.max_replicas == 0


def test_one_deployment_that_cannot_be_stopped_leaves_its_double_stopped(world: World) -> None:
    row = world.deploy()
    double = world.double(row)
    world.emulator.fault(400, f"PATCH */deployments/{row.remote_id}", times=100)  # in every form that it is asked in
    with pytest.raises(Exception, match="400"):
        undeploy(world, row)
    world.emulator.clear_faults()
    found = world.observer.endpoints.deployments.retrieve(double.id, endpoint_id=row.endpoint_id)
    assert found.autoscaling.max_replicas == 0
    assert undeploy(world, row).state == "deleted"


def hide(world: World, row: dict[str, Any]) -> None:
    """The list of what is under its endpoint is behind: it does not have the deployment."""
    empty = '{"data": [], "object": "list", "next_cursor": null}'
    world.emulator.fault(
        "body", f"GET */endpoints/{row.endpoint_id}/deployments", 1000, body=empty, content_type="application/json"
    )


@pytest.mark.parametrize(
    "match", ["GET */models/*", "GET */configs*", "GET /v2/supported-models", "GET */models/limits"]
)
def test_a_revoked_key_is_not_taken_for_a_model_that_cannot_be_served(world: World, match: str) -> None:
    model_id = world.model()
    world.emulator.fault(401, match, times=100)
    with pytest.raises(KeyRefused, match="TOGETHER_API_KEY"):
        resolve_tier(world.client, "small") if "limits" in match else world.deploy(model_id)


def test_what_a_list_leaves_out_is_stopped_waited_for_and_charged_once(world: World) -> None:
    row = world.deploy()
    hide(world, row)
    assert undeploy(world, row).state == "deleted"
    with pytest.raises(together.NotFoundError):
        remote(world, row)
    billed = world.emulator.bill({row.remote_id})
    assert billed <= world.ledger.spent() <= billed + 2 * Decimal("5.49") / 60


def test_what_a_list_leaves_out_and_cannot_be_stopped_is_never_held_for_stopped(world: World) -> None:
    row = world.deploy()
    hide(world, row)
    world.emulator.fault(500, f"PATCH */deployments/{row.remote_id}", times=1000)
    with pytest.raises(ProviderUnavailable):
        undeploy(world, row, timeout=timedelta(0))
    row = world.ledger.get(Deployment, row.id)
    assert row.state == "stopping"
    assert world.ledger.reservation(row.reservation_id).state == "open"


@pytest.mark.parametrize("times", [1, 3])
def test_a_version_that_changes_under_a_stop_keeps_no_replica_running(world: World, times: int) -> None:
    row = world.deploy()
    world.emulator.fault(409, f"PATCH */deployments/{row.remote_id}", times, should_retry=False)
    assert undeploy(world, row).state == "deleted"


def test_a_deployment_that_reads_do_not_show_yet_is_not_given_up(world: World) -> None:
    world.emulator.fault(404, "GET */endpoints/*/deployments/*", times=3)
    assert world.deploy().state == "ready"


def test_a_model_of_which_only_an_adapter_would_come_is_not_trained(world: World) -> None:
    world.emulator.forms(lora_output="adapter")
    with pytest.raises(NotServable, match="merge_output_lora"):
        resolve_tier(world.client, "small")
    assert resolve_tier(world.client, "small", lora=False).hourly_usd


def test_a_route_that_cannot_be_withdrawn_keeps_no_replica_running(world: World) -> None:
    row = world.deploy()
    routes = world.data / "routes.json"
    routes.mkdir()
    with pytest.raises(RoutesError):
        undeploy(world, row, routes_path=routes)
    assert world.ours() == []
    assert world.ledger.get(Deployment, row.id).state == "deleted"


# -- FAILED -----------------------------------------------------------------------------------------------------------


def fail(world: World) -> dict[str, Any]:
    """A deployment that the provider gave up after six hours, seen by the guard and not taken down yet."""
    model_id = world.model()
    world.emulator.fault("no_capacity")

    def die(_: float) -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        deploy_model(world.provider, world.ledger, model_id, pace=Pace(now=world.now, wait=die))
    world.next_hours(7)
    return world.ledger.find(Deployment, model_id=model_id)[0]


@pytest.mark.parametrize("forms", [{}, {"failed_update": "refused"}, {"failed": "stops"}])
def test_a_failed_deployment_is_told_and_cleared_by_the_guard(world: World, forms: dict[str, str]) -> None:
    world.emulator.forms(**forms)
    row = fail(world)
    world.emulator.fault(400, "DELETE */deployments/*")
    report = guard(world)
    assert report.errors == []
    assert any("is failed: no replica became ready within 6 hours" in action for action in report.actions)
    assert any("is not deleted" in warning for warning in report.warnings)
    assert world.ledger.get(Deployment, row.id).state == "stopped"
    assert world.ledger.budgets(world.now())[0].reserved_usd == 0  # nothing of it can cost anything
    assert guard(world).warnings == []
    assert world.ours() == []
    world.ledger.set_budget("hour", "5.49")
    assert world.deploy().state == "ready"


@pytest.mark.parametrize("forms", [{}, {"failed_update": "refused"}])
def test_a_failed_deployment_is_cleared_by_undeploy(world: World, forms: dict[str, str]) -> None:
    world.emulator.forms(**forms)
    row = fail(world)
    sync_deployment(world.provider, world.ledger, row.id, now=world.now)
    (status,) = model_status(world.data, now=world.now())
    assert status["deployment_state"] == "failed"
    remedy = f"The guard deletes it, or `reasoning undeploy {row.model_id}` does"
    assert status["reason"] == f"no replica became ready within 6 hours. {remedy}"
    assert undeploy(world, row).state == "deleted"
    assert world.ours() == []
    assert world.ledger.budgets(world.now())[0].reserved_usd == 0


def test_a_failed_deployment_is_cleared_by_the_deploy_that_waited_for_it(world: World) -> None:
    model_id = world.model()
    world.emulator.fault("no_capacity")
    with pytest.raises((DeploymentFailed, NoCapacity)):
        deploy_model(
            world.provider, world.ledger, model_id, pace=Pace(poll_seconds=7 * 3600, now=world.now, wait=world.wait)
        )
    assert world.ours() == []
    assert world.ledger.budgets(world.now())[0].reserved_usd == 0


def test_what_cannot_be_deleted_costs_nothing_and_undeploy_says_so_soon(world: World) -> None:
    row = world.deploy()
    world.emulator.fault(400, "DELETE *", times=50)
    with pytest.raises(NotReady, match=r"has stopped and costs nothing, but is not deleted.*The guard goes on"):
        undeploy(world, row)
    assert world.ledger.budgets(world.now())[0].reserved_usd == 0
    world.emulator.clear_faults()
    guard(world)
    assert world.ours() == []


@pytest.mark.parametrize("says", [{"readyReplicas": 1}, {"readyReplicas": None}])
def test_failed_with_replicas_is_deleted_and_never_held_for_stopped(world: World, says: dict[str, Any]) -> None:
    row = world.deploy()

    def failed(answer: Any) -> Any:
        status = {"state": "DEPLOYMENT_STATE_FAILED", "message": "broken", **says}
        return {**answer, "data": [{**item, "status": status} for item in answer["data"]]}

    garble(world, "GET", "/deployments", failed)
    world.emulator.fault(400, "DELETE */deployments/*")
    with contextlib.suppress(ProviderRefused, NotReady):
        undeploy(world, row, timeout=timedelta(0))
    costs = says["readyReplicas"] == 1
    assert world.ledger.get(Deployment, row.id).state == ("stopping" if costs else "stopped")
    assert (world.ledger.budgets(world.now())[0].reserved_usd > 0) == costs
    assert undeploy(world, row).state == "deleted"
    assert world.ours() == []


def test_a_stop_that_the_provider_does_not_carry_out_is_told(world: World) -> None:
    """It answers as if it had, as behind a redirect that turns the PATCH into a GET."""
    row = world.deploy()

    def redirect(request: Any) -> None:
        if request.method == "PATCH" and "/deployments/" in request.url.path:
            request.method = "GET"

    world.client._client.event_hooks = {"request": [redirect]}
    begin_shutdown(world.ledger, row.id, why="test", immediately=True, now=world.now())
    assert guard(world).warnings == []
    world.minutes(12)
    report = guard(world)
    assert "was told to stop 12 minutes ago and has not yet: 1 replicas at $5.49 an hour" in report.warnings[0]
    world.revive()
    guard(world)
    assert world.ours() == []


# -- a key that is refused --------------------------------------------------------------------------------------------


def test_a_revoked_key_withdraws_the_route_and_leaves_the_wish_to_the_guard(world: World) -> None:
    row = world.deploy()
    route(world, row)
    routes = world.data / "routes.json"
    world.emulator.fault(401, "* /v*", times=20)
    with pytest.raises(Exception, match="the guard stops it as soon as the provider lets it"):
        undeploy(world, row, routes_path=routes)
    assert routed_models(routes, now=world.now()) == frozenset()
    assert world.ledger.get(Deployment, row.id).state == "stopping"
    world.emulator.clear_faults()
    guard(world)
    assert world.ours() == []


def test_without_a_provider_route_and_wish_are_taken_down_all_the_same(world: World) -> None:
    row = world.deploy()
    route(world, row)
    undeploy_model(
        None, world.ledger, row.id, routes_path=world.data / "routes.json", drain_seconds=0, pace=Pace(now=world.now)
    )
    assert routed_models(world.data / "routes.json", now=world.now()) == frozenset()
    assert world.ledger.get(Deployment, row.id).state == "draining"
    guard(world)
    assert world.ours() == []
