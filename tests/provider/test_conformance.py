"""What every provider must do, as its capabilities say: `tests/provider/conformance.py` has the providers."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

import pytest

from provider.errors import (
    CreationInDoubt,
    NotOffered,
    NotServable,
    ProviderRefused,
    ProviderUnavailable,
    RemoteNotFound,
)
from provider.money.billed import Objects
from provider.port import (
    CompletionResult,
    FileState,
    Provider,
    RemoteDeployment,
    RemoteJob,
    RemoteJobState,
    RemoteState,
    Sampling,
    ServingRequest,
    TrainingRequest,
)
from provider.rows import check_rows
from tests.provider.conformance import BILLERS, SERVERS, SHARERS, SUBJECTS, TRAINERS, Subject, write_training_file
from tests.provider.world import conversation

T = TypeVar("T")
QUESTION = [conversation("Are you there?")[:2]]


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    _, opened = SUBJECTS[request.param]
    with opened(request, tmp_path) as found:
        yield found


@pytest.fixture(params=TRAINERS)
def trainer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    """A provider that trains. What does not is asked for it by `test_what_it_does_not_offer_it_refuses`."""
    _, opened = SUBJECTS[request.param]
    with opened(request, tmp_path) as found:
        yield found


@pytest.fixture
def name() -> str:
    """A name of ours for whatever is created."""
    return f"rsn-conf-{secrets.token_hex(6)}"


def until(subject: Subject, look: Callable[[], T], done: Callable[[T], bool]) -> T:
    """What `look` finds when it is `done`."""
    for _ in range(1000):
        if done(found := look()):
            return found
        subject.pass_time(2)
    raise AssertionError(f"it never came to that: {found}")


def request_training(subject: Subject, folder: Path, name: str) -> TrainingRequest:
    """A fine-tune that can be submitted: its file is uploaded and checked."""
    provider = subject.provider
    file_id = provider.upload(f"{name}.jsonl", check_rows(write_training_file(folder / f"{name}.jsonl")))
    until(subject, lambda: provider.file(file_id), lambda file: file.state == FileState.READY)
    base = provider.base_model(subject.tier)
    return TrainingRequest(
        base_model=base.name,
        train_file_id=file_id,
        validation_file_id=None,
        parameters=provider.training_parameters,
        name=name,
    )


def train(subject: Subject, folder: Path, name: str) -> RemoteJob:
    """A fine-tune that has ended."""
    job = subject.provider.train(request_training(subject, folder, name), before_create=lambda: None)
    assert job.id is not None
    job_id = job.id
    return until(subject, lambda: subject.provider.job(job_id), lambda job: job.has_ended)


# -- what is offered --------------------------------------------------------------------------------------------------


def test_what_it_does_not_offer_it_refuses(subject: Subject) -> None:
    provider, can = subject.provider, subject.provider.capabilities
    calls: list[Callable[[], object]] = []
    if not can.trains:
        request = TrainingRequest(base_model="b", train_file_id="f", validation_file_id=None, parameters={}, name="n")
        calls += [
            lambda: provider.base_model("small"),
            lambda: provider.file("f"),
            lambda: provider.training_price(request),
            lambda: provider.train(request, before_create=lambda: None),
            lambda: provider.find_job("n"),
            lambda: provider.cancel_job("j"),
        ]
        assert provider.jobs() == []
    if not can.scale_to_zero:
        calls += [lambda: provider.create_endpoint("n"), lambda: provider.scale("e", "d", 0)]
        assert provider.endpoints() == []
    if can.adapters_per_replica == 0:
        calls += [
            lambda: provider.attach("e", "d", "a", before_create=lambda: None),
            lambda: provider.attached("e", "d"),
        ]
    if not can.bills:
        now = datetime.now(UTC)
        calls += [lambda: provider.read_bill(Objects([], []), since=now, now=now, errors=[])]
    for call in calls:
        with pytest.raises(NotOffered, match=provider.name):
            call()


def test_it_is_free_or_says_what_it_charges_for(subject: Subject) -> None:
    can = subject.provider.capabilities
    assert can.free != (can.hourly or can.per_token)
    assert can.free is False or can.minimum_training_usd == 0


def test_every_price_is_an_amount_and_an_unknown_tier_is_not_servable(trainer: Subject) -> None:
    provider = trainer.provider
    base = provider.base_model(trainer.tier)
    assert base.name and base.hourly_usd >= 0
    prices = provider.hourly_prices()
    least = 0 if provider.capabilities.free else Decimal("0.0001")
    assert all(isinstance(price, Decimal) and price >= least for price in prices.values())
    if provider.capabilities.hourly:
        assert base.hourly_usd > 0 and base.hourly_usd in prices.values()
    with pytest.raises(NotServable):
        provider.base_model("no-such-tier")


def test_its_time_is_the_time_or_not_told(subject: Subject) -> None:
    told = subject.provider.time()
    assert told is None or abs(told - datetime.now(UTC)) < timedelta(days=800)  # the emulator's clock is moved by tests
    assert told is None or told.tzinfo is not None


# -- training ---------------------------------------------------------------------------------------------------------


def test_a_file_is_uploaded_once_and_counted(trainer: Subject, tmp_path: Path) -> None:
    provider, checked = trainer.provider, check_rows(write_training_file(tmp_path / "train.jsonl"))
    file_id = provider.upload("rsn-conf-train.jsonl", checked)
    assert provider.upload("rsn-conf-train.jsonl", checked) == file_id
    file = until(trainer, lambda: provider.file(file_id), lambda file: file.state == FileState.READY)
    assert file.bytes in (None, checked.bytes)
    assert file.rows in (None, checked.rows)
    with pytest.raises(RemoteNotFound):
        provider.file("file-of-nobody")


def test_a_fine_tune_is_submitted_once_and_ends_with_a_model(trainer: Subject, tmp_path: Path, name: str) -> None:
    provider, sent = trainer.provider, list[None]()
    request = request_training(trainer, tmp_path, name)
    price = provider.training_price(request)
    assert provider.find_job(name) is None
    job = provider.train(request, before_create=lambda: sent.append(None))
    again = provider.train(request, before_create=lambda: sent.append(None))
    assert (again.id, len(sent)) == (job.id, 1)  # told before the create, and only then
    assert job.id is not None
    job_id = job.id
    ended = until(trainer, lambda: provider.job(job_id), lambda job: job.has_ended)
    assert (ended.state, ended.error) == (RemoteJobState.COMPLETED, None)
    assert ended.model_object_id
    assert ended.price_usd is None or 0 <= ended.price_usd <= max(price, provider.capabilities.minimum_training_usd)
    assert [each.id for each in provider.jobs() if each.name == name] == [job.id]
    assert (found := provider.find_job(name)) is not None and found.id == job.id
    assert 0 <= provider.job_progress(job_id)[0] <= 1
    with pytest.raises(ProviderRefused):
        provider.cancel_job(job_id)
    with pytest.raises(RemoteNotFound):
        provider.job("ft-of-nobody")


def test_a_fine_tune_that_is_cancelled_ends_without_a_model(trainer: Subject, tmp_path: Path, name: str) -> None:
    provider = trainer.provider
    job = provider.train(request_training(trainer, tmp_path, name), before_create=lambda: None)
    assert job.id is not None
    job_id = job.id
    with suppress(ProviderRefused):  # it may have ended already
        provider.cancel_job(job_id)
    ended = until(trainer, lambda: provider.job(job_id), lambda job: job.has_ended)
    assert ended.state in (RemoteJobState.CANCELLED, RemoteJobState.COMPLETED)
    assert bool(ended.model_object_id) == (ended.state == RemoteJobState.COMPLETED)


def test_a_fine_tune_whose_submission_got_no_answer_is_found(trainer: Subject, tmp_path: Path, name: str) -> None:
    request = request_training(trainer, tmp_path, name)
    with trainer.lose_answers("/v1/fine-tunes"):
        try:
            trainer.provider.train(request, before_create=lambda: None)
        except (CreationInDoubt, ProviderUnavailable):
            trainer.provider.train(request, before_create=lambda: None)
    assert len([job for job in trainer.provider.jobs() if job.name == name]) == 1


# -- serving ----------------------------------------------------------------------------------------------------------


def serve(subject: Subject, job: RemoteJob, name: str, sent: list[None]) -> tuple[str, RemoteDeployment]:
    """The id of an endpoint and the deployment of a job's model under it, which is ready."""
    provider = subject.provider
    endpoint = provider.create_endpoint(name)
    assert endpoint.id is not None and job.model_object_id is not None
    endpoint_id = endpoint.id
    option = provider.serving_options(job.model_object_id, job.base_model or "")[0]
    request = ServingRequest(
        endpoint_id=endpoint_id, name=name, model_object_id=job.model_object_id, config=option.config, replicas=1
    )
    first, second = (provider.create_deployment(request, before_create=lambda: sent.append(None)) for _ in range(2))
    assert second.id == first.id is not None
    deployment_id = str(first.id)
    return endpoint_id, until(
        subject,
        lambda: provider.deployment(endpoint_id, deployment_id),
        lambda found: found.state == RemoteState.READY,
    )


def take_down(provider: Provider, endpoint_id: str, deployment: RemoteDeployment) -> None:
    provider.delete_deployment(endpoint_id, deployment)
    provider.delete_endpoint(endpoint_id)


def test_a_model_is_deployed_once_answers_and_is_gone_when_it_is_deleted(
    trainer: Subject, tmp_path: Path, name: str
) -> None:
    provider, sent = trainer.provider, list[None]()
    job = train(trainer, tmp_path, name)
    endpoint_id, ready = serve(trainer, job, name, sent)
    assert len(sent) == 1
    assert ready.id is not None and ready.replicas(9) == 1 and ready.may_run and not ready.has_ended
    deployment_id = ready.id
    assert provider.wrong_model(ready, str(job.model_object_id)) is None
    assert provider.wrong_model(ready, "ml-of-nobody")
    provider.give_traffic(endpoint_id, ready.id)
    (listed,) = [each for each in provider.endpoints() if each.name == name]
    assert listed.id == endpoint_id and listed.served_name
    (answer,) = provider.ask(listed.served_name, QUESTION, Sampling(max_tokens=50))
    assert answer.error is None and answer.text

    assert provider.scale(endpoint_id, ready.id, 0).id == ready.id
    provider.scale(endpoint_id, ready.id, 0)  # told twice is told once
    provider.withdraw_traffic(endpoint_id)
    stopped = until(trainer, lambda: provider.deployment(endpoint_id, deployment_id), lambda found: found.has_ended)
    assert stopped.replicas(9) == 0 and not stopped.may_run
    take_down(provider, endpoint_id, stopped)
    assert provider.find_endpoint(name) is None
    with pytest.raises(RemoteNotFound):
        provider.deployment(endpoint_id, ready.id)
    with pytest.raises(RemoteNotFound):
        provider.deployments(endpoint_id)


def test_a_deployment_whose_create_got_no_answer_is_not_created_twice(
    trainer: Subject, tmp_path: Path, name: str
) -> None:
    provider = trainer.provider
    job = train(trainer, tmp_path, name)
    with trainer.lose_answers("/deployments"):
        endpoint_id, ready = serve(trainer, job, name, [])
    assert len(provider.deployments(endpoint_id)) == 1
    assert ready.id is not None
    provider.scale(endpoint_id, ready.id, 0)
    deployment_id = ready.id
    stopped = until(trainer, lambda: provider.deployment(endpoint_id, deployment_id), lambda found: found.has_ended)
    take_down(provider, endpoint_id, stopped)


# -- adapters on one deployment ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer", SHARERS, indirect=True)
def test_an_adapter_is_attached_once_and_detached(trainer: Subject, tmp_path: Path, name: str) -> None:
    provider, sent = trainer.provider, list[None]()
    job = train(trainer, tmp_path, name)
    option = next(
        each for each in provider.serving_options(str(job.model_object_id), job.base_model or "") if each.base
    )
    endpoint_id = str(provider.create_endpoint(name).id)
    request = ServingRequest(
        endpoint_id=endpoint_id, name=name, model_object_id=str(option.base), config=option.config, replicas=1
    )
    deployment_id = str(provider.create_deployment(request, before_create=lambda: None).id)
    until(
        trainer,
        lambda: provider.deployment(endpoint_id, deployment_id),
        lambda found: found.state == RemoteState.READY,
    )
    provider.give_traffic(endpoint_id, deployment_id)
    assert provider.attached(endpoint_id, deployment_id) == []
    adapter_id = str(job.adapter_id)
    for _ in range(2):
        provider.attach(endpoint_id, deployment_id, adapter_id, before_create=lambda: sent.append(None))
    assert len(sent) == 1
    (adapter,) = until(
        trainer, lambda: provider.attached(endpoint_id, deployment_id), lambda found: all(a.is_ready for a in found)
    )
    assert adapter.adapter_id == adapter_id
    provider.detach(endpoint_id, deployment_id, adapter)
    assert provider.attached(endpoint_id, deployment_id) == []
    with pytest.raises(RemoteNotFound):
        provider.detach(endpoint_id, deployment_id, adapter)
    provider.scale(endpoint_id, deployment_id, 0)
    provider.withdraw_traffic(endpoint_id)
    stopped = until(trainer, lambda: provider.deployment(endpoint_id, deployment_id), lambda found: found.has_ended)
    take_down(provider, endpoint_id, stopped)


# -- questions and the bill -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", SERVERS, indirect=True)
def test_answers_come_in_the_order_of_their_questions_and_say_how_long_they_took(subject: Subject) -> None:
    assert subject.served is not None
    answers = subject.provider.ask(subject.served, QUESTION * 5, Sampling(max_tokens=50), concurrency=2)
    assert [answer.error for answer in answers] == [None] * 5
    assert all(
        isinstance(answer, CompletionResult) and answer.text and (answer.latency_ms or 0) > 0 for answer in answers
    )


def test_a_model_that_it_does_not_serve_is_an_error_and_no_answer(subject: Subject) -> None:
    began = time.monotonic()
    try:
        answers = subject.provider.ask("nobody/nothing", QUESTION, Sampling(max_tokens=5))
    except RemoteNotFound:
        return
    assert [(answer.text, bool(answer.error)) for answer in answers] == [("", True)]
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("subject", BILLERS, indirect=True)
def test_the_bill_holds_amounts_for_our_objects_alone(subject: Subject) -> None:
    now, errors = datetime.now(UTC), list[str]()
    bill = subject.provider.read_bill(Objects([], []), since=now - timedelta(days=2), now=now, errors=errors)
    assert dict(bill.of) == {}
    assert bill.since <= bill.until <= bill.as_of <= now
    assert errors == []


def test_it_may_be_given_less_patience(subject: Subject) -> None:
    hasty = subject.provider.with_timeout(5, retries=False)
    assert (hasty.name, hasty.capabilities) == (subject.provider.name, subject.provider.capabilities)
