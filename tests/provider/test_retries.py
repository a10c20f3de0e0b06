"""What the provider asks to wait is waited for, by every create; and answers that are a surprise make nothing twice."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from provider.completions import complete_many
from provider.errors import CreationInDoubt, ProviderError, ProviderRefused, ProviderUnavailable, UnexpectedAnswer
from provider.lifecycle.deployments import deploy_model
from provider.lifecycle.fine_tunes import follow_fine_tune, submit_fine_tune
from provider.lifecycle.reconcile import reconcile_provider
from provider.lifecycle.shutdown import undeploy_model
from provider.lifecycle.uploads import upload_dataset
from provider.pace import Pace
from provider.port import Sampling
from provider.retries import PATIENCE_SECONDS, _read_retry_after, pause, retry_after, retrying
from provider.together.adapter import TogetherProvider
from provider.together.client import connect
from storage.ledger.ledger import open_ledger
from storage.ledger.rows import Deployment, FineTuneJob, UploadedDataset
from tests.provider.world import World

JOB = "POST /v1/fine-tunes"
ENDPOINT = "POST /v2/projects/*/endpoints"
DEPLOYMENT = "POST /v2/projects/*/endpoints/*/deployments"


class Waits:
    """What is waited for: the emulator's clock moves on, the test's does not."""

    def __init__(self, world: World) -> None:
        self.world, self.seconds = world, []  # type: tuple[World, list[float]]

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self.world.wait(seconds)


def submit(world: World, dataset: dict[str, Any], **options: Any) -> dict[str, Any]:
    return submit_fine_tune(world.provider, world.ledger, dataset.id, tier="small", pace=Pace(now=world.now, **options))


# -- Retry-After ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
def test_four_refusals_of_25_seconds_are_waited_for(world: World, status: int) -> None:
    dataset, wait, said = world.upload(), Waits(world), []  # type: Any
    world.emulator.fault(status, JOB, times=4, retry_after=25)
    job = submit(world, dataset, wait=wait, progress=lambda event: said.append(event.message))
    assert job.state == "submitted"
    assert len(world.our_jobs()) == 1
    assert [seconds for seconds in wait.seconds if seconds == 25] == [25.0] * 4
    assert sum("the provider asks to wait 25 s" in message for message in said) == 4


@pytest.mark.parametrize("match", ["POST /v1/fine-tunes/estimate-price", "GET /v2/supported-models"])
def test_what_comes_before_a_fine_tune_waits_as_long_as_it_is_asked(world: World, match: str) -> None:
    dataset = world.upload()
    world.emulator.fault(429, match, times=5, retry_after=25, should_retry=False)
    said: list[str] = []
    job = submit_fine_tune(
        world.provider,
        world.ledger,
        dataset.id,
        tier="small",
        pace=Pace(progress=lambda event: said.append(event.message), now=world.now, wait=world.wait),
    )
    assert job.state == "submitted"
    assert sum("asks to wait 25 s" in words for words in said) == 5


@pytest.mark.parametrize("match", [ENDPOINT, DEPLOYMENT])
def test_a_deployment_waits_as_long_as_it_is_asked(world: World, match: str) -> None:
    model_id, wait = world.model(), Waits(world)
    world.emulator.fault(429, match, times=5, retry_after=20)
    row = deploy_model(world.provider, world.ledger, model_id, pace=Pace(poll_seconds=1, now=world.now, wait=wait))
    assert row.state == "ready"
    assert [seconds for seconds in wait.seconds if seconds == 20] == [20.0] * 5
    assert len(world.ours()) == 1


def test_an_upload_waits_as_long_as_it_is_asked(world: World) -> None:
    folder, wait = world.write_dataset(), Waits(world)
    world.emulator.fault(429, "POST /v1/files", times=5, retry_after=25, should_retry=False)
    assert upload_dataset(world.provider, world.ledger, folder, pace=Pace(now=world.now, wait=wait)).state == "ready"
    assert [seconds for seconds in wait.seconds if seconds == 25] == [25.0] * 5


@pytest.mark.parametrize("status", [402, 413, 422])
def test_an_upload_that_is_refused_tells_the_provider_s_words_alone(world: World, status: int) -> None:
    world.emulator.fault(status, "POST /v1/files", message="too much of it")
    with pytest.raises(ProviderRefused, match=rf"answered {status}: too much of it$"):
        world.upload()


def test_a_wait_without_end_is_given_up_with_what_to_do(world: World) -> None:
    dataset, wait = world.upload(), Waits(world)
    world.emulator.fault(429, JOB, times=100, retry_after=3600)
    with pytest.raises(ProviderUnavailable, match=r"asks to wait 3600 s: run it again then"):
        submit(world, dataset, wait=wait)
    assert wait.seconds == []
    world.emulator.clear_faults()
    world.emulator.fault(429, JOB, times=100, retry_after=50)
    with pytest.raises(ProviderUnavailable, match=r"asks to wait 50 s"):
        submit(world, dataset, wait=wait)
    assert PATIENCE_SECONDS - 50 < sum(wait.seconds) <= PATIENCE_SECONDS
    assert world.our_jobs() == []


def test_following_a_job_does_not_ask_sooner_than_told(world: World) -> None:
    job, wait = submit(world, world.upload(), wait=world.wait), Waits(world)
    world.emulator.fault(429, f"GET /v1/fine-tunes/{job.remote_id}", retry_after=40, should_retry=False)
    follow_fine_tune(world.provider, world.ledger, job.id, pace=Pace(poll_seconds=1, now=world.now, wait=wait))
    assert wait.seconds[0] == 40


def test_questions_of_an_evaluation_wait_as_long_as_they_are_asked(world: World) -> None:
    row = world.deploy()
    world.emulator.fault(429, "POST /v1/chat/completions", times=4, retry_after=1)
    (answer,) = complete_many(
        world.provider,
        row.served_name,
        [[{"role": "user", "content": "Ann: hi"}]],
        Sampling(max_tokens=20, temperature=0.0),
    )
    assert answer.error is None
    undeploy_model(world.provider, world.ledger, row.id, pace=Pace(now=world.now, wait=world.wait))


@given(seconds=st.floats(0, 1e6), unit=st.sampled_from(["s", "ms", "date"]))
def test_every_form_of_retry_after_is_read(seconds: float, unit: str) -> None:
    there = datetime(2026, 1, 1, tzinfo=UTC)  # by the provider's clock, whatever ours says
    headers = {
        "s": {"Retry-After": repr(seconds)},
        "ms": {"retry-after-ms": repr(seconds * 1000), "retry-after": "1"},
        "date": {
            "Retry-After": format_datetime(there + timedelta(seconds=int(seconds)), usegmt=True),
            "Date": format_datetime(there, usegmt=True),
        },
    }[unit]
    wanted = float(int(seconds)) if unit == "date" else seconds
    assert _read_retry_after(httpx.Headers(headers)) == pytest.approx(wanted)


@given(text=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30))
def test_a_retry_after_that_is_anything_is_a_wait_or_none(text: str) -> None:
    read = _read_retry_after(httpx.Headers({"Retry-After": text}))
    assert read is None or read >= 0


def _fail(seconds: float | None) -> Callable[[], None]:
    def fail() -> None:
        error = ProviderUnavailable("no")
        headers = {} if seconds is None else {"retry-after": str(seconds)}
        cause = RuntimeError()
        cause.response = httpx.Response(429, headers=headers)  # type: ignore[attr-defined]
        raise error from cause

    return fail


@given(asked=st.lists(st.one_of(st.none(), st.floats(0, 300)), max_size=40))
@example(asked=[289.0, 300.0, None, 0.5])
def test_it_never_asks_sooner_than_told_and_never_waits_longer_than_its_patience(asked: list[float | None]) -> None:
    waits: list[float] = []
    attempts = iter([*map(_fail, asked), lambda: None])
    done = 0
    try:
        for attempt in retrying(waits.append):
            with attempt:
                step = next(attempts)
                done += 1
                step()
    except ProviderUnavailable:
        failures = [seconds is None for seconds in asked[:done]]
        # Less than a second, or nothing: the pause is the growing one of at most 10 s.
        assert sum(failures) >= 4 or sum(waits) + max(asked[done - 1] or 0, 10) > PATIENCE_SECONDS
    assert sum(waits) <= PATIENCE_SECONDS
    assert all(waited >= (told or 0) for waited, told in zip(waits, asked, strict=False))


def test_a_poll_is_bounded_too() -> None:
    error = ProviderUnavailable("no")
    assert pause(5.0, error) == 5.0
    assert retry_after(error) is None
    try:
        _fail(1e9)()
    except ProviderUnavailable as told:
        assert pause(5.0, told) == PATIENCE_SECONDS


# -- several at once, and surprises -----------------------------------------------------------------------------------


@pytest.mark.parametrize("trial", range(3))
def test_three_fine_tunes_of_one_dataset_at_once_make_one_job(world: World, trial: int) -> None:
    folder, jobs, errors, start = world.write_dataset(rows=400), [], [], threading.Barrier(3)  # type: Any

    def fine_tune() -> None:
        with open_ledger(world.data) as ledger, connect(base_url=world.emulator.url) as client:
            start.wait(10)
            try:
                row = upload_dataset(TogetherProvider(client), ledger, folder, pace=world.pace)
                jobs.append(
                    submit_fine_tune(
                        TogetherProvider(client),
                        ledger,
                        row.id,
                        tier="small",
                        pace=world.pace,
                    ).id
                )
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=fine_tune) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(set(jobs)) == 1 and len(jobs) == 3
    assert len(world.our_jobs()) == 1
    assert [row.state for row in world.ledger.find(UploadedDataset)] == ["ready"]
    files = [file for file in world.observer.files.list().data if world.ledger.prefix in file.filename]
    assert len(files) == 2


SURPRISES: list[tuple[str, dict[str, Any]]] = [
    *((str(status), {}) for status in (201, 202, 204, 302, 307, 308)),
    ("body", {}),
    ("body", {"status": 502}),
    ("body", {"status": 403}),
    ("body", {"body": "{", "content_type": "application/json"}),
    ("body", {"body": "null", "content_type": "application/json"}),
    ("body", {"body": "[]", "content_type": "application/json"}),
    ("body", {"body": "", "content_type": "application/json"}),
    ("truncated", {}),
    ("truncated", {"bytes": 0}),
    ("cut", {}),
]
# In the suite the create of a deployment, which costs money by the hour, meets all of them, and the others these.
FEW = {"202", "302", "truncated", "cut"}
ALL_IN_TORTURE = [
    pytest.param(kind, options, marks=() if kind in FEW or options.get("status") else pytest.mark.torture)
    for kind, options in SURPRISES
]


@pytest.mark.parametrize(("kind", "options"), ALL_IN_TORTURE)
def test_a_surprising_answer_to_a_create_makes_one_job(world: World, kind: str, options: dict[str, Any]) -> None:
    dataset = world.upload()
    world.emulator.fault(kind, JOB, **options)
    try:
        job = submit(world, dataset, wait=world.wait)
    except ProviderError:
        assert world.our_jobs() == [] or options.get("status") != 403
        job = submit(world, dataset, wait=world.wait)
    assert job.state == "submitted"
    assert [remote.id for remote in world.our_jobs()] == [job.remote_id]


@pytest.mark.parametrize(("kind", "options"), ALL_IN_TORTURE)
def test_a_surprising_answer_to_the_create_of_an_endpoint_makes_one(
    world: World, kind: str, options: dict[str, Any]
) -> None:
    _check_one_deployment(world, ENDPOINT, kind, options)


@pytest.mark.parametrize(("kind", "options"), SURPRISES)
def test_a_surprising_answer_to_the_create_of_a_deployment_makes_one(
    world: World, kind: str, options: dict[str, Any]
) -> None:
    _check_one_deployment(world, DEPLOYMENT, kind, options)


def _check_one_deployment(world: World, match: str, kind: str, options: dict[str, Any]) -> None:
    model_id = world.model()
    world.emulator.fault(kind, match, **options)
    try:
        row = deploy_model(world.provider, world.ledger, model_id, pace=world.pace)
    except ProviderError:
        assert world.ours() == []
        row = world.deploy(model_id)
    (endpoint,) = world.ours()
    assert [deployment.id for deployment in endpoint.deployments] == [row.remote_id]


@pytest.mark.parametrize("kind", ["body", "truncated", "cut", "204"])
def test_a_surprising_list_proves_nobodys_absence(world: World, kind: str) -> None:
    row = world.deploy()
    job = submit(world, world.upload(), wait=world.wait)
    world.emulator.fault(kind, "GET *", times=40)
    with contextlib.suppress(ProviderUnavailable):
        reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now())
    world.emulator.clear_faults()
    assert world.ledger.get(Deployment, row.id).state == "ready"
    assert world.ledger.get(FineTuneJob, job.id).state != "abandoned"
    follow_fine_tune(world.provider, world.ledger, job.id, pace=world.pace)


def test_a_job_that_a_proxy_made_twice_is_found_cancelled_and_charged(world: World) -> None:
    dataset = world.upload()
    world.emulator.fault("twice", JOB)
    job = submit(world, dataset, wait=world.wait)
    assert len(world.our_jobs()) == 2
    report = reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now())
    assert len(report.orphans) == 1
    assert follow_fine_tune(
        world.provider, world.ledger, job.id, pace=world.pace
    ).state == "completed"  # fmt: skip
    for _ in range(2):
        world.await_bill()
        reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now())
    assert world.ledger.spent() == world.emulator.bill({remote.id for remote in world.our_jobs()})


def test_a_deployment_that_a_proxy_made_twice_is_found_stopped_and_charged(world: World) -> None:
    model_id = world.model()
    world.emulator.fault("twice", DEPLOYMENT)
    try:
        row = deploy_model(world.provider, world.ledger, model_id, pace=world.pace)
    except (ProviderError, CreationInDoubt):
        row = world.deploy(model_id)
    for _ in range(2):
        reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now())
    (endpoint,) = world.ours()
    assert [deployment.id for deployment in endpoint.deployments] == [row.remote_id]


def test_a_file_that_is_sent_twice_is_one_dataset(world: World) -> None:
    folder = world.write_dataset()
    for match in ("POST /v1/files", "PUT /blobs/*", "POST /v1/files/*/preprocess"):
        world.emulator.fault("twice", match)
    try:
        row = upload_dataset(world.provider, world.ledger, folder, pace=world.pace)
    except UnexpectedAnswer:
        row = upload_dataset(world.provider, world.ledger, folder, pace=world.pace)
    assert row.state == "ready"
