"""Deployments: one endpoint with one deployment for a model, created once and waited for until it is ready.

Both carry the name `rsn-<installation>-<deployment id>`, recorded with the reserved money before anything is asked of
the provider. Every step looks first at what is there, so a killed process is made good by calling again, and a
deployment that fails half-way is taken down again. How one is, `provider.lifecycle.deployment_state` tells; how it
ends, `provider.lifecycle.shutdown`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from provider.clock import Now, provider_clock
from provider.errors import (
    ConfigRefused,
    DeploymentFailed,
    NoCapacity,
    NoRoom,
    NotServable,
    ProviderError,
    ProviderRefused,
    ProviderUnavailable,
    UnexpectedAnswer,
    names_the_config,
)
from provider.hardware import instance_price
from provider.lifecycle.deployment_state import SHUTTING_STATES, STARTING_STATES, know_endpoint, sync_deployment
from provider.lifecycle.sharing import adapter_of, attach_model, intend_attached, move_to_another, option_for
from provider.lifecycle.shutdown import advance_shutdown, begin_shutdown
from provider.money.metering import hourly_usd, last_metered, runway_of, runway_usd
from provider.pace import AT_EASE, Pace
from provider.port import Provider, RemoteDeployment, ServingOption, ServingRequest
from provider.retries import pause, retrying
from storage.errors import IllegalTransition, LedgerError
from storage.ledger.database import new_id
from storage.ledger.rows import Deployment, DeploymentRole, DeploymentState, Model, ModelState, required
from storage.progress import share_done

if TYPE_CHECKING:
    from storage.ledger.ledger import Ledger

READY_TIMEOUT = timedelta(minutes=25)
"""Cold starts of up to about 20 minutes are reported."""


def deploy_model(
    provider: Provider,
    ledger: Ledger,
    model_id: str,
    *,
    replicas: int = 1,
    share: bool = True,
    pace: Pace = AT_EASE,
) -> Deployment:
    """Serve a trained model (its ledger id) and wait until it is ready; returns the deployment's ledger row.

    It gets no route: that is `publish_route`. A model that is being deployed or is ready already is not deployed twice.
    With `share` and one replica it is attached to a deployment of its base model beside others (`provider.lifecycle.
    sharing`), where that can be done, else it has one of its own.
    Reserves money first (BudgetExceeded, PriceUnknown). When it fails or is not ready within `pace.timeout`
    (`READY_TIMEOUT`), it is taken down again and DeploymentFailed, NoCapacity (no hardware free) or ProviderUnavailable
    raised. It is taken down on Ctrl-C as well, unless an earlier call had begun it.
    """
    if replicas < 1:
        raise ValueError(f"a deployment has at least one replica, not {replicas}")
    clock = provider_clock(provider, pace.now, seen=last_metered(ledger))
    for attempt in retrying(pace.wait, progress=pace.progress, what="reading configs and prices"):
        with attempt:
            row, ours = _intend(provider, ledger, model_id, replicas, clock, share=share)
    try:
        row = _start(provider, ledger, row, pace, clock)
        return _await_ready(provider, ledger, row, pace, clock)
    except KeyboardInterrupt:
        if ours:
            _roll_back(provider, ledger, row.id, "interrupted while it started", clock)
        raise
    except (ProviderError, LedgerError) as error:
        if isinstance(error, IllegalTransition):
            row = ledger.get(Deployment, row.id)
            raise DeploymentFailed(f"{row.name} was shut down while it started: {row.reason}") from error
        _roll_back(provider, ledger, row.id, str(error), clock)
        raise


def begin_serving(
    provider: Provider, ledger: Ledger, model_id: str, *, share: bool = True, now: Now = None
) -> Deployment:
    """Begin to serve a trained model without waiting until it is ready; returns its ledger row. The guard follows it.

    Called again it goes on where it was. Raises BudgetExceeded, PriceUnknown, ProviderError, LedgerError.
    """
    clock = provider_clock(provider, now, seen=last_metered(ledger))
    row, _ = _intend(provider, ledger, model_id, 1, clock, share=share)
    try:
        with ledger.exclusive("submit", wait=True):
            return _create(provider, ledger, ledger.get(Deployment, row.id), clock)
    except (ProviderRefused, NotServable) as error:
        _roll_back(provider, ledger, row.id, str(error), clock)
        raise


def _intend(
    provider: Provider, ledger: Ledger, model_id: str, replicas: int, clock: Callable[[], datetime], *, share: bool
) -> tuple[Deployment, bool]:
    """The ledger row to work on, and whether it is new."""
    model = ledger.get(Model, model_id)
    if model.state == ModelState.RETIRED:
        raise LedgerError(f"model {model_id} is retired")
    known = ledger.find(Deployment, model_id=model_id, state=(*STARTING_STATES, DeploymentState.READY))
    if known:
        return _at_todays_price(provider, ledger, known[-1], clock()), False
    if share and replicas == 1:
        model = adapter_of(provider, ledger, model)
    options = _rank(provider, ledger, model)
    config = options[0]
    shared = option_for(provider, model, options) if share and replicas == 1 else None
    for ending in ledger.find(Deployment, model_id=model_id, state=SHUTTING_STATES):
        advance_shutdown(provider, ledger, ending.id, now=clock)  # who began it may have died: not two at once
    with ledger.transaction():
        known = ledger.find(Deployment, model_id=model_id, state=(*STARTING_STATES, DeploymentState.READY))
        if known:
            return known[-1], False
        if shared is not None:
            return intend_attached(ledger, model, shared, clock()), True
        deployment_id = new_id()
        name, hourly = f"{ledger.prefix}{deployment_id}", config.hourly_usd * replicas
        reservation = ledger.reserve(
            runway_of(hourly),
            purpose=f"deployment {name} of model {model_id} on {config.hardware}",
            decision_type=model.decision_type,
            model=model_id,
            hourly_usd=hourly,
            ttl=None,
            now=clock(),
        )
        added = ledger.add(
            Deployment,
            id=deployment_id,
            state=DeploymentState.INTENDED,
            provider=provider.name,
            name=name,
            decision_type=model.decision_type,
            model_id=model_id,
            model_object_id=model.model_object_id,
            config=config.config,
            hardware=config.hardware,
            hourly_usd=config.hourly_usd,
            max_replicas=replicas,
            replicas=0,
            reservation_id=reservation.id,
            now=clock(),
        )
    return added, True


def _rank(provider: Provider, ledger: Ledger, model: Model) -> list[ServingOption]:
    """The configs that may serve a model (its ledger row), the fittest first; last what it failed with before."""
    found = provider.serving_options(model.model_object_id, model.base_model)
    failed = {
        row.config
        for row in ledger.find(Deployment, model_id=model.id, state=DeploymentState.DELETED)
        if row.ready_at is None and names_the_config(row.reason or "")
    }
    return sorted(found, key=lambda option: option.config in failed)


def _at_todays_price(provider: Provider, ledger: Ledger, row: Deployment, now: datetime) -> Deployment:
    """What was intended before a kill may cost more by now: reserved anew, or refused (BudgetExceeded)."""
    if row.role == DeploymentRole.ATTACHED:
        replica = ledger.get(Deployment, required(row.replica_id, f"the replica of {row.name}"))
        if replica.state == DeploymentState.INTENDED:
            _at_todays_price(provider, ledger, replica, now)
        return row
    if row.state != DeploymentState.INTENDED or row.attempted_at is not None:
        return row
    ledger.recheck(row.reservation_id, now=now)
    hourly = instance_price(provider, row.hardware)
    if hourly == row.hourly_usd:
        return row
    with ledger.transaction():
        row = ledger.update(Deployment, row.id, hourly_usd=hourly, now=now)
        ledger.resize(row.reservation_id, runway_usd(row), hourly_usd=hourly_usd(row), now=now)
    return row


def _start(
    provider: Provider,
    ledger: Ledger,
    row: Deployment,
    pace: Pace,
    clock: Callable[[], datetime],
) -> Deployment:
    """Bring the endpoint and the deployment into being, each once."""
    for attempt in retrying(pace.wait, progress=pace.progress, what=f"creating {row.name}"):
        with attempt, ledger.exclusive("submit", wait=True):
            row = _create(provider, ledger, ledger.get(Deployment, row.id), clock)
    return row


def _create(provider: Provider, ledger: Ledger, row: Deployment, clock: Callable[[], datetime]) -> Deployment:
    """Bring a deployment into being; of an attached model first its replica, or another one where that has no room."""
    if row.role != DeploymentRole.ATTACHED:
        return _create_with_some_config(provider, ledger, row, clock)
    while True:
        replica = ledger.get(Deployment, required(row.replica_id, f"the replica of {row.name}"))
        if row.state != DeploymentState.INTENDED:
            return row
        try:
            if replica.state in (*SHUTTING_STATES, DeploymentState.DELETED):
                raise NoRoom(f"{replica.name} ends")
            _create_with_some_config(provider, ledger, replica, clock)
            return attach_model(provider, ledger, row, ledger.get(Deployment, replica.id), clock)
        except NoRoom:
            model = ledger.get(Model, required(row.model_id, f"the model of {row.name}"))
            option = option_for(provider, model, _rank(provider, ledger, model))
            if option is None:
                raise
            row = move_to_another(ledger, row, option, clock())


def _create_with_some_config(
    provider: Provider, ledger: Ledger, row: Deployment, clock: Callable[[], datetime]
) -> Deployment:
    """Create both; where the provider refuses the config, with the next fittest one, at its price."""
    left: list[ServingOption] | None = None
    while True:
        try:
            return _create_both(provider, ledger, row, clock)
        except ConfigRefused as error:
            row = ledger.get(Deployment, row.id)
            if row.role == DeploymentRole.SHARED:
                raise NotServable(f"{error}. It is the one that carries adapters") from error
            if left is None:
                left = _rank(provider, ledger, ledger.get(Model, required(row.model_id, f"the model of {row.name}")))
                left = [config for config in left if config.config != row.config]
            if not left:
                raise NotServable(f"{error}. No other certified config is left") from error
            config = left.pop(0)
            with ledger.transaction():
                row = ledger.update(
                    Deployment,
                    row.id,
                    config=config.config,
                    hardware=config.hardware,
                    hourly_usd=config.hourly_usd,
                    now=clock(),
                )
                ledger.resize(row.reservation_id, runway_usd(row), hourly_usd=hourly_usd(row), now=clock())


def _create_both(provider: Provider, ledger: Ledger, row: Deployment, clock: Callable[[], datetime]) -> Deployment:
    if row.state != DeploymentState.INTENDED:
        return row
    row = know_endpoint(ledger, row, provider.create_endpoint(row.name), clock())
    request = ServingRequest(
        endpoint_id=required(row.endpoint_id, row.name),
        name=row.name,
        model_object_id=row.model_object_id,
        config=row.config,
        replicas=row.max_replicas,
    )
    remote = provider.create_deployment(
        request, before_create=lambda: ledger.update(Deployment, row.id, attempted_at=clock(), now=clock())
    )
    return _adopt(ledger, ledger.get(Deployment, row.id), remote, clock())


def _adopt(ledger: Ledger, row: Deployment, remote: RemoteDeployment, now: datetime) -> Deployment:
    """Write down that the deployment exists; minutes may count from the moment its create was sent."""
    if remote.id is None:
        raise UnexpectedAnswer(f"deployment {row.name}: the provider's answer is not as documented: it has no id")
    return ledger.transition(
        Deployment,
        row.id,
        DeploymentState.PROVISIONING,
        remote_id=remote.id,
        metered_until=row.attempted_at or row.created_at,
        now=now,
    )


def _await_ready(
    provider: Provider,
    ledger: Ledger,
    row: Deployment,
    pace: Pace,
    clock: Callable[[], datetime],
) -> Deployment:
    timeout, progress = pace.longest(READY_TIMEOUT), pace.progress
    begun, reserved_usd = time.monotonic(), row.hourly_usd
    while True:
        waited, message, seconds = time.monotonic() - begun, "", pace.poll_seconds
        try:
            row, message = sync_deployment(provider, ledger, row.id, now=clock)
        except ProviderUnavailable as error:
            message, seconds = str(error), pause(pace.poll_seconds, error)
        if row.state == DeploymentState.READY:
            _afford(ledger, row, reserved_usd, clock())
            if progress:
                progress(share_done(1.0, f"{row.served_name} is ready{f' ({message})' if message else ''}"))
            return row
        if row.state in (*SHUTTING_STATES, DeploymentState.DELETED):
            raise DeploymentFailed(f"{row.name} did not become ready ({row.state}): {row.reason or message}")
        if waited >= timeout.total_seconds():
            if row.state == DeploymentState.DEGRADED:
                raise NoCapacity(f"{row.name}: no hardware within {timeout}: {message}. Try again later")
            raise DeploymentFailed(f"{row.name} was not ready within {timeout}: {message}")
        if progress:
            progress(share_done(min(waited / timeout.total_seconds(), 0.95), message or row.state))
        pace.wait(seconds)


def _afford(ledger: Ledger, row: Deployment, reserved_usd: Decimal, now: datetime) -> None:
    """Hold what it costs, where that is more than was reserved: on other hardware. Raises BudgetExceeded."""
    if row.hourly_usd > reserved_usd and row.reservation_id:
        ledger.resize(row.reservation_id, runway_usd(row), hourly_usd=hourly_usd(row), now=now)


def _roll_back(provider: Provider, ledger: Ledger, deployment_id: str, why: str, clock: Callable[[], datetime]) -> None:
    """Take down what was started. What cannot be reached now, the guard takes down."""
    begin_shutdown(ledger, deployment_id, why=why, immediately=True, now=clock())
    with contextlib.suppress(ProviderError):
        for _ in range(3):
            if advance_shutdown(provider, ledger, deployment_id, now=clock).state == DeploymentState.DELETED:
                break
