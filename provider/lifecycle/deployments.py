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
from typing import TYPE_CHECKING, Any

from provider.errors import (
    DeploymentFailed,
    NoCapacity,
    NotServable,
    ProviderError,
    ProviderRefused,
    ProviderUnavailable,
    UnexpectedAnswer,
)
from provider.lifecycle.deployment_state import (
    SHUTTING_STATES,
    STARTING_STATES,
    find_deployment,
    find_endpoint,
    know_endpoint,
    sync_deployment,
)
from provider.lifecycle.shutdown import advance_shutdown, begin_shutdown
from provider.money.metering import hourly_usd, last_metered, runway_of, runway_usd
from provider.together.answers import text
from provider.together.client import Now, create_once, translate_sdk_errors
from provider.together.clock import provider_clock
from provider.together.prices import instance_price
from provider.together.retries import pause, retrying
from provider.together.serving_configs import ServingConfig, configs_of_trained
from storage.errors import IllegalTransition, LedgerError
from storage.ledger.database import new_id
from storage.ledger.rows import Deployment, DeploymentState, Model, required
from storage.progress import OnProgress, share_done

if TYPE_CHECKING:
    from together import Together

    from storage.ledger.ledger import Ledger

READY_TIMEOUT = timedelta(minutes=25)
"""Cold starts of up to about 20 minutes are reported."""

INACTIVE_MINUTES = 30
"""The provider's own idle stop, its shortest. A second net only: users report that it may do nothing."""


def deploy_model(
    client: Together,
    ledger: Ledger,
    model_id: str,
    *,
    replicas: int = 1,
    progress: OnProgress | None = None,
    poll_seconds: float = 5.0,
    timeout: timedelta = READY_TIMEOUT,
    now: Now = None,
    wait: Callable[[float], None] = time.sleep,
) -> Deployment:
    """Serve a trained model (its ledger id) and wait until it is ready; returns the deployment's ledger row.

    It gets no route: that is `publish_route`. A model that is being deployed or is ready already is not deployed twice.
    Reserves money first (BudgetExceeded, PriceUnknown). When it fails or is not ready within `timeout`, it is taken
    down again and DeploymentFailed, NoCapacity (no hardware free) or ProviderUnavailable raised. It is taken down on
    Ctrl-C as well, unless an earlier call had begun it.
    """
    if replicas < 1:
        raise ValueError(f"a deployment has at least one replica, not {replicas}")
    clock = provider_clock(client, now, seen=last_metered(ledger))
    for attempt in retrying(wait, progress=progress, what="reading configs and prices"):
        with attempt:
            row, ours = _intend(client, ledger, model_id, replicas, clock)
    try:
        row = _start(client, ledger, row, progress, clock, wait)
        return _await_ready(client, ledger, row, progress, poll_seconds, timeout, clock, wait)
    except KeyboardInterrupt:
        if ours:
            _roll_back(client, ledger, row.id, "interrupted while it started", clock)
        raise
    except (ProviderError, LedgerError) as error:
        if isinstance(error, IllegalTransition):
            row = ledger.get(Deployment, row.id)
            raise DeploymentFailed(f"{row.name} was shut down while it started: {row.reason}") from error
        _roll_back(client, ledger, row.id, str(error), clock)
        raise


def _intend(
    client: Together, ledger: Ledger, model_id: str, replicas: int, clock: Callable[[], datetime]
) -> tuple[Deployment, bool]:
    """The ledger row to work on, and whether it is new."""
    model = ledger.get(Model, model_id)
    if model.state == "retired":
        raise LedgerError(f"model {model_id} is retired")
    known = ledger.find(Deployment, model_id=model_id, state=(*STARTING_STATES, "ready"))
    if known:
        return _at_todays_price(client, ledger, known[-1], clock()), False
    config = _rank(client, ledger, model)[0]
    for ending in ledger.find(Deployment, model_id=model_id, state=SHUTTING_STATES):
        advance_shutdown(client, ledger, ending.id, now=clock)  # who began it may have died: not two at once
    with ledger.transaction():
        known = ledger.find(Deployment, model_id=model_id, state=(*STARTING_STATES, "ready"))
        if known:
            return known[-1], False
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


def _rank(client: Together, ledger: Ledger, model: Model) -> list[ServingConfig]:
    """The configs that may serve a model (its ledger row), the fittest first; last what it failed with before."""
    found = configs_of_trained(client, model.model_object_id, model.base_model)
    failed = {
        row.config
        for row in ledger.find(Deployment, model_id=model.id, state="deleted")
        if row.ready_at is None and _names_the_config(row.reason or "")
    }
    return sorted(found, key=lambda config: (config.config in failed, config.unfitness))


def _at_todays_price(client: Together, ledger: Ledger, row: Deployment, now: datetime) -> Deployment:
    """What was intended before a kill may cost more by now: reserved anew, or refused (BudgetExceeded)."""
    if row.state != "intended" or row.attempted_at is not None:
        return row
    ledger.recheck(row.reservation_id, now=now)
    hourly = instance_price(client, row.hardware)
    if hourly == row.hourly_usd:
        return row
    with ledger.transaction():
        row = ledger.update(Deployment, row.id, hourly_usd=hourly, now=now)
        ledger.resize(row.reservation_id, runway_usd(row), hourly_usd=hourly_usd(row), now=now)
    return row


def _start(
    client: Together,
    ledger: Ledger,
    row: Deployment,
    progress: OnProgress | None,
    clock: Callable[[], datetime],
    wait: Callable[[float], None],
) -> Deployment:
    """Bring the endpoint and the deployment into being, each once."""
    for attempt in retrying(wait, progress=progress, what=f"creating {row.name}"):
        with attempt, ledger.exclusive("submit", wait=True):
            row = _create_with_some_config(client, ledger, ledger.get(Deployment, row.id), clock)
    return row


def _create_with_some_config(
    client: Together, ledger: Ledger, row: Deployment, clock: Callable[[], datetime]
) -> Deployment:
    """Create both; where the provider refuses the config, with the next fittest one, at its price."""
    left: list[ServingConfig] | None = None
    while True:
        try:
            return _create_both(client, ledger, row, clock)
        except ProviderRefused as error:
            row = ledger.get(Deployment, row.id)
            if row.endpoint_id is None or not _is_about_the_config(error):
                raise
            if left is None:
                left = _rank(client, ledger, ledger.get(Model, required(row.model_id, f"the model of {row.name}")))
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


def _is_about_the_config(error: ProviderRefused) -> bool:
    """Did the provider refuse a request as such, and name the config in its reason?"""
    status = getattr(error.__cause__, "status_code", None)
    return status in (400, 404, 412, 422) and _names_the_config(str(error))


def _names_the_config(reason: str) -> bool:
    return any(word in reason.lower() for word in ("config", "adapter", "profile", "quantiz", "precision"))


def _create_both(client: Together, ledger: Ledger, row: Deployment, clock: Callable[[], datetime]) -> Deployment:
    if row.state != "intended":
        return row
    name, once = row.name, client.with_options(max_retries=0)
    endpoint = create_once(
        f"endpoint {name}",
        lambda: find_endpoint(client, name),
        lambda: once.endpoints.create(name=name),
        path="/endpoints",
    )
    with translate_sdk_errors(f"endpoint {name}"):
        row = know_endpoint(ledger, row, endpoint, clock())
    remote = create_once(
        f"deployment {name}",
        lambda: find_deployment(client, endpoint.id, name),
        lambda: _create_deployment(once, ledger, row, clock),
        path="/deployments",
    )
    return _adopt(ledger, ledger.get(Deployment, row.id), remote, clock())


def _create_deployment(once: Together, ledger: Ledger, row: Deployment, clock: Callable[[], datetime]) -> Any:
    ledger.update(Deployment, row.id, attempted_at=clock(), now=clock())
    return once.endpoints.deployments.create(
        endpoint_id=required(row.endpoint_id, row.name),
        name=row.name,
        model=f"projects/{once.project_id}/models/{row.model_object_id}",
        config=row.config,
        autoscaling={"min_replicas": row.max_replicas, "max_replicas": row.max_replicas},
        inactive_timeout=INACTIVE_MINUTES,
    )


def _adopt(ledger: Ledger, row: Deployment, remote: Any, now: datetime) -> Deployment:
    """Write down that the deployment exists; minutes may count from the moment its create was sent."""
    if text(getattr(remote, "id", None)) is None:
        raise UnexpectedAnswer(f"deployment {row.name}: the provider's answer is not as documented: it has no id")
    return ledger.transition(
        Deployment,
        row.id,
        "provisioning",
        remote_id=remote.id,
        metered_until=row.attempted_at or row.created_at,
        now=now,
    )


def _await_ready(
    client: Together,
    ledger: Ledger,
    row: Deployment,
    progress: OnProgress | None,
    poll_seconds: float,
    timeout: timedelta,
    clock: Callable[[], datetime],
    wait: Callable[[float], None],
) -> Deployment:
    begun, reserved_usd = time.monotonic(), row.hourly_usd
    while True:
        waited, message, seconds = time.monotonic() - begun, "", poll_seconds
        try:
            row, message = sync_deployment(client, ledger, row.id, now=clock)
        except ProviderUnavailable as error:
            message, seconds = str(error), pause(poll_seconds, error)
        if row.state == "ready":
            _afford(ledger, row, reserved_usd, clock())
            if progress:
                progress(share_done(1.0, f"{row.served_name} is ready{f' ({message})' if message else ''}"))
            return row
        if row.state in (*SHUTTING_STATES, "deleted"):
            raise DeploymentFailed(f"{row.name} did not become ready ({row.state}): {row.reason or message}")
        if waited >= timeout.total_seconds():
            if row.state == "degraded":
                raise NoCapacity(f"{row.name}: no hardware within {timeout}: {message}. Try again later")
            raise DeploymentFailed(f"{row.name} was not ready within {timeout}: {message}")
        if progress:
            progress(share_done(min(waited / timeout.total_seconds(), 0.95), message or row.state))
        wait(seconds)


def _afford(ledger: Ledger, row: Deployment, reserved_usd: Decimal, now: datetime) -> None:
    """Hold what it costs, where that is more than was reserved: on other hardware. Raises BudgetExceeded."""
    if row.hourly_usd > reserved_usd and row.reservation_id:
        ledger.resize(row.reservation_id, runway_usd(row), hourly_usd=hourly_usd(row), now=now)


def _roll_back(client: Together, ledger: Ledger, deployment_id: str, why: str, clock: Callable[[], datetime]) -> None:
    """Take down what was started. What cannot be reached now, the guard takes down."""
    begin_shutdown(ledger, deployment_id, why=why, immediately=True, now=clock())
    with contextlib.suppress(ProviderError):
        for _ in range(3):
            if advance_shutdown(client, ledger, deployment_id, now=clock).state == "deleted":
                break
