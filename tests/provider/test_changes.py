"""What changes while something runs: prices, budgets, months, clocks, and objects under our hands."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from provider.errors import CreationInDoubt
from provider.lifecycle.fine_tunes import submit_fine_tune
from provider.lifecycle.guard import guard_costs
from provider.lifecycle.guard_report import GuardPolicy, GuardReport
from provider.lifecycle.reconcile import reconcile_provider
from provider.lifecycle.routes import publish_route
from provider.lifecycle.shutdown import undeploy_model
from provider.pace import Pace
from reasoning.serving.routes import Arm, Route
from storage.errors import BudgetExceeded
from storage.ledger.rows import Deployment
from tests.provider.world import Killed, World

MINUTE = Decimal("5.49") / 60


def guard(world: World) -> list[str]:
    report = guard_costs(
        world.data, world.provider, policy=GuardPolicy(idle=None), ledger=world.ledger, now=world.now()
    )
    assert report.errors == []
    return report.actions


def test_a_deployment_that_is_taken_up_again_is_reserved_at_todays_price(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_id = world.model()
    world.kill_after("POST", "/endpoints")
    with pytest.raises(Killed):
        world.deploy(model_id)
    world.revive()
    monkeypatch.setattr("provider.lifecycle.deployments.instance_price", lambda *_: Decimal(9))
    world.ledger.set_budget("hour", "8")
    with pytest.raises(BudgetExceeded, match=r"needs \$3\.51 an hour"):
        world.deploy(model_id)
    world.ledger.set_budget("hour", "9")
    world.deploy(model_id)
    budget = world.ledger.budgets(world.now())[0]
    assert (budget.period, budget.reserved_usd) == ("hour", 9)


def test_a_fine_tune_that_is_taken_up_again_is_reserved_at_todays_price(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = world.upload()

    def submit() -> dict[str, object]:
        return submit_fine_tune(world.provider, world.ledger, dataset.id, tier="small", pace=world.pace)

    world.emulator.fault(500, "POST /v1/fine-tunes", times=4)
    with pytest.raises(CreationInDoubt):
        submit()
    monkeypatch.setattr("provider.together.jobs.estimate_fine_tune", lambda *_, **__: Decimal(6))
    world.minutes(6)
    world.ledger.set_budget("total", "5")
    with pytest.raises(BudgetExceeded):
        submit()
    assert world.our_jobs() == []
    world.ledger.set_budget("total", "6")
    assert submit().state == "submitted"
    assert world.ledger.budgets(world.now())[0].reserved_usd == 6


def test_a_budget_that_is_lowered_under_what_runs_stops_it_and_raised_lets_it_be(world: World) -> None:
    world.deploy()
    guard(world)
    spent = world.ledger.spent()
    world.ledger.set_budget("day", spent + 20 * MINUTE)
    world.minutes(1)
    assert guard(world) == []
    world.ledger.set_budget("day", spent + MINUTE)  # to the cent what is spent: reached is enough
    assert any("stopping" in action for action in guard(world))
    assert world.ours() == []
    world.ledger.set_budget("day", "100")
    world.deploy()
    world.minutes(1)
    assert guard(world) == []


def test_a_deployment_that_another_hand_scaled_up_is_charged_and_held_to_what_an_hour_may_cost(world: World) -> None:
    row = world.deploy()
    guard(world)
    spent = world.ledger.spent()
    world.ledger.set_budget("hour", "12")
    scaled = {"min_replicas": 2, "max_replicas": 2}
    world.observer.endpoints.deployments.update(row.remote_id, endpoint_id=row.endpoint_id, autoscaling=scaled)
    world.minutes(3)
    guard(world)
    assert world.ledger.spent() - spent == 2 * 3 * MINUTE
    rate, total = world.ledger.budgets(world.now())
    assert (rate.reserved_usd, total.reserved_usd) == (2 * 60 * MINUTE, 2 * 5 * MINUTE)
    world.ledger.set_budget("hour", "10")
    assert any("more than $10.00 an hour" in action for action in guard(world))
    world.minutes(1)
    guard(world)
    assert world.ours() == []


def test_a_deployment_that_another_hand_scaled_beyond_the_hour_is_drained(world: World) -> None:
    row = world.deploy()
    world.ledger.set_budget("hour", "6")
    scaled = {"min_replicas": 3, "max_replicas": 3}
    world.observer.endpoints.deployments.update(row.remote_id, endpoint_id=row.endpoint_id, autoscaling=scaled)
    world.minutes(1)
    (action,) = guard(world)
    assert "needs $10.98 an hour" in action
    world.minutes(1)
    guard(world)
    assert world.ours() == []


def test_hours_without_a_tick_over_the_end_of_a_month_count_in_the_month_of_each_minute(world: World) -> None:
    now = world.now()
    first = (now.replace(day=1, hour=0, minute=0, second=0, microsecond=0) + timedelta(days=32)).replace(day=1)
    world.emulator.advance((first - timedelta(minutes=60) - now).total_seconds())
    row = world.deploy()
    guard(world)
    world.emulator.advance((first + timedelta(minutes=90) - world.now()).total_seconds())
    guard(world)
    before, after = (world.ledger.spent("month", now=first + timedelta(minutes=at)) for at in (-1, 1))
    assert abs(before - 60 * MINUTE) <= MINUTE
    assert abs(after - 90 * MINUTE) <= MINUTE
    assert world.ledger.spent("day", now=first) == after
    undeploy_model(world.provider, world.ledger, row.id, pace=Pace(now=world.now, wait=world.wait))
    world.await_bill()
    reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now())
    assert world.ledger.spent() == world.emulator.bill({row.remote_id})


@pytest.mark.parametrize("minutes", [-30, 30])
def test_a_provider_whose_clock_is_wrong_is_charged_by_its_bill_in_the_end(world: World, minutes: int) -> None:
    skew = timedelta(minutes=minutes)

    def now():  # type: ignore[no-untyped-def]
        return world.now() + skew

    row = world.deploy()
    world.double(row)
    for _ in range(3):
        world.minutes(7)
        guard_costs(world.data, world.provider, ledger=world.ledger, now=now())
        reconcile_provider(world.data, world.provider, ledger=world.ledger, now=now())
    undeploy_model(world.provider, world.ledger, row.id, pace=Pace(now=now, wait=world.wait))
    world.await_bill()
    assert reconcile_provider(world.data, world.provider, ledger=world.ledger, now=now()).errors == []
    rows = world.ledger.find(Deployment)
    assert len(rows) == 2
    assert world.ledger.spent() == world.emulator.bill({each.remote_id for each in rows})


def test_an_object_that_another_hand_changes_meanwhile_is_looked_at_again(world: World) -> None:
    row = world.deploy()

    def meddle(request) -> None:  # type: ignore[no-untyped-def]
        if request.method == "PATCH" and "deployments" in request.url.path:
            world.revive()
            world.observer.endpoints.deployments.update(row.remote_id, endpoint_id=row.endpoint_id, inactive_timeout=60)

    world.client._client.event_hooks = {"request": [meddle]}
    undeploy_model(world.provider, world.ledger, row.id, pace=Pace(poll_seconds=0, now=world.now, wait=world.wait))
    assert world.ours() == []


def keep_time_back(world: World) -> None:
    """Let the provider's answers come without a `Date`."""
    world.client._client.event_hooks = {"response": [lambda response: response.headers.pop("date", None)]}


@pytest.mark.parametrize("jump", [timedelta(hours=3), timedelta(days=-40)])
def test_a_clock_that_jumps_for_a_moment_renews_no_lease_until_it_agrees_and_the_bill_makes_it_good(
    world: World, jump: timedelta
) -> None:
    """Where the provider does not tell the time. Where it does, its time is used: `test_clocks.py`."""
    row = world.deploy()
    custom = Arm("custom", "custom", 1.0, model=row.served_name, base_url=world.emulator.url)
    publish_route(world.data / "routes.json", "should_respond", Route((custom,)), now=world.now())
    policy = GuardPolicy(idle=None)

    def tick(jump: timedelta = timedelta(0)) -> GuardReport:
        world.minutes(1)
        return guard_costs(world.data, world.provider, ledger=world.ledger, policy=policy, now=world.now() + jump)

    assert tick().lease == "renewed"
    keep_time_back(world)
    tick(jump)
    world.revive()
    report = tick()
    if jump > timedelta(0):
        (error,) = report.errors
        assert "by the clock" in error
    assert report.lease == ("left" if jump > timedelta(0) else "renewed")
    world.minutes(abs(jump).total_seconds() // 60 if jump > timedelta(0) else 0)
    assert tick().lease == "renewed"
    undeploy_model(world.provider, world.ledger, row.id, pace=Pace(now=world.now, wait=world.wait))
    world.next_hours(30)
    reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now())
    assert world.ledger.spent() == world.emulator.bill({row.remote_id})


def test_what_a_clock_charged_far_ahead_is_given_back_when_the_deployment_has_ended(world: World) -> None:
    row = world.deploy()
    world.minutes(1)  # so that the bill names it
    keep_time_back(world)
    guard_costs(world.data, world.provider, ledger=world.ledger, now=world.now() + timedelta(days=2))
    world.revive()
    assert world.ledger.spent() > 260
    undeploy_model(world.provider, world.ledger, row.id, pace=Pace(now=world.now, wait=world.wait))
    world.next_hours(26)
    reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now())
    assert world.ledger.spent() == world.emulator.bill({row.remote_id})
