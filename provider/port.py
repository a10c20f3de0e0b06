"""What a provider does for us: the verbs that all above speak, their plain data, and capabilities as data.

An adapter (`provider/together`, ...) is a class that inherits from `Provider` and knows one provider's wire, names of
states, versions and idempotency. Nothing above it does: `provider.lifecycle` and `provider.money` hold ledger and
provider together in these terms alone, and `provider.providers` opens an adapter by its name.

All verbs are synchronous, return the dataclasses below and raise `provider.errors`. What an adapter cannot read it
tells as None, never as zero or as absence: who spends money takes None for the worst. A create is done at most once
for its name, whatever became of the answer. A part that the capabilities leave out need not be implemented: its verbs
raise `NotOffered`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from types import TracebackType
from typing import Any, Protocol, Self

from provider.capabilities import Capabilities
from provider.errors import NotOffered
from provider.money.billed import Bill, Objects
from provider.rows import CheckedFile
from reasoning.decision_types import AnswerFormat, DecisionType
from storage.progress import OnProgress

# -- what a provider offers -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model that can be trained and served, with the fittest way of serving what is trained.

    `adapters` is how many trained adapters one replica of it serves at once: 0 where it serves none, None where it
    serves some and only the refusal of one too many tells how many.
    """

    id: str
    name: str
    config: str
    hardware: str
    hourly_usd: Decimal
    adapters: int | None = 0


@dataclass(frozen=True, slots=True)
class ServingOption:
    """A way of serving a model: the provider's name for it, the hardware, and the price of one replica.

    `adapters` is how many trained adapters of the model's base a deployment of `base` carries in this way: 0 where it
    carries none, None where only the refusal of one too many tells.
    """

    config: str
    hardware: str
    hourly_usd: Decimal
    base: str | None = None
    adapters: int | None = 0


# -- training ---------------------------------------------------------------------------------------------------------


class FileState(StrEnum):
    """How far the provider's check of an uploaded file is."""

    CHECKING = "checking"
    READY = "ready"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """An uploaded file. `bytes` and `rows` are None where the provider does not count them; `said` is its own word."""

    id: str
    state: FileState
    said: str | None = None
    bytes: int | None = None
    rows: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRequest:
    """A fine-tune to price or to submit. `name` is unique: a job whose submission got no answer is found by it."""

    base_model: str
    train_file_id: str
    validation_file_id: str | None
    parameters: Mapping[str, Any]
    name: str = ""


class RemoteJobState(StrEnum):
    """How a fine-tune is at the provider. UNKNOWN: it does not say."""

    WAITING = "waiting"
    RUNNING = "running"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


ENDED_JOBS = (RemoteJobState.COMPLETED, RemoteJobState.FAILED, RemoteJobState.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteJob:
    """A fine-tune at the provider.

    `name` is the one that it was submitted under, None where a list leaves it out; then `output_name`, what its model
    is called, may hold it. Where `is_named` is false neither can be read: it may be anybody's. `price_usd` is None
    where the provider does not tell. `said` is the provider's own word for the state, `error` why it failed,
    `model_object_id` the trained model; without one, `without_model` says what there is instead. `adapter_id` is
    what can be attached to a deployment of its base, where it answers under `adapter_name`.
    """

    id: str | None
    state: RemoteJobState
    said: str | None = None
    name: str | None = None
    output_name: str | None = None
    is_named: bool = True
    base_model: str | None = None
    created_at: datetime | None = None
    price_usd: Decimal | None = None
    tokens: int | None = None
    model_object_id: str | None = None
    without_model: str | None = None
    adapter_id: str | None = None
    adapter_name: str | None = None
    error: str | None = None

    @property
    def has_ended(self) -> bool:
        """Is it over, in whichever way?"""
        return self.state in ENDED_JOBS


# -- serving ----------------------------------------------------------------------------------------------------------


class RemoteState(StrEnum):
    """How a deployment is at the provider. A word that an adapter does not know is STARTING."""

    STARTING = "starting"
    SCALING = "scaling"
    READY = "ready"
    DEGRADED = "degraded"
    FAILED = "failed"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteDeployment:
    """What runs under an endpoint.

    `running` are the replicas that may be billed now, None where that cannot be read. `max_replicas` is what it was
    told to have at most, None where that cannot be read. `model` is what it serves, in the provider's terms, `version`
    what the adapter needs to change it. `said` is the provider's own word for the state, which is None where it says
    nothing.
    """

    id: str | None
    name: str | None = None
    state: RemoteState | None = None
    said: str | None = None
    message: str = ""
    running: int | None = None
    max_replicas: int | None = None
    hardware: str | None = None
    model: str | None = None
    model_id: str | None = None
    created_at: datetime | None = None
    version: str | None = None

    @property
    def may_run(self) -> bool:
        """May it have replicas, by what it was told? Only a certain 0 says no."""
        return self.max_replicas != 0

    @property
    def has_ended(self) -> bool:
        """Is it stopped or failed? Both are final, and it may be deleted."""
        return self.state in (RemoteState.STOPPED, RemoteState.FAILED)

    def replicas(self, at_most: int) -> int:
        """Replicas that may be billed; `at_most` of them where that cannot be read."""
        return at_most if self.running is None else self.running


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteEndpoint:
    """An address of ours and what the list tells of the deployments under it.

    `name` is ours (`rsn-<installation>-...`), without the provider's prefixes, None where it cannot be read;
    `served_name` is the `model` of a request. `deployments` is None where they cannot be read.
    """

    id: str | None
    name: str | None
    served_name: str | None = None
    created_at: datetime | None = None
    deployments: tuple[RemoteDeployment, ...] | None = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingRequest:
    """A deployment to create under an endpoint. `name` is unique there."""

    endpoint_id: str
    name: str
    model_object_id: str
    config: str
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteAdapter:
    """A trained adapter on a deployment that it shares with others.

    `is_ready`: it answers on every replica; `has_failed`: it never will.
    """

    id: str
    adapter_id: str
    is_ready: bool
    has_failed: bool = False
    message: str = ""
    version: str | None = None


# -- questions --------------------------------------------------------------------------------------------------------

CONCURRENCY = 16
"""Questions that are asked at the same time."""

Messages = Sequence[Any]
"""The messages of one conversation."""


@dataclass(frozen=True, slots=True)
class CompletionResult:
    """One answer, or why there is none (`error`; then `text` is empty).

    `latency_ms` is that of the attempt that answered, without the waits before it. `confidence` is measured as agents'
    clients measure it (`reasoning.serving.completion.measure_confidence`); None when no answer format was given to read
    by. `token_logprobs` are natural logarithms, parallel to `tokens`.
    """

    text: str
    confidence: float | None
    latency_ms: float | None
    input_tokens: int | None
    output_tokens: int | None
    finish_reason: str | None
    tokens: tuple[str, ...] = ()
    token_logprobs: tuple[float | None, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a model is asked. `fields` are further fields of each request (`DecisionType.request_fields`)."""

    max_tokens: int
    temperature: float = 0.0
    fields: Mapping[str, Any] = field(default_factory=dict)
    answer_format: AnswerFormat | None = None
    """What confidence is measured by; None: it is not measured."""

    @classmethod
    def of(cls, decision_type: DecisionType) -> Sampling:
        """The sampling of a decision type."""
        return cls(
            max_tokens=decision_type.max_tokens,
            temperature=decision_type.temperature,
            fields=decision_type.request_fields,
            answer_format=decision_type.answer,
        )


# -- the port ---------------------------------------------------------------------------------------------------------

BeforeCreate = Callable[[], object]
"""Called right before a request is sent that may cost money, so that the ledger knows of it whatever follows."""


class Provider(Protocol):
    """A connection to a provider. Close it, or use it in a `with` block."""

    name: str
    """As in the ledger's column `provider`."""
    capabilities: Capabilities
    poll_seconds: float
    """How often it is worth to look how far something is."""
    training_parameters: Mapping[str, Any]
    """What a fine-tune is sent with unless told otherwise, with its own names and units."""

    def __enter__(self) -> Self:
        """The connection itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection."""

    def with_timeout(self, seconds: float, *, retries: bool = True) -> Provider:
        """The same connection, whose every answer is awaited only so long; without `retries` asked for once."""
        return self

    def time(self) -> datetime | None:
        """What time it is by the provider's clock, which its bill goes by; None where it does not tell."""
        return None

    # Prices and models

    def hourly_prices(self) -> Mapping[str, Decimal]:
        """US dollars an hour of one replica by name of hardware. What has no known price is not in it."""
        return {}

    def base_model(self, tier: str, *, lora: bool = True) -> BaseModel:
        """The first model of a tier (or the model of that name) that can be trained and served. Costs nothing.

        Raises NotServable with the reason for every candidate.
        """
        raise NotOffered(f"the provider {self.name} trains no models")

    def serving_options(self, model_object_id: str, base_model: str) -> list[ServingOption]:
        """The ways of serving a trained model, the fittest first. Raises NotServable where there is none."""
        raise NotOffered(f"the provider {self.name} starts no models")

    # Training

    def upload(self, name: str, file: CheckedFile) -> str:
        """Upload a file under our name and have it checked; returns its id. Of content that it has, the id it has."""
        raise NotOffered(f"the provider {self.name} trains no models")

    def file(self, file_id: str) -> RemoteFile:
        """How an uploaded file is. Raises RemoteNotFound."""
        raise NotOffered(f"the provider {self.name} trains no models")

    def training_price(self, request: TrainingRequest) -> Decimal:
        """US dollars that a fine-tune will cost at most. Raises PriceUnknown with the reason."""
        raise NotOffered(f"the provider {self.name} trains no models")

    def train(self, request: TrainingRequest, *, before_create: BeforeCreate) -> RemoteJob:
        """Submit a fine-tune, once for its name; returns it, also where an earlier attempt had submitted it.

        Raises CreationInDoubt when it may or may not have been submitted, ProviderUnavailable when it was not but may
        be later (`errors.was_refused_unseen`: not even looked at), ProviderRefused when it never will.
        """
        raise NotOffered(f"the provider {self.name} trains no models")

    def jobs(self) -> list[RemoteJob]:
        """All fine-tunes of the account. A list that is not whole raises: absence from it decides."""
        return []

    def find_job(self, name: str) -> RemoteJob | None:
        """The fine-tune of that name, the oldest if there should be several, else None."""
        raise NotOffered(f"the provider {self.name} trains no models")

    def job(self, job_id: str) -> RemoteJob:
        """How a fine-tune is; one that failed with its `error`. Raises RemoteNotFound."""
        raise NotOffered(f"the provider {self.name} trains no models")

    def job_progress(self, job_id: str) -> tuple[float, str | None]:
        """How far a fine-tune is (0 to 1), and what it says of itself."""
        raise NotOffered(f"the provider {self.name} trains no models")

    def cancel_job(self, job_id: str) -> None:
        """Cancel a fine-tune. Raises ProviderRefused where it has ended."""
        raise NotOffered(f"the provider {self.name} trains no models")

    # Serving

    def endpoints(self) -> list[RemoteEndpoint]:
        """All endpoints of the account, also of strangers. A list that is not whole raises: absence from it decides."""
        return []

    def find_endpoint(self, name: str) -> RemoteEndpoint | None:
        """The endpoint of that name of ours, else None."""
        raise NotOffered(f"the provider {self.name} starts no models")

    def create_endpoint(self, name: str) -> RemoteEndpoint:
        """The endpoint of that name, created where it is not there. It costs nothing by itself."""
        raise NotOffered(f"the provider {self.name} starts no models")

    def delete_endpoint(self, endpoint_id: str) -> None:
        """Delete an endpoint. Raises RemoteNotFound, ProviderRefused."""
        raise NotOffered(f"the provider {self.name} starts no models")

    def deployments(self, endpoint_id: str) -> list[RemoteDeployment]:
        """All that is under an endpoint. Raises RemoteNotFound."""
        raise NotOffered(f"the provider {self.name} starts no models")

    def find_deployment(self, endpoint_id: str, name: str) -> RemoteDeployment | None:
        """The deployment of that name under an endpoint, the oldest if there should be several, else None."""
        raise NotOffered(f"the provider {self.name} starts no models")

    def deployment(self, endpoint_id: str, deployment_id: str) -> RemoteDeployment:
        """How a deployment is. Raises RemoteNotFound."""
        raise NotOffered(f"the provider {self.name} starts no models")

    def create_deployment(self, request: ServingRequest, *, before_create: BeforeCreate) -> RemoteDeployment:
        """The deployment of that name, created where it is not there.

        Raises as `train` does, and ConfigRefused where another of the `serving_options` may do.
        """
        raise NotOffered(f"the provider {self.name} starts no models")

    def scale(self, endpoint_id: str, deployment_id: str, replicas: int) -> RemoteDeployment:
        """Tell a deployment how many replicas to have, whatever others wish; returns it. 0 stops it."""
        raise NotOffered(f"the provider {self.name} starts no models")

    def delete_deployment(self, endpoint_id: str, deployment: RemoteDeployment) -> None:
        """Delete a deployment that has ended, as it was read last. Raises RemoteNotFound, ProviderRefused."""
        raise NotOffered(f"the provider {self.name} starts no models")

    def give_traffic(self, endpoint_id: str, deployment_id: str) -> None:
        """Have an endpoint send all its requests to one deployment."""
        raise NotOffered(f"the provider {self.name} starts no models")

    def withdraw_traffic(self, endpoint_id: str) -> None:
        """Have an endpoint send its requests nowhere."""
        raise NotOffered(f"the provider {self.name} starts no models")

    def wrong_model(self, deployment: RemoteDeployment, model_object_id: str) -> str | None:
        """Why what a deployment serves is not this model, or None. Raises UnexpectedAnswer where that is not told."""
        return None

    # Adapters that share a deployment

    def attach(
        self, endpoint_id: str, deployment_id: str, adapter_id: str, *, before_create: BeforeCreate
    ) -> RemoteAdapter:
        """Attach a trained adapter to a deployment, once; never in the place of another.

        Raises NoRoom where the deployment has no room for it.
        """
        raise NotOffered(f"the provider {self.name} shares no deployments")

    def attached(self, endpoint_id: str, deployment_id: str) -> list[RemoteAdapter]:
        """The adapters of a deployment. Raises RemoteNotFound."""
        raise NotOffered(f"the provider {self.name} shares no deployments")

    def detach(self, endpoint_id: str, deployment_id: str, adapter: RemoteAdapter) -> None:
        """Detach an adapter. Raises RemoteNotFound where it is not attached."""
        raise NotOffered(f"the provider {self.name} shares no deployments")

    # The bill, and questions

    def read_bill(self, objects: Objects, *, since: datetime, now: datetime, errors: list[str]) -> Bill:
        """The bill from the month of `since` on, by our `objects`. What cannot be read of it is told in `errors`.

        Raises RemoteNotFound where this account has no bill to read, AccessDenied where the key may not read it.
        """
        raise NotOffered(f"the provider {self.name} has no bill")

    def ask(
        self,
        model: str,
        conversations: Iterable[Messages],
        sampling: Sampling,
        *,
        concurrency: int = CONCURRENCY,
        progress: OnProgress | None = None,
    ) -> list[CompletionResult]:
        """Ask a served model (by its `served_name`) every conversation; answers in their order.

        A question that stays unanswered has its `error` set, so that one bad row does not lose the rest. Confidence is
        measured by `provider.completions.complete_many`.
        """
        raise NotOffered(f"the provider {self.name} answers no questions")
