"""Models that share a replica: adapters of one base model attached to one deployment of it.

In the ledger a shared replica is a deployment of the role `shared`, which has the price, the minutes and the
reservation, and belongs to no decision type. A model on it is a deployment of the role `attached`, with `replica_id`,
and costs nothing by itself. Both are written before anything is asked of the provider, so a killed process is made
good by calling again or by `reconcile_provider`. A replica ends with its last adapter: `end_unused`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from provider.clock import Now, clock_of
from provider.errors import NoRoom, ProviderUnavailable, RemoteNotFound, UnexpectedAnswer
from provider.money.metering import hourly_usd, runway_of
from provider.port import Provider, RemoteAdapter, Sampling, ServingOption
from storage.errors import BudgetExceeded
from storage.ledger.database import new_id
from storage.ledger.money import format_usd
from storage.ledger.rows import Deployment, DeploymentRole, DeploymentState, FineTuneJob, Model, required
from storage.ledger.sleeps import end_savings

if TYPE_CHECKING:
    from storage.ledger.ledger import Ledger

STARTING = (DeploymentState.INTENDED, DeploymentState.PROVISIONING, DeploymentState.DEGRADED)
_OPEN = (*STARTING, DeploymentState.READY)
_PROBE = [{"role": "user", "content": "Who are you?"}]
_PROBE_TOKENS = 8


# -- finding a place --------------------------------------------------------------------------------------------------


def adapter_of(provider: Provider, ledger: Ledger, model: Model) -> Model:
    """The model with the id and name of its adapter, if it has one. An older ledger learns them from the provider."""
    if model.adapter_object_id is not None or model.job_id is None:
        return model
    job = ledger.get(FineTuneJob, model.job_id)
    if job.remote_id is None:
        return model
    with contextlib.suppress(RemoteNotFound):
        remote = provider.job(job.remote_id)
        if remote.adapter_id and remote.adapter_name:
            return ledger.update(
                Model,
                model.id,
                adapter_object_id=remote.adapter_id,
                adapter_name=remote.adapter_name,
                now=model.updated_at,
            )
    return model


def option_for(provider: Provider, model: Model, options: Sequence[ServingOption]) -> ServingOption | None:
    """The fittest way of serving a model beside others, None where it can only have a deployment of its own."""
    if provider.capabilities.adapters_per_replica == 0 or not model.adapter_object_id or not model.adapter_name:
        return None
    return next((option for option in options if option.base and option.adapters != 0), None)


def find_replica(ledger: Ledger, base: str) -> Deployment | None:
    """The oldest shared replica of a base model (the provider's name for it) with room for one more adapter."""
    for row in ledger.find(Deployment, role=DeploymentRole.SHARED, model_object_id=base, state=_OPEN):
        if row.max_adapters is None or len(attached_to(ledger, row.id)) < row.max_adapters:
            return row
    return None


def replica_of_base(ledger: Ledger, base_model: str) -> Deployment | None:
    """The shared replica that a model of this base, by its name, would be attached to; None: a new one is made."""
    for row in ledger.find(Deployment, role=DeploymentRole.SHARED, state=_OPEN):
        on_it = attached_to(ledger, row.id)
        bases = {ledger.get(Model, each.model_id).base_model for each in on_it if each.model_id}
        if base_model in bases and (row.max_adapters is None or len(on_it) < row.max_adapters):
            return row
    return None


def hourly_part(ledger: Ledger, row: Deployment) -> Decimal:
    """What a deployment costs an hour; of an attached model its part of the replica, in equal parts with the others."""
    if row.role != DeploymentRole.ATTACHED or row.replica_id is None:
        return hourly_usd(row)
    return hourly_usd(ledger.get(Deployment, row.replica_id)) / max(len(attached_to(ledger, row.replica_id)), 1)


def attached_to(ledger: Ledger, replica_id: str) -> list[Deployment]:
    """What is attached to a replica, or to be, or not certainly gone from it yet."""
    states = [state for state in DeploymentState if state != DeploymentState.DELETED]
    return ledger.find(Deployment, replica_id=replica_id, state=states)


def intend_attached(ledger: Ledger, model: Model, option: ServingOption, now: datetime) -> Deployment:
    """Write down that a model is to be attached to a replica with room, or to a new one, whose money is reserved.

    Raises BudgetExceeded. The caller holds a transaction.
    """
    _refuse_spent_budget(ledger, model, now)
    replica = find_replica(ledger, required(option.base, "the base model")) or _add_replica(ledger, model, option, now)
    id = new_id()
    return ledger.add(
        Deployment,
        id=id,
        state=DeploymentState.INTENDED,
        role=DeploymentRole.ATTACHED,
        name=f"{ledger.prefix}{id}",
        replica_id=replica.id,
        decision_type=model.decision_type,
        model_id=model.id,
        model_object_id=required(model.adapter_object_id, f"the adapter of model {model.id}"),
        served_name=model.adapter_name,
        config=replica.config,
        hardware=replica.hardware,
        hourly_usd=Decimal(0),
        max_replicas=1,
        provider=replica.provider,
        now=now,
    )


def _refuse_spent_budget(ledger: Ledger, model: Model, now: datetime) -> None:
    for budget in ledger.budgets(now):
        if budget.decision_type == model.decision_type and budget.period != "hour" and not budget.left_usd:
            raise BudgetExceeded(
                f"{format_usd(budget.spent_usd)} of the {budget.name} budget of {format_usd(budget.limit_usd)} is "
                f"spent, so model {model.id} is not attached. Raise the budget"
            )


def _add_replica(ledger: Ledger, model: Model, option: ServingOption, now: datetime) -> Deployment:
    id = new_id()
    name = f"{ledger.prefix}{id}"
    reservation = ledger.reserve(
        runway_of(option.hourly_usd),
        purpose=f"shared deployment {name} of {model.base_model} on {option.hardware}",
        decision_type=model.decision_type,
        hourly_usd=option.hourly_usd,
        ttl=None,
        shared=True,
        now=now,
    )
    sharers = [other.id for other in ledger.find(Model, base_model=model.base_model)]
    end_savings(ledger, sharers, now=now)
    return ledger.add(
        Deployment,
        id=id,
        state=DeploymentState.INTENDED,
        role=DeploymentRole.SHARED,
        name=name,
        model_object_id=required(option.base, "the base model"),
        config=option.config,
        hardware=option.hardware,
        hourly_usd=option.hourly_usd,
        max_replicas=1,
        max_adapters=option.adapters,
        reservation_id=reservation.id,
        now=now,
    )


# -- attaching --------------------------------------------------------------------------------------------------------


def attach_model(provider: Provider, ledger: Ledger, row: Deployment, replica: Deployment, now: Now) -> Deployment:
    """Attach a model's adapter to its replica, which exists at the provider. Raises NoRoom, after noting the limit."""
    clock = clock_of(now)
    if row.state != DeploymentState.INTENDED:
        return row
    endpoint_id, remote_id = required(replica.endpoint_id, replica.name), required(replica.remote_id, replica.name)
    try:
        adapter = provider.attach(
            endpoint_id,
            remote_id,
            row.model_object_id,
            before_create=lambda: ledger.update(Deployment, row.id, attempted_at=clock(), now=clock()),
        )
    except NoRoom:
        carried = len(provider.attached(endpoint_id, remote_id))
        ledger.update(Deployment, replica.id, max_adapters=carried, now=clock())
        raise
    return ledger.transition(
        Deployment, row.id, DeploymentState.PROVISIONING, remote_id=adapter.id, metered_until=clock(), now=clock()
    )


def move_to_another(ledger: Ledger, row: Deployment, option: ServingOption, now: datetime) -> Deployment:
    """Give an intended attachment another replica: the one that it was to be on has no room, or ends."""
    with ledger.transaction():
        model = ledger.get(Model, required(row.model_id, f"the model of {row.name}"))
        base = required(option.base, "the base model")
        replica = find_replica(ledger, base) or _add_replica(ledger, model, option, now)
        return ledger.update(Deployment, row.id, replica_id=replica.id, now=now)


def sync_attached(
    provider: Provider,
    ledger: Ledger,
    row: Deployment,
    replica: Deployment,
    *,
    move: Callable[..., Deployment],
    clock: Callable[[], datetime],
) -> tuple[Deployment, str]:
    """Look once at an attached model, whose replica was just looked at; returns its row and what there is to say.

    `move` is `deployment_state.move_deployment`. It is ready when the provider has loaded it, the replica is ready, and
    it answers as itself: otherwise than the base model.
    """
    if replica.state not in _OPEN:
        reason = f"its replica {replica.name} is {replica.state}"
        return move(
            ledger, row.id, DeploymentState.STOPPING, why=reason, reason=row.reason or reason, now=clock()
        ), reason
    if replica.remote_id is None or replica.endpoint_id is None:
        return row, "its replica is being created"
    try:
        found = provider.attached(replica.endpoint_id, replica.remote_id)
    except RemoteNotFound as error:
        raise UnexpectedAnswer(f"{error}; its replica is looked at again") from error
    adapter = next((each for each in found if each.adapter_id == row.model_object_id), None)
    ledger.update(Deployment, row.id, metered_until=clock(), now=clock())
    if adapter is None:
        reason = "it is not attached any more: another hand detached it, or put another in its place"
        return move(ledger, row.id, DeploymentState.STOPPING, why=reason, reason=reason, now=clock()), reason
    if adapter.has_failed:
        reason = f"its adapter was not loaded: {adapter.message}"
        return move(ledger, row.id, DeploymentState.STOPPING, why=reason, reason=reason, now=clock()), reason
    if not adapter.is_ready or replica.state != DeploymentState.READY:
        state = DeploymentState.DEGRADED if row.ready_at else DeploymentState.PROVISIONING
        return move(ledger, row.id, state, replicas=0, remote_id=adapter.id, now=clock()), adapter.message
    if row.state != DeploymentState.READY and (wrong := _answers_as_base(provider, row, replica)):
        return move(ledger, row.id, DeploymentState.STOPPING, why=wrong, reason=wrong, now=clock()), wrong
    ready_at = row.ready_at or clock()
    values = {"replicas": 1, "remote_id": adapter.id, "ready_at": ready_at, "reason": None}
    return move(ledger, row.id, DeploymentState.READY, now=clock(), **values), ""


def _answers_as_base(provider: Provider, row: Deployment, replica: Deployment) -> str | None:
    """Why what answers under a model's name is its base, or None. Both are asked one short question.

    Equal words with equal log-probabilities are the base's: no adapter leaves them as they are.
    """
    served_name = required(row.served_name, f"the name of {row.name}")
    sampling = Sampling(max_tokens=_PROBE_TOKENS)
    (own,) = provider.ask(served_name, [_PROBE], sampling)
    if own.error:
        raise ProviderUnavailable(f"{row.name} is attached and does not answer yet: {own.error}")
    (base,) = provider.ask(required(replica.served_name, replica.name), [_PROBE], sampling)
    if base.error or not own.token_logprobs:
        return None  # there is nothing to compare it with; the evaluation judges it
    if (own.tokens, own.token_logprobs) == (base.tokens, base.token_logprobs):
        return f"{served_name} answers word by word as its base model: its adapter is not applied"
    return None


# -- the end ----------------------------------------------------------------------------------------------------------


def detach_model(provider: Provider, ledger: Ledger, row: Deployment, *, now: Now = None) -> Deployment:
    """Detach a model that is to end, and write down that it is gone. Its replica is not ended here: `end_unused`."""
    clock = clock_of(now)
    replica = ledger.get(Deployment, required(row.replica_id, f"the replica of {row.name}"))
    if (
        replica.remote_id
        and replica.endpoint_id
        and replica.state not in (DeploymentState.STOPPED, DeploymentState.DELETED)
    ):
        with contextlib.suppress(RemoteNotFound):  # the replica, or the adapter, is gone already
            for adapter in provider.attached(replica.endpoint_id, replica.remote_id):
                if adapter.adapter_id == row.model_object_id:
                    provider.detach(replica.endpoint_id, replica.remote_id, adapter)
    at = clock()
    return ledger.transition(
        Deployment, row.id, DeploymentState.DELETED, replicas=0, stopped_at=row.stopped_at or at, now=at
    )


def unused_replicas(ledger: Ledger) -> list[Deployment]:
    """Shared replicas that carry nothing and are not ending."""
    rows = ledger.find(Deployment, role=DeploymentRole.SHARED, state=_OPEN)
    return [row for row in rows if not attached_to(ledger, row.id)]


def detach_strangers(provider: Provider, ledger: Ledger, replica: Deployment) -> list[RemoteAdapter]:
    """Detach adapters that a replica of ours carries and the ledger does not know of; returns them."""
    if replica.endpoint_id is None or replica.remote_id is None:
        return []
    known = {row.model_object_id for row in attached_to(ledger, replica.id)}
    strangers = [
        each for each in provider.attached(replica.endpoint_id, replica.remote_id) if each.adapter_id not in known
    ]
    for adapter in strangers:
        with contextlib.suppress(RemoteNotFound):
            provider.detach(replica.endpoint_id, replica.remote_id, adapter)
    return strangers
