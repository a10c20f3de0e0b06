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
from typing import TYPE_CHECKING, Any

from provider.errors import ProviderError, ProviderUnavailable, UnexpectedAnswer
from provider.lifecycle.deployment_state import LIVE_STATES, SHUTTING_STATES, find_deployment, sync_deployment
from provider.lifecycle.shutdown import advance_shutdown, begin_shutdown, charge_double, has_ended, scale_to_zero
from provider.money.bill import BillState, reconcile_bill
from provider.money.metering import last_metered, meter_decisions
from provider.together.answers import (
    bare_name,
    collect_errors,
    count,
    created_at,
    etag_of,
    job_price,
    listed,
    may_run,
    moment,
    text,
)
from provider.together.client import translate_sdk_errors
from provider.together.clock import correct_time
from provider.together.fine_tunes import ENDED_STATES, abandon_fine_tune, adopt_job, cancel_fine_tune, sync_fine_tune
from provider.together.prices import MINIMUM_FINE_TUNE_USD, hourly_prices
from storage.layout import Layout
from storage.ledger.ledger import Ledger, open_ledger
from storage.ledger.rows import TOGETHER, Deployment, FineTuneJob

if TYPE_CHECKING:
    from together import Together

ABANDON_AFTER = timedelta(minutes=10)
"""An intent that nobody works on, and of which the provider knows nothing for so long, is given up."""

LATE_ROWS = timedelta(days=31)
"""Decisions that land later than this are not charged any more."""

UNWATCHED = timedelta(minutes=30)
"""What nobody has metered for so long, nor asked, is stopped here: its guard is dead, and its budget with it."""


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
    data: Path | str, client: Together | None, *, ledger: Ledger | None = None, now: datetime | None = None
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
            if client is not None:
                report.now, timed = correct_time(client, report.now, report.warnings, seen=last_metered(opened))
                _reconcile_all(client, opened, report, timed=timed)
            _meter_late_rows(Layout(data), opened, report)
        return report
    finally:
        if ledger is None:
            opened.close()


def _reconcile_all(client: Together, ledger: Ledger, report: ReconcileReport, *, timed: bool) -> None:
    """`timed`: the provider told what time it is. Else nothing is stopped or charged for what our clock says alone."""
    away: ProviderError | None = None
    try:
        _reconcile_jobs(client, ledger, report)
    except ProviderError as error:
        away = error
    with collect_errors(report.errors, "what was to end"):
        _go_on_stopping(client, ledger, report)
    try:
        _reconcile_deployments(client, ledger, report)
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
        _stop_unwatched(client, ledger, report)
    with collect_errors(report.errors, "the bill was not compared, and no charge was changed"):
        compared = reconcile_bill(client, ledger, now=report.now, errors=report.errors)
        report.bill = compared.state
        report.warnings += compared.warnings
        report.billed_usd, report.charged_usd = compared.billed_usd, compared.charged_usd
        report.difference_usd = compared.billed_usd - compared.charged_usd
        report.adjustments = compared.adjustments


def _meter_late_rows(layout: Layout, ledger: Ledger, report: ReconcileReport) -> None:
    """Decisions of agents that were away: the guard looks at the last days only."""
    with collect_errors(report.errors, "the decision log cannot be read"):  # the provider was reconciled
        meter_decisions(layout, ledger, since=report.now - LATE_ROWS, now=report.now)


def _nobodys(what: str, number: int, remote: Any, report: ReconcileReport) -> None:
    called = text(getattr(remote, "id", None)) or f"number {number} of the list"
    report.errors.append(f"{what} {called}: the provider's answer does not tell whose it is, so it is left alone")


# -- fine-tune jobs ---------------------------------------------------------------------------------------------------


def _reconcile_jobs(client: Together, ledger: Ledger, report: ReconcileReport) -> None:
    with translate_sdk_errors("all fine-tunes"):
        remotes = listed(client.fine_tuning.list())
    ours, all_judged = [], True
    for number, job in enumerate(remotes, 1):
        try:
            suffix = _our_suffix(job, ledger.prefix)
        except (AttributeError, TypeError):
            _nobodys("fine-tune", number, job, report)
            all_judged = False
            continue
        if suffix is None:
            report.strangers += 1
        else:
            ours.append((suffix, job))
    for suffix, remote in sorted(ours, key=lambda pair: created_at(pair[1])):
        with collect_errors(report.errors, suffix):
            _reconcile_job(client, ledger, suffix, remote, report)
    present = {suffix for suffix, _ in ours}
    with ledger.exclusive("submit") as alone:  # nobody is just submitting
        for job in ledger.find(FineTuneJob, state="intended") if alone and all_judged else ():
            if job.suffix not in present and report.now - job.updated_at >= ABANDON_AFTER:
                abandon_fine_tune(ledger, job.id, why="it never reached the provider", now=report.now)
                report.actions.append(f"gave up {job.suffix}: it never reached the provider")


def _our_suffix(job: Any, prefix: str) -> str | None:
    """Our suffix in the name of a job, if it is ours. Raises TypeError or AttributeError where it has none to tell."""
    if job.suffix:
        return str(job.suffix) if job.suffix.startswith(prefix) else None
    found = re.search(rf"{re.escape(prefix)}[a-z0-9]+", job.x_model_output_name or "")
    return found[0] if found else None


def _is_a_strangers(client: Together, remote: Any, prefix: str) -> bool:
    """A list may leave a job's suffix out, and the name of its output may hold ours behind a stranger's words."""
    if remote.suffix:
        return False
    with translate_sdk_errors(f"fine-tune {remote.id}"):
        suffix = getattr(client.fine_tuning.retrieve(remote.id), "suffix", None)  # the SDK knows it of lists only
        return bool(suffix) and not str(suffix).startswith(prefix)


def _reconcile_job(client: Together, ledger: Ledger, suffix: str, remote: Any, report: ReconcileReport) -> None:
    if text(remote.id) is None:
        raise UnexpectedAnswer("a job of ours whose id the provider does not tell: it cannot be cancelled")
    if ledger.find(FineTuneJob, remote_id=remote.id):
        return  # known; the guard follows it
    if _is_a_strangers(client, remote, ledger.prefix):
        report.strangers += 1
        return
    known = ledger.find(FineTuneJob, suffix=suffix)
    with ledger.exclusive("submit", wait=True):
        job = ledger.get(FineTuneJob, known[0].id) if known else None
        if job is not None and job.remote_id == remote.id:
            return
        if job is not None and job.state == "intended":
            adopt_job(ledger, job.id, remote, why="found by its suffix", now=report.now)
            report.actions.append(f"found {suffix}, whose submission was never answered")
            return
        if job is not None and job.state == "abandoned":
            job = adopt_job(ledger, job.id, remote, why="it turned up after it had been given up", now=report.now)
        else:
            job = _add_orphan_job(ledger, suffix, remote, report.now)
    report.orphans.append(f"fine-tune {suffix} ({remote.id})")
    job = sync_fine_tune(client, ledger, job.id, now=report.now)
    if job.state not in ENDED_STATES:
        job = cancel_fine_tune(client, ledger, job.id, why="an orphan: nobody asked for it", now=report.now)
    report.actions.append(f"fine-tune {remote.id} is {job.state}")


def _add_orphan_job(ledger: Ledger, suffix: str, remote: Any, now: datetime) -> FineTuneJob:
    price = job_price(remote)
    with ledger.transaction():
        # Nothing can be reserved for what exists already; its price is charged when it has ended.
        reservation = ledger.reserve(0, purpose=f"orphaned fine-tune {suffix}", ttl=None, now=now)
        return ledger.add(
            FineTuneJob,
            state="submitted",
            suffix=remote.id if ledger.find(FineTuneJob, suffix=suffix) else suffix,
            base_model=text(remote.model) or "unknown",
            parameters="{}",
            estimate_usd=MINIMUM_FINE_TUNE_USD if price is None else price,
            reservation_id=reservation.id,
            remote_id=remote.id,
            remote_state=text(remote.status),
            attempted_at=moment(getattr(remote, "created_at", None)),
            now=now,
        )


# -- endpoints and deployments ----------------------------------------------------------------------------------------


def _reconcile_deployments(client: Together, ledger: Ledger, report: ReconcileReport) -> None:
    with translate_sdk_errors("all endpoints"):
        endpoints = listed(client.endpoints.list())
    ours, all_judged = {}, True
    for number, endpoint in enumerate(endpoints, 1):
        if (name := bare_name(endpoint)) is None:
            _nobodys("endpoint", number, endpoint, report)
            all_judged = False
        elif name.startswith(ledger.prefix):
            ours[name] = endpoint
        else:
            report.strangers += 1
    for name, endpoint in ours.items():
        with collect_errors(report.errors, name):
            _reconcile_endpoint(client, ledger, name, endpoint, report)
    with ledger.exclusive("submit") as alone:
        for row in ledger.find(Deployment, provider=TOGETHER, state="intended") if alone and all_judged else ():
            if row.name not in ours and report.now - row.updated_at >= ABANDON_AFTER:
                _end(client, ledger, row.id, "it never reached the provider", report)
    for row in ledger.find(Deployment, provider=TOGETHER, state=LIVE_STATES):
        if row.name not in ours and row.state != "intended":
            with collect_errors(report.errors, row.name):  # it is gone: its money is settled
                if sync_deployment(client, ledger, row.id, now=report.now)[0].state in SHUTTING_STATES:
                    advance_shutdown(client, ledger, row.id, now=report.now)


def _stop_unwatched(client: Together, ledger: Ledger, report: ReconcileReport) -> None:
    """Without a guard nobody has been asking through a route for long: the lease ran out after minutes."""
    for row in ledger.find(Deployment, provider=TOGETHER, state=("provisioning", "degraded", "ready", "draining")):
        seen_at = max(at for at in (row.metered_until, row.last_request_at, row.created_at) if at)
        if report.now - seen_at >= UNWATCHED:
            minutes = int((report.now - seen_at).total_seconds() // 60)
            _end(client, ledger, row.id, f"no guard has looked at it for {minutes} minutes", report)


def _go_on_stopping(client: Together, ledger: Ledger, report: ReconcileReport) -> None:
    """What was to end before this run, and has not yet: who began it may have died, or been refused."""
    for row in ledger.find(Deployment, provider=TOGETHER, state=("stopping", "stopped", "failed")):
        _end(client, ledger, row.id, row.reason or "it was to end", report)


def _reconcile_endpoint(client: Together, ledger: Ledger, name: str, endpoint: Any, report: ReconcileReport) -> None:
    if text(endpoint.id) is None:
        raise UnexpectedAnswer("an endpoint of ours whose id the provider does not tell: it cannot be stopped")
    known = ledger.find(Deployment, name=name)
    row = known[0] if known else None
    if row is None:
        row = _add_orphan_deployment(client, ledger, name, endpoint, report.now)
        report.orphans.append(f"endpoint {name} ({endpoint.id})")
    elif row.state == "deleted":
        # It was believed to be gone, so what it cost since then has not been charged yet.
        row = ledger.transition(
            Deployment,
            row.id,
            "stopping",
            why="it turned up after it had been given up",
            endpoint_id=endpoint.id,
            served_name=endpoint.name,
            metered_until=row.stopped_at or row.created_at,
            reconciled_at=None,
            replicas=_ready(endpoint),
            now=report.now,
        )
        report.orphans.append(f"endpoint {name} ({endpoint.id})")
    elif row.state == "intended":
        _adopt_intended(client, ledger, row, endpoint, report)
        return
    else:
        _stop_doubles(client, ledger, row, endpoint, report)
        return
    _end(client, ledger, row.id, "an orphan: the ledger did not know that it runs", report)


def _add_orphan_deployment(client: Together, ledger: Ledger, name: str, endpoint: Any, now: datetime) -> Deployment:
    deployments = endpoint.deployments or ()
    first = min(deployments, key=created_at, default=None)
    begun = (moment(first.created_at) if first else None) or moment(endpoint.created_at)
    return ledger.add(
        Deployment,
        state="stopping",
        name=name,
        model_object_id=(text(first.api_model_id) if first else None) or "unknown",
        config="unknown",
        hardware=(text(first.hardware) if first else None) or "unknown",
        hourly_usd=_orphans_price(client, ledger, {text(d.hardware) for d in deployments}),
        max_replicas=0,
        endpoint_id=endpoint.id,
        served_name=endpoint.name,
        remote_id=text(first.id) if first else None,
        attempted_at=begun,
        metered_until=begun or now,
        replicas=_ready(endpoint),
        reason="an orphan: the ledger did not know it",
        now=now,
    )


def _ready(endpoint: Any) -> int:
    """Replicas that run under an endpoint; one of a deployment that does not tell."""
    said = [deployment.ready_replicas for deployment in endpoint.deployments or ()]
    return sum(1 if (ready := count(0 if number is None else number)) is None else ready for number in said)


def _orphans_price(client: Together, ledger: Ledger, hardware: set[str | None]) -> Decimal:
    """US dollars an hour. It is stopped whatever it costs; where that is not known, the dearest is the safe guess,
    until the bill tells: of the provider's list, or of what the ledger ever had.
    """
    if not hardware:
        return Decimal(0)  # nothing runs under it
    try:
        prices = dict(hourly_prices(client))
    except ProviderUnavailable:
        prices = {}
    known = [prices[name] for name in hardware if name in prices]
    return max(known or prices.values() or [row.hourly_usd for row in ledger.find(Deployment)], default=Decimal(0))


def _adopt_intended(client: Together, ledger: Ledger, row: Deployment, endpoint: Any, report: ReconcileReport) -> None:
    """A process died, or still works, between the creates. What it started is followed; what it left is removed."""
    with ledger.exclusive("submit") as alone:
        row = ledger.get(Deployment, row.id)
        if not alone or row.state != "intended":
            return
        with translate_sdk_errors(f"deployment {row.name}"):
            remote = find_deployment(client, endpoint.id, row.name)
        if remote is not None:
            ledger.transition(
                Deployment,
                row.id,
                "provisioning",
                why="found by its name",
                endpoint_id=endpoint.id,
                served_name=endpoint.name,
                remote_id=remote.id,
                metered_until=row.attempted_at or row.created_at,
                now=report.now,
            )
            report.actions.append(f"found {row.name}, whose creation was never answered")
        elif report.now - row.updated_at >= ABANDON_AFTER:
            _end(client, ledger, row.id, "its creation was given up half-way", report)


def _stop_doubles(client: Together, ledger: Ledger, row: Deployment, endpoint: Any, report: ReconcileReport) -> None:
    """Deployments beside the one of the ledger: a create that was carried out twice. Stopped, charged, deleted."""
    for double in endpoint.deployments or ():
        if row.remote_id is None or double.id == row.remote_id:
            continue
        with collect_errors(report.errors, row.name), translate_sdk_errors(f"deployment {double.id}"):
            remote = client.endpoints.deployments.retrieve(double.id, endpoint_id=endpoint.id)
            if may_run(remote) and not has_ended(remote):
                report.orphans.append(f"deployment {double.id} beside {row.name}")
                remote = scale_to_zero(client, endpoint.id, double.id)
            if not has_ended(remote):
                continue
            charge_double(ledger, row, remote, now=report.now)
            client.endpoints.deployments.delete(double.id, endpoint_id=endpoint.id, **etag_of(remote))
            report.actions.append(f"deleted deployment {double.id}, a double of {row.name}")


def _end(client: Together, ledger: Ledger, deployment_id: str, why: str, report: ReconcileReport) -> None:
    with collect_errors(report.errors, ledger.get(Deployment, deployment_id).name):
        begin_shutdown(ledger, deployment_id, why=why, immediately=True, now=report.now)
        row = advance_shutdown(client, ledger, deployment_id, now=report.now)
        report.actions.append(f"{row.name} is {row.state}: {why}")
