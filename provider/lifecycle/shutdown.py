"""The end of a deployment: decided, drained, scaled to zero, deleted. Every stop goes through `stop_replicas`.

Replicas cost money, so they are scaled to zero first and by themselves. Traffic, deletion and all else come after, and
what the provider refuses of them holds nothing up: no step of a stop depends on another.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from provider.clock import Now, clock_of, provider_clock
from provider.errors import (
    NotReady,
    ProviderError,
    ProviderRefused,
    ProviderUnavailable,
    RemoteNotFound,
    UnexpectedAnswer,
)
from provider.lifecycle.deployment_state import know_endpoint, move_deployment
from provider.lifecycle.routes import longest_deadline, withdraw_model
from provider.lifecycle.sharing import attached_to, detach_model, unused_replicas
from provider.money.metering import last_metered, meter_minutes
from provider.pace import AT_EASE, Pace
from provider.port import Provider, RemoteDeployment
from provider.retries import pause
from reasoning.errors import ReasoningError
from storage.ledger.charges import ChargedTo
from storage.ledger.money import minutes_usd
from storage.ledger.rows import Deployment, DeploymentRole, DeploymentState, required
from storage.progress import share_done

if TYPE_CHECKING:
    from storage.ledger.ledger import Ledger

LONGEST_DRAIN = 60.0
"""Seconds that requests under way are given where a deployment is taken down, as the guard gives them a tick."""

LOOK_SECONDS = 10.0
"""How long the look before a stop may take: a provider that does not answer must not hold the stop up."""

DOWN_TIMEOUT = timedelta(minutes=15)
"""The longest that `undeploy_model` waits for a deployment to be deleted."""

NOT_DELETED = "it has stopped and costs nothing, but is not deleted"

REFUSALS = 3
"""How often `undeploy_model` asks to delete what has stopped and costs nothing, before it leaves that to the guard."""


def begin_shutdown(
    ledger: Ledger, deployment_id: str, *, why: str, immediately: bool = False, now: datetime
) -> Deployment:
    """Decide that a deployment ends: it drains (its route is to be withdrawn first), or stops at once."""
    with ledger.transaction():  # two may decide it at once
        row = ledger.get(Deployment, deployment_id)
        if row.state in (DeploymentState.STOPPING, DeploymentState.STOPPED, DeploymentState.DELETED):
            return row
        drains = not immediately and row.state in (
            DeploymentState.READY,
            DeploymentState.DEGRADED,
            DeploymentState.PROVISIONING,
            DeploymentState.DRAINING,
        )
        state = DeploymentState.DRAINING if drains else DeploymentState.STOPPING
        if row.role == DeploymentRole.SHARED:  # what it carries ends with it
            for attached in attached_to(ledger, row.id):
                begin_shutdown(ledger, attached.id, why=why, immediately=immediately, now=now)
        return ledger.transition(Deployment, deployment_id, state, why=why, reason=why, now=now)


def end_unused(ledger: Ledger, *, now: datetime) -> list[Deployment]:
    """Decide that shared replicas end that carry nothing any more; returns them."""
    with ledger.transaction():  # nobody can be given a place on one meanwhile
        unused = unused_replicas(ledger)
        return [
            begin_shutdown(ledger, row.id, why="no model is attached to it any more", immediately=True, now=now)
            for row in unused
        ]


def advance_shutdown(provider: Provider, ledger: Ledger, deployment_id: str, *, now: Now = None) -> Deployment:
    """Take a deployment that is to end as far down as it goes without waiting: scale to zero, meter, delete.

    Called again and again until its state is `deleted`. Its route must be withdrawn before. `stopped`, with the reason,
    is what the provider will not delete yet: it costs nothing.
    """
    clock = clock_of(now)
    row = ledger.get(Deployment, deployment_id)
    if row.state == DeploymentState.DELETED:
        return row
    if row.state != DeploymentState.STOPPED:
        row = move_deployment(ledger, deployment_id, DeploymentState.STOPPING, now=clock())
    if row.role == DeploymentRole.ATTACHED:
        row = detach_model(provider, ledger, row, now=clock)
        for replica in end_unused(ledger, now=clock()):
            with contextlib.suppress(ProviderError):  # else the guard goes on with it
                advance_shutdown(provider, ledger, replica.id, now=clock)
        return row
    if row.endpoint_id is None:
        endpoint = provider.find_endpoint(row.name)
        if endpoint is None:
            return _gone(ledger, row, clock())
        row = know_endpoint(ledger, row, endpoint, clock())
    try:
        return _take_down(provider, ledger, row, clock)
    except RemoteNotFound as error:
        if provider.find_endpoint(row.name) is not None:
            raise UnexpectedAnswer(f"{error}; its endpoint is still there, so it is looked at again") from error
        return _gone(ledger, row, clock())


def _take_down(provider: Provider, ledger: Ledger, row: Deployment, clock: Callable[[], datetime]) -> Deployment:
    # What became ready since the last look is seen a last time before it is stopped.
    at_most = max(row.max_replicas, row.replicas)
    endpoint_id = required(row.endpoint_id, row.name)
    ids = [row.remote_id] if row.remote_id else []
    seen = _look_quickly(provider, endpoint_id, ids, at_most)
    if seen is not None:
        meter_minutes(ledger, row.id, seen, now=clock())
    remotes = stop_replicas(provider, endpoint_id, known=ids)
    if row.remote_id is None and remotes and remotes[0].id:
        row = ledger.update(Deployment, row.id, remote_id=remotes[0].id, now=clock())
    if seen is None:
        meter_minutes(ledger, row.id, at_most, now=clock())
    running = sum(remote.replicas(at_most) for remote in remotes)
    meter_minutes(ledger, row.id, running, now=clock())
    if not all(remote.has_ended for remote in remotes):
        return move_deployment(ledger, row.id, DeploymentState.STOPPING, now=clock())  # also what was started again
    if not running:
        row = _cost_nothing(ledger, row, clock())
    for remote in remotes:
        if remote.id and remote.id != row.remote_id:
            charge_double(ledger, row, remote, now=clock())
    refused = _delete_all(provider, row, remotes)
    if refused and running:  # FAILED, and yet it has replicas
        raise refused
    if refused:
        return ledger.update(Deployment, row.id, reason=f"{NOT_DELETED}: {refused}", now=clock())
    return _gone(ledger, row, clock())


def _cost_nothing(ledger: Ledger, row: Deployment, now: datetime) -> Deployment:
    """Nothing of it can cost anything any more, so nothing is reserved for it."""
    with ledger.transaction():
        if row.reservation_id:
            ledger.release(row.reservation_id, now=now)
        return move_deployment(ledger, row.id, DeploymentState.STOPPED, stopped_at=row.stopped_at or now, now=now)


def _look_quickly(provider: Provider, endpoint_id: str, known: Iterable[str], at_most: int) -> int | None:
    """Replicas that may run under an endpoint; None where that cannot be seen in `LOOK_SECONDS`."""
    hasty = provider.with_timeout(LOOK_SECONDS, retries=False)
    try:
        remotes = _with_unlisted(hasty, endpoint_id, known, hasty.deployments(endpoint_id))
        return sum(remote.replicas(at_most) for remote in remotes)
    except ProviderError:
        return None


def _delete_all(provider: Provider, row: Deployment, remotes: Iterable[RemoteDeployment]) -> ProviderError | None:
    """Delete what has ended, and its endpoint; returns the first refusal, after all was tried."""
    refusals: list[ProviderError] = []
    endpoint_id = required(row.endpoint_id, row.name)
    for remote in remotes:
        # Gone already: the answer to an earlier delete was lost. Its endpoint is still there.
        with _noting_refusal(refusals), contextlib.suppress(RemoteNotFound):
            provider.delete_deployment(endpoint_id, remote)
    with _noting_refusal(refusals), contextlib.suppress(RemoteNotFound):
        provider.delete_endpoint(endpoint_id)
    return refusals[0] if refusals else None


@contextlib.contextmanager
def _noting_refusal(refusals: list[ProviderError]) -> Iterator[None]:
    try:
        yield
    except ProviderRefused as error:
        refusals.append(error)


def stop_replicas(provider: Provider, endpoint_id: str, *, known: Iterable[str] = ()) -> list[RemoteDeployment]:
    """Scale all that is under an endpoint to zero, then withdraw its traffic; returns its deployments as they are then.

    `known` are ids of deployments under it, scaled before anything is asked. Everything is tried whatever the provider
    says to the rest; then raises the first ProviderError by which a replica may still run. That its traffic could not
    be withdrawn is none: it has nothing to go to.
    """
    troubles: list[ProviderError] = []
    known, done = list(known), set()
    for id in known:
        with _going_on(troubles):
            provider.scale(endpoint_id, id, 0)
            done.add(id)
    with _going_on(troubles):
        for remote in provider.deployments(endpoint_id):
            if remote.id not in done and remote.may_run:
                with _going_on(troubles):
                    _scale_to_zero(provider, endpoint_id, remote)
    with contextlib.suppress(ProviderError):
        provider.withdraw_traffic(endpoint_id)
    try:
        remotes = _with_unlisted(provider, endpoint_id, known, provider.deployments(endpoint_id))
    except RemoteNotFound:
        raise
    except ProviderError as error:
        raise (troubles or [error])[0] from error
    if troubles and any(remote.may_run and not remote.has_ended for remote in remotes):
        raise troubles[0]
    return remotes


def _scale_to_zero(provider: Provider, endpoint_id: str, remote: RemoteDeployment) -> None:
    if remote.id is None:
        raise UnexpectedAnswer(f"under endpoint {endpoint_id} something has no id: it cannot be stopped")
    provider.scale(endpoint_id, remote.id, 0)


def _with_unlisted(
    provider: Provider, endpoint_id: str, known: Iterable[str], remotes: list[RemoteDeployment]
) -> list[RemoteDeployment]:
    """What is listed, and what a list leaves out that is there all the same: it may be behind."""
    found = list(remotes)
    for id in set(known) - {remote.id for remote in remotes}:
        with contextlib.suppress(RemoteNotFound):
            found.append(provider.deployment(endpoint_id, id))
    return found


@contextlib.contextmanager
def _going_on(troubles: list[ProviderError]) -> Iterator[None]:
    try:
        yield
    except ProviderError as error:
        troubles.append(error)


def _gone(ledger: Ledger, row: Deployment, now: datetime) -> Deployment:
    """It does not exist any more: charge what may have run, and close its money."""
    meter_minutes(ledger, row.id, 0, now=now)
    with ledger.transaction():
        if row.reservation_id:
            ledger.release(row.reservation_id, now=now)
        reason = None if (row.reason or "").startswith(NOT_DELETED) else row.reason
        return ledger.transition(
            Deployment, row.id, DeploymentState.DELETED, stopped_at=row.stopped_at or now, reason=reason, now=now
        )


def charge_double(ledger: Ledger, row: Deployment, remote: RemoteDeployment, *, now: datetime) -> None:
    """Write down a deployment beside the one of `row`, once, as an object of its own that has ended.

    Charged are all replicas for all the time that it existed, until the bill tells.
    """
    begun = min(remote.created_at or row.created_at, now)  # its clock may be ahead of ours
    minutes = math.ceil((now - begun).total_seconds() / 60) * max(row.max_replicas, 1)
    with ledger.transaction():
        if ledger.find(Deployment, remote_id=remote.id):
            return
        own = ledger.add(
            Deployment,
            state=DeploymentState.DELETED,
            remote_id=remote.id,
            name=remote.id,
            attempted_at=begun,
            stopped_at=now,
            billed_minutes=minutes,
            now=now,
            **{
                column: getattr(row, column)
                for column in (
                    *("provider", "decision_type", "model_id", "model_object_id", "config", "hardware"),
                    *("hourly_usd", "max_replicas", "endpoint_id"),
                )
            },
        )
        ledger.charge(
            "endpoint",
            minutes_usd(row.hourly_usd, minutes),
            key=f"endpoint:{own.id}:0-{minutes}",
            what=f"{minutes} replica minutes at most of {remote.id}, a double of {row.name}, until the bill tells",
            of=ChargedTo(decision_type=row.decision_type, model_id=row.model_id, deployment_id=own.id),
            quantity=minutes,
            ts=begun,
            now=now,
        )


def undeploy_model(
    provider: Provider | None,
    ledger: Ledger,
    deployment_id: str,
    *,
    routes_path: Path | str | None = None,
    why: str = "undeployed by the user",
    drain_seconds: float = 2.0,
    pace: Pace = AT_EASE,
) -> Deployment:
    """Withdraw a deployment's route, let requests under way end, stop it, delete it; returns its ledger row, `deleted`.

    They are given `drain_seconds`, or what their route's deadline gives them, up to `LONGEST_DRAIN`: all of it where a
    call that did not end has withdrawn the route before. What it cost is charged. May be called again at any time; what
    it leaves undone, the guard does. Route and wish need no provider: with `provider` None, where it cannot be reached,
    that is all that is done. Raises NotReady after `pace.timeout` (`DOWN_TIMEOUT`), or when the provider will not
    delete what has stopped, ProviderUnavailable, ProviderRefused; and after all is done, RoutesError where the route
    could not be withdrawn.
    """
    clock = clock_of(pace.now)
    row = ledger.get(Deployment, deployment_id)
    if row.state == DeploymentState.DELETED:
        return row
    serves = row.ready_at is not None and row.replicas > 0
    drains_since = row.updated_at if row.state == DeploymentState.DRAINING else None
    row = begin_shutdown(ledger, deployment_id, why=why, now=clock())
    routed: Exception | None = None
    if routes_path is not None and row.served_name:
        deadline = LONGEST_DRAIN if drains_since else longest_deadline(routes_path, row.served_name)
        try:
            withdraw_model(routes_path, row.served_name, now=clock())
        except (ReasoningError, OSError) as error:  # it ends with its lease; the replicas would not
            routed = error
        if serves and row.state == DeploymentState.DRAINING and provider is not None:
            passed = (clock() - drains_since).total_seconds() if drains_since else 0.0
            pace.wait(max(drain_seconds, min(deadline, LONGEST_DRAIN) - passed))
    if provider is not None:
        try:
            row = _follow_down(provider, ledger, row, pace)
        except ProviderRefused as error:
            withdrawn = "Its route is withdrawn and its end" if routes_path is not None else "Its end"
            raise type(error)(
                f"{error}. {withdrawn} is written down: the guard stops it as soon as the provider lets it"
            ) from error
    if routed is not None:
        raise routed
    return row


def _follow_down(
    provider: Provider,
    ledger: Ledger,
    row: Deployment,
    pace: Pace,
) -> Deployment:
    """Advance a shutdown until it is done. Raises NotReady, ProviderUnavailable, ProviderRefused."""
    deadline, refusals = time.monotonic() + pace.longest(DOWN_TIMEOUT).total_seconds(), 0
    progress = pace.progress
    clock = provider_clock(provider, pace.now, seen=last_metered(ledger))
    while True:
        trouble: ProviderUnavailable | None = None
        try:
            row = advance_shutdown(provider, ledger, row.id, now=clock)
        except ProviderUnavailable as error:
            trouble = error
        if row.state == DeploymentState.DELETED:
            if progress:
                progress(share_done(1.0, f"{row.name} is down"))
            return row
        refusals += row.state == DeploymentState.STOPPED and trouble is None
        if refusals >= REFUSALS:
            raise NotReady(f"{row.name}: {row.reason or 'it does not end'}. The guard goes on asking")
        if time.monotonic() >= deadline:
            raise trouble or NotReady(f"{row.name} is still {row.state}; the guard goes on stopping it")
        if progress:
            progress(share_done(0.5, f"stopping {row.name}"))
        pace.wait(pause(pace.poll_seconds, trouble))
