"""What really runs at the provider, against the ledger; and the provider's bill, against our charges.

Whose an object is, its name says: `rsn-<installation>-...`. Of ours, one that the ledger does not know, or holds for
ended, is an orphan: it is written down, stopped and charged. All others belong to strangers and are never touched.

One answer that is not as documented does not end it: it goes on with what it can judge and reports the rest by name.
What has no name is nobody's: it is not touched, and nothing is held for absent from a list that it is in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from provider.clock import correct_time
from provider.errors import ProviderError, ProviderUnavailable, UnexpectedAnswer, collect_errors
from provider.lifecycle.deployment_state import LIVE_STATES, SHUTTING_STATES, sync_deployment
from provider.lifecycle.fine_tunes import abandon_fine_tune, adopt_job, cancel_fine_tune, sync_fine_tune
from provider.lifecycle.sharing import detach_strangers
from provider.lifecycle.shutdown import advance_shutdown, begin_shutdown, charge_double, end_unused
from provider.money.bill import BillState, reconcile_bill
from provider.money.metering import last_metered, meter_decisions
from provider.money.shares import share_replicas
from provider.port import Provider, RemoteDeployment, RemoteEndpoint, RemoteJob
from storage.layout import Layout
from storage.ledger.ledger import Ledger, open_ledger
from storage.ledger.reports import ENDED_STATES
from storage.ledger.rows import Deployment, DeploymentRole, DeploymentState, FineTuneJob, JobState, required

ABANDON_AFTER = timedelta(minutes=10)
"""An intent that nobody works on, and of which the provider knows nothing for so long, is given up."""

LATE_ROWS = timedelta(days=31)
"""Decisions that land later than this are not charged any more."""

UNWATCHED = timedelta(minutes=30)
"""What nobody has metered for so long, nor asked, is stopped here: its guard is dead, and its budget with it."""

_RUNNING_STATES = (DeploymentState.PROVISIONING, DeploymentState.DEGRADED, DeploymentState.READY)


@dataclass(slots=True)
class ReconcileReport:
    """What was found and done. `difference_usd`: bill minus charges, for our objects, before the correction."""

    now: datetime
    skipped: bool = False
    orphans: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    strangers: int = 0
    bill: BillState = "not compared"
    billed_usd: Decimal = Decimal(0)
    charged_usd: Decimal = Decimal(0)
    difference_usd: Decimal = Decimal(0)
    adjustments: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def reconcile_provider(
    data: Path | str, provider: Provider | None, *, ledger: Ledger | None = None, now: datetime | None = None
) -> ReconcileReport:
    """Bring ledger and provider together. Meant for every ten minutes; two at once are harmless.

    With `client` None, where nothing of ours is at a provider, only late decisions are charged.

    Where the provider's clock differs from `now` by more than a minute, the provider's time is used, and that is said
    in `warnings`.

    What the provider refuses, or answers so that it cannot be read, is in `errors`, and the rest goes on. Raises
    ProviderUnavailable or ProviderRefused when it tells neither its jobs nor its endpoints, LedgerUnavailable without
    a ledger.
    """
    report = ReconcileReport(now=now or datetime.now(UTC))
    opened = ledger or open_ledger(data, now=report.now)
    try:
        with opened.exclusive("reconcile") as alone:
            if not alone:
                report.skipped = True
                return report
            if provider is not None:
                report.now, timed = correct_time(provider, report.now, report.warnings, seen=last_metered(opened))
                _reconcile_all(provider, opened, report, timed=timed)
            _meter_late_rows(Layout(data), opened, report)
        return report
    finally:
        if ledger is None:
            opened.close()


def _reconcile_all(provider: Provider, ledger: Ledger, report: ReconcileReport, *, timed: bool) -> None:
    """`timed`: the provider told what time it is. Else nothing is stopped or charged for what our clock says alone."""
    away: ProviderError | None = None
    try:
        _reconcile_jobs(provider, ledger, report)
    except ProviderError as error:
        away = error
    with collect_errors(report.errors, "what was to end"):
        _go_on_stopping(provider, ledger, report)
    try:
        _reconcile_deployments(provider, ledger, report)
    except ProviderError as error:
        if away is not None:
            raise
        away = error
    if away is not None:
        report.errors.append(str(away))
    if not timed:
        report.errors.append(
            "the provider did not tell the time, or none that can be believed: what no guard looks at, and the bill, "
            "are left to the next run"
        )
        return
    with collect_errors(report.errors, "what no guard looks at"):
        _stop_unwatched(provider, ledger, report)
    with collect_errors(report.errors, "the bill was not compared, and no charge was changed"):
        compared = reconcile_bill(provider, ledger, now=report.now, errors=report.errors)
        report.bill = compared.state
        report.warnings += compared.warnings
        report.billed_usd, report.charged_usd = compared.billed_usd, compared.charged_usd
        report.difference_usd = compared.billed_usd - compared.charged_usd
        report.adjustments = compared.adjustments


def _meter_late_rows(layout: Layout, ledger: Ledger, report: ReconcileReport) -> None:
    """Decisions of agents that were away: the guard looks at the last days only."""
    with collect_errors(report.errors, "the decision log cannot be read"):  # the provider was reconciled
        meter_decisions(layout, ledger, since=report.now - LATE_ROWS, now=report.now)
        share_replicas(layout, ledger, since=report.now - LATE_ROWS, now=report.now)


def _nobodys(what: str, number: int, remote: RemoteJob | RemoteEndpoint, report: ReconcileReport) -> None:
    called = remote.id or f"number {number} of the list"
    report.errors.append(f"{what} {called}: the provider's answer does not tell whose it is, so it is left alone")


# -- fine-tune jobs ---------------------------------------------------------------------------------------------------


def _reconcile_jobs(provider: Provider, ledger: Ledger, report: ReconcileReport) -> None:
    ours, all_judged = [], True
    for number, job in enumerate(provider.jobs(), 1):
        if not job.is_named:
            _nobodys("fine-tune", number, job, report)
            all_judged = False
        elif (suffix := _our_suffix(job, ledger.prefix)) is None:
            report.strangers += 1
        else:
            ours.append((suffix, job))
    for suffix, remote in sorted(ours, key=lambda pair: _created_at(pair[1])):
        with collect_errors(report.errors, suffix):
            _reconcile_job(provider, ledger, suffix, remote, report)
    present = {suffix for suffix, _ in ours}
    with ledger.exclusive("submit") as alone:  # nobody is just submitting
        intended = ledger.find(FineTuneJob, provider=provider.name, state=JobState.INTENDED)
        for row in intended if alone and all_judged else ():
            if row.suffix not in present and report.now - row.updated_at >= ABANDON_AFTER:
                abandon_fine_tune(ledger, row.id, why="it never reached the provider", now=report.now)
                report.actions.append(f"gave up {row.suffix}: it never reached the provider")


def _our_suffix(job: RemoteJob, prefix: str) -> str | None:
    """Our suffix in the name of a job, if it is ours."""
    if job.name:
        return job.name if job.name.startswith(prefix) else None
    found = re.search(rf"{re.escape(prefix)}[a-z0-9]+", job.output_name or "")
    return found[0] if found else None


def _is_a_strangers(provider: Provider, remote: RemoteJob, prefix: str) -> bool:
    """A list may leave a job's name out, and the name of its output may hold ours behind a stranger's words."""
    if remote.name or remote.id is None:
        return False
    name = provider.job(remote.id).name
    return bool(name) and not str(name).startswith(prefix)


def _reconcile_job(provider: Provider, ledger: Ledger, suffix: str, remote: RemoteJob, report: ReconcileReport) -> None:
    if remote.id is None:
        raise UnexpectedAnswer("a job of ours whose id the provider does not tell: it cannot be cancelled")
    if ledger.find(FineTuneJob, provider=provider.name, remote_id=remote.id):
        return  # known; the guard follows it
    if _is_a_strangers(provider, remote, ledger.prefix):
        report.strangers += 1
        return
    known = ledger.find(FineTuneJob, suffix=suffix)
    with ledger.exclusive("submit", wait=True):
        job = ledger.get(FineTuneJob, known[0].id) if known else None
        if job is not None and job.remote_id == remote.id:
            return
        if job is not None and job.state == JobState.INTENDED:
            adopt_job(ledger, job.id, remote, why="found by its suffix", now=report.now)
            report.actions.append(f"found {suffix}, whose submission was never answered")
            return
        if job is not None and job.state == JobState.ABANDONED:
            job = adopt_job(ledger, job.id, remote, why="it turned up after it had been given up", now=report.now)
        else:
            job = _add_orphan_job(provider, ledger, suffix, remote, report.now)
    report.orphans.append(f"fine-tune {suffix} ({remote.id})")
    job = sync_fine_tune(provider, ledger, job.id, now=report.now)
    if job.state not in ENDED_STATES:
        job = cancel_fine_tune(provider, ledger, job.id, why="an orphan: nobody asked for it", now=report.now)
    report.actions.append(f"fine-tune {remote.id} is {job.state}")


def _add_orphan_job(provider: Provider, ledger: Ledger, suffix: str, remote: RemoteJob, now: datetime) -> FineTuneJob:
    minimum, price = provider.capabilities.minimum_training_usd, remote.price_usd
    with ledger.transaction():
        # Nothing can be reserved for what exists already; its price is charged when it has ended.
        reservation = ledger.reserve(0, purpose=f"orphaned fine-tune {suffix}", ttl=None, now=now)
        return ledger.add(
            FineTuneJob,
            state=JobState.SUBMITTED,
            provider=provider.name,
            suffix=remote.id if ledger.find(FineTuneJob, suffix=suffix) else suffix,
            base_model=remote.base_model or "unknown",
            parameters="{}",
            estimate_usd=minimum if price is None else price,
            reservation_id=reservation.id,
            remote_id=remote.id,
            remote_state=remote.said,
            attempted_at=remote.created_at,
            now=now,
        )


# -- endpoints and deployments ----------------------------------------------------------------------------------------


def _reconcile_deployments(provider: Provider, ledger: Ledger, report: ReconcileReport) -> None:
    ours, all_judged = {}, True
    for number, endpoint in enumerate(provider.endpoints(), 1):
        if (name := endpoint.name) is None:
            _nobodys("endpoint", number, endpoint, report)
            all_judged = False
        elif name.startswith(ledger.prefix):
            ours[name] = endpoint
        else:
            report.strangers += 1
    for name, endpoint in ours.items():
        with collect_errors(report.errors, name):
            _reconcile_endpoint(provider, ledger, name, endpoint, report)
    with ledger.exclusive("submit") as alone:
        for row in (
            ledger.find(Deployment, provider=provider.name, state=DeploymentState.INTENDED)
            if alone and all_judged
            else ()
        ):
            if row.name not in ours and report.now - row.updated_at >= ABANDON_AFTER:
                _end(provider, ledger, row.id, "it never reached the provider", report)
    for row in ledger.find(Deployment, provider=provider.name, state=LIVE_STATES):
        if row.name not in ours and row.state != DeploymentState.INTENDED:
            with collect_errors(report.errors, row.name):  # it is gone: its money is settled
                if sync_deployment(provider, ledger, row.id, now=report.now)[0].state in SHUTTING_STATES:
                    advance_shutdown(provider, ledger, row.id, now=report.now)
    _reconcile_shared(provider, ledger, report)


def _reconcile_shared(provider: Provider, ledger: Ledger, report: ReconcileReport) -> None:
    """Adapters on our replicas that the ledger does not know of are detached; replicas without any are stopped."""
    shared = ledger.find(Deployment, provider=provider.name, role=DeploymentRole.SHARED, state=_RUNNING_STATES)
    for row in shared:
        with collect_errors(report.errors, row.name):
            for adapter in detach_strangers(provider, ledger, row):
                report.orphans.append(f"adapter {adapter.adapter_id} on {row.name}")
    for row in end_unused(ledger, now=report.now):
        _end(provider, ledger, row.id, row.reason or "nothing is attached to it", report)


def _stop_unwatched(provider: Provider, ledger: Ledger, report: ReconcileReport) -> None:
    """Without a guard nobody has been asking through a route for long: the lease ran out after minutes."""
    for row in ledger.find(Deployment, provider=provider.name, state=(*_RUNNING_STATES, DeploymentState.DRAINING)):
        seen_at = max(at for at in (row.metered_until, row.last_request_at, row.created_at) if at)
        if report.now - seen_at >= UNWATCHED:
            minutes = int((report.now - seen_at).total_seconds() // 60)
            _end(provider, ledger, row.id, f"no guard has looked at it for {minutes} minutes", report)


def _go_on_stopping(provider: Provider, ledger: Ledger, report: ReconcileReport) -> None:
    """What was to end before this run, and has not yet: who began it may have died, or been refused."""
    for row in ledger.find(
        Deployment,
        provider=provider.name,
        state=(DeploymentState.STOPPING, DeploymentState.STOPPED, DeploymentState.FAILED),
    ):
        _end(provider, ledger, row.id, row.reason or "it was to end", report)


def _reconcile_endpoint(
    provider: Provider, ledger: Ledger, name: str, endpoint: RemoteEndpoint, report: ReconcileReport
) -> None:
    if endpoint.id is None:
        raise UnexpectedAnswer("an endpoint of ours whose id the provider does not tell: it cannot be stopped")
    known = ledger.find(Deployment, name=name)
    row = known[0] if known else None
    if row is None:
        row = _add_orphan_deployment(provider, ledger, name, endpoint, report.now)
        report.orphans.append(f"endpoint {name} ({endpoint.id})")
    elif row.state == DeploymentState.DELETED:
        # It was believed to be gone, so what it cost since then has not been charged yet.
        row = ledger.transition(
            Deployment,
            row.id,
            DeploymentState.STOPPING,
            why="it turned up after it had been given up",
            endpoint_id=endpoint.id,
            served_name=endpoint.served_name,
            metered_until=row.stopped_at or row.created_at,
            reconciled_at=None,
            replicas=_ready(endpoint),
            now=report.now,
        )
        report.orphans.append(f"endpoint {name} ({endpoint.id})")
    elif row.state == DeploymentState.INTENDED:
        _adopt_intended(provider, ledger, row, endpoint, report)
        return
    else:
        _stop_doubles(provider, ledger, row, endpoint, report)
        return
    _end(provider, ledger, row.id, "an orphan: the ledger did not know that it runs", report)


def _add_orphan_deployment(
    provider: Provider, ledger: Ledger, name: str, endpoint: RemoteEndpoint, now: datetime
) -> Deployment:
    deployments = _below(endpoint)
    first = min(deployments, key=_created_at, default=None)
    begun = (first.created_at if first else None) or endpoint.created_at
    return ledger.add(
        Deployment,
        state=DeploymentState.STOPPING,
        provider=provider.name,
        name=name,
        model_object_id=(first.model_id if first else None) or "unknown",
        config="unknown",
        hardware=(first.hardware if first else None) or "unknown",
        hourly_usd=_orphans_price(provider, ledger, {d.hardware for d in deployments}),
        max_replicas=0,
        endpoint_id=endpoint.id,
        served_name=endpoint.served_name,
        remote_id=first.id if first else None,
        attempted_at=begun,
        metered_until=begun or now,
        replicas=_ready(endpoint),
        reason="an orphan: the ledger did not know it",
        now=now,
    )


def _below(endpoint: RemoteEndpoint) -> tuple[RemoteDeployment, ...]:
    if endpoint.deployments is None:
        raise UnexpectedAnswer(f"endpoint {endpoint.name}: the provider does not tell what runs under it")
    return endpoint.deployments


def _ready(endpoint: RemoteEndpoint) -> int:
    """Replicas that run under an endpoint; one of a deployment that does not tell."""
    return sum(deployment.replicas(1) for deployment in _below(endpoint))


def _created_at(remote: RemoteJob | RemoteDeployment) -> datetime:
    """When the provider says that an object was created; where it does not say, last."""
    return remote.created_at or datetime.max.replace(tzinfo=UTC)


def _orphans_price(provider: Provider, ledger: Ledger, hardware: set[str | None]) -> Decimal:
    """US dollars an hour. It is stopped whatever it costs; where that is not known, the dearest is the safe guess,
    until the bill tells: of the provider's list, or of what the ledger ever had.
    """
    if not hardware:
        return Decimal(0)  # nothing runs under it
    try:
        prices = dict(provider.hourly_prices())
    except ProviderUnavailable:
        prices = {}
    known = [prices[name] for name in hardware if name in prices]
    return max(known or prices.values() or [row.hourly_usd for row in ledger.find(Deployment)], default=Decimal(0))


def _adopt_intended(
    provider: Provider, ledger: Ledger, row: Deployment, endpoint: RemoteEndpoint, report: ReconcileReport
) -> None:
    """A process died, or still works, between the creates. What it started is followed; what it left is removed."""
    with ledger.exclusive("submit") as alone:
        row = ledger.get(Deployment, row.id)
        if not alone or row.state != DeploymentState.INTENDED:
            return
        remote = provider.find_deployment(required(endpoint.id, row.name), row.name)
        if remote is not None:
            ledger.transition(
                Deployment,
                row.id,
                DeploymentState.PROVISIONING,
                why="found by its name",
                endpoint_id=endpoint.id,
                served_name=endpoint.served_name,
                remote_id=remote.id,
                metered_until=row.attempted_at or row.created_at,
                now=report.now,
            )
            report.actions.append(f"found {row.name}, whose creation was never answered")
        elif report.now - row.updated_at >= ABANDON_AFTER:
            _end(provider, ledger, row.id, "its creation was given up half-way", report)


def _stop_doubles(
    provider: Provider, ledger: Ledger, row: Deployment, endpoint: RemoteEndpoint, report: ReconcileReport
) -> None:
    """Deployments beside the one of the ledger: a create that was carried out twice. Stopped, charged, deleted."""
    for double in _below(endpoint):
        if row.remote_id is None or double.id == row.remote_id:
            continue
        with collect_errors(report.errors, row.name):
            if double.id is None or endpoint.id is None:
                raise UnexpectedAnswer(f"beside {row.name} something has no id: it cannot be stopped")
            remote = provider.deployment(endpoint.id, double.id)
            if remote.may_run and not remote.has_ended:
                report.orphans.append(f"deployment {double.id} beside {row.name}")
                remote = provider.scale(endpoint.id, double.id, 0)
            if not remote.has_ended:
                continue
            charge_double(ledger, row, remote, now=report.now)
            provider.delete_deployment(endpoint.id, remote)
            report.actions.append(f"deleted deployment {double.id}, a double of {row.name}")


def _end(provider: Provider, ledger: Ledger, deployment_id: str, why: str, report: ReconcileReport) -> None:
    with collect_errors(report.errors, ledger.get(Deployment, deployment_id).name):
        begin_shutdown(ledger, deployment_id, why=why, immediately=True, now=report.now)
        row = advance_shutdown(provider, ledger, deployment_id, now=report.now)
        report.actions.append(f"{row.name} is {row.state}: {why}")
