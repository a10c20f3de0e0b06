"""How a deployment is: found by its name, looked at, priced, and given its traffic when it serves what it should."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from provider.errors import KeyRefused, ProviderRefused, RemoteNotFound, UnexpectedAnswer, brief
from provider.money.metering import meter_minutes
from provider.together.answers import bare_name, created_at, listed, replicas_of, state_of, text
from provider.together.client import Now, clock_of, overwrite, translate_sdk_errors
from provider.together.hardware import compare_hardware
from provider.together.prices import hourly_prices, price_of
from provider.together.serving_configs import MODEL_PATH, base_of
from storage.ledger.money import format_usd
from storage.ledger.rows import Deployment, DeploymentState, required

if TYPE_CHECKING:
    from together import Together

    from storage.ledger.ledger import Ledger

STARTING_STATES = (DeploymentState.INTENDED, DeploymentState.PROVISIONING, DeploymentState.DEGRADED)
SHUTTING_STATES = (DeploymentState.DRAINING, DeploymentState.STOPPING, DeploymentState.STOPPED, DeploymentState.FAILED)
SHOWS_WITHIN = timedelta(minutes=5)
"""What was created so lately, and is not found, is not taken for gone: the provider's reads may be behind."""

LIVE_STATES = (*STARTING_STATES, DeploymentState.READY, *SHUTTING_STATES)


def find_endpoint(client: Together, name: str) -> Any | None:
    """Our endpoint of that bare name, else None."""
    found = listed(client.endpoints.list(filter=f'name="{name}"'))
    return next((endpoint for endpoint in found if _is_named(endpoint, name)), None)


def find_deployment(client: Together, endpoint_id: str, name: str) -> Any | None:
    """The deployment of that bare name under an endpoint, the oldest if there should be several, else None."""
    found = [d for d in listed(client.endpoints.deployments.list(endpoint_id)) if _is_named(d, name)]
    return min(found, key=created_at) if found else None


def _is_named(remote: Any, name: str) -> bool:
    if (its := bare_name(remote)) is None:  # it may be the one that is looked for
        raise UnexpectedAnswer("the provider's answer is not as documented: something in the list has no name")
    return its == name


def know_endpoint(ledger: Ledger, row: Deployment, endpoint: Any, now: datetime) -> Deployment:
    """Write an endpoint's id and served name to the ledger. Raises `UnexpectedAnswer` where they are not as asked."""
    if text(endpoint.id) is None or bare_name(endpoint) != row.name:
        raise UnexpectedAnswer(f"endpoint {row.name}: the provider's answer is not as documented: id or name lack")
    return ledger.update(Deployment, row.id, endpoint_id=endpoint.id, served_name=endpoint.name, now=now)


def sync_deployment(client: Together, ledger: Ledger, deployment_id: str, *, now: Now = None) -> tuple[Deployment, str]:
    """Look once at a deployment: charge its minutes, write down its state, give it its traffic when it is ready.

    Returns its ledger row and the provider's words, with what there is to say of its hardware. READY without a traffic
    split would answer 503, so it counts as ready only with one; and one that serves another model than ours, its base
    for example, is stopped.
    """
    clock = clock_of(now)
    row = ledger.get(Deployment, deployment_id)
    if row.remote_id is None or row.state in ("intended", "stopped", "deleted"):
        return row, ""
    try:
        with translate_sdk_errors(f"deployment {row.name}"):
            remote = client.endpoints.deployments.retrieve(
                row.remote_id, endpoint_id=required(row.endpoint_id, row.name)
            )
            state = state_of(remote)
            if state is None:
                raise UnexpectedAnswer(f"deployment {row.name}: the provider does not say how it is")
    except RemoteNotFound as error:
        if row.state in STARTING_STATES and clock() - (row.attempted_at or row.created_at) < SHOWS_WITHIN:
            raise UnexpectedAnswer(f"{error}; it was created just now, so it is looked at again") from error
        # Its endpoint may still be there: `advance_shutdown` sees to that.
        meter_minutes(ledger, deployment_id, 0, now=clock())
        return move_deployment(ledger, deployment_id, "stopped", why=str(error), now=clock()), str(error)
    row, note = _follow_hardware(client, ledger, row, remote, clock())
    meter_minutes(ledger, deployment_id, replicas_of(remote, row.max_replicas), now=clock())
    row = ledger.get(Deployment, deployment_id)
    message = brief(text(remote.status.message) or "")
    if row.state in (*SHUTTING_STATES, "deleted"):
        return row, message
    if state == "ready":
        return _become_ready(client, ledger, row, remote, "; ".join(filter(None, (message, note))), clock())
    if state == "scaling" and row.state == "ready":
        return row, message
    wanted = {"degraded": "degraded", "failed": "failed", "stopped": "stopped", "stopping": "stopping"}.get(
        state, "provisioning"
    )
    return move_deployment(ledger, deployment_id, wanted, why=message, reason=message, now=clock()), message


def _become_ready(
    client: Together, ledger: Ledger, row: Deployment, remote: Any, message: str, now: datetime
) -> tuple[Deployment, str]:
    if wrong := _wrong_model(client, row, remote):
        return move_deployment(ledger, row.id, "stopping", why=wrong, reason=wrong, now=now), wrong
    if row.state != "ready":
        _give_traffic(client, row)
    why = None if row.state == "ready" else message or None
    ready_at = row.ready_at or now
    return move_deployment(ledger, row.id, "ready", why=why, ready_at=ready_at, reason=None, now=now), message


def _wrong_model(client: Together, row: Deployment, remote: Any) -> str | None:
    """Why what a deployment serves is not ours, or None.

    A model of another id in our project, which is not the base, may be what the provider merged ours into.
    """
    path = MODEL_PATH.match(text(getattr(remote, "model", None)) or "")
    served = path[2] if path else text(getattr(remote, "api_model_id", None))
    if served is None:
        raise UnexpectedAnswer(f"deployment {row.name}: the provider does not say which model it serves")
    ours = row.model_object_id
    if served == ours:
        return None
    reason = f"it serves the model {served}, not ours ({ours})"
    if path and path[1] != client.project_id:
        return reason
    try:
        with translate_sdk_errors(f"model {ours}"):
            base = base_of(client.models.retrieve(ours))
    except KeyRefused:
        raise
    except ProviderRefused:
        return reason
    return reason if base in (None, served) else None


def move_deployment(ledger: Ledger, deployment_id: str, state: str, **values: Any) -> Deployment:
    """Move a deployment to where the provider has it, unless another hand has begun or done its end meanwhile."""
    with ledger.transaction():
        row = ledger.get(Deployment, deployment_id)
        if row.state == "deleted" or (row.state in SHUTTING_STATES and state not in ("stopping", "stopped")):
            return row
        return ledger.transition(Deployment, deployment_id, state, **values)


def _follow_hardware(
    client: Together, ledger: Ledger, row: Deployment, remote: Any, now: datetime
) -> tuple[Deployment, str]:
    """Price a deployment as what it runs on, and say what there is to say of that.

    Names that cannot be compared change nothing: it was paid for, and the bill tells. On other hardware it costs what
    that costs; where nobody knows what that is, it is stopped.
    """
    found = text(getattr(remote, "hardware", None))
    match = compare_hardware(row.hardware, found) if found else "unknown"
    if match == "same" or row.state not in (*STARTING_STATES, "ready"):
        return row, ""
    if match == "unknown":
        said = f"hardware {found!r}" if found else "no hardware"
        return row, f"the provider tells {said}, which does not compare with {row.hardware}: charged is the latter"
    price = price_of(hourly_prices(client), str(found))
    if price is None:
        reason = f"it runs on {found}, which has no known price; priced was {row.hardware}"
        return move_deployment(ledger, row.id, "stopping", why=reason, reason=reason, now=now), reason
    note = f"it runs on {found} at {format_usd(price)} an hour; priced was {row.hardware}"
    row = ledger.update(Deployment, row.id, hardware=str(found), hourly_usd=price, now=now)
    return row, note


def raise_price(ledger: Ledger, row: Deployment, prices: Mapping[str, Decimal], *, now: datetime) -> str | None:
    """Charge a running deployment the provider's price of today where it has risen; returns what to say of it.

    A price that fell is left to the bill: whether it holds for what runs already is not documented.
    """
    price = price_of(prices, row.hardware)
    if price is None or price <= row.hourly_usd:
        return None
    before = row.hourly_usd
    ledger.update(Deployment, row.id, hourly_usd=price, now=now)
    return f"{row.name} costs {format_usd(price)} an hour now, {format_usd(before)} before: {row.hardware} is dearer"


def _give_traffic(client: Together, row: Deployment) -> None:
    with translate_sdk_errors(f"traffic of {row.name}"):
        endpoint_id, remote_id = required(row.endpoint_id, row.name), required(row.remote_id, row.name)
        endpoint = client.endpoints.retrieve(endpoint_id)
        split = {entry.deployment_id: entry.weight for entry in endpoint.traffic_split or ()}
        if split != {remote_id: 1}:
            split_traffic(client, endpoint_id, {remote_id: 1})


def split_traffic(client: Together, endpoint_id: str, weights: Mapping[str, int]) -> None:
    """Give an endpoint of ours this traffic split, weights by deployment id, whatever it had before."""
    overwrite(
        f"traffic of endpoint {endpoint_id}",
        lambda: client.endpoints.retrieve(endpoint_id),
        lambda version: client.endpoints.update(
            endpoint_id,
            traffic_split=[{"deployment_id": id, "weight": weight} for id, weight in weights.items()],
            update_mask="trafficSplit",
            **version,
        ),
    )
