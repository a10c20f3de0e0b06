"""A provider that takes requests and never answers: every call ends by its timeout, and is made good later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from provider.errors import CreationInDoubt, DeploymentFailed, NotReady, ProviderUnavailable
from provider.lifecycle.deployments import deploy_model
from provider.lifecycle.fine_tunes import cancel_fine_tune, follow_fine_tune, submit_fine_tune
from provider.lifecycle.guard import guard_costs
from provider.lifecycle.reconcile import reconcile_provider
from provider.lifecycle.shutdown import undeploy_model
from provider.lifecycle.status import model_status
from provider.lifecycle.uploads import upload_dataset
from provider.pace import Pace
from provider.together.client import connect
from storage.ledger.rows import Deployment, FineTuneJob, UploadedDataset
from tests.provider.world import Killed, World

ENDPOINT = "POST /v2/projects/*/endpoints"
DEPLOYMENT = "POST /v2/projects/*/endpoints/*/deployments"
UNANSWERED = (ProviderUnavailable, CreationInDoubt, DeploymentFailed, NotReady)


@contextmanager
def hanging(world: World, match: str) -> Iterator[World]:
    """`match` hangs; the installation's client is an impatient one, without the SDK's retries."""
    patient = world.client
    world.client = connect(base_url=world.emulator.url, timeout=0.3).with_options(max_retries=0)
    world.emulator.fault("hang", match, times=1000)
    try:
        yield world
    finally:
        world.emulator.clear_faults()
        world.client.close()
        world.client = patient


def submit(world: World, dataset_id: str) -> str:
    return submit_fine_tune(world.provider, world.ledger, dataset_id, tier="small", pace=world.pace).id


def undeploy(world: World, deployment_id: str, **options: Any) -> dict[str, Any]:
    return undeploy_model(
        world.provider,
        world.ledger,
        deployment_id,
        drain_seconds=0,
        pace=Pace(now=world.now, wait=world.wait, **options),
    )


def reconcile(world: World) -> None:
    reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now())


def follow(world: World, job_id: str) -> None:
    follow_fine_tune(world.provider, world.ledger, job_id, pace=world.pace)


@pytest.mark.parametrize("match", ["POST /v1/files", "PUT *", "POST /v1/files/*/preprocess", "GET /v1/files/*"])
def test_an_upload_ends_and_is_taken_up_again(world: World, match: str) -> None:
    folder = world.write_dataset()

    def upload() -> str:
        return upload_dataset(world.provider, world.ledger, folder, pace=world.pace).state

    with hanging(world, match), pytest.raises(UNANSWERED):
        upload()
    assert world.ledger.find(UploadedDataset)[0].state != "ready"
    assert upload() == "ready"


@pytest.mark.parametrize("match", ["GET *", "POST /v1/fine-tunes/estimate-price", "POST /v1/fine-tunes"])
def test_a_fine_tune_ends_and_is_taken_up_again(world: World, match: str) -> None:
    dataset = world.upload()
    with hanging(world, match), pytest.raises(UNANSWERED):
        submit(world, dataset.id)
    job_id = submit(world, dataset.id)
    with hanging(world, "POST /v1/fine-tunes/*/cancel"), pytest.raises(UNANSWERED):
        cancel_fine_tune(world.provider, world.ledger, job_id, now=world.now())
    follow(world, job_id)
    assert len(world.our_jobs()) == len(world.ledger.find(FineTuneJob)) == 1


@pytest.mark.parametrize("match", [ENDPOINT, DEPLOYMENT, "PATCH *"])
def test_a_deployment_ends_in_doubt_and_is_taken_down(world: World, match: str) -> None:
    model_id = world.model()
    with hanging(world, match), pytest.raises(UNANSWERED):
        deploy_model(
            world.provider, world.ledger, model_id, pace=Pace(timeout=timedelta(0), now=world.now, wait=world.wait)
        )
    reconcile(world)
    assert world.ours() == []
    assert world.ledger.budgets(world.now())[0].reserved_usd == 0


def test_an_undeployment_ends_and_is_taken_up_again(world: World) -> None:
    row = world.deploy()
    for match in ("GET *", "PATCH *", "DELETE *"):
        with hanging(world, match), pytest.raises(UNANSWERED):
            undeploy(world, row.id, timeout=timedelta(0))
    assert undeploy(world, row.id).state == "deleted"
    assert world.ours() == []


def test_guards_and_reconciliations_end_and_say_so(world: World) -> None:
    row = world.deploy()
    with hanging(world, "GET *"):
        report = guard_costs(world.data, world.provider, ledger=world.ledger, now=world.now())
        assert "no answer from the provider" in report.errors[0]
        with pytest.raises(ProviderUnavailable):
            reconcile(world)
    assert model_status(world.data, now=world.now())[0]["deployment_state"] == "ready"
    world.minutes(12)
    (status,) = model_status(world.data, now=world.now())
    assert (status["deployment_state"], status["enabled"]) == ("unknown", False)
    guard_costs(world.data, world.provider, ledger=world.ledger, now=world.now())
    assert model_status(world.data, now=world.now())[0]["deployment_state"] == "ready"
    assert world.ledger.get(Deployment, row.id).state == "ready"


def test_what_was_created_and_never_answered_is_unknown_until_it_is_found(world: World) -> None:
    model_id = world.model()
    world.kill_after("POST", "/deployments")
    with pytest.raises(Killed):
        world.deploy(model_id)
    world.revive()
    (status,) = model_status(world.data, now=world.now())
    assert (status["deployment_state"], status["hourly_usd"]) == ("unknown", Decimal("5.49"))
    assert "`reasoning reconcile` finds out" in status["reason"]
    reconcile(world)
    assert model_status(world.data, now=world.now())[0]["deployment_state"] == "provisioning"
