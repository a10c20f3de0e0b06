"""Rows of the ledger's objects as frozen dataclasses, and the one place where a database row becomes one and back.

The database keeps money in columns `*_nano` (whole nano-dollars). Outside `storage` there are only Decimal US dollars:
the column `hourly_nano` is the field `hourly_usd`. States are enumerated; their text is what the database has always
kept.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, ClassVar, TypeVar

from storage.errors import LedgerError
from storage.ledger.money import from_nano, to_nano


class DatasetState(StrEnum):
    """How far a dataset is on its way to the provider."""

    INTENDED = "intended"
    UPLOADED = "uploaded"
    READY = "ready"
    FAILED = "failed"


class JobState(StrEnum):
    """How far a fine-tune job is."""

    INTENDED = "intended"
    SUBMITTED = "submitted"
    RUNNING = "running"
    CANCELLING = "cancelling"
    ABANDONED = "abandoned"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ModelState(StrEnum):
    """Where a model is in its life; `docs/concepts/life-of-a-model.md` has the diagram.

    TRAINED: a candidate without traffic. SHADOW: answers in the background. CANARY: serves a small share beside the
    incumbent. PROMOTED: live, with its full share. DEGRADED: was live, and serves the canary's share until it is proven
    again. REJECTED: was found worse. RETIRED: unregistered for good.
    """

    TRAINED = "trained"
    SHADOW = "shadow"
    CANARY = "canary"
    PROMOTED = "promoted"
    DEGRADED = "degraded"
    REJECTED = "rejected"
    RETIRED = "retired"


INCUMBENT_STATES = (ModelState.PROMOTED, ModelState.DEGRADED)
CHALLENGER_STATES = (ModelState.SHADOW, ModelState.CANARY)
ROUTED_STATES = (*CHALLENGER_STATES, *INCUMBENT_STATES)
"""A model in one of these states has an arm in its type's route."""


class DeploymentState(StrEnum):
    """How a deployment is."""

    INTENDED = "intended"
    PROVISIONING = "provisioning"
    DEGRADED = "degraded"
    READY = "ready"
    FAILED = "failed"
    DRAINING = "draining"
    STOPPING = "stopping"
    STOPPED = "stopped"
    DELETED = "deleted"


class DeploymentRole(StrEnum):
    """What a deployment is for: one model, several that share it, or being one of those."""

    OWN = "own"
    SHARED = "shared"
    ATTACHED = "attached"


class SleepReason(StrEnum):
    """Why a promoted model was taken down for a while."""

    IDLE = "idle"
    CALENDAR = "calendar"


class ReservationState(StrEnum):
    """What became of reserved money."""

    OPEN = "open"
    SETTLED = "settled"
    RELEASED = "released"
    LAPSED = "lapsed"


TOGETHER = "together"
ENDPOINT = "endpoint"
LOCAL = "local"
"""Providers, as the column `provider` of jobs, models and deployments names them. `endpoint`: somebody else runs it at
a URL; `local`: this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadedDataset:
    """The upload of a dataset to the provider.

    `id` is the `upload_id` of jobs and models; `dataset` is the dataset's own id, the name of its folder.
    """

    TABLE: ClassVar[str] = "datasets"

    id: str
    state: DatasetState
    created_at: datetime
    updated_at: datetime
    decision_type: str | None
    dataset: str
    train_sha256: str
    validation_sha256: str | None
    train_rows: int
    validation_rows: int
    train_file_id: str | None
    validation_file_id: str | None
    error: str | None

    def file_id(self, split: str) -> str | None:
        """The provider's id of the file of `train` or `validation`."""
        return self.train_file_id if split == "train" else self.validation_file_id


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneJob:
    """A fine-tune. `parameters` is the JSON that is sent, so that a resumed submission sends the same.

    `provider` is where it is trained. `attempted_at` is when a create was last sent; `reconciled_at` when its charges
    were made equal to the final bill.
    """

    TABLE: ClassVar[str] = "fine_tune_jobs"

    id: str
    state: JobState
    created_at: datetime
    updated_at: datetime
    decision_type: str | None
    suffix: str
    upload_id: str | None
    tier: str | None
    base_model: str
    parameters: str
    estimate_usd: Decimal
    reservation_id: int | None
    attempted_at: datetime | None
    remote_id: str | None
    remote_state: str | None
    price_usd: Decimal | None
    model_id: str | None
    reconciled_at: datetime | None
    error: str | None
    provider: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model: trained by the provider, or registered. `model_object_id` is what the provider calls it.

    `name`, `base_url`, `key_variable` (the name of an environment variable, never a key), `logprobs` and the prices are
    those of a model of the provider `endpoint`, which somebody else runs at a URL. A price is None where none is
    charged: `input_million_usd` and `output_million_usd` are for a million tokens, `hourly_usd` is for an hour.
    """

    TABLE: ClassVar[str] = "models"

    id: str
    state: ModelState
    created_at: datetime
    updated_at: datetime
    decision_type: str | None
    tier: str | None
    base_model: str
    upload_id: str | None
    job_id: str | None
    model_object_id: str
    output_name: str | None
    provider: str
    name: str | None
    base_url: str | None
    key_variable: str | None
    logprobs: str | None
    input_million_usd: Decimal | None
    output_million_usd: Decimal | None
    hourly_usd: Decimal | None
    adapter_object_id: str | None = None
    adapter_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A deployment. `name` is that of the endpoint and of its deployment, `served_name` the `model` of a request.

    `hourly_usd` is the price of one replica, `replicas` how many were seen running last, `reason` why it is being
    stopped or what failed.

    A `shared` one serves a base model and carries adapters, at most `max_adapters` (None: the provider does not tell);
    it has no model and no decision type, and all of the money. An `attached` one is such an adapter: `replica_id` is
    the ledger id of the deployment that carries it, `remote_id` the provider's id of the attachment, and its price 0.
    """

    TABLE: ClassVar[str] = "deployments"

    id: str
    state: DeploymentState
    created_at: datetime
    updated_at: datetime
    decision_type: str | None
    name: str
    model_id: str | None
    model_object_id: str
    config: str
    hardware: str
    hourly_usd: Decimal
    max_replicas: int
    reservation_id: int | None
    attempted_at: datetime | None
    endpoint_id: str | None
    remote_id: str | None
    served_name: str | None
    replicas: int
    metered_until: datetime | None
    billed_minutes: int
    ready_at: datetime | None
    last_request_at: datetime | None
    stopped_at: datetime | None
    reconciled_at: datetime | None
    reason: str | None
    provider: str
    role: DeploymentRole = DeploymentRole.OWN
    replica_id: str | None = None
    max_adapters: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep:
    """A time in which a promoted model was down because nobody asked it.

    `saving_usd` is what an hour of it saves (0 where its replica went on for others), until `saves_until`. `woken_at`
    is when its start was ordered, `ready_at` when it answered again, `refused` why it could not be woken last.
    """

    TABLE: ClassVar[str] = "sleeps"

    id: str
    decision_type: str
    model_id: str
    why: SleepReason
    slept_at: datetime
    saving_usd: Decimal
    saves_until: datetime | None
    woken_at: datetime | None
    ready_at: datetime | None
    refused: str | None

    @property
    def cold_start_seconds(self) -> float | None:
        """Seconds from its order to start until it answered; None before it does."""
        if self.woken_at is None or self.ready_at is None:
            return None
        return (self.ready_at - self.woken_at).total_seconds()

    def saved_usd(self, now: datetime) -> Decimal:
        """US dollars that it has saved until `now`."""
        until = min(at for at in (self.saves_until, self.woken_at, now) if at)
        seconds = Decimal(max((until - self.slept_at).total_seconds(), 0.0))
        return (self.saving_usd * seconds / 3600).quantize(Decimal("0.000000001"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """A cost that was written down. `ts` is when it arose; `quantity` are tokens, or minutes of one replica."""

    TABLE: ClassVar[str] = "charges"

    id: int
    key: str
    ts: datetime
    recorded_at: datetime
    kind: str
    amount_usd: Decimal
    what: str
    decision_type: str | None
    model_id: str | None
    job_id: str | None
    deployment_id: str | None
    quantity: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One change of state. `object` is the table of what changed, or another subject (`Ledger.note_state`).

    `numbers` is JSON: the figures that the change was decided by, None where it was not decided by figures.
    """

    TABLE: ClassVar[str] = "transitions"

    id: int
    ts: datetime
    object: str
    object_id: str
    from_state: str | None
    to_state: str
    why: str | None
    numbers: str | None = None


Object = UploadedDataset | FineTuneJob | Model | Deployment
ObjectT = TypeVar("ObjectT", UploadedDataset, FineTuneJob, Model, Deployment)
RowT = TypeVar("RowT", UploadedDataset, FineTuneJob, Model, Deployment, Sleep, Charge, Transition)

ValueT = TypeVar("ValueT")
# Fields whose columns have kept an older name.
_COLUMN_OF = {"upload_id": "dataset_id"}
_KINDS: dict[str, Any] = {
    kind.TABLE: kind for kind in (UploadedDataset, FineTuneJob, Model, Deployment, Sleep, Charge, Transition)
}


def to_row(kind: type[RowT], columns: Mapping[Any, Any]) -> RowT:
    """A database row as a dataclass. Raises LedgerError for a state that this version does not know."""
    values: dict[str, Any] = {}
    for name, column, state in _columns(kind.TABLE):
        value = columns[column]
        if name.endswith("_usd"):
            value = None if value is None else from_nano(value)
        elif state is not None:
            try:
                value = state(value)
            except ValueError:
                raise LedgerError(
                    f"unknown state in the ledger: {value!r} of {kind.TABLE} {columns['id']}; known: "
                    f"{', '.join(state)}. Use the version of this project that wrote it, or correct the row"
                ) from None
        values[name] = value
    return kind(**values)


def to_columns(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a row as database columns: US dollars as nano-dollars, states as text. A list: each of its values.

    Raises ValueError for a state that `kind` does not have.
    """
    columns: dict[str, Any] = {}
    states = {name: state for name, _, state in _columns(kind.TABLE) if state is not None}
    for name, value in values.items():
        if name.endswith("_nano"):
            raise ValueError(f"no field {name}: give US dollars, as {name.removesuffix('_nano')}_usd")
        if name in states:
            for each in value if isinstance(value, list | tuple | set) else (value,):
                states[name](each)
        if name.endswith("_usd"):
            columns[f"{name.removesuffix('_usd')}_nano"] = None if value is None else to_nano(value)
        else:
            column = _COLUMN_OF.get(name, name)
            columns[column] = [_text(each) for each in value] if isinstance(value, list | tuple | set) else _text(value)
    return columns


def _text(value: Any) -> Any:
    return value.value if isinstance(value, StrEnum) else value


@functools.cache
def _columns(table: str) -> tuple[tuple[str, str, type[StrEnum] | None], ...]:
    """(field, column, the enumeration of its states or None) of a row's dataclass."""
    kind = _KINDS[table]
    hints = typing.get_type_hints(kind)
    found = []
    for each in fields(kind):
        money = _is(hints[each.name], Decimal)
        state = hints[each.name]
        found.append(
            (
                each.name,
                f"{each.name.removesuffix('_usd')}_nano" if money else _COLUMN_OF.get(each.name, each.name),
                state if isinstance(state, type) and issubclass(state, StrEnum) else None,
            )
        )
    return tuple(found)


def _is(hint: Any, wanted: type) -> bool:
    return hint is wanted or (isinstance(hint, types.UnionType) and wanted in typing.get_args(hint))


def required(value: ValueT | None, what: str) -> ValueT:
    """A field that a step cannot do without. Raises LedgerError where the ledger lacks it."""
    if value is None:
        raise LedgerError(f"the ledger does not know {what}: `reasoning reconcile` finds it, or the row was changed")
    return value
