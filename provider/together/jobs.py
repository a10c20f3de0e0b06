"""Fine-tunes at Together: submitted once, read with care, cancelled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from provider.clock import moment
from provider.errors import ProviderError, UnexpectedAnswer
from provider.port import BeforeCreate, RemoteJob, RemoteJobState, TrainingRequest
from provider.together.answers import count, created_at, job_price, listed, text
from provider.together.client import create_once, translate_sdk_errors
from provider.together.prices import estimate_fine_tune, lora_rank

if TYPE_CHECKING:
    from together import Together

PARAMETERS: dict[str, Any] = {
    "n_epochs": 3,
    "n_evals": 1,
    "n_checkpoints": 1,
    "learning_rate": 1e-4,
    "lora": True,
    "train_on_inputs": "auto",
}
"""What is sent unless told otherwise: names and units of the SDK's `fine_tuning.create`."""

_STATES = {
    "running": RemoteJobState.RUNNING,
    "compressing": RemoteJobState.RUNNING,
    "uploading": RemoteJobState.RUNNING,
    "cancel_requested": RemoteJobState.CANCELLING,
    "completed": RemoteJobState.COMPLETED,
    "error": RemoteJobState.FAILED,
    "user_error": RemoteJobState.FAILED,
    "cancelled": RemoteJobState.CANCELLED,
}


def training_price(client: Together, request: TrainingRequest) -> Decimal:
    """What Together says that training costs, in US dollars. Raises PriceUnknown."""
    return estimate_fine_tune(
        client,
        base_model=request.base_model,
        train_file_id=request.train_file_id,
        validation_file_id=request.validation_file_id,
        n_epochs=request.parameters["n_epochs"],
        n_evals=request.parameters["n_evals"],
        training_type=_training_type(client, request.base_model, request.parameters),
    )


def _training_type(client: Together, base_model: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    if parameters.get("lora") is False:
        return {"type": "Full"}
    with translate_sdk_errors(f"limits of {base_model}"):
        rank = lora_rank(parameters, client.fine_tuning.model_limits(model_name=base_model))
    return {"type": "Lora", "lora_r": rank, "lora_alpha": int(parameters.get("lora_alpha") or 2 * rank)}


def submit_job(client: Together, request: TrainingRequest, before_create: BeforeCreate) -> RemoteJob:
    """Submit a fine-tune, once for its suffix. Raises what `create_once` does."""
    name = f"fine-tune {request.name}"
    with translate_sdk_errors(f"limits of {request.base_model}"):
        limits = client.fine_tuning.model_limits(model_name=request.base_model)
    parameters = dict(request.parameters)
    if not request.validation_file_id:
        parameters["n_evals"] = 0
    once = client.with_options(max_retries=0)

    def create() -> RemoteJob:
        before_create()
        created = once.fine_tuning.create(
            training_file=request.train_file_id,
            validation_file=request.validation_file_id or "",
            model=request.base_model,
            suffix=request.name,
            model_limits=limits,
            **parameters,
        )
        if text(getattr(created, "id", None)) is None:  # such as 204: it may have been created, and is looked for
            raise UnexpectedAnswer(f"creating {name}: the provider's answer tells no id")
        return read_job(created)

    return create_once(name, lambda: find_job(client, request.name), create, path="/v1/fine-tunes")


def list_jobs(client: Together) -> list[RemoteJob]:
    """All fine-tunes of the account."""
    with translate_sdk_errors("all fine-tunes"):
        return [read_job(job) for job in listed(client.fine_tuning.list())]


def find_job(client: Together, suffix: str) -> RemoteJob | None:
    """The job of that suffix, the oldest if there should be several, else None."""
    with translate_sdk_errors(f"looking for fine-tune {suffix}"):
        jobs = [job for job in listed(client.fine_tuning.list()) if _has_suffix(job, suffix)]
        return read_job(min(jobs, key=created_at)) if jobs else None


def _has_suffix(job: Any, suffix: str) -> bool:
    """Was this job submitted with that suffix? (Lists may leave the field out; the output's name carries it.)"""
    return bool(job.suffix == suffix if job.suffix else suffix in (job.x_model_output_name or ""))


def retrieve_job(client: Together, job_id: str) -> RemoteJob:
    """How a job is, with the reason where it failed."""
    with translate_sdk_errors(f"fine-tune {job_id}"):
        job = client.fine_tuning.retrieve(job_id)
        return read_job(job, error=_failure(client, job))


def read_job(job: Any, *, error: str | None = None) -> RemoteJob:
    """A job as the provider tells it. What cannot be read of it is None."""
    said, suffix = text(getattr(job, "status", None)), getattr(job, "suffix", None)
    output = getattr(job, "x_model_output_name", None)
    state = RemoteJobState.UNKNOWN if said is None else _STATES.get(said, RemoteJobState.WAITING)
    return RemoteJob(
        id=text(getattr(job, "id", None)),
        state=state,
        said=said,
        name=text(suffix),
        output_name=text(output),
        is_named=_is_named(job),
        base_model=text(getattr(job, "model", None)),
        created_at=moment(getattr(job, "created_at", None)),
        price_usd=job_price(job),
        tokens=count(getattr(job, "token_count", None)),
        model_object_id=text(getattr(job, "api_model_object_id", None)),
        without_model=_without_a_model(job) if said == "completed" else None,
        adapter_id=text(getattr(job, "adapter_object_id", None)),
        adapter_name=text(getattr(job, "adapter_object_name", None)),
        error=error,
    )


def _is_named(job: Any) -> bool:
    """Can its suffix be read, or else the name of its output? That both are empty is an answer."""
    missing = object()
    suffix, output = getattr(job, "suffix", missing), getattr(job, "x_model_output_name", missing)
    if suffix is not missing and suffix:
        return isinstance(suffix, str)
    return suffix is not missing and (not output or isinstance(output, str))


def _without_a_model(job: Any) -> str:
    adapter = text(getattr(job, "adapter_object_id", None))
    made = f"only the adapter {adapter}, which is not deployed here" if adapter else "none"
    return f"the job completed without a merged model to deploy: the provider names {made}"


def _failure(client: Together, job: Any) -> str | None:
    """Why a job failed, or None. Its money is settled, whatever it says about itself: so this raises nothing."""
    state = _STATES.get(text(getattr(job, "status", None)) or "")
    if state not in (RemoteJobState.FAILED, RemoteJobState.CANCELLED):
        return None
    try:
        with translate_sdk_errors(f"events of fine-tune {job.id}"):
            reason = _last_error(listed(client.fine_tuning.list_events(job.id)))
            if reason is None and state == RemoteJobState.FAILED:
                reason = "the provider gives no reason"
            return f"{job.status}: {reason}" if reason else str(job.status)
    except ProviderError:
        return str(job.status)


def job_progress(client: Together, job_id: str) -> tuple[float, str | None]:
    """How far a job is (0 to 1), and its newest error, else its newest message."""
    with translate_sdk_errors(f"events of fine-tune {job_id}"):
        events = listed(client.fine_tuning.list_events(job_id))
        steps = [(event.step, event.total_steps) for event in events if event.step and event.total_steps]
        fraction = max((step / total for step, total in steps), default=0.0)
        # The last twentieth is compressing and uploading the model.
        return min(0.95 * fraction, 0.95), _last_error(events) or _last_message(events)


def _last_error(events: list[Any]) -> str | None:
    """The message of a job's newest error event. Other events are progress, never the reason of a failure."""
    return _last_message(
        event for event in events if "error" in f"{getattr(event, 'type', '')} {getattr(event, 'level', '')}"
    )


def _last_message(events: Iterable[Any]) -> str | None:
    """The newest message of these events, which may be in any order."""
    newest = sorted(events, key=lambda event: str(getattr(event, "created_at", "")))
    words = [said for event in newest if (said := text(getattr(event, "message", None)))]
    return words[-1] if words else None


def cancel_job(client: Together, job_id: str) -> None:
    """Cancel a job. Raises ProviderRefused where it has ended."""
    with translate_sdk_errors(f"cancelling fine-tune {job_id}"):
        client.fine_tuning.cancel(job_id)
