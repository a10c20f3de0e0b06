"""Bills of other forms: lines that name our objects otherwise, or not at all, and an account without a bill."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from provider.lifecycle.guard import guard_costs
from provider.lifecycle.reconcile import ReconcileReport, reconcile_provider
from provider.lifecycle.shutdown import undeploy_model
from provider.lifecycle.status import alerts
from provider.money.bill import BILL_CLOSED
from provider.pace import Pace
from storage.ledger.charges import ChargedTo
from storage.ledger.rows import Deployment, FineTuneJob
from tests.provider.odd_answers import garble
from tests.provider.world import World

NAMING = ("resource", "typed", "path")
TOO_MUCH = Decimal(3)


def reconcile(world: World) -> ReconcileReport:
    return reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now())


def live(world: World, *, train: bool = True) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A training and a deployment that have ended; the ledger has $3 too much for the deployment."""
    job = world.train() if train else None
    row = world.deploy()
    for _ in range(3):
        world.minutes(5)
        guard_costs(world.data, world.provider, ledger=world.ledger, now=world.now())
    undeploy_model(world.provider, world.ledger, row.id, pace=Pace(now=world.now, wait=world.wait))
    row = world.ledger.get(Deployment, row.id)
    world.ledger.charge(
        "endpoint",
        TOO_MUCH,
        key=f"too much {row.id}",
        what="test",
        ts=row.created_at,
        now=world.now(),
        of=ChargedTo(deployment_id=row.id),
    )
    return row, job


def billed(world: World) -> Decimal:
    rows = (*world.ledger.find(Deployment), *world.ledger.find(FineTuneJob))
    return world.emulator.bill({row.remote_id for row in rows if row.remote_id})


@pytest.mark.parametrize("form", NAMING)
def test_a_bill_that_names_our_objects_is_met_to_the_cent(world: World, form: str) -> None:
    world.emulator.bill_form(attributes=form)
    live(world)
    world.await_bill()
    report = reconcile(world)
    assert (report.errors, report.bill) == ([], "compared")
    assert world.ledger.spent() == billed(world)
    assert alerts(world.data, now=world.now()) == []
    assert reconcile(world).bill == "nothing to compare"


def test_a_bill_by_endpoint_is_met_to_the_cent_doubles_and_all(world: World) -> None:
    world.emulator.bill_form(attributes="endpoint")
    row = world.deploy()
    double = world.double(row)
    world.minutes(5)
    reconcile(world)
    reconcile(world)  # the double is stopped, and charged at worst
    world.minutes(3)
    undeploy_model(world.provider, world.ledger, row.id, pace=Pace(now=world.now, wait=world.wait))
    world.await_bill()
    report = reconcile(world)
    assert report.errors == []
    assert world.ledger.spent() == world.emulator.bill({row.remote_id, double.id})
    assert world.ledger.find(Deployment, reconciled_at=None) == []


@pytest.mark.parametrize("form", ["absent", "hardware"])
def test_a_bill_that_names_nobody_gives_nothing_back_and_says_so(world: World, form: str) -> None:
    """Such a bill gave back all that was charged, training too, when its day had passed."""
    world.emulator.bill_form(attributes=form)
    live(world)
    spent = world.ledger.spent()
    for days in range(4):
        report = reconcile(world)
        assert (report.errors, report.adjustments, world.ledger.spent()) == ([], [], spent)
        if days:
            assert report.bill == "unattributed"
            lines = alerts(world.data, now=world.now())
            assert len(lines) == 2, lines
            assert all("cannot be attributed" in line and "names none of our" in line for line in lines)
        world.await_bill()
    world.emulator.bill_form(attributes="resource")  # the provider mends its bill: now it can be checked
    assert reconcile(world).bill == "compared"
    assert world.ledger.spent() == billed(world)
    assert alerts(world.data, now=world.now()) == []


def test_a_training_that_is_named_does_not_make_silence_about_deployments_an_answer(world: World) -> None:
    _, job = live(world)
    world.emulator.bill_form(attributes="typed")
    spent = world.ledger.spent()

    def without_deployments(answer: Any) -> Any:
        for window in answer["data"]:
            window["line_items"] = [line for line in window["line_items"] if "fine_tune_id" in line["attributes"]]
        return answer

    garble(world, "GET", "/billing/usage", without_deployments)
    world.await_bill()
    report = reconcile(world)
    assert (report.adjustments, world.ledger.spent(), report.bill) == ([], spent, "unattributed")
    assert job is not None
    assert world.ledger.get(FineTuneJob, job.id).reconciled_at is not None
    (alert,) = alerts(world.data, now=world.now())
    assert "our deployments" in alert


def test_a_bill_that_stops_naming_us_gives_nothing_back_from_then_on(world: World) -> None:
    live(world, train=False)
    world.await_bill()
    assert reconcile(world).bill == "compared"
    world.emulator.bill_form(attributes="hardware")
    live(world, train=False)
    spent = world.ledger.spent()
    world.await_bill()
    report = reconcile(world)
    assert (report.adjustments, world.ledger.spent(), report.bill) == ([], spent, "unattributed")


def test_an_account_without_a_bill_is_a_state_and_no_error(world: World) -> None:
    world.emulator.bill_form(api=False)
    live(world)
    spent = world.ledger.spent()
    for _ in range(3):
        report = reconcile(world)
        assert (report.errors, report.bill, world.ledger.spent()) == ([], "absent", spent)
        world.await_bill()
    assert len(world.ledger.history("billing", "api")) == 1  # said once, not each ten minutes
    (alert,) = alerts(world.data, now=world.now())
    assert "404" in alert
    world.emulator.bill_form(api=True)
    assert reconcile(world).bill == "compared"
    assert world.ledger.spent() == billed(world)
    assert alerts(world.data, now=world.now()) == []


def test_a_key_that_may_not_read_the_bill_is_a_state_and_shown_once(world: World) -> None:
    live(world)
    spent = world.ledger.spent()
    world.emulator.fault(403, "GET /v1/billing/usage*", times=1000)
    for _ in range(3):
        report = reconcile(world)
        assert (report.errors, report.bill, world.ledger.spent()) == ([], "denied", spent)
        world.await_bill()
    assert len(world.ledger.history("billing", "api")) == 1
    (alert,) = alerts(world.data, now=world.now())
    assert "403" in alert
    world.emulator.clear_faults()
    assert reconcile(world).bill == "compared"
    assert alerts(world.data, now=world.now()) == []


@pytest.mark.parametrize("cost", ["0", "1.50", "3.999999999"])
def test_a_completed_job_is_never_charged_less_than_its_own_price(world: World, cost: str) -> None:
    job = world.train()
    world.await_bill()

    def cheaper(answer: Any) -> Any:
        for window in answer["data"]:
            for line in window["line_items"]:
                if job.remote_id in str(line):
                    line["cost"] = cost
        return answer

    garble(world, "GET", "/billing/usage", cheaper)
    report = reconcile(world)
    assert (report.errors, report.adjustments) == ([], [])
    assert world.ledger.spent() == 4


def test_what_the_account_is_billed_beyond_our_charges_is_said(world: World) -> None:
    """The second witness: the sum of a product, where no line can be attributed."""
    world.emulator.bill_form(attributes="hardware")
    row = world.deploy()
    world.minutes(30)
    undeploy_model(world.provider, world.ledger, row.id, pace=Pace(now=world.now, wait=world.wait))
    charged = world.ledger.spent()
    world.await_bill()

    def only_ours(times: int) -> Any:
        def change(answer: Any) -> Any:
            line = {
                "product_name": "Dedicated Endpoints - H100",
                "attributes": {"hardware": "1xh100", "region": "us"},
                "cost": str(charged * times),
            }
            answer["data"] = [{**answer["data"][-1], "line_items": [line]}]
            return answer

        return change

    garble(world, "GET", "/billing/usage", only_ours(1))
    assert reconcile(world).warnings == []
    garble(world, "GET", "/billing/usage", only_ours(3))
    (warning,) = reconcile(world).warnings
    assert f"${charged * 2:.2f}" in warning and "more than the ledger knows of" in warning
    assert world.ledger.spent() == charged


def test_a_month_that_the_bill_no_longer_has_gives_nothing_back(world: World) -> None:
    world.until_month_ends(minutes=40)
    live(world, train=False)
    spent = world.ledger.spent()
    world.await_bill()
    world.emulator.fault(404, "GET /v1/billing/usage")  # the older one is asked for first
    report = reconcile(world)
    assert "is not to be had" in report.errors[0]
    assert (report.adjustments, world.ledger.spent()) == ([], spent)
    assert reconcile(world).errors == []
    assert world.ledger.spent() == billed(world)


def test_what_cannot_be_attributed_is_not_looked_for_for_ever(world: World) -> None:
    world.emulator.bill_form(attributes="absent")
    live(world, train=False)
    world.emulator.advance((BILL_CLOSED + timedelta(days=2)).total_seconds())
    reconcile(world)
    assert world.ledger.find(Deployment, reconciled_at=None) == []
    assert reconcile(world).bill == "nothing to compare"
