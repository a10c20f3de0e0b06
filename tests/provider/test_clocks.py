"""Clocks that differ: the provider's decides before anything is stopped or charged, and no lease lasts for hours."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from provider.clock import TOLERANCE, provider_clock, time_from_headers
from provider.lifecycle.deployments import deploy_model
from provider.lifecycle.fine_tunes import (
    PENDING_LONG,
    cancel_fine_tune,
    follow_fine_tune,
    submit_fine_tune,
    sync_fine_tune,
)
from provider.lifecycle.guard import guard_costs
from provider.lifecycle.guard_report import GuardPolicy, GuardReport
from provider.lifecycle.reconcile import ReconcileReport, reconcile_provider
from provider.lifecycle.routes import LEASE, publish_route, routed_models
from provider.lifecycle.shutdown import undeploy_model
from provider.lifecycle.status import alerts
from provider.pace import Pace
from provider.together.clock import ask_time
from reasoning.errors import RoutesError
from reasoning.serving.lease import RoutesLease
from reasoning.serving.routes import Arm, Route, read_routes
from storage.layout import Layout
from storage.ledger.rows import Deployment
from tests.provider.world import World

HOURLY = Decimal("5.49")
OFFSETS = [timedelta(hours=2), timedelta(hours=-2), timedelta(days=3), timedelta(days=-3)]


def tick(world: World, offset: timedelta = timedelta(0)) -> GuardReport:
    return guard_costs(world.data, world.provider, ledger=world.ledger, now=world.now() + offset)


def reconcile(world: World, offset: timedelta = timedelta(0)) -> ReconcileReport:
    return reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now() + offset)


def serve(world: World) -> dict[str, Any]:
    """A ready deployment with a route."""
    row = world.deploy()
    arm = Arm("custom", "custom", 1.0, model=row.served_name, base_url=world.emulator.url)
    publish_route(Layout(world.data).routes, "should_respond", Route((arm,)), now=world.now())
    return row


def reads(world: World, at: datetime) -> str | None:
    """Why an agent that starts now, with a clock of `at`, would not follow the route."""
    lease = RoutesLease(Layout(world.data).routes, at.timestamp)
    return lease.find("should_respond", at.timestamp())[1]


@pytest.mark.parametrize("offset", OFFSETS)
def test_a_reconciliation_by_a_wrong_clock_stops_and_charges_nothing_wrongly(world: World, offset: timedelta) -> None:
    row = world.deploy()
    world.minutes(15)
    tick(world)
    spent = world.ledger.spent()
    report = reconcile(world, offset)
    assert world.ledger.get(Deployment, row.id).state == "ready"
    assert (report.errors, report.actions, report.adjustments) == ([], [], [])
    assert world.ledger.spent() == spent
    assert report.now == world.now()
    (warning,) = report.warnings
    assert ("ahead of" if offset > timedelta(0) else "behind") in warning and "NTP" in warning


@pytest.mark.parametrize("offset", OFFSETS)
def test_a_tick_by_a_wrong_clock_meters_the_provider_s_minutes(world: World, offset: timedelta) -> None:
    serve(world)
    world.minutes(10)
    tick(world)
    world.minutes(5)
    report = tick(world, offset)
    assert "the provider's time is used" in report.warnings[0]
    assert report.errors == []
    assert 15 * HOURLY / 60 <= world.ledger.spent() <= 17 * HOURLY / 60
    world.minutes(1)
    tick(world)
    assert 16 * HOURLY / 60 <= world.ledger.spent() <= 18 * HOURLY / 60


def test_one_tick_three_hours_ahead_leaves_no_three_hour_lease(world: World) -> None:
    serve(world)
    assert tick(world, timedelta(hours=3)).lease == "renewed"
    path = Layout(world.data).routes
    assert read_routes(path).expires_at == world.now() + LEASE
    assert reads(world, world.now()) is None
    world.minutes(4)  # the guard has died
    assert reads(world, world.now()) == "lease_expired"
    assert routed_models(path, now=world.now()) == frozenset()


def test_a_route_that_is_promoted_by_a_clock_ahead_is_not_followed_until_the_next_tick(world: World) -> None:
    """Promotion does not ask the provider: agents refuse its lease from the future, and the guard puts it right."""
    row = world.deploy()
    arm = Arm("custom", "custom", 1.0, model=row.served_name, base_url=world.emulator.url)
    path = Layout(world.data).routes
    publish_route(path, "should_respond", Route((arm,)), now=world.now() + timedelta(hours=3))
    assert reads(world, world.now()) == reads(world, world.now() + timedelta(hours=2)) == "lease_expired"
    assert routed_models(path, now=world.now()) == frozenset()
    tick(world)
    assert reads(world, world.now()) is None


def test_no_lease_beyond_the_maximum_is_written(world: World) -> None:
    serve(world)
    with pytest.raises(RoutesError, match="at most 1:00:00"):
        publish_route(
            Layout(world.data).routes, "planning", Route((Arm("original", "original", 1.0),)), lease=timedelta(hours=2)
        )
    report = guard_costs(
        world.data, world.provider, ledger=world.ledger, now=world.now(), policy=GuardPolicy(lease=timedelta(hours=2))
    )
    assert report.lease == "left"
    assert "at most 1:00:00" in report.errors[0]


@pytest.mark.parametrize("offset", [timedelta(hours=2), timedelta(hours=-2)])
def test_a_life_by_a_wrong_clock_is_charged_to_the_minute(world: World, offset: timedelta) -> None:
    """Who deploys and undeploys has the wrong clock; what is charged before the bill tells is right all the same."""
    model_id = world.model()

    def now() -> datetime:
        return world.now() + offset

    row = deploy_model(world.provider, world.ledger, model_id, pace=Pace(poll_seconds=1, now=now, wait=world.wait))
    for _ in range(3):
        world.minutes(5)
        tick(world)
    undeploy_model(world.provider, world.ledger, row.id, drain_seconds=0, pace=Pace(now=now, wait=world.wait))
    assert 15 * HOURLY / 60 <= world.ledger.spent() <= 17 * HOURLY / 60
    assert world.emulator.bill({row.remote_id}) <= world.ledger.spent()


@pytest.mark.parametrize("offset", [timedelta(days=2), timedelta(days=-2)])
def test_a_training_by_a_wrong_clock_counts_in_the_provider_s_day(world: World, offset: timedelta) -> None:
    dataset = world.upload()

    def now() -> datetime:
        return world.now() + offset

    job = submit_fine_tune(world.provider, world.ledger, dataset.id, tier="small", pace=Pace(now=now, wait=world.wait))
    follow_fine_tune(world.provider, world.ledger, job.id, pace=Pace(poll_seconds=1, now=now, wait=world.wait))
    assert world.ledger.spent("day", now=world.now()) == 4
    assert world.ledger.spent("day", now=now()) == 0


def test_a_small_difference_is_none(world: World) -> None:
    now = world.now() + TOLERANCE / 2
    assert provider_clock(world.provider, now, seen=None)() == now
    assert tick(world, TOLERANCE / 2).warnings == []


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_a_refusal_tells_the_time_as_well(world: World, status: int) -> None:
    world.emulator.fault(status, "GET /v3/whoami")
    told = ask_time(world.client)
    assert told is not None and abs(told - world.now()) <= timedelta(seconds=1)
    assert world.emulator.pending_faults() == 0


@pytest.mark.parametrize("date", [None, "", "yesterday", "2026-11-28T10:00:00Z", "Sat, 99 Nov 2026 10:00:00 GMT"])
def test_what_is_no_time_is_none(date: str | None) -> None:
    assert time_from_headers(httpx.Headers({} if date is None else {"date": date})) is None


def test_without_the_provider_s_time_nothing_is_stopped_for_what_our_clock_says(world: World) -> None:
    row = world.deploy()
    world.client._client.event_hooks = {"response": [lambda response: response.headers.pop("date", None)]}
    report = reconcile(world, timedelta(hours=2))
    assert world.ledger.get(Deployment, row.id).state == "ready"
    assert "did not tell the time" in report.errors[-1]
    world.revive()


def test_a_provider_clock_that_jumps_days_ahead_charges_and_ends_nothing(world: World) -> None:
    serve(world)
    tick(world)
    world.minutes(5)
    spent = world.ledger.spent()

    def jump(response: httpx.Response) -> None:
        response.headers["date"] = format_datetime(world.now() + timedelta(days=3), usegmt=True)

    world.client._client.event_hooks = {"response": [jump]}
    report = tick(world)
    assert "agrees with the ledger" in report.warnings[0]
    assert report.lease == "renewed" and report.errors == []
    assert spent < world.ledger.spent() <= spent + 7 * HOURLY / 60
    report = reconcile(world)
    assert "none that can be believed" in report.errors[-1]
    assert (report.actions, report.adjustments) == ([], [])
    (row,) = world.ledger.find(Deployment)
    undeploy_model(world.provider, world.ledger, row.id, drain_seconds=0, pace=Pace(now=world.now, wait=world.wait))
    assert world.ledger.spent() <= spent + 9 * HOURLY / 60
    world.revive()


def test_a_job_that_is_pending_for_days_is_said_with_what_ends_it(world: World) -> None:
    world.emulator.fault("training_slow", seconds=30)
    blocker = submit_fine_tune(world.provider, world.ledger, world.upload("first").id, tier="small", pace=world.pace)
    waiting = submit_fine_tune(world.provider, world.ledger, world.upload("second").id, tier="small", pace=world.pace)
    waiting = sync_fine_tune(world.provider, world.ledger, waiting.id, now=world.now())
    assert waiting.remote_state in ("pending", "queued")
    assert alerts(world.data, now=world.now()) == tick(world).warnings == []
    world.emulator.advance((PENDING_LONG * 2.5).total_seconds())
    report = tick(world)
    said = [line for line in report.warnings if waiting.id in line]
    assert len(said) == 1
    assert f"reasoning models cancel {waiting.id}" in said[0] and "2.5 days" in said[0] and "$4.00" in said[0]
    assert said[0] in alerts(world.data, now=world.now())
    for job in (waiting, blocker):  # frees the emulator's trainer
        cancel_fine_tune(world.provider, world.ledger, job.id, now=world.now())
