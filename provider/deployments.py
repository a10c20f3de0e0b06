"""Deployments: one endpoint with one deployment for a model, started, watched, drained and taken down.

Both carry the name `rsn-<installation>-<deployment id>`, recorded with the reserved money before anything is asked of
the provider. Every step looks first at what is there, so a killed process is made good by calling again, and a
deployment that fails half-way is taken down again.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from provider.answers import bare_name, created_at, etag_of, listed, may_run, moment, replicas_of, state_of, text
from provider.client import Now, Progress, asking, clock_of, create_once
from provider.clock import provider_clock
from provider.errors import (
    DeploymentFailed,
    NoCapacity,
    NotReady,
    ProviderError,
    ProviderUnavailable,
    RemoteNotFound,
    UnexpectedAnswer,
)
from provider.metering import hourly_usd, meter_minutes, runway_usd
from provider.prices import instance_price
from provider.retries import pause, retrying
from provider.routes import longest_deadline, withdraw_model
from provider.tiers import resolve_tier
from storage.errors import IllegalTransition, LedgerError
from storage.ledger_database import new_id
from storage.money import from_nano, to_nano

if TYPE_CHECKING:
    from together import Together

    from storage.ledger import Ledger

READY_TIMEOUT = timedelta(minutes=25)
"""Cold starts of up to about 20 minutes are reported."""

LONGEST_DRAIN = 60.0
"""Seconds that requests under way are given where a deployment is taken down, as the guard gives them a tick."""

INACTIVE_MINUTES = 30
"""The provider's own idle stop, its shortest. A second net only: users report that it may do nothing."""

STARTING_STATES = ("intended", "provisioning", "degraded")
SHUTTING_STATES = ("draining", "stopping", "stopped", "failed")
LIVE_STATES = (*STARTING_STATES, "ready", *SHUTTING_STATES)


def deploy_model(
    client: Together,
    ledger: Ledger,
    model_id: str,
    *,
    replicas: int = 1,
    progress: Progress | None = None,
    poll_seconds: float = 5.0,
    timeout: timedelta = READY_TIMEOUT,
    now: Now = None,
    wait: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Serve a trained model (its ledger id) and wait until it is ready; returns the deployment's ledger row.

    It gets no route: that is `publish_route`. A model that is being deployed or is ready already is not deployed twice.
    Reserves money first (BudgetExceeded, PriceUnknown). When it fails or is not ready within `timeout`, it is taken
    down again and DeploymentFailed, NoCapacity (no hardware free) or ProviderUnavailable raised. It is taken down on
    Ctrl-C as well, unless an earlier call had begun it.
    """
    if replicas < 1:
        raise ValueError(f"a deployment has at least one replica, not {replicas}")
    clock = provider_clock(client, now)
    row, ours = _intend(client, ledger, model_id, replicas, clock)
    try:
        row = _start(client, ledger, row, clock, wait)
        return _await_ready(client, ledger, row, progress, poll_seconds, timeout, clock, wait)
    except KeyboardInterrupt:
        if ours:
            _roll_back(client, ledger, row["id"], "interrupted while it started", clock)
        raise
    except (ProviderError, LedgerError) as error:
        if isinstance(error, IllegalTransition):
            row = ledger.get("deployments", row["id"])
            raise DeploymentFailed(f"{row['name']} was shut down while it started: {row['reason']}") from error
        _roll_back(client, ledger, row["id"], str(error), clock)
        raise


def _intend(
    client: Together, ledger: Ledger, model_id: str, replicas: int, clock: Callable[[], datetime]
) -> tuple[dict[str, Any], bool]:
    """The ledger row to work on, and whether it is new."""
    model = ledger.get("models", model_id)
    if model["state"] == "retired":
        raise LedgerError(f"model {model_id} is retired")
    known = ledger.find("deployments", model_id=model_id, state=(*STARTING_STATES, "ready"))
    if known:
        return _at_todays_price(client, ledger, known[-1], clock()), False
    base = resolve_tier(client, model["base_model"])
    for ending in ledger.find("deployments", model_id=model_id, state=SHUTTING_STATES):
        advance_shutdown(client, ledger, ending["id"], now=clock)  # who began it may have died: not two at once
    with ledger.transaction():
        known = ledger.find("deployments", model_id=model_id, state=(*STARTING_STATES, "ready"))
        if known:
            return known[-1], False
        deployment_id = new_id()
        row = {
            "name": f"{ledger.prefix}{deployment_id}",
            "decision_type": model["decision_type"],
            "model_id": model_id,
            "model_object_id": model["model_object_id"],
            "config": base.config,
            "hardware": base.hardware,
            "hourly_nano": to_nano(base.hourly_usd),
            "max_replicas": replicas,
            "replicas": 0,
        }
        reservation = ledger.reserve(
            runway_usd(row),
            purpose=f"deployment {row['name']} of model {model_id} on {base.hardware}",
            decision_type=model["decision_type"],
            model=model_id,
            hourly_usd=hourly_usd(row),
            ttl=None,
            now=clock(),
        )
        added = ledger.add(
            "deployments", id=deployment_id, state="intended", reservation_id=reservation.id, now=clock(), **row
        )
    return added, True


def _at_todays_price(client: Together, ledger: Ledger, row: dict[str, Any], now: datetime) -> dict[str, Any]:
    """What was intended before a kill may cost more by now: reserved anew, or refused (BudgetExceeded)."""
    if row["state"] != "intended" or row["attempted_at"] is not None:
        return row
    ledger.recheck(row["reservation_id"], now=now)
    hourly = instance_price(client, row["hardware"])
    if to_nano(hourly) == row["hourly_nano"]:
        return row
    with ledger.transaction():
        row = ledger.update("deployments", row["id"], hourly_nano=to_nano(hourly), now=now)
        ledger.resize(row["reservation_id"], runway_usd(row), hourly_usd=hourly_usd(row), now=now)
    return row


def _start(
    client: Together, ledger: Ledger, row: dict[str, Any], clock: Callable[[], datetime], wait: Callable[[float], None]
) -> dict[str, Any]:
    """Bring the endpoint and the deployment into being, each once."""
    for attempt in retrying(wait, what=f"creating {row['name']}"):
        with attempt, ledger.exclusive("submit", wait=True):
            row = _create_both(client, ledger, ledger.get("deployments", row["id"]), clock)
    return row


def _create_both(
    client: Together, ledger: Ledger, row: dict[str, Any], clock: Callable[[], datetime]
) -> dict[str, Any]:
    if row["state"] != "intended":
        return row
    name, once = row["name"], client.with_options(max_retries=0)
    endpoint = create_once(
        f"endpoint {name}",
        lambda: find_endpoint(client, name),
        lambda: once.endpoints.create(name=name),
        path="/endpoints",
    )
    with asking(f"endpoint {name}"):
        row = _know_endpoint(ledger, row, endpoint, clock())
    remote = create_once(
        f"deployment {name}",
        lambda: find_deployment(client, endpoint.id, name),
        lambda: _create_deployment(once, ledger, row, clock),
        path="/deployments",
    )
    return _adopt(ledger, ledger.get("deployments", row["id"]), remote, clock())


def _create_deployment(once: Together, ledger: Ledger, row: dict[str, Any], clock: Callable[[], datetime]) -> Any:
    ledger.update("deployments", row["id"], attempted_at=clock(), now=clock())
    return once.endpoints.deployments.create(
        endpoint_id=row["endpoint_id"],
        name=row["name"],
        model=f"projects/{once.project_id}/models/{row['model_object_id']}",
        config=row["config"],
        autoscaling={"min_replicas": row["max_replicas"], "max_replicas": row["max_replicas"]},
        inactive_timeout=INACTIVE_MINUTES,
    )


def _know_endpoint(ledger: Ledger, row: dict[str, Any], endpoint: Any, now: datetime) -> dict[str, Any]:
    if text(endpoint.id) is None or bare_name(endpoint) != row["name"]:
        raise UnexpectedAnswer(f"endpoint {row['name']}: the provider's answer is not as documented: id or name lack")
    return ledger.update("deployments", row["id"], endpoint_id=endpoint.id, served_name=endpoint.name, now=now)


def _adopt(ledger: Ledger, row: dict[str, Any], remote: Any, now: datetime) -> dict[str, Any]:
    """Write down that the deployment exists; minutes may count from the moment its create was sent."""
    if text(getattr(remote, "id", None)) is None:
        raise UnexpectedAnswer(f"deployment {row['name']}: the provider's answer is not as documented: it has no id")
    return ledger.transition(
        "deployments",
        row["id"],
        "provisioning",
        remote_id=remote.id,
        metered_until=row["attempted_at"] or row["created_at"],
        now=now,
    )


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


def _await_ready(
    client: Together,
    ledger: Ledger,
    row: dict[str, Any],
    progress: Progress | None,
    poll_seconds: float,
    timeout: timedelta,
    clock: Callable[[], datetime],
    wait: Callable[[float], None],
) -> dict[str, Any]:
    begun = time.monotonic()
    while True:
        waited, message, seconds = time.monotonic() - begun, "", poll_seconds
        try:
            row, message = sync_deployment(client, ledger, row["id"], now=clock)
        except ProviderUnavailable as error:
            message, seconds = str(error), pause(poll_seconds, error)
        if row["state"] == "ready":
            if progress:
                progress(1.0, f"{row['served_name']} is ready")
            return row
        if row["state"] in (*SHUTTING_STATES, "deleted"):
            raise DeploymentFailed(f"{row['name']} did not become ready ({row['state']}): {row['reason'] or message}")
        if waited >= timeout.total_seconds():
            if row["state"] == "degraded":
                raise NoCapacity(f"{row['name']}: no hardware within {timeout}: {message}. Try again later")
            raise DeploymentFailed(f"{row['name']} was not ready within {timeout}: {message}")
        if progress:
            progress(min(waited / timeout.total_seconds(), 0.95), message or row["state"])
        wait(seconds)


def sync_deployment(
    client: Together, ledger: Ledger, deployment_id: str, *, now: Now = None
) -> tuple[dict[str, Any], str]:
    """Look once at a deployment: charge its minutes, write down its state, give it its traffic when it is ready.

    Returns its ledger row and the provider's words. READY without a traffic split would answer 503, so it counts as
    ready only with one.
    """
    clock = clock_of(now)
    row = ledger.get("deployments", deployment_id)
    if row["remote_id"] is None or row["state"] in ("intended", "stopped", "deleted"):
        return row, ""
    try:
        with asking(f"deployment {row['name']}"):
            remote = client.endpoints.deployments.retrieve(row["remote_id"], endpoint_id=row["endpoint_id"])
            state = state_of(remote)
            if state is None:
                raise UnexpectedAnswer(f"deployment {row['name']}: the provider does not say how it is")
            _check_price(ledger, row, remote)
    except RemoteNotFound as error:
        # Its endpoint may still be there: `advance_shutdown` sees to that.
        meter_minutes(ledger, deployment_id, 0, now=clock())
        return _move(ledger, deployment_id, "stopped", why=str(error), now=clock()), str(error)
    meter_minutes(ledger, deployment_id, replicas_of(remote, row["max_replicas"]), now=clock())
    row = ledger.get("deployments", deployment_id)
    message = text(remote.status.message) or ""
    if row["state"] in (*SHUTTING_STATES, "deleted"):
        return row, message
    if state == "ready":
        if row["state"] != "ready":
            _give_traffic(client, row)
        ready_at = row["ready_at"] or clock()
        return _move(ledger, deployment_id, "ready", ready_at=ready_at, reason=None, now=clock()), message
    if state == "scaling" and row["state"] == "ready":
        return row, message
    wanted = {"degraded": "degraded", "failed": "failed", "stopped": "stopped", "stopping": "stopping"}.get(
        state, "provisioning"
    )
    return _move(ledger, deployment_id, wanted, why=message, reason=message, now=clock()), message


def _move(ledger: Ledger, deployment_id: str, state: str, **values: Any) -> dict[str, Any]:
    """Move a deployment to where the provider has it, unless another hand has begun or done its end meanwhile."""
    with ledger.transaction():
        row = ledger.get("deployments", deployment_id)
        if row["state"] == "deleted" or (row["state"] in SHUTTING_STATES and state not in ("stopping", "stopped")):
            return row
        return ledger.transition("deployments", deployment_id, state, **values)


def _check_price(ledger: Ledger, row: dict[str, Any], remote: Any) -> None:
    """The provider put it on other hardware than we priced: nothing that we know the price of."""
    if not remote.hardware.lower().startswith(row["hardware"]) and not row["hardware"].startswith(
        remote.hardware.lower()
    ):
        reason = f"it runs on {remote.hardware}, priced was {row['hardware']}"
        if row["state"] in (*STARTING_STATES, "ready"):
            ledger.transition("deployments", row["id"], "stopping", why=reason, reason=reason)


def _give_traffic(client: Together, row: dict[str, Any]) -> None:
    with asking(f"traffic of {row['name']}"):
        endpoint = client.endpoints.retrieve(row["endpoint_id"])
        split = {entry.deployment_id: entry.weight for entry in endpoint.traffic_split or ()}
        if split != {row["remote_id"]: 1}:
            client.endpoints.update(
                row["endpoint_id"],
                traffic_split=[{"deployment_id": row["remote_id"], "weight": 1}],
                **etag_of(endpoint),
            )


def _gone(ledger: Ledger, row: dict[str, Any], now: datetime) -> dict[str, Any]:
    """It does not exist any more: charge what may have run, and close its money."""
    meter_minutes(ledger, row["id"], 0, now=now)
    with ledger.transaction():
        if row["reservation_id"]:
            ledger.release(row["reservation_id"], now=now)
        return ledger.transition("deployments", row["id"], "deleted", stopped_at=row["stopped_at"] or now, now=now)


def _roll_back(client: Together, ledger: Ledger, deployment_id: str, why: str, clock: Callable[[], datetime]) -> None:
    """Take down what was started. What cannot be reached now, the guard takes down."""
    begin_shutdown(ledger, deployment_id, why=why, immediately=True, now=clock())
    with contextlib.suppress(ProviderError):
        for _ in range(3):
            if advance_shutdown(client, ledger, deployment_id, now=clock)["state"] == "deleted":
                break


def begin_shutdown(
    ledger: Ledger, deployment_id: str, *, why: str, immediately: bool = False, now: datetime
) -> dict[str, Any]:
    """Decide that a deployment ends: it drains (its route is to be withdrawn first), or stops at once."""
    with ledger.transaction():  # two may decide it at once
        row = ledger.get("deployments", deployment_id)
        if row["state"] in ("stopping", "stopped", "deleted"):
            return row
        drains = not immediately and row["state"] in ("ready", "degraded", "provisioning", "draining")
        state = "draining" if drains else "stopping"
        return ledger.transition("deployments", deployment_id, state, why=why, reason=why, now=now)


def advance_shutdown(client: Together, ledger: Ledger, deployment_id: str, *, now: Now = None) -> dict[str, Any]:
    """Take a deployment that is to end as far down as it goes without waiting: scale to zero, meter, delete.

    Called again and again until its state is `deleted`. Its route must be withdrawn before.
    """
    clock = clock_of(now)
    row = ledger.get("deployments", deployment_id)
    if row["state"] == "deleted":
        return row
    if row["state"] != "stopped":
        row = _move(ledger, deployment_id, "stopping", now=clock())
    if row["endpoint_id"] is None:
        with asking(f"looking for endpoint {row['name']}"):
            endpoint = find_endpoint(client, row["name"])
        if endpoint is None:
            return _gone(ledger, row, clock())
        row = _know_endpoint(ledger, row, endpoint, clock())
    try:
        return _take_down(client, ledger, row, clock)
    except RemoteNotFound as error:
        with asking(f"looking for endpoint {row['name']}"):
            if find_endpoint(client, row["name"]) is not None:
                raise UnexpectedAnswer(f"{error}; its endpoint is still there, so it is looked at again") from error
        return _gone(ledger, row, clock())


def _take_down(client: Together, ledger: Ledger, row: dict[str, Any], clock: Callable[[], datetime]) -> dict[str, Any]:
    with asking(f"looking at {row['name']}"):
        remotes = listed(client.endpoints.deployments.list(row["endpoint_id"]))
    # What became ready since the last look is seen a last time before it is stopped.
    at_most = max(row["max_replicas"], row["replicas"])
    meter_minutes(ledger, row["id"], sum(replicas_of(remote, at_most) for remote in remotes), now=clock())
    remotes = stop_replicas(client, row["endpoint_id"])
    if row["remote_id"] is None and remotes and text(remotes[0].id):
        row = ledger.update("deployments", row["id"], remote_id=remotes[0].id, now=clock())
    meter_minutes(ledger, row["id"], sum(replicas_of(remote, at_most) for remote in remotes), now=clock())
    if any(state_of(remote) != "stopped" for remote in remotes):
        return ledger.get("deployments", row["id"])
    row = _move(ledger, row["id"], "stopped", stopped_at=row["stopped_at"] or clock(), now=clock())
    for remote in remotes:
        if text(remote.id) and remote.id != row["remote_id"]:
            charge_double(ledger, row, remote, now=clock())
        # Gone already: the answer to an earlier delete was lost. Its endpoint is still there.
        with contextlib.suppress(RemoteNotFound), asking(f"deleting {remote.name}"):
            client.endpoints.deployments.delete(remote.id, endpoint_id=row["endpoint_id"], **etag_of(remote))
    with contextlib.suppress(RemoteNotFound), asking(f"deleting {row['name']}"):
        client.endpoints.delete(row["endpoint_id"], **etag_of(client.endpoints.retrieve(row["endpoint_id"])))
    return _gone(ledger, row, clock())


def charge_double(ledger: Ledger, row: dict[str, Any], remote: Any, *, now: datetime) -> None:
    """Write down a deployment beside the one of `row`, once, as an object of its own that has ended.

    Charged are all replicas for all the time that it existed, until the bill tells.
    """
    begun = min(moment(remote.created_at) or row["created_at"], now)  # its clock may be ahead of ours
    minutes = math.ceil((now - begun).total_seconds() / 60) * max(row["max_replicas"], 1)
    with ledger.transaction():
        if ledger.find("deployments", remote_id=remote.id):
            return
        own = ledger.add(
            "deployments",
            state="deleted",
            remote_id=remote.id,
            name=remote.id,
            attempted_at=begun,
            stopped_at=now,
            billed_minutes=minutes,
            now=now,
            **{
                column: row[column]
                for column in (
                    *("decision_type", "model_id", "model_object_id", "config", "hardware"),
                    *("hourly_nano", "max_replicas", "endpoint_id"),
                )
            },
        )
        ledger.charge(
            "endpoint",
            from_nano(-(-row["hourly_nano"] * minutes // 60)),
            key=f"endpoint:{own['id']}:0-{minutes}",
            what=f"{minutes} replica minutes at most of {remote.id}, a double of {row['name']}, until the bill tells",
            decision_type=row["decision_type"],
            model_id=row["model_id"],
            deployment_id=own["id"],
            quantity=minutes,
            ts=begun,
            now=now,
        )


def stop_replicas(client: Together, endpoint_id: str) -> list[Any]:
    """Take an endpoint's traffic away and scale what is under it to zero; returns its deployments as they are then."""
    with asking(f"stopping what is under endpoint {endpoint_id}"):
        endpoint = client.endpoints.retrieve(endpoint_id)
        if endpoint.traffic_split:
            client.endpoints.update(endpoint_id, traffic_split=[], **etag_of(endpoint))
        for remote in listed(client.endpoints.deployments.list(endpoint_id)):
            if may_run(remote):
                client.endpoints.deployments.update(
                    remote.id,
                    endpoint_id=endpoint_id,
                    autoscaling={"min_replicas": 0, "max_replicas": 0},
                    **etag_of(remote),
                )
        return listed(client.endpoints.deployments.list(endpoint_id))


def undeploy_model(
    client: Together,
    ledger: Ledger,
    deployment_id: str,
    *,
    routes_path: Path | str | None = None,
    why: str = "undeployed by the user",
    drain_seconds: float = 2.0,
    poll_seconds: float = 5.0,
    timeout: timedelta = timedelta(minutes=15),
    progress: Progress | None = None,
    now: Now = None,
    wait: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Withdraw a deployment's route, let requests under way end, stop it, delete it; returns its ledger row, `deleted`.

    They are given `drain_seconds`, or what their route's deadline gives them, up to `LONGEST_DRAIN`: all of it where a
    call that did not end has withdrawn the route before. What it cost is charged. May be called again at any time; what
    it leaves undone, the guard does. Raises NotReady after `timeout`, ProviderUnavailable.
    """
    clock = clock_of(now)
    row = ledger.get("deployments", deployment_id)
    if row["state"] == "deleted":
        return row
    serves = row["ready_at"] is not None and row["replicas"] > 0
    drains_since = row["updated_at"] if row["state"] == "draining" else None
    row = begin_shutdown(ledger, deployment_id, why=why, now=clock())
    if routes_path is not None and row["served_name"]:
        deadline = LONGEST_DRAIN if drains_since else longest_deadline(routes_path, row["served_name"])
        withdraw_model(routes_path, row["served_name"], now=clock())
        if serves and row["state"] == "draining":
            passed = (clock() - drains_since).total_seconds() if drains_since else 0.0
            wait(max(drain_seconds, min(deadline, LONGEST_DRAIN) - passed))
    deadline = time.monotonic() + timeout.total_seconds()
    clock = provider_clock(client, now)  # asked for only now: the route is to be withdrawn whatever the provider does
    while True:
        trouble: ProviderUnavailable | None = None
        try:
            row = advance_shutdown(client, ledger, deployment_id, now=clock)
        except ProviderUnavailable as error:
            trouble = error
        if row["state"] == "deleted":
            if progress:
                progress(1.0, f"{row['name']} is down")
            return row
        if time.monotonic() >= deadline:
            raise trouble or NotReady(f"{row['name']} is still {row['state']}; the guard goes on stopping it")
        if progress:
            progress(0.5, f"stopping {row['name']}")
        wait(pause(poll_seconds, trouble))
