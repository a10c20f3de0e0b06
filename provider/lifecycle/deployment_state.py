"""How a deployment is: found by its name, looked at, priced, and given its traffic when it serves what it should."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from provider.clock import Now, clock_of
from provider.errors import RemoteNotFound, UnexpectedAnswer
from provider.hardware import compare_hardware, price_of
from provider.lifecycle.sharing import sync_attached
from provider.money.metering import meter_minutes
from provider.port import Provider, RemoteDeployment, RemoteEndpoint, RemoteState
from storage.ledger.money import format_usd
from storage.ledger.rows import Deployment, DeploymentRole, DeploymentState, required

if TYPE_CHECKING:
    from storage.ledger.ledger import Ledger

STARTING_STATES = (DeploymentState.INTENDED, DeploymentState.PROVISIONING, DeploymentState.DEGRADED)
SHUTTING_STATES = (DeploymentState.DRAINING, DeploymentState.STOPPING, DeploymentState.STOPPED, DeploymentState.FAILED)
SHOWS_WITHIN = timedelta(minutes=5)
"""What was created so lately, and is not found, is not taken for gone: the provider's reads may be behind."""

_FOLLOWED = {
    RemoteState.DEGRADED: DeploymentState.DEGRADED,
    RemoteState.FAILED: DeploymentState.FAILED,
    RemoteState.STOPPING: DeploymentState.STOPPING,
    RemoteState.STOPPED: DeploymentState.STOPPED,
}

LIVE_STATES = (*STARTING_STATES, DeploymentState.READY, *SHUTTING_STATES)


def know_endpoint(ledger: Ledger, row: Deployment, endpoint: RemoteEndpoint, now: datetime) -> Deployment:
    """Write an endpoint's id and served name to the ledger. Raises `UnexpectedAnswer` where they are not as asked."""
    if endpoint.id is None or endpoint.name != row.name:
        raise UnexpectedAnswer(f"endpoint {row.name}: the provider's answer is not as documented: id or name lack")
    return ledger.update(Deployment, row.id, endpoint_id=endpoint.id, served_name=endpoint.served_name, now=now)


def sync_deployment(
    provider: Provider, ledger: Ledger, deployment_id: str, *, now: Now = None
) -> tuple[Deployment, str]:
    """Look once at a deployment: charge its minutes, write down its state, give it its traffic when it is ready.

    Returns its ledger row and the provider's words, with what there is to say of its hardware. READY without a traffic
    split would answer 503, so it counts as ready only with one; and one that serves another model than ours, its base
    for example, is stopped.
    """
    clock = clock_of(now)
    row = ledger.get(Deployment, deployment_id)
    if row.role == DeploymentRole.ATTACHED:
        return _sync_attached(provider, ledger, row, clock)
    if row.remote_id is None or row.state in (
        DeploymentState.INTENDED,
        DeploymentState.STOPPED,
        DeploymentState.DELETED,
    ):
        return row, ""
    try:
        remote = provider.deployment(required(row.endpoint_id, row.name), row.remote_id)
        if remote.state is None:
            raise UnexpectedAnswer(f"deployment {row.name}: the provider does not say how it is")
    except RemoteNotFound as error:
        if row.state in STARTING_STATES and clock() - (row.attempted_at or row.created_at) < SHOWS_WITHIN:
            raise UnexpectedAnswer(f"{error}; it was created just now, so it is looked at again") from error
        # Its endpoint may still be there: `advance_shutdown` sees to that.
        meter_minutes(ledger, deployment_id, 0, now=clock())
        return move_deployment(ledger, deployment_id, DeploymentState.STOPPED, why=str(error), now=clock()), str(error)
    row, note = _follow_hardware(provider, ledger, row, remote, clock())
    meter_minutes(ledger, deployment_id, remote.replicas(row.max_replicas), now=clock())
    row = ledger.get(Deployment, deployment_id)
    message = remote.message
    if row.state in (*SHUTTING_STATES, DeploymentState.DELETED):
        return row, message
    if remote.state == RemoteState.READY:
        return _become_ready(provider, ledger, row, remote, "; ".join(filter(None, (message, note))), clock())
    if remote.state == RemoteState.SCALING and row.state == DeploymentState.READY:
        return row, message
    wanted = _FOLLOWED.get(remote.state, DeploymentState.PROVISIONING)
    return move_deployment(ledger, deployment_id, wanted, why=message, reason=message, now=clock()), message


def _sync_attached(
    provider: Provider, ledger: Ledger, row: Deployment, clock: Callable[[], datetime]
) -> tuple[Deployment, str]:
    """Look at an attached model, and before at its replica where that is not ready yet."""
    if row.state in (DeploymentState.INTENDED, *SHUTTING_STATES, DeploymentState.DELETED):
        return row, ""
    replica, message = ledger.get(Deployment, required(row.replica_id, f"the replica of {row.name}")), ""
    if replica.state in STARTING_STATES:
        replica, message = sync_deployment(provider, ledger, replica.id, now=clock)
    row, said = sync_attached(provider, ledger, row, replica, move=move_deployment, clock=clock)
    return row, "; ".join(filter(None, (said, message)))


def _become_ready(
    provider: Provider, ledger: Ledger, row: Deployment, remote: RemoteDeployment, message: str, now: datetime
) -> tuple[Deployment, str]:
    if wrong := provider.wrong_model(remote, row.model_object_id):
        return move_deployment(ledger, row.id, DeploymentState.STOPPING, why=wrong, reason=wrong, now=now), wrong
    if row.state != DeploymentState.READY:
        provider.give_traffic(required(row.endpoint_id, row.name), required(row.remote_id, row.name))
    why = None if row.state == DeploymentState.READY else message or None
    ready_at = row.ready_at or now
    return move_deployment(
        ledger, row.id, DeploymentState.READY, why=why, ready_at=ready_at, reason=None, now=now
    ), message


def move_deployment(ledger: Ledger, deployment_id: str, state: DeploymentState, **values: Any) -> Deployment:
    """Move a deployment to where the provider has it, unless another hand has begun or done its end meanwhile."""
    with ledger.transaction():
        row = ledger.get(Deployment, deployment_id)
        if row.state == DeploymentState.DELETED or (
            row.state in SHUTTING_STATES and state not in (DeploymentState.STOPPING, DeploymentState.STOPPED)
        ):
            return row
        return ledger.transition(Deployment, deployment_id, state, **values)


def _follow_hardware(
    provider: Provider, ledger: Ledger, row: Deployment, remote: RemoteDeployment, now: datetime
) -> tuple[Deployment, str]:
    """Price a deployment as what it runs on, and say what there is to say of that.

    Names that cannot be compared change nothing: it was paid for, and the bill tells. On other hardware it costs what
    that costs; where nobody knows what that is, it is stopped.
    """
    found = remote.hardware
    match = compare_hardware(row.hardware, found) if found else "unknown"
    if match == "same" or row.state not in (*STARTING_STATES, DeploymentState.READY):
        return row, ""
    if match == "unknown":
        said = f"hardware {found!r}" if found else "no hardware"
        return row, f"the provider tells {said}, which does not compare with {row.hardware}: charged is the latter"
    price = price_of(provider.hourly_prices(), str(found))
    if price is None:
        reason = f"it runs on {found}, which has no known price; priced was {row.hardware}"
        return move_deployment(ledger, row.id, DeploymentState.STOPPING, why=reason, reason=reason, now=now), reason
    note = f"it runs on {found} at {format_usd(price)} an hour; priced was {row.hardware}"
    row = ledger.update(Deployment, row.id, hardware=str(found), hourly_usd=price, now=now)
    return row, note


def raise_price(ledger: Ledger, row: Deployment, prices: Mapping[str, Decimal], *, now: datetime) -> str | None:
    """Charge a running deployment the provider's price of today where it has risen; returns what to say of it.

    A price that fell is left to the bill: whether it holds for what runs already is not documented.
    """
    price = price_of(prices, row.hardware)
    if row.role == DeploymentRole.ATTACHED or price is None or price <= row.hourly_usd:
        return None  # what is attached has no price: its replica has
    before = row.hourly_usd
    ledger.update(Deployment, row.id, hourly_usd=price, now=now)
    return f"{row.name} costs {format_usd(price)} an hour now, {format_usd(before)} before: {row.hardware} is dearer"
