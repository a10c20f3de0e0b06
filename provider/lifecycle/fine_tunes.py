"""Fine-tune jobs: the money reserved and the intent recorded first, submitted once, followed to the end.

A job's suffix, `rsn-<installation>-<job id>`, is unique. It is how a job whose submission was never answered is found
again, so a process may be killed between any two lines here and `resume_fine_tune` goes on without a second job.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from provider.clock import Now, clock_of, provider_clock
from provider.errors import (
    FineTuneFailed,
    NotReady,
    ProviderRefused,
    ProviderUnavailable,
    RemoteNotFound,
    Throttled,
    UnexpectedAnswer,
)
from provider.lifecycle.deployment_state import SHOWS_WITHIN
from provider.money.metering import last_metered
from provider.pace import AT_EASE, Pace
from provider.port import Provider, RemoteJob, RemoteJobState, TrainingRequest
from provider.retries import ATTEMPTS, pause, retrying
from storage.errors import LedgerError
from storage.ledger.charges import ChargedTo
from storage.ledger.database import new_id
from storage.ledger.money import format_usd
from storage.ledger.reports import ACTIVE_STATES, ENDED_STATES
from storage.ledger.rows import DatasetState, FineTuneJob, JobState, Model, ModelState, UploadedDataset, required
from storage.progress import share_done

if TYPE_CHECKING:
    from storage.ledger.ledger import Ledger

DOUBT_SECONDS = 30.0
"""How long after an unanswered create another may be sent, if the first is not to be seen."""

PRICE_STANDS = timedelta(minutes=5)
"""An estimate that is older than this is asked for again before a job is submitted."""

LEAST_PRICE_USD = Decimal("0.01")
"""A completed job that is told to have cost less is charged its estimate."""

FOLLOW_TIMEOUT = timedelta(hours=24)

PENDING_LONG = timedelta(hours=24)
"""A job whose state has not changed for so long is told of: a queue of days is not what anybody waits for."""

_ENDED = {
    RemoteJobState.COMPLETED: JobState.COMPLETED,
    RemoteJobState.FAILED: JobState.FAILED,
    RemoteJobState.CANCELLED: JobState.CANCELLED,
}


def submit_fine_tune(
    provider: Provider,
    ledger: Ledger,
    upload_id: str,
    *,
    tier: str,
    parameters: Mapping[str, Any] | None = None,
    again: bool = False,
    pace: Pace = AT_EASE,
) -> FineTuneJob:
    """Submit one fine-tune of an uploaded dataset (its ledger id) on a tier's model; returns its ledger row.

    The same dataset, model and parameters are not trained twice: an earlier job that is under way or completed is
    returned (resumed where needed), unless `again`. Spends nothing unless the model can be served, the price is known
    and the budget holds: NotServable, PriceUnknown, BudgetExceeded. For the rest see `resume_fine_tune`.
    """
    clock = provider_clock(provider, pace.now, seen=last_metered(ledger))
    pace = replace(pace, now=clock)
    dataset = ledger.get(UploadedDataset, upload_id)
    if dataset.state != DatasetState.READY:
        raise LedgerError(f"upload {upload_id} of dataset {dataset.dataset} is {dataset.state}: upload it first")
    lora = (parameters or {}).get("lora") is not False
    for attempt in retrying(pace.wait, attempts=1, progress=pace.progress, what="looking for a model to train"):
        with attempt:
            base = provider.base_model(tier, lora=lora)
    sent = json.dumps({**provider.training_parameters, **(parameters or {})}, sort_keys=True)
    if not again and (known := _same_job(provider, ledger, upload_id, base.name, sent)):
        return resume_fine_tune(provider, ledger, known.id, pace=pace)
    for attempt in retrying(pace.wait, attempts=1, progress=pace.progress, what="pricing the fine-tune"):
        with attempt:
            price = estimate_job(provider, dataset, base.name, json.loads(sent))
    with ledger.transaction():
        # Once more under the lock: two processes may have come here together.
        if not again and (known := _same_job(provider, ledger, upload_id, base.name, sent)):
            job = known
        else:
            job_id = new_id()
            reservation = ledger.reserve(
                price,
                purpose=f"fine-tune {job_id} of {base.name} on {dataset.dataset}",
                decision_type=dataset.decision_type,
                ttl=None,
                now=clock(),
            )
            job = ledger.add(
                FineTuneJob,
                id=job_id,
                state=JobState.INTENDED,
                provider=provider.name,
                decision_type=dataset.decision_type,
                suffix=f"{ledger.prefix}{job_id}",
                upload_id=upload_id,
                tier=tier,
                base_model=base.name,
                parameters=sent,
                estimate_usd=price,
                reservation_id=reservation.id,
                now=clock(),
            )
    return resume_fine_tune(provider, ledger, job.id, pace=pace)


def estimate_job(
    provider: Provider, dataset: UploadedDataset, base_model: str, parameters: Mapping[str, Any]
) -> Decimal:
    """What the provider says that training costs, in US dollars. Raises PriceUnknown."""
    return provider.training_price(_request(dataset, base_model, parameters))


def _request(
    dataset: UploadedDataset, base_model: str, parameters: Mapping[str, Any], name: str = ""
) -> TrainingRequest:
    return TrainingRequest(
        base_model=base_model,
        train_file_id=required(dataset.train_file_id, f"the file of dataset {dataset.id}"),
        validation_file_id=dataset.validation_file_id,
        parameters=parameters,
        name=name,
    )


def _same_job(
    provider: Provider, ledger: Ledger, upload_id: str, base_model: str, parameters: str
) -> FineTuneJob | None:
    found = ledger.find(
        FineTuneJob,
        provider=provider.name,
        upload_id=upload_id,
        base_model=base_model,
        parameters=parameters,
        state=(*ACTIVE_STATES, JobState.COMPLETED),
    )
    return found[-1] if found else None


def resume_fine_tune(
    provider: Provider,
    ledger: Ledger,
    job_id: str,
    *,
    doubt_seconds: float = DOUBT_SECONDS,
    attempts: int = ATTEMPTS,
    pace: Pace = AT_EASE,
) -> FineTuneJob:
    """Bring an intended job to the provider, once, whatever became of earlier attempts; returns its ledger row.

    Raises CreationInDoubt, ProviderUnavailable or BudgetExceeded (other things have spent it meanwhile) when it did not
    work out yet: the intent and its money stay. Raises ProviderRefused when the provider will not have it (the money is
    released). What the provider asks to wait (`Retry-After`) is waited for, up to `retries.PATIENCE_SECONDS`, and told
    to `pace.progress`.
    """
    clock = clock_of(pace.now)
    if ledger.get(FineTuneJob, job_id).state != JobState.INTENDED:
        return ledger.get(FineTuneJob, job_id)
    for attempt in retrying(pace.wait, attempts=attempts, progress=pace.progress, what="submitting the fine-tune"):
        with attempt, ledger.exclusive("submit", wait=True):
            job = ledger.get(FineTuneJob, job_id)
            if job.state == JobState.INTENDED:
                job = adopt_job(
                    ledger, job_id, _submit(provider, ledger, job, doubt_seconds, clock, pace.wait), now=clock()
                )
    return job


def _submit(
    provider: Provider,
    ledger: Ledger,
    job: FineTuneJob,
    doubt_seconds: float,
    clock: Callable[[], datetime],
    wait: Callable[[float], None],
) -> RemoteJob:
    name = f"fine-tune {job.suffix}"
    if job.attempted_at is not None:
        # Sent before, never answered. A request may still be on its way: give it time before another is sent.
        if (found := provider.find_job(job.suffix)) is not None:
            return found
        wait(doubt_seconds)
    dataset = ledger.get(UploadedDataset, required(job.upload_id, f"the dataset of {name}"))
    parameters = json.loads(job.parameters)
    if clock() - job.created_at >= PRICE_STANDS:  # it was killed, and comes again
        price = estimate_job(provider, dataset, job.base_model, parameters)
        with ledger.transaction():
            ledger.resize(job.reservation_id, price, now=clock())
            ledger.update(FineTuneJob, job.id, estimate_usd=price, now=clock())
    ledger.recheck(job.reservation_id, now=clock())
    request = _request(dataset, job.base_model, parameters, job.suffix)
    sent: list[datetime] = []

    def before_create() -> None:
        sent.append(clock())
        ledger.update(FineTuneJob, job.id, attempted_at=sent[-1], now=sent[-1])

    try:
        return provider.train(request, before_create=before_create)
    except Throttled:  # nothing is in doubt, so the next attempt need not wait for it to show
        ledger.update(FineTuneJob, job.id, attempted_at=job.attempted_at, now=clock())
        raise
    except ProviderRefused as error:
        if not sent:  # it refused to tell something: that says nothing of an earlier attempt
            raise
        with ledger.transaction():
            ledger.transition(FineTuneJob, job.id, JobState.ABANDONED, why=str(error), error=str(error), now=clock())
            ledger.release(job.reservation_id, now=clock())
        raise


def adopt_job(ledger: Ledger, job_id: str, remote: RemoteJob, *, why: str | None = None, now: datetime) -> FineTuneJob:
    """Write down that an intended (or abandoned) job exists at the provider. Returns its ledger row."""
    if remote.id is None:
        raise UnexpectedAnswer(f"fine-tune job {job_id}: the provider has it and tells no id")
    return ledger.transition(
        FineTuneJob, job_id, JobState.SUBMITTED, why=why, remote_id=remote.id, remote_state=remote.said, now=now
    )


def sync_fine_tune(provider: Provider, ledger: Ledger, job_id: str, *, now: Now = None) -> FineTuneJob:
    """Ask once how a submitted job is, write it down, and settle its money if it has ended. Returns its ledger row."""
    job = ledger.get(FineTuneJob, job_id)
    if job.state not in (JobState.SUBMITTED, JobState.RUNNING, JobState.CANCELLING):
        return job
    clock = clock_of(now)
    try:
        remote = provider.job(required(job.remote_id, job.suffix))
        if remote.said is None:
            raise UnexpectedAnswer(f"fine-tune {job.suffix}: the provider does not say how it is")
    except RemoteNotFound as error:
        if any(remote.id == job.remote_id for remote in provider.jobs()):
            raise UnexpectedAnswer(f"{error}; but the provider lists it, so it is looked at again") from error
        if clock() - job.created_at < SHOWS_WITHIN:
            raise UnexpectedAnswer(f"{error}; it was submitted just now, so it is looked at again") from error
        return _settle(
            provider, ledger, job, JobState.FAILED, None, error="the provider no longer has this job", now=clock()
        )
    if remote.state in _ENDED:
        return _settle(provider, ledger, job, _ENDED[remote.state], remote, error=remote.error, now=clock())
    state = job.state
    if remote.state == RemoteJobState.CANCELLING:
        state = JobState.CANCELLING
    elif remote.state == RemoteJobState.RUNNING and state == JobState.SUBMITTED:
        state = JobState.RUNNING
    if (state, remote.said) == (job.state, job.remote_state):
        return job
    return ledger.transition(FineTuneJob, job_id, state, remote_state=remote.said, now=clock())


def _settle(
    provider: Provider,
    ledger: Ledger,
    job: FineTuneJob,
    state: JobState,
    remote: RemoteJob | None,
    *,
    error: str | None,
    now: datetime,
) -> FineTuneJob:
    """The job has ended: its model recorded, its true price charged, its reservation closed; all, or nothing."""
    said = remote.price_usd if remote is not None else None
    if said is not None and said < LEAST_PRICE_USD and state == JobState.COMPLETED and not provider.capabilities.free:
        said = None  # no training is for nothing: the field was not filled in, or is in another unit
    # Without a price the estimate is charged: too much can be corrected, too little is overspent.
    price = job.estimate_usd if said is None else said
    with ledger.transaction():
        job = ledger.get(FineTuneJob, job.id)
        if job.state in ENDED_STATES:
            return job
        model_id, made = None, remote.model_object_id if remote is not None else None
        if state == JobState.COMPLETED and remote is not None and made is None:
            state, error = JobState.FAILED, remote.without_model or "the job completed without a model"
        if state == JobState.COMPLETED and remote is not None:
            model_id = ledger.add(
                Model,
                state=ModelState.TRAINED,
                provider=provider.name,
                decision_type=job.decision_type,
                tier=job.tier,
                base_model=job.base_model,
                upload_id=job.upload_id,
                job_id=job.id,
                model_object_id=made,
                output_name=remote.output_name,
                adapter_object_id=remote.adapter_id,
                adapter_name=remote.adapter_name,
                now=now,
            ).id
        ledger.settle(
            job.reservation_id,
            price,
            kind="training",
            key=f"training:{job.id}",
            what=f"fine-tune {job.suffix} of {job.base_model} ({state})",
            of=ChargedTo(decision_type=job.decision_type, model_id=model_id, job_id=job.id),
            quantity=remote.tokens if remote is not None else None,
            now=now,
        )
        return ledger.transition(
            FineTuneJob,
            job.id,
            state,
            why=error,
            error=error,
            remote_state=remote.said if remote is not None else "gone",
            price_usd=price,
            model_id=model_id,
            now=now,
        )


def follow_fine_tune(
    provider: Provider,
    ledger: Ledger,
    job_id: str,
    *,
    pace: Pace = AT_EASE,
) -> FineTuneJob:
    """Wait until a job has ended; returns its ledger row in state `completed`, with `model_id`.

    May be stopped and called again at any time. Passing trouble with the provider is waited out. Raises FineTuneFailed
    when it ended otherwise (what it cost is charged), NotReady after `pace.timeout` (`FOLLOW_TIMEOUT`).
    """
    deadline = time.monotonic() + pace.longest(FOLLOW_TIMEOUT).total_seconds()
    clock = provider_clock(provider, pace.now, seen=last_metered(ledger))  # what it costs counts in the provider's day
    progress = pace.progress
    job = resume_fine_tune(provider, ledger, job_id, pace=replace(pace, now=clock))
    while True:
        seconds = pace.poll_seconds
        try:
            job = sync_fine_tune(provider, ledger, job_id, now=clock)
            if progress and job.state in ACTIVE_STATES:
                with contextlib.suppress(ProviderRefused):  # the job is well, whatever it tells of itself
                    fraction, said = provider.job_progress(required(job.remote_id, job.suffix))
                    progress(share_done(fraction, said or str(job.remote_state)))
        except ProviderUnavailable as error:
            if time.monotonic() >= deadline:
                raise
            seconds = pause(pace.poll_seconds, error)
        if job.state == JobState.COMPLETED:
            if progress:
                progress(share_done(1.0, f"completed for {format_usd(job.price_usd or Decimal(0))}"))
            return job
        if job.state not in ACTIVE_STATES:
            price = job.price_usd or Decimal(0)
            raise FineTuneFailed(
                f"fine-tune {job.suffix} ended: {job.error or job.state} (it cost {format_usd(price)})"
            )
        if time.monotonic() >= deadline:
            raise NotReady(f"fine-tune {job.suffix} is still {job.remote_state}; it may be followed again")
        pace.wait(seconds)


def cancel_fine_tune(
    provider: Provider, ledger: Ledger, job_id: str, *, why: str = "cancelled by the user", now: Now = None
) -> FineTuneJob:
    """Cancel a job that has not ended; returns its ledger row. What it cost until then is charged when it has ended."""
    clock = provider_clock(provider, now, seen=last_metered(ledger))
    with ledger.exclusive("submit", wait=True):
        job = ledger.get(FineTuneJob, job_id)
        if job.state == JobState.INTENDED:
            remote = provider.find_job(job.suffix)
            if remote is None:
                return abandon_fine_tune(ledger, job_id, why=why, now=clock())
            job = adopt_job(ledger, job_id, remote, now=clock())
    if job.state in (JobState.SUBMITTED, JobState.RUNNING):
        try:
            provider.cancel_job(required(job.remote_id, job.suffix))
            ledger.transition(FineTuneJob, job_id, JobState.CANCELLING, why=why, now=clock())
        except ProviderRefused:
            pass  # it has ended meanwhile: the state below tells
    return sync_fine_tune(provider, ledger, job_id, now=clock)


def waiting_jobs(ledger: Ledger, *, now: datetime) -> list[str]:
    """Jobs of which nothing was heard for longer than `PENDING_LONG`, with what they hold and how to end them."""
    found = []
    for job in ledger.find(FineTuneJob, state=ACTIVE_STATES):
        waited = now - job.updated_at
        if waited < PENDING_LONG:
            continue
        days = waited.total_seconds() / 86_400
        found.append(
            f"fine-tune {job.suffix} has been {job.remote_state or job.state} for {days:.1f} days and holds "
            f"{format_usd(job.estimate_usd)} of the budget: look at the provider's status page, or give "
            f"it up with `reasoning models cancel {job.id}`"
        )
    return found


def abandon_fine_tune(ledger: Ledger, job_id: str, *, why: str, now: datetime) -> FineTuneJob:
    """Give up a job that does not exist at the provider, and its reservation."""
    with ledger.transaction():
        job = ledger.transition(FineTuneJob, job_id, JobState.ABANDONED, why=why, error=why, now=now)
        ledger.release(job.reservation_id, now=now)
        return job
