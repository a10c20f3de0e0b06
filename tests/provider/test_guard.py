"""The guard: what ran is charged, budgets hold, the unused stops, and the lease lives only while all is well."""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import threading
import time
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa

from provider.errors import ProviderUnavailable
from provider.lifecycle.fine_tunes import cancel_fine_tune, resume_fine_tune, submit_fine_tune
from provider.lifecycle.guard import guard_costs
from provider.lifecycle.guard_report import RUNNING_STATES, GuardPolicy, GuardReport
from provider.lifecycle.reconcile import reconcile_provider
from provider.lifecycle.routes import LEASE, publish_route, routed_models
from provider.lifecycle.shutdown import begin_shutdown, undeploy_model
from provider.lifecycle.status import cost_report, model_status
from provider.money.metering import runway_usd
from provider.pace import Pace
from provider.together.adapter import TogetherProvider
from provider.together.client import connect
from reasoning.ids import uuid7
from reasoning.io.spool import SegmentWriter
from reasoning.records import Decision
from reasoning.serving.routes import Arm, Route, read_routes
from storage.errors import BudgetExceeded
from storage.ledger.charges import ChargedTo
from storage.ledger.ledger import open_ledger
from storage.ledger.money import minutes_usd
from storage.ledger.rows import Deployment, DeploymentState, FineTuneJob, Model
from storage.log.land import land_decisions
from tests.provider.odd_answers import garble
from tests.provider.world import Killed, World

RATE = Decimal("5.49")


def guard(world: World, **options) -> GuardReport:
    before, now = world.ledger.spent(), world.now()
    report = guard_costs(world.data, world.provider, ledger=world.ledger, now=now, **options)
    if not report.skipped and not report.errors:
        assert report.budgets == world.ledger.budgets(now)
        assert report.charged_usd == world.ledger.spent() - before
    return report


def route(world: World, served_name: str, decision_type: str = "should_respond") -> None:
    custom = Arm("custom", "custom", 0.5, model=served_name, base_url=world.emulator.url)
    publish_route(
        world.data / "routes.json", decision_type, Route((custom, Arm("original", "original", 0.5))), now=world.now()
    )


def routed(world: World) -> object:
    return routed_models(world.data / "routes.json", now=world.now())


def decide(
    world: World,
    model: str,
    *,
    tokens: int = 100,
    cost_usd: float = 0.0,
    count: int = 1,
    ahead: timedelta = timedelta(0),
) -> None:
    """Log decisions of the custom model at the present time by a clock that is `ahead`, and land them."""
    now = world.now() + ahead
    writer = SegmentWriter(world.data / "spool", clock=now.timestamp)
    for _ in range(count):
        writer.write(
            Decision(
                decision_id=uuid7(now),
                request_id=UUID(int=uuid7(now).int),
                ts=now,
                decision_type="should_respond",
                source="custom",
                served=True,
                messages=[{"role": "user", "content": "hi"}],
                model=model,
                completion="<response><action>RESPOND</action></response>",
                decision={"action": "RESPOND"},
                input_tokens=tokens,
                output_tokens=10,
                cost_usd=cost_usd,
            )
        )
    writer.seal()
    land_decisions(world.data, now=now)


def test_it_charges_minutes_makes_up_for_missed_ticks_and_renews_the_lease(world: World) -> None:
    row = world.deploy()
    route(world, row.served_name)
    spent = world.ledger.spent()
    for _ in range(3):
        world.minutes(1)
        report = guard(world)
        assert (report.errors, report.level, report.lease) == ([], "ok", "renewed")
        assert report.lease_expires_at == world.now() + LEASE
    assert world.ledger.spent() - spent == 3 * RATE / 60
    world.minutes(20)  # twenty missed ticks
    assert routed(world) == frozenset()  # no guard, no custom calls
    decide(world, row.served_name)
    assert guard(world).charged_usd == 20 * RATE / 60
    assert routed(world) == {row.served_name}
    billed = world.emulator.bill({row.remote_id})
    assert billed <= world.ledger.spent() <= billed + RATE / 60


def test_twice_the_same_minute_is_charged_once(world: World) -> None:
    world.deploy()
    world.minutes(5)
    assert guard(world).charged_usd > 0
    assert guard(world).charged_usd == 0


def test_two_guards_at_once_are_harmless(world: World) -> None:
    row = world.deploy()
    world.minutes(7)
    spent, now, reports = world.ledger.spent(), world.now(), []

    def run() -> None:
        with open_ledger(world.data) as ledger:
            reports.append(guard_costs(world.data, world.provider, ledger=ledger, now=now))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert any(not report.skipped for report in reports)
    assert world.ledger.spent() - spent == 7 * RATE / 60
    assert world.ledger.get(Deployment, row.id).state == "ready"
    with world.ledger.exclusive("guard"):
        assert guard_costs(world.data, world.provider, now=now).skipped


def test_idle_is_measured_from_the_decision_log(world: World) -> None:
    row = world.deploy()
    route(world, row.served_name)
    for _ in range(5):
        world.minutes(20)
        decide(world, row.served_name)
        assert guard(world).lease == "renewed"
    (status,) = model_status(world.data, now=world.now())
    assert (status["requests"], status["input_tokens"], status["idle_seconds"]) == (5, 500, 0)
    world.minutes(29)
    guard(world)
    assert routed(world)
    world.minutes(1)
    report = guard(world)
    assert any("idle for 30 minutes" in action for action in report.actions)
    assert routed(world) == frozenset()
    assert len(world.ours()) == 1  # drains for one tick
    world.minutes(1)
    guard(world)
    assert world.ours() == []
    assert model_status(world.data, now=world.now())[0]["enabled"] is False
    assert world.ledger.budgets(world.now())[0].reserved_usd == 0


def test_what_never_gets_ready_is_given_up_when_who_deployed_it_died(world: World) -> None:
    model_id = world.model()
    world.emulator.fault("no_capacity")
    world.kill_after("POST", "/deployments")
    with pytest.raises(Killed):
        world.deploy(model_id)
    world.revive()
    reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now())  # finds it
    for _ in range(3):
        world.minutes(10)
        report = guard(world, policy=GuardPolicy(idle=timedelta(minutes=5)))
    assert any("not ready for 30 minutes" in action for action in report.actions)
    world.minutes(1)
    guard(world)
    assert world.ours() == []
    assert world.ledger.budgets(world.now())[0].reserved_usd == 0


def test_a_passing_degraded_gives_the_route_back(world: World) -> None:
    row = world.deploy()
    route(world, row.served_name)
    before = read_routes(world.data / "routes.json").routes

    def look(state: str, ready: int) -> GuardReport:
        status = {"state": f"DEPLOYMENT_STATE_{state}", "readyReplicas": ready, "message": "insufficient GPU capacity"}
        garble(world, "GET", row.remote_id, lambda answer: {**answer, "status": {**answer["status"], **status}})
        world.minutes(1)
        return guard(world)

    assert look("DEGRADED", 1).lease == "renewed"  # one more was wanted, one serves
    assert read_routes(world.data / "routes.json").routes == before
    for _ in range(2):
        look("DEGRADED", 0)
        assert routed(world) == frozenset()
    assert model_status(world.data, now=world.now())[0]["enabled"] is False
    assert look("READY", 1).actions[-1] == "gave should_respond its route back: its model is ready again"
    assert read_routes(world.data / "routes.json").routes == before
    look("DEGRADED", 0)
    route(world, "somebody/else")
    look("READY", 1)
    assert routed(world) == {"somebody/else"}
    route(world, row.served_name)
    look("DEGRADED", 0)
    begin_shutdown(world.ledger, row.id, why="no longer wanted", now=world.now())
    look("READY", 1)
    assert routed(world) == frozenset()
    assert sorted(path.name for path in world.data.glob("routes*")) == ["routes.json", "routes.json.lock"]


def test_a_budget_warns_drains_and_stops(world: World) -> None:
    row = world.deploy()
    route(world, row.served_name)
    policy = GuardPolicy(idle=None)
    spent = world.ledger.spent()
    world.ledger.set_budget("total", spent + 100 * RATE / 60)  # a hundred minutes, above what is spent
    levels = []
    for _ in range(110):
        world.minutes(1 if "warn" in levels else 4)
        report = guard(world, policy=policy)
        levels.append(report.level)
        if not world.ours():
            break
    assert levels[0] == "ok"
    assert "warn" in levels
    assert routed(world) == frozenset()
    assert world.ours() == []
    (budget,) = world.ledger.budgets(world.now())
    assert budget.spent_usd <= budget.limit_usd


def test_an_emergency_stops_in_one_tick_and_cancels_what_waits(world: World) -> None:
    row = world.deploy()
    route(world, row.served_name)
    world.emulator.fault("training_slow", seconds=30, times=2)
    running = world.upload("dataset-2").id
    waiting = world.upload("dataset-3").id
    jobs = [
        submit_fine_tune(world.provider, world.ledger, dataset, tier="small", pace=world.pace)
        for dataset in (running, waiting)
    ]
    while world.client.fine_tuning.retrieve(jobs[0].remote_id).status != "running":  # one at a time
        time.sleep(0.05)
    world.minutes(1)
    world.ledger.set_budget("total", world.ledger.spent())
    report = guard(world)
    assert report.level == "stop"
    assert routed(world) == frozenset()
    assert world.ours() == []
    (first,) = world.ledger.find(FineTuneJob, upload_id=running)
    (second,) = world.ledger.find(FineTuneJob, upload_id=waiting)
    assert second.state in ("cancelling", "cancelled")
    assert any("cancelled" in action and second.suffix in action for action in report.actions)
    assert first.state == "running"  # its money was reserved when it began
    cancel_fine_tune(world.provider, world.ledger, first.id, now=world.now())  # frees the emulator's trainer


def test_a_budget_of_one_type_stops_only_that_type(world: World) -> None:
    mine = world.deploy(world.model())
    other = world.deploy(world.model("planning"))
    route(world, mine.served_name)
    route(world, other.served_name, "planning")
    world.ledger.charge("tokens", "4", key="t", what="t", now=world.now(), of=ChargedTo(decision_type="planning"))
    world.ledger.set_budget("day", "4", "planning")
    report = guard(world)
    assert report.level == "stop"
    assert routed(world) == {mine.served_name}
    assert [endpoint.name for endpoint in world.ours()] == [mine.served_name]


def test_a_rate_that_was_lowered_stops_the_newest(world: World) -> None:
    first = world.deploy(world.model())
    second = world.deploy(world.model())
    world.ledger.set_budget("hour", "6")
    report = guard(world)
    assert any("more than $6.00 an hour" in action for action in report.actions)
    assert world.ledger.get(Deployment, first.id).state == "ready"
    assert world.ledger.get(Deployment, second.id).state == "draining"


def test_tokens_are_charged_from_the_log_once(world: World) -> None:
    decide(world, "meta-llama/serverless", cost_usd=0.25, count=3)
    assert guard(world).charged_usd == Decimal("0.75")
    assert guard(world).charged_usd == 0
    decide(world, "meta-llama/serverless", cost_usd=0.25)
    assert guard(world).charged_usd == Decimal("0.25")
    assert cost_report(world.data, period="total", now=world.now())["by_kind_usd"] == {"tokens": 1}


def test_an_unreachable_provider_lets_the_lease_run_out(world: World) -> None:
    row = world.deploy()
    route(world, row.served_name)
    world.minutes(2)
    report = guard_costs(world.data, None, ledger=world.ledger, now=world.now())
    assert (report.lease, report.errors) == ("left", ["the provider cannot be reached"])
    world.minutes(2)
    assert routed(world) == frozenset()
    down = TogetherProvider(world.client.with_options(base_url="http://127.0.0.1:9", max_retries=0))
    report = guard_costs(world.data, down, ledger=world.ledger, now=world.now())
    assert report.lease == "left"
    assert "no answer from the provider" in report.errors[0]
    decide(world, row.served_name)
    assert guard(world).charged_usd == 4 * RATE / 60  # made up for
    assert routed(world) == {row.served_name}


def test_a_decision_log_that_cannot_be_read_lets_the_lease_run_out(world: World) -> None:
    row = world.deploy()
    route(world, row.served_name)
    decide(world, row.served_name)
    (part,) = world.data.glob("decisions/**/*.parquet")
    part.write_bytes(b"broken")
    report = guard(world)
    assert report.lease == "left"
    assert "the decision log cannot be read" in report.errors[0]


@pytest.mark.parametrize("minute", [20, 48])  # what runs 12 minutes from :48 is in one hour of the bill, or just in two
def test_a_ledger_that_cannot_be_written_stops_what_it_cannot_meter(world: World, minute: int) -> None:
    world.until_minute(minute)
    row = world.deploy()
    route(world, row.served_name)

    @sa.event.listens_for(world.ledger.engine, "checkout")
    def read_only(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute(f"PRAGMA query_only = {broken}")

    broken = True
    world.minutes(5)
    report = guard(world)
    assert report.lease == "left"
    assert "make it and its folder writable" in report.errors[0]
    assert routed(world) == frozenset()
    assert report.actions == []  # it may be mended in a moment
    assert read_routes(world.data / "routes.json").routes  # and then the lease is renewed
    world.minutes(7)
    assert guard(world).actions == [f"stopped {row.name}, whose minutes the ledger cannot take down"]
    assert not read_routes(world.data / "routes.json").routes
    world.minutes(60)  # costs nothing any more
    broken = False
    guard(world)
    guard(world)
    assert world.ours() == []
    world.await_bill()
    reconciled = reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now())
    assert reconciled.errors == []
    assert world.ledger.spent() == world.emulator.bill({row.remote_id}) <= 14 * RATE / 60


def test_what_was_to_end_when_the_ledger_broke_is_stopped(world: World) -> None:
    row = world.deploy()
    begin_shutdown(world.ledger, row.id, why="test", now=world.now())
    sa.event.listen(world.ledger.engine, "checkout", lambda connection, *_: connection.execute("PRAGMA query_only = 1"))
    world.minutes(11)
    assert guard(world).actions == [f"stopped {row.name}, whose minutes the ledger cannot take down"]


def test_an_answer_that_is_not_as_documented_leaves_the_others_guarded(world: World) -> None:
    broken, other = world.deploy(world.model()), world.deploy(world.model("planning"))
    route(world, other.served_name, "planning")

    def without_status(response: httpx.Response) -> None:
        if response.request.method == "GET" and response.request.url.path.endswith(broken.remote_id):
            response.read()
            response._content = json.dumps(response.json() | {"status": None}).encode()

    world.client._client.event_hooks = {"response": [without_status]}
    world.minutes(2)
    world.ledger.set_budget("total", world.ledger.spent(), "planning")
    report = guard(world)
    (error,) = report.errors
    assert error.startswith(f"{broken.name}: ")
    assert error.endswith("the provider does not say how it is")
    assert report.lease != "renewed"
    assert world.ledger.get(Deployment, other.id).state == "deleted"
    assert routed(world) == frozenset()


def test_a_route_to_what_does_not_run_is_withdrawn(world: World) -> None:
    row = world.deploy()
    route(world, row.served_name)
    route(world, "meta-llama/serverless", "planning")
    begin_shutdown(world.ledger, row.id, why="test", immediately=True, now=world.now())
    guard(world)
    assert routed(world) == {"meta-llama/serverless"}
    assert world.ours() == []
    assert set(read_routes(world.data / "routes.json").routes) == {"planning"}


def test_the_providers_own_stop_is_noticed(world: World) -> None:
    row = world.deploy()
    route(world, row.served_name)
    world.client.endpoints.deployments.update(
        row.remote_id, endpoint_id=row.endpoint_id, autoscaling={"min_replicas": 0, "max_replicas": 0}
    )
    guard(world)
    assert routed(world) == frozenset()
    assert model_status(world.data, now=world.now())[0]["hourly_usd"] == 0


@pytest.mark.parametrize("kind", ["lost_response", "503"])
def test_trouble_at_the_provider_is_overcome_by_the_next_ticks(world: World, kind: str) -> None:
    row = world.deploy()
    world.minutes(31)
    for match in ("PATCH *", "DELETE *"):
        world.emulator.fault(kind, match, times=3)
    for _ in range(8):
        guard(world)
        world.emulator.advance(timedelta(minutes=1).total_seconds())
    assert world.ours() == []
    assert world.ledger.get(Deployment, row.id).state == "deleted"


@pytest.mark.parametrize("ahead", [timedelta(hours=6), timedelta(days=400)])
def test_a_decision_dated_ahead_keeps_nothing_awake(world: World, ahead: timedelta) -> None:
    row = world.deploy()
    world.minutes(20)
    decide(world, row.served_name, ahead=ahead)
    guard(world)
    assert world.ledger.get(Deployment, row.id).last_request_at == world.now()  # it was made, at some time
    world.minutes(29)
    guard(world)
    assert world.ledger.get(Deployment, row.id).state == "ready"
    world.minutes(1)
    assert "idle for 30 minutes" in guard(world).actions[0]


def test_a_cost_that_is_no_money_is_told_and_the_others_are_charged(world: World) -> None:
    row = world.deploy()
    decide(world, row.served_name, cost_usd=1e30)
    assert guard(world).errors == []  # what runs on a deployment is paid by the minute
    for cost in (1e30, -1.0, 0.25):
        decide(world, "a/serverless", cost_usd=cost)
    (error,) = guard(world).errors
    assert "no amount of money" in error and "2 of a/serverless as should_respond" in error
    assert [charge.amount_usd for charge in world.ledger.charges(kind="tokens")] == [Decimal("0.25")]


@pytest.mark.parametrize("arm", [{"weight": 0.0}, {"mode": "shadow"}])
def test_a_model_without_traffic_is_not_enabled(world: World, arm: dict[str, Any]) -> None:
    row = world.deploy()
    world.ledger.transition(Model, row.model_id, "promoted", now=world.now())
    custom = Arm(**{"name": "c", "source": "custom", "weight": 0.5, "model": row.served_name, **arm})
    for each, enabled in ((replace(custom, weight=0.5, mode="live"), True), (custom, False)):
        publish_route(
            world.data / "routes.json",
            "should_respond",
            Route((replace(each, base_url=world.emulator.url), Arm("original", "original", 0.5))),
            now=world.now(),
        )
        (status,) = model_status(world.data, now=world.now())
        assert status["enabled"] is enabled


def test_a_reservation_that_was_released_meanwhile_does_not_open_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, find = world.deploy(), world.ledger.find

    def undeploy_after_the_look(object_type: str, **where: Any) -> list[dict[str, Any]]:
        rows = find(object_type, **where)
        if rows and where.get("state") == RUNNING_STATES:
            monkeypatch.undo()
            with open_ledger(world.data) as other:
                undeploy_model(world.provider, other, row.id, pace=Pace(now=world.now, wait=world.wait))
        return rows

    monkeypatch.setattr(world.ledger, "find", undeploy_after_the_look)
    guard(world)
    assert world.ledger.get(Deployment, row.id).state == "deleted"
    assert world.ledger.reservation(row.reservation_id).state == "released"


def test_many_hands_that_end_it_at_once_are_harmless(world: World) -> None:
    row = world.deploy()
    errors: list[Exception] = []

    def end() -> None:
        try:
            with open_ledger(world.data) as ledger, contextlib.closing(connect(base_url=world.emulator.url)) as client:
                undeploy_model(
                    TogetherProvider(client),
                    ledger,
                    row.id,
                    pace=Pace(now=world.now, wait=world.wait, poll_seconds=0.1),
                )
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=end) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert world.ours() == []


def test_a_create_that_was_never_answered_is_reserved_for_and_stopped_when_its_money_ends(world: World) -> None:
    world.ledger.set_budget("total", world.ledger.spent() + 1)
    model_id = world.model()
    world.kill_after("POST", "/deployments")
    with pytest.raises(Killed):
        world.deploy(model_id)
    world.revive()
    (row,) = world.ledger.find(Deployment, state=DeploymentState.INTENDED)
    assert row.attempted_at is not None and row.remote_id is None and row.reservation_id is not None
    world.minutes(2)
    guard(world)
    minutes = math.ceil((world.now() - row.attempted_at).total_seconds() / 60)
    held = world.ledger.reservation(row.reservation_id).amount_usd
    assert held == minutes_usd(row.hourly_usd, minutes) + runway_usd(row)
    for _ in range(6):  # $5.49 an hour: with its runway a dollar lasts for five minutes
        world.minutes(1)
        guard(world)
    assert world.ledger.get(Deployment, row.id).state == DeploymentState.DELETED
    assert world.ours() == []
    assert world.ledger.spent() <= 1


def test_what_was_intended_is_not_sent_once_other_things_have_spent_the_budget(world: World) -> None:
    dataset, model_id = world.upload(), world.model()
    world.ledger.set_budget("total", world.ledger.spent() + 10)
    world.emulator.fault(503, "GET /v1/fine-tunes", times=100)
    with pytest.raises(ProviderUnavailable):
        submit_fine_tune(world.provider, world.ledger, dataset.id, tier="small", pace=world.pace)
    world.emulator.clear_faults()
    world.ledger.charge("endpoint", "7", key="more than was reserved", what="test", now=world.now())
    (job,) = world.ledger.find(FineTuneJob, state="intended")
    with pytest.raises(BudgetExceeded, match=r"needs \$4.00, but .* \$10.00 \$7.00 is spent by now"):
        resume_fine_tune(world.provider, world.ledger, job.id, pace=world.pace)
    world.minutes(10)
    reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now())
    assert world.ledger.get(FineTuneJob, job.id).state == "abandoned"
    assert world.ledger.reservation(job.reservation_id).state == "released"
    assert world.ledger.get(Model, model_id).state == "trained"
