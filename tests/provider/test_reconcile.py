"""Reconciliation: orphans stopped and charged, strangers left alone, our charges made equal to the bill."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from provider.errors import CreationInDoubt
from provider.lifecycle.deployments import deploy_model
from provider.lifecycle.fine_tunes import cancel_fine_tune, follow_fine_tune, submit_fine_tune
from provider.lifecycle.guard import guard_costs
from provider.lifecycle.reconcile import ABANDON_AFTER, ReconcileReport, reconcile_provider
from provider.lifecycle.shutdown import undeploy_model
from provider.lifecycle.status import model_status
from provider.pace import Pace
from provider.together.jobs import PARAMETERS
from provider.together.tiers import resolve_tier
from storage.ledger.database import new_id
from storage.ledger.ledger import open_ledger
from storage.ledger.rows import Deployment, FineTuneJob, UploadedDataset
from tests.provider.odd_answers import each, garble
from tests.provider.world import Emulator, Killed, World


def reconcile(world: World) -> ReconcileReport:
    return reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now())


def forget(world: World) -> None:
    """Lose the ledger, as a restored backup does, but stay the same installation."""
    old = world.ledger.installation_id
    world.ledger.close()
    for file in world.data.glob("ledger.sqlite*"):
        file.unlink()
    world.ledger = open_ledger(world.data)
    from storage.ledger.schema import installation

    with world.ledger.transaction() as connection:
        connection.execute(installation.update().values(id=old))
    world.ledger.installation_id = old


def remote_ids(world: World) -> set[str]:
    rows = (*world.ledger.find(Deployment), *world.ledger.find(FineTuneJob))
    return {row.remote_id for row in rows if row.remote_id}


def test_charges_come_to_equal_the_bill_to_the_cent(world: World) -> None:
    row = world.deploy()
    for minutes in (0.5, 7, 61, 3.3):
        world.minutes(minutes)
        guard_costs(world.data, world.provider, ledger=world.ledger, now=world.now())
    undeploy_model(world.provider, world.ledger, row.id, pace=Pace(now=world.now, wait=world.wait))
    world.await_bill()
    first = reconcile(world)
    assert first.errors == []
    assert world.ledger.spent() == world.emulator.bill(remote_ids(world)) == first.billed_usd
    again = reconcile(world)
    assert (again.adjustments, again.difference_usd) == ([], 0)


def test_a_running_deployment_is_corrected_by_its_complete_hours(world: World) -> None:
    world.deploy()
    for _ in range(5):
        world.minutes(50)
        # Nobody meters, so the ledger knows nothing of what ran meanwhile.
    guard_costs(world.data, world.provider, ledger=world.ledger, now=world.now())
    reconcile(world)
    bill = world.emulator.bill(remote_ids(world))
    assert abs(world.ledger.spent() - bill) <= Decimal("5.49") / 60


def test_objects_that_the_ledger_lost_are_stopped_and_charged(world: World) -> None:
    row = world.deploy()
    world.emulator.fault("training_slow", seconds=20)
    dataset = world.upload("dataset-2")
    submit_fine_tune(world.provider, world.ledger, dataset.id, tier="small", pace=world.pace)
    world.minutes(10)
    forget(world)
    report = reconcile(world)
    assert len(report.orphans) == 2  # the endpoint, and the job that trains
    assert world.ours() == []
    assert all(job.status in ("completed", "cancelled", "cancel_requested") for job in world.our_jobs())
    for job in world.ledger.find(FineTuneJob, state="cancelling"):
        with pytest.raises(Exception, match="cancelled"):
            follow_fine_tune(
                world.provider, world.ledger, job.id, pace=Pace(poll_seconds=0, now=world.now, wait=world.wait)
            )
    world.await_bill()
    reconcile(world)
    assert world.ledger.spent() == world.emulator.bill(remote_ids(world))
    assert {row.remote_id} <= remote_ids(world)
    assert reconcile(world).orphans == []


def test_strangers_are_never_touched(world: World, emulator: Emulator, tmp_path: Path) -> None:
    world.client.endpoints.create(name="somebody-elses")
    world.client.endpoints.create(name=f"rsn-{world.ledger.installation_id}x-abc")  # alike, but another installation
    stranger = World(emulator, tmp_path / "stranger")
    stranger.trained_object = world.trained_object
    theirs = stranger.deploy()
    before = [(e.name, e.etag) for e in world.client.endpoints.list()]
    mine = world.deploy()
    forget(world)
    report = reconcile(world)
    assert len(report.orphans) == 1
    assert report.strangers >= 4
    assert world.client.endpoints.retrieve(theirs.endpoint_id).deployments[0].state == "DEPLOYMENT_STATE_READY"
    after = [(e.name, e.etag) for e in world.client.endpoints.list() if mine.name not in e.name]
    assert sorted(after) == sorted(before)


@pytest.mark.parametrize("listed", [True, False])
def test_a_strangers_job_that_names_ours_is_not_touched(world: World, listed: bool) -> None:
    """As who trains a copy of our model would name it; a list may leave the suffix out."""
    dataset = world.upload()
    world.emulator.fault("training_slow", seconds=20)
    theirs = world.client.fine_tuning.create(
        model="Qwen/Qwen3.5-2B",
        training_file=dataset.train_file_id,
        suffix=f"as-{world.ledger.prefix}abcd2345",
        lora=True,
    )
    if not listed:
        garble(
            world,
            "GET",
            "/v1/fine-tunes",
            each(suffix=None, model_output_name=f"local/Qwen-as-{world.ledger.prefix}abcd2345-1"),
        )
    report = reconcile(world)
    assert (report.orphans, report.errors) == ([], [])
    assert world.client.fine_tuning.retrieve(theirs.id).status in ("pending", "queued", "running")
    world.client.fine_tuning.cancel(theirs.id)  # frees the emulator's trainer


def test_a_job_whose_submission_was_never_answered_is_found(world: World) -> None:
    dataset = world.upload()
    world.kill_after("POST", "/v1/fine-tunes")
    with pytest.raises(Killed):
        submit_fine_tune(world.provider, world.ledger, dataset.id, tier="small", pace=world.pace)
    world.revive()
    assert [job.state for job in world.ledger.find(FineTuneJob)] == ["intended"]
    report = reconcile(world)
    assert "never answered" in report.actions[0]
    (job,) = world.ledger.find(FineTuneJob)
    assert job.state == "submitted"
    assert follow_fine_tune(world.provider, world.ledger, job.id, pace=world.pace)
    assert len(world.our_jobs()) == 1


def test_an_intent_that_never_left_is_given_up_with_its_money(world: World) -> None:
    dataset = world.upload()
    world.emulator.fault(500, "POST /v1/fine-tunes", times=4)
    with pytest.raises(CreationInDoubt):
        submit_fine_tune(world.provider, world.ledger, dataset.id, tier="small", pace=world.pace)
    assert reconcile(world).actions == []  # it may be resumed
    world.emulator.advance(ABANDON_AFTER.total_seconds())
    assert "never reached the provider" in reconcile(world).actions[0]
    assert world.ledger.find(FineTuneJob)[0].state == "abandoned"
    assert world.ledger.budgets(world.now())[0].reserved_usd == 0


def test_a_job_that_turns_up_after_it_was_given_up_is_cancelled(world: World) -> None:
    dataset = world.upload()
    world.emulator.fault(500, "POST /v1/fine-tunes", times=4)
    with pytest.raises(CreationInDoubt):
        submit_fine_tune(world.provider, world.ledger, dataset.id, tier="small", pace=world.pace)
    (job,) = world.ledger.find(FineTuneJob)
    cancel_fine_tune(world.provider, world.ledger, job.id, now=world.now())
    world.emulator.fault("training_slow", seconds=20)
    late = world.client.fine_tuning.create(
        model=job.base_model, training_file=dataset.train_file_id, suffix=job.suffix, lora=True
    )
    report = reconcile(world)
    assert report.orphans == [f"fine-tune {job.suffix} ({late.id})"]
    assert world.client.fine_tuning.retrieve(late.id).status in ("cancelled", "cancel_requested")


def test_a_second_job_of_one_suffix_is_cancelled(world: World) -> None:
    job = world.train()
    dataset = world.ledger.get(UploadedDataset, job.upload_id)
    world.emulator.fault("training_slow", seconds=20)
    double = world.client.fine_tuning.create(
        model=job.base_model, training_file=dataset.train_file_id, suffix=job.suffix, lora=True
    )
    report = reconcile(world)
    assert report.orphans == [f"fine-tune {job.suffix} ({double.id})"]
    assert world.client.fine_tuning.retrieve(double.id).status in ("cancelled", "cancel_requested")
    assert world.ledger.get(FineTuneJob, job.id).state == "completed"


def test_a_double_deployment_is_stopped_and_charged(world: World) -> None:
    row = world.deploy()
    double = world.double(row)
    world.minutes(5)
    report = reconcile(world)
    assert report.orphans == [f"deployment {double.id} beside {row.name}"]
    reconcile(world)
    (status,) = model_status(world.data, now=world.now())
    assert (status["deployment_id"], status["deployment_state"], status["hourly_usd"]) == (
        row.id,
        "ready",
        Decimal("5.49"),
    )
    assert [d.id for d in world.client.endpoints.deployments.list(row.endpoint_id)] == [row.remote_id]
    undeploy_model(world.provider, world.ledger, row.id, pace=Pace(now=world.now, wait=world.wait))
    world.await_bill()
    reconcile(world)
    assert world.ledger.spent() == world.emulator.bill(remote_ids(world))


def test_what_was_charged_at_worst_and_never_billed_is_given_back_when_the_bill_stays_silent(world: World) -> None:
    row = world.deploy()
    world.emulator.fault("no_capacity")  # the double waits for hardware all its life, and costs nothing
    world.double(row)
    world.minutes(5)
    reconcile(world)
    (charge,) = (c for c in world.ledger.charges() if "double" in c.what)
    assert charge.amount_usd == 5 * Decimal("5.49") / 60
    undeploy_model(world.provider, world.ledger, row.id, pace=Pace(now=world.now, wait=world.wait))
    world.next_hours(4)
    reconcile(world)
    assert world.ledger.spent() - world.emulator.bill(remote_ids(world)) == charge.amount_usd  # the bill may be late
    world.next_hours(24)
    reconcile(world)
    assert world.ledger.spent() == world.emulator.bill(remote_ids(world))
    assert world.ledger.find(Deployment, reconciled_at=None) == []
    refund = world.ledger.charges()[-1]
    assert (refund.kind, refund.ts) == ("adjustment", charge.ts)  # in the day that it corrects


def test_minutes_taken_to_have_run_that_never_ran_are_given_back_when_the_bill_stays_silent(world: World) -> None:
    """Ready only at the look that stops it, and the answer to the stop is lost: charged at worst, billed nothing.

    Given back since the bill names another deployment of ours: one that names none proves nothing.
    """
    named = world.deploy()
    world.minutes(3)
    undeploy_model(world.provider, world.ledger, named.id, pace=Pace(now=world.now, wait=world.wait))
    before = world.ledger.spent()
    model_id = world.model()
    world.emulator.fault("slow_cold_start", seconds=900)
    row = deploy_model(
        world.provider, world.ledger, model_id, pace=Pace(poll_seconds=900, now=world.now, wait=world.wait)
    )
    world.emulator.fault("lost_response", "PATCH /v2/projects/*/endpoints/*/deployments/*")
    undeploy_model(world.provider, world.ledger, row.id, drain_seconds=0, pace=Pace(now=world.now, wait=world.wait))
    charged = world.ledger.spent()
    assert charged - before >= 15 * Decimal("5.49") / 60
    assert world.emulator.bill({row.remote_id}) == 0
    world.next_hours(4)
    reconcile(world)
    assert world.ledger.spent() >= charged - Decimal("5.49") / 60  # the bill may only be late
    world.next_hours(24)
    reconcile(world)
    assert world.ledger.spent() == world.emulator.bill(remote_ids(world)) == world.emulator.bill({named.remote_id})


def test_what_no_guard_looks_at_is_stopped(world: World) -> None:
    row = world.deploy()
    world.minutes(29)
    assert reconcile(world).actions == []
    world.minutes(2)
    (action,) = reconcile(world).actions
    assert action.startswith(f"{row.name} is deleted: no guard has looked at it for 3")
    assert world.ours() == []
    assert 0 <= world.ledger.spent() - world.emulator.bill(remote_ids(world)) <= Decimal("5.49") / 60


def test_what_vanished_at_the_provider_is_settled(world: World) -> None:
    row = world.deploy()
    remote = world.client.endpoints.deployments.update(
        row.remote_id, endpoint_id=row.endpoint_id, autoscaling={"min_replicas": 0, "max_replicas": 0}
    )
    world.client.endpoints.update(row.endpoint_id, traffic_split=[], update_mask="trafficSplit")
    world.client.endpoints.deployments.delete(row.remote_id, endpoint_id=row.endpoint_id, etag=remote.etag)
    world.client.endpoints.delete(row.endpoint_id)
    reconcile(world)
    reconcile(world)
    assert world.ledger.get(Deployment, row.id).state == "deleted"
    assert world.ledger.budgets(world.now())[0].reserved_usd == 0


def test_a_bill_whose_last_hour_is_late_gives_nothing_of_it_back(world: World) -> None:
    world.until_minute(50)
    row = world.deploy()
    world.minutes(40)
    undeploy_model(world.provider, world.ledger, row.id, pace=Pace(now=world.now, wait=world.wait))
    spent, first_hour = world.ledger.spent(), world.now().replace(minute=0, second=0, microsecond=0)
    world.next_hours(4)

    def without_its_last(bill: dict[str, Any]) -> dict[str, Any]:
        windows = [each for each in bill["data"] if datetime.fromisoformat(each["end_time"]) <= first_hour]
        return {**bill, "data": windows}

    garble(world, "GET", "/billing/usage", without_its_last)
    report = reconcile(world)
    world.revive()
    assert 0 < report.billed_usd <= Decimal("5.49") / 6
    assert spent - world.ledger.spent() <= Decimal("5.49") / 60  # no more than a minute begun twice
    world.await_bill()
    reconcile(world)
    assert world.ledger.spent() == world.emulator.bill(remote_ids(world))


@pytest.mark.parametrize("days", [2, 400])
def test_a_clock_that_jumps_ahead_closes_no_bill_before_the_provider_has_written_it(world: World, days: int) -> None:
    row = world.deploy()
    world.minutes(30)
    undeploy_model(world.provider, world.ledger, row.id, pace=Pace(now=world.now, wait=world.wait))
    spent = world.ledger.spent()
    ahead = world.now() + timedelta(days=days)
    report = reconcile_provider(world.data, world.provider, ledger=world.ledger, now=ahead)
    assert (report.adjustments, world.ledger.spent()) == ([], spent)
    assert world.ledger.get(Deployment, row.id).reconciled_at is None
    world.await_bill()
    reconcile(world)
    assert world.ledger.spent() == world.emulator.bill(remote_ids(world))


def test_a_late_bill_gives_no_money_back(world: World) -> None:
    row = world.deploy()
    world.minutes(10)
    undeploy_model(world.provider, world.ledger, row.id, pace=Pace(now=world.now, wait=world.wait))
    spent = world.ledger.spent()
    report = reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now() - timedelta(hours=2))
    assert report.adjustments == []
    assert world.ledger.spent() == spent


def start_unknown(world: World, deployments: int = 1) -> set[str]:
    """An endpoint of ours that the ledger does not know, with deployments under it; their ids."""
    name = f"{world.ledger.prefix}{new_id()}"
    endpoint = world.client.endpoints.create(name=name)
    return {
        world.client.endpoints.deployments.create(
            endpoint_id=endpoint.id,
            name=f"{name}-{number}",
            model=f"projects/{world.client.project_id}/models/{world.trained_object}",
            config=resolve_tier(world.client, "small").config,
            autoscaling={"min_replicas": 1, "max_replicas": 1},
        ).id
        for number in range(deployments)
    }


def settle(world: World) -> None:
    """Reconcile until the bill has had its day."""
    for _ in range(2):
        reconcile(world)
        world.minutes(1)
    world.await_bill()
    assert reconcile(world).errors == []


def test_what_an_orphan_cost_in_the_month_before_it_was_found_is_charged(world: World) -> None:
    world.until_month_ends(minutes=10)
    ids = start_unknown(world)
    world.minutes(15)
    settle(world)
    assert world.ledger.spent() == world.emulator.bill(ids) > 1


def test_an_orphaned_job_of_the_month_before_is_charged(world: World) -> None:
    dataset = world.upload()
    world.until_month_ends(minutes=10)
    job = world.client.fine_tuning.create(
        training_file=dataset.train_file_id,
        validation_file=dataset.validation_file_id,
        model="Qwen/Qwen3.5-2B",
        suffix=f"{world.ledger.prefix}{new_id()}",
        model_limits=world.client.fine_tuning.model_limits(model_name="Qwen/Qwen3.5-2B"),
        **PARAMETERS,
    )
    while world.client.fine_tuning.retrieve(job.id).status != "completed":
        world.wait(1)
    world.minutes(15)
    settle(world)
    assert world.ledger.spent() == world.emulator.bill({job.id}) == 4


def test_a_clock_two_minutes_ahead_of_the_bill_s_gives_no_minutes_of_the_month_before_back(world: World) -> None:
    model_id = world.model()
    world.until_month_ends(minutes=2)

    def now() -> datetime:
        return world.now() + timedelta(minutes=2)

    row = deploy_model(world.provider, world.ledger, model_id, pace=Pace(now=now, wait=world.wait))
    world.minutes(4)
    undeploy_model(world.provider, world.ledger, row.id, pace=Pace(now=now, wait=world.wait))
    world.await_bill()
    reconcile_provider(world.data, world.provider, ledger=world.ledger, now=now())
    assert world.ledger.spent() == world.emulator.bill({row.remote_id})


def test_a_double_that_goes_down_with_its_endpoint_is_charged(world: World) -> None:
    row = world.deploy()
    double = world.double(row)
    world.minutes(5)
    undeploy_model(world.provider, world.ledger, row.id, pace=Pace(now=world.now, wait=world.wait))
    settle(world)
    assert world.ledger.spent() == world.emulator.bill({row.remote_id, double.id})


def test_two_deployments_under_an_unknown_endpoint_are_both_charged(world: World) -> None:
    ids = start_unknown(world, deployments=2)
    world.minutes(5)
    settle(world)
    assert world.ours() == []
    assert world.ledger.spent() == world.emulator.bill(ids)


@pytest.mark.parametrize(
    ("path", "status"),
    [("/v1/fine-tunes", 403), ("/v2/projects/*/endpoints", 403), ("/v1/billing/usage", 400)],  # 403 is a state there
)
def test_a_list_that_is_refused_ends_nothing_else(world: World, path: str, status: int) -> None:
    start_unknown(world)
    world.minutes(1)
    world.emulator.fault(status, f"GET {path}", times=3)
    report = reconcile(world)
    assert str(status) in " ".join(report.errors)
    assert len(report.orphans) == ("endpoints" not in path)


def test_what_is_given_back_for_one_day_swells_no_other_days_budget(world: World) -> None:
    """The provider stopped it in the evening, nobody looked, and it ran again the next morning."""
    row = world.deploy()
    world.minutes(3)
    for replicas, hours in ((0, 24), (1, 0)):
        remote = world.observer.endpoints.deployments.retrieve(row.remote_id, endpoint_id=row.endpoint_id)
        world.observer.endpoints.deployments.update(
            row.remote_id,
            endpoint_id=row.endpoint_id,
            autoscaling={"min_replicas": replicas, "max_replicas": replicas},
            etag=remote.etag,
        )
        world.next_hours(hours)
    world.minutes(4)
    guard_costs(world.data, world.provider, ledger=world.ledger, now=world.now())  # all of it is taken to have run
    assert world.ledger.spent("day", now=world.now()) > 50
    undeploy_model(world.provider, world.ledger, row.id, pace=Pace(now=world.now, wait=world.wait))
    ended = world.now()
    world.await_bill()
    reconcile(world)
    assert world.ledger.spent() == world.emulator.bill({row.remote_id})
    for day in (ended - timedelta(days=1), ended):
        lines = [item for item in world.emulator.bill_items() if item["resource_id"] == row.remote_id]
        billed = sum(Decimal(line["amount_usd"]) for line in lines if line["start"][:10] == f"{day:%Y-%m-%d}")
        assert world.ledger.spent("day", now=day) == billed > 0
