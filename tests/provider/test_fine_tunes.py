"""Uploads and fine-tunes: nothing twice, whatever is lost on the way."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal

import pytest

from provider.errors import (
    CreationInDoubt,
    FineTuneFailed,
    InvalidDataset,
    NotServable,
    ProviderRefused,
    ProviderUnavailable,
)
from provider.lifecycle.fine_tunes import cancel_fine_tune, follow_fine_tune, resume_fine_tune, submit_fine_tune
from provider.lifecycle.status import model_status
from provider.lifecycle.uploads import upload_dataset
from provider.pace import Pace
from provider.together.adapter import TogetherProvider
from storage.errors import BudgetExceeded
from storage.ledger.rows import FineTuneJob, Model, UploadedDataset
from tests.provider.odd_answers import garble
from tests.provider.world import Killed, World

CREATE = "POST /v1/fine-tunes"


def submit(world: World, dataset_id: str, **options):
    return submit_fine_tune(world.provider, world.ledger, dataset_id, tier="small", pace=world.pace, **options)


def follow(world: World, job_id: str, **options):
    return follow_fine_tune(world.provider, world.ledger, job_id, pace=replace(world.pace, **options))


def test_a_job_is_trained_charged_and_becomes_a_model(world: World) -> None:
    seen: list[tuple[float, str]] = []
    dataset = world.upload()
    job = submit(world, dataset.id)
    assert world.ledger.budgets(world.now())[0].reserved_usd == 4
    job = follow(world, job.id, progress=lambda event: seen.append((event.fraction, event.message)))
    model = world.ledger.get(Model, job.model_id)
    assert model.state == "trained"
    assert model.model_object_id.startswith("ml_")
    assert model.upload_id == dataset.id
    assert world.ledger.spent() == 4 == world.emulator.bill({job.remote_id})
    assert world.ledger.budgets(world.now())[0].reserved_usd == 0
    assert seen[-1] == (1.0, "completed for $4.00")


def test_people_see_the_datasets_own_id_and_the_column_keeps_its_name(world: World) -> None:
    job = world.train()
    upload = world.ledger.get(UploadedDataset, job.upload_id)
    (shown,) = model_status(world.data, now=world.now())
    assert (shown["dataset_id"], shown["upload_id"]) == (upload.dataset, upload.id)
    assert upload.dataset != upload.id
    with world.ledger.read() as connection:  # what older versions wrote, and read
        column = "SELECT dataset_id FROM fine_tune_jobs UNION ALL SELECT dataset_id FROM models"
        assert connection.exec_driver_sql(column).fetchall() == [(upload.id,), (upload.id,)]


def test_the_same_training_is_not_paid_twice(world: World) -> None:
    job = world.train()
    assert submit(world, job.upload_id).id == job.id
    assert submit(world, job.upload_id, again=True).id != job.id
    assert len(world.our_jobs()) == 2


def test_a_lost_answer_makes_one_job(world: World) -> None:
    dataset = world.upload()
    world.emulator.fault("lost_response", CREATE)
    job = submit(world, dataset.id)
    assert [remote.id for remote in world.our_jobs()] == [job.remote_id]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_refusal_is_tried_again(world: World, status: int) -> None:
    dataset = world.upload()
    world.emulator.fault(status, CREATE, times=2)
    submit(world, dataset.id)
    assert len(world.our_jobs()) == 1


def test_killed_at_the_submission_it_goes_on_with_the_same_job(world: World) -> None:
    dataset = world.upload()
    world.kill_after("POST", "/v1/fine-tunes")
    with pytest.raises(Killed):
        submit(world, dataset.id)
    world.revive()
    job = submit(world, dataset.id)
    assert job.state == "submitted"
    assert len(world.our_jobs()) == len(world.ledger.find(FineTuneJob)) == 1


def test_in_doubt_the_intent_and_its_money_stay_until_it_is_resumed(world: World) -> None:
    dataset = world.upload()
    world.emulator.fault(500, CREATE, times=4)
    with pytest.raises(CreationInDoubt, match="looked for again"):
        submit(world, dataset.id)
    (job,) = world.ledger.find(FineTuneJob)
    assert job.state == "intended"
    assert world.ledger.budgets(world.now())[0].reserved_usd == 4
    resumed = resume_fine_tune(world.provider, world.ledger, job.id, pace=world.pace)
    assert resumed.state == "submitted"
    assert len(world.our_jobs()) == 1


def test_a_final_refusal_gives_the_money_back(world: World) -> None:
    dataset = world.upload()
    world.emulator.fault(402, CREATE)
    with pytest.raises(ProviderRefused, match="402"):
        submit(world, dataset.id)
    assert world.ledger.find(FineTuneJob)[0].state == "abandoned"
    assert world.ledger.budgets(world.now())[0].reserved_usd == 0
    assert world.our_jobs() == []


def test_a_failed_job_is_told_with_its_reason(world: World) -> None:
    dataset = world.upload()
    world.emulator.fault("training_error")
    job = submit(world, dataset.id)
    with pytest.raises(FineTuneFailed, match="ended: error"):
        follow(world, job.id)
    assert world.ledger.spent() == world.emulator.bill({job.remote_id})
    assert world.ledger.budgets(world.now())[0].reserved_usd == 0


def test_progress_is_not_the_reason_of_a_failed_job(world: World) -> None:
    world.emulator.fault("training_error")
    job = submit(world, world.upload().id)
    event = {"object": "fine-tune-event", "created_at": "2026-01-01T00:00:00Z", "level": "info", "message": "Packing"}
    garble(world, "GET", "/events", lambda answer: {"data": [{**event, "type": "JOB_START"}]})
    with pytest.raises(FineTuneFailed, match="error: the provider gives no reason"):
        follow(world, job.id)
    assert "Packing" not in str(world.ledger.get(FineTuneJob, job.id).error)
    world.revive()


def test_a_cancelled_job_costs_what_the_provider_says(world: World) -> None:
    dataset = world.upload()
    world.emulator.fault("training_slow", seconds=30)
    job = submit(world, dataset.id)
    job = cancel_fine_tune(world.provider, world.ledger, job.id, now=world.now())
    with pytest.raises(FineTuneFailed, match="cancelled"):
        follow(world, job.id)
    assert world.ledger.spent() == world.emulator.bill({job.remote_id})
    assert world.ledger.budgets(world.now())[0].reserved_usd == 0


def test_no_budget_no_job(world: World) -> None:
    dataset = world.upload()
    world.ledger.set_budget("day", "3.99")
    with pytest.raises(BudgetExceeded, match=r"needs \$4\.00, but of the day budget of \$3\.99"):
        submit(world, dataset.id)
    assert world.ledger.find(FineTuneJob) == []
    assert world.our_jobs() == []


def test_what_cannot_be_served_is_not_trained(world: World) -> None:
    dataset = world.upload()
    with pytest.raises(NotServable, match=r"Qwen/Qwen3\.5-4B cannot be served on a dedicated deployment"):
        submit_fine_tune(world.provider, world.ledger, dataset.id, tier="Qwen/Qwen3.5-4B", pace=Pace(now=world.now))
    with pytest.raises(NotServable, match="no tier 'tiny'"):
        submit_fine_tune(world.provider, world.ledger, dataset.id, tier="tiny", pace=Pace(now=world.now))
    assert world.our_jobs() == []


@pytest.mark.parametrize("kind", ["lost_response", "503", "409"])
def test_an_upload_survives_trouble_and_is_not_repeated(world: World, kind: str) -> None:
    for match in ("POST /v1/files", "PUT /blobs/*", "POST /v1/files/*/preprocess"):
        world.emulator.fault(kind, match)
    dataset = world.upload()
    assert dataset.state == "ready"
    folder = world.data / "datasets" / "should_respond" / "dataset-1"
    again = upload_dataset(world.provider, world.ledger, folder, pace=world.pace)
    assert again.train_file_id == dataset.train_file_id
    name = world.client.files.retrieve(dataset.train_file_id).filename
    assert name == f"{world.ledger.prefix}{dataset.id}-train.jsonl"


def test_a_dataset_that_changed_is_not_the_one_that_was_uploaded(world: World) -> None:
    world.upload()
    folder = world.data / "datasets" / "should_respond" / "dataset-1"
    with (folder / "train.jsonl").open("a") as file:
        file.write(
            json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}) + "\n"
        )
    with pytest.raises(InvalidDataset, match="a file has changed"):
        upload_dataset(world.provider, world.ledger, folder, pace=Pace(now=world.now))


def test_a_provider_that_is_down_is_said_to_be(world: World) -> None:
    dataset = world.upload()
    down = TogetherProvider(world.client.with_options(base_url="http://127.0.0.1:9", max_retries=0))
    with pytest.raises(ProviderUnavailable, match="no answer from the provider"):
        submit_fine_tune(down, world.ledger, dataset.id, tier="small", pace=Pace(now=world.now))
    assert world.ledger.spent() == Decimal(0)


@pytest.mark.parametrize("status", [404, 503])
def test_a_job_ends_though_its_events_cannot_be_listed(world: World, status: int) -> None:
    world.emulator.fault("training_error", message="boom")
    job = submit(world, world.upload().id)
    world.emulator.fault(status, "GET /v1/fine-tunes/*/events*", times=500)
    with pytest.raises(FineTuneFailed):
        follow(world, job.id, progress=lambda *_: None)
    assert world.ledger.get(FineTuneJob, job.id).state == "failed"
    assert world.ledger.reservation(job.reservation_id).state == "settled"
    world.emulator.clear_faults()
    world.emulator.fault(status, "GET /v1/fine-tunes/*/events*", times=500)
    job = submit(world, world.upload("dataset-2").id)
    assert follow(world, job.id, progress=lambda *_: None).state == "completed"
