"""What really runs at the provider, against the ledger; and the provider's bill, against our charges.

Whose an object is, its name says: `rsn-<installation>-...`. Of ours, one that the ledger does not know, or holds for
ended, is an orphan: it is written down, stopped and charged. All others belong to strangers and are never touched.

One answer that is not as documented does not end it: it goes on with what it can judge and reports the rest by name.
What has no name is nobody's: it is not touched, and nothing is held for absent from a list that it is in. A bill that
cannot be read gives no money back.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from provider.answers import (
    bare_name,
    count,
    created_at,
    etag_of,
    listed,
    may_run,
    moment,
    noting,
    state_of,
    text,
    usd,
)
from provider.client import asking
from provider.deployments import (
    LIVE_STATES,
    SHUTTING_STATES,
    advance_shutdown,
    begin_shutdown,
    find_deployment,
    sync_deployment,
)
from provider.errors import ProviderUnavailable, UnexpectedAnswer
from provider.fine_tunes import abandon_fine_tune, adopt_job, cancel_fine_tune, sync_fine_tune
from provider.metering import meter_decisions
from provider.prices import MINIMUM_FINE_TUNE_USD, hourly_prices
from storage import ledger_schema as schema
from storage.layout import Layout
from storage.ledger import Ledger, open_ledger
from storage.money import format_usd, from_nano, to_nano

if TYPE_CHECKING:
    from together import Together

ABANDON_AFTER = timedelta(minutes=10)
"""An intent that nobody works on, and of which the provider knows nothing for so long, is given up."""

BILL_LAG = timedelta(hours=1)
"""How long after its end an hour of the provider's bill is taken for complete, if it names the object at all."""

BILL_SILENCE = timedelta(days=1)
"""An hour that the bill still does not name an object in after so long did not cost anything. Until then what was
charged stays: a late bill must not give money back."""

LATE_ROWS = timedelta(days=31)
"""Decisions that land later than this are not charged any more."""

UNWATCHED = timedelta(minutes=30)
"""What nobody has metered for so long, nor asked, is stopped here: its guard is dead, and its budget with it."""

_ENDED_JOBS = ("completed", "failed", "cancelled")


@dataclass(slots=True)
class ReconcileReport:
    """What was found and done. `difference_usd`: bill minus charges, for our objects, before the correction."""

    now: datetime
    skipped: bool = False
    orphans: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    strangers: int = 0
    billed_usd: Decimal = Decimal(0)
    charged_usd: Decimal = Decimal(0)
    difference_usd: Decimal = Decimal(0)
    adjustments: list[str] = field(default_factory=list)


def reconcile_provider(
    data: Path | str, client: Together, *, ledger: Ledger | None = None, now: datetime | None = None
) -> ReconcileReport:
    """Bring ledger and provider together. Meant for every ten minutes; two at once are harmless.

    What the provider refuses, or answers so that it cannot be read, is in `errors`, and the rest goes on. Raises
    ProviderUnavailable when it tells neither its jobs nor its endpoints, LedgerUnavailable without a ledger.
    """
    report = ReconcileReport(now=now or datetime.now(UTC))
    opened = ledger or open_ledger(data, now=report.now)
    try:
        with opened.exclusive("reconcile") as alone:
            if not alone:
                report.skipped = True
                return report
            _reconcile_all(client, opened, report)
            _meter_late_rows(Layout(data), opened, report)
        return report
    finally:
        if ledger is None:
            opened.close()


def _reconcile_all(client: Together, ledger: Ledger, report: ReconcileReport) -> None:
    away: ProviderUnavailable | None = None
    try:
        _reconcile_jobs(client, ledger, report)
    except ProviderUnavailable as error:
        away = error
    with noting(report.errors, "what was to end"):
        _go_on_stopping(client, ledger, report)
    try:
        _reconcile_deployments(client, ledger, report)
    except ProviderUnavailable as error:
        if away is not None:
            raise
        away = error
    if away is not None:
        report.errors.append(str(away))
    with noting(report.errors, "what no guard looks at"):
        _stop_unwatched(client, ledger, report)
    with noting(report.errors, "the bill was not compared, and no charge was changed"):
        _reconcile_bill(client, ledger, report)


def _meter_late_rows(layout: Layout, ledger: Ledger, report: ReconcileReport) -> None:
    """Decisions of agents that were away: the guard looks at the last days only."""
    with noting(report.errors, "the decision log cannot be read"):  # the provider was reconciled
        meter_decisions(layout, ledger, since=report.now - LATE_ROWS, now=report.now)


def _nobodys(what: str, number: int, remote: Any, report: ReconcileReport) -> None:
    called = text(getattr(remote, "id", None)) or f"number {number} of the list"
    report.errors.append(f"{what} {called}: the provider's answer does not tell whose it is, so it is left alone")


# -- fine-tune jobs ---------------------------------------------------------------------------------------------------


def _reconcile_jobs(client: Together, ledger: Ledger, report: ReconcileReport) -> None:
    with asking("all fine-tunes"):
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
        with noting(report.errors, suffix):
            _reconcile_job(client, ledger, suffix, remote, report)
    present = {suffix for suffix, _ in ours}
    with ledger.exclusive("submit") as alone:  # nobody is just submitting
        for job in ledger.find("fine_tune_jobs", state="intended") if alone and all_judged else ():
            if job["suffix"] not in present and report.now - job["updated_at"] >= ABANDON_AFTER:
                abandon_fine_tune(ledger, job["id"], why="it never reached the provider", now=report.now)
                report.actions.append(f"gave up {job['suffix']}: it never reached the provider")


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
    with asking(f"fine-tune {remote.id}"):
        suffix = getattr(client.fine_tuning.retrieve(remote.id), "suffix", None)  # the SDK knows it of lists only
        return bool(suffix) and not str(suffix).startswith(prefix)


def _reconcile_job(client: Together, ledger: Ledger, suffix: str, remote: Any, report: ReconcileReport) -> None:
    if text(remote.id) is None:
        raise UnexpectedAnswer("a job of ours whose id the provider does not tell: it cannot be cancelled")
    if ledger.find("fine_tune_jobs", remote_id=remote.id):
        return  # known; the guard follows it
    if _is_a_strangers(client, remote, ledger.prefix):
        report.strangers += 1
        return
    known = ledger.find("fine_tune_jobs", suffix=suffix)
    with ledger.exclusive("submit", wait=True):
        job = ledger.get("fine_tune_jobs", known[0]["id"]) if known else None
        if job is not None and job["remote_id"] == remote.id:
            return
        if job is not None and job["state"] == "intended":
            adopt_job(ledger, job["id"], remote, why="found by its suffix", now=report.now)
            report.actions.append(f"found {suffix}, whose submission was never answered")
            return
        if job is not None and job["state"] == "abandoned":
            job = adopt_job(ledger, job["id"], remote, why="it turned up after it had been given up", now=report.now)
        else:
            job = _add_orphan_job(ledger, suffix, remote, report.now)
    report.orphans.append(f"fine-tune {suffix} ({remote.id})")
    job = sync_fine_tune(client, ledger, job["id"], now=report.now)
    if job["state"] not in _ENDED_JOBS:
        job = cancel_fine_tune(client, ledger, job["id"], why="an orphan: nobody asked for it", now=report.now)
    report.actions.append(f"fine-tune {remote.id} is {job['state']}")


def _add_orphan_job(ledger: Ledger, suffix: str, remote: Any, now: datetime) -> dict[str, Any]:
    price = count(remote.total_price)
    with ledger.transaction():
        # Nothing can be reserved for what exists already; its price is charged when it has ended.
        reservation = ledger.reserve(0, purpose=f"orphaned fine-tune {suffix}", ttl=None, now=now)
        return ledger.add(
            "fine_tune_jobs",
            state="submitted",
            suffix=remote.id if ledger.find("fine_tune_jobs", suffix=suffix) else suffix,
            base_model=text(remote.model) or "unknown",
            parameters="{}",
            estimate_nano=to_nano(MINIMUM_FINE_TUNE_USD) if price is None else price,
            reservation_id=reservation.id,
            remote_id=remote.id,
            remote_state=text(remote.status),
            now=now,
        )


# -- endpoints and deployments ----------------------------------------------------------------------------------------


def _reconcile_deployments(client: Together, ledger: Ledger, report: ReconcileReport) -> None:
    with asking("all endpoints"):
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
        with noting(report.errors, name):
            _reconcile_endpoint(client, ledger, name, endpoint, report)
    with ledger.exclusive("submit") as alone:
        for row in ledger.find("deployments", state="intended") if alone and all_judged else ():
            if row["name"] not in ours and report.now - row["updated_at"] >= ABANDON_AFTER:
                _end(client, ledger, row["id"], "it never reached the provider", report)
    for row in ledger.find("deployments", state=LIVE_STATES):
        if row["name"] not in ours and row["state"] != "intended":
            with noting(report.errors, row["name"]):  # it is gone: its money is settled
                if sync_deployment(client, ledger, row["id"], now=report.now)[0]["state"] in SHUTTING_STATES:
                    advance_shutdown(client, ledger, row["id"], now=report.now)


def _stop_unwatched(client: Together, ledger: Ledger, report: ReconcileReport) -> None:
    """Without a guard nobody has been asking through a route for long: the lease ran out after minutes."""
    for row in ledger.find("deployments", state=("provisioning", "degraded", "ready", "draining")):
        seen_at = max(at for at in (row["metered_until"], row["last_request_at"], row["created_at"]) if at)
        if report.now - seen_at >= UNWATCHED:
            minutes = int((report.now - seen_at).total_seconds() // 60)
            _end(client, ledger, row["id"], f"no guard has looked at it for {minutes} minutes", report)


def _go_on_stopping(client: Together, ledger: Ledger, report: ReconcileReport) -> None:
    """What was to end before this run, and has not yet: who began it may have died, or been refused."""
    for row in ledger.find("deployments", state=("stopping", "stopped", "failed")):
        _end(client, ledger, row["id"], row["reason"] or "it was to end", report)


def _reconcile_endpoint(client: Together, ledger: Ledger, name: str, endpoint: Any, report: ReconcileReport) -> None:
    if text(endpoint.id) is None:
        raise UnexpectedAnswer("an endpoint of ours whose id the provider does not tell: it cannot be stopped")
    known = ledger.find("deployments", name=name)
    row = known[0] if known else None
    if row is None:
        row = _add_orphan_deployment(client, ledger, name, endpoint, report.now)
        report.orphans.append(f"endpoint {name} ({endpoint.id})")
    elif row["state"] == "deleted":
        # It was believed to be gone, so what it cost since then has not been charged yet.
        row = ledger.transition(
            "deployments",
            row["id"],
            "stopping",
            why="it turned up after it had been given up",
            endpoint_id=endpoint.id,
            served_name=endpoint.name,
            metered_until=row["stopped_at"] or row["created_at"],
            reconciled_at=None,
            replicas=_ready(endpoint),
            now=report.now,
        )
        report.orphans.append(f"endpoint {name} ({endpoint.id})")
    elif row["state"] == "intended":
        _adopt_intended(client, ledger, row, endpoint, report)
        return
    else:
        _stop_doubles(client, ledger, row, endpoint, report)
        return
    _end(client, ledger, row["id"], "an orphan: the ledger did not know that it runs", report)


def _add_orphan_deployment(client: Together, ledger: Ledger, name: str, endpoint: Any, now: datetime) -> dict[str, Any]:
    deployments = endpoint.deployments or ()
    first = min(deployments, key=created_at, default=None)
    return ledger.add(
        "deployments",
        state="stopping",
        name=name,
        model_object_id=(text(first.api_model_id) if first else None) or "unknown",
        config="unknown",
        hardware=(text(first.hardware) if first else None) or "unknown",
        hourly_nano=_orphans_price(client, ledger, {text(d.hardware) for d in deployments}),
        max_replicas=0,
        endpoint_id=endpoint.id,
        served_name=endpoint.name,
        remote_id=text(first.id) if first else None,
        metered_until=(moment(first.created_at) if first else None) or moment(endpoint.created_at) or now,
        replicas=_ready(endpoint),
        reason="an orphan: the ledger did not know it",
        now=now,
    )


def _ready(endpoint: Any) -> int:
    """Replicas that run under an endpoint; one of a deployment that does not tell."""
    said = [deployment.ready_replicas for deployment in endpoint.deployments or ()]
    return sum(1 if (ready := count(0 if number is None else number)) is None else ready for number in said)


def _orphans_price(client: Together, ledger: Ledger, hardware: set[str | None]) -> int:
    """Nano-dollars an hour. It is stopped whatever it costs; where that is not known, the dearest is the safe guess,
    until the bill tells: of the provider's list, or of what the ledger ever had.
    """
    if not hardware:
        return 0  # nothing runs under it
    try:
        prices = {name: to_nano(price) for name, price in hourly_prices(client).items()}
    except ProviderUnavailable:
        prices = {}
    known = [prices[name] for name in hardware if name in prices]
    return max(known or prices.values() or [row["hourly_nano"] for row in ledger.find("deployments")], default=0)


def _adopt_intended(
    client: Together, ledger: Ledger, row: dict[str, Any], endpoint: Any, report: ReconcileReport
) -> None:
    """A process died, or still works, between the creates. What it started is followed; what it left is removed."""
    with ledger.exclusive("submit") as alone:
        row = ledger.get("deployments", row["id"])
        if not alone or row["state"] != "intended":
            return
        with asking(f"deployment {row['name']}"):
            remote = find_deployment(client, endpoint.id, row["name"])
        if remote is not None:
            ledger.transition(
                "deployments",
                row["id"],
                "provisioning",
                why="found by its name",
                endpoint_id=endpoint.id,
                served_name=endpoint.name,
                remote_id=remote.id,
                metered_until=row["attempted_at"] or row["created_at"],
                now=report.now,
            )
            report.actions.append(f"found {row['name']}, whose creation was never answered")
        elif report.now - row["updated_at"] >= ABANDON_AFTER:
            _end(client, ledger, row["id"], "its creation was given up half-way", report)


def _stop_doubles(
    client: Together, ledger: Ledger, row: dict[str, Any], endpoint: Any, report: ReconcileReport
) -> None:
    """Deployments beside the one of the ledger: a create that was carried out twice. Stopped, charged, deleted."""
    for double in endpoint.deployments or ():
        if row["remote_id"] is None or double.id == row["remote_id"]:
            continue
        with noting(report.errors, row["name"]), asking(f"deployment {double.id}"):
            remote = client.endpoints.deployments.retrieve(double.id, endpoint_id=endpoint.id)
            if may_run(remote):
                report.orphans.append(f"deployment {double.id} beside {row['name']}")
                remote = client.endpoints.deployments.update(
                    double.id,
                    endpoint_id=endpoint.id,
                    autoscaling={"min_replicas": 0, "max_replicas": 0},
                    **etag_of(remote),
                )
            if state_of(remote) != "stopped":
                continue
            _charge_double(ledger, row, double.id, moment(remote.created_at), report.now)
            client.endpoints.deployments.delete(double.id, endpoint_id=endpoint.id, **etag_of(remote))
            report.actions.append(f"deleted deployment {double.id}, a double of {row['name']}")


def _charge_double(
    ledger: Ledger, row: dict[str, Any], remote_id: str, created: datetime | None, now: datetime
) -> None:
    """All replicas for all the time that it existed, until the bill tells; an object of its own, as there."""
    begun = min(created or row["created_at"], now)  # its clock may be ahead of ours
    minutes = math.ceil((now - begun).total_seconds() / 60) * row["max_replicas"]
    with ledger.transaction():
        if ledger.find("deployments", remote_id=remote_id):
            return
        own = ledger.add(
            "deployments",
            state="deleted",
            remote_id=remote_id,
            name=remote_id,
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
            what=f"{minutes} replica minutes at most of {remote_id}, a double of {row['name']}, until the bill tells",
            decision_type=row["decision_type"],
            model_id=row["model_id"],
            deployment_id=own["id"],
            quantity=minutes,
            ts=begun,
            now=now,
        )


def _end(client: Together, ledger: Ledger, deployment_id: str, why: str, report: ReconcileReport) -> None:
    with noting(report.errors, ledger.get("deployments", deployment_id)["name"]):
        begin_shutdown(ledger, deployment_id, why=why, immediately=True, now=report.now)
        row = advance_shutdown(client, ledger, deployment_id, now=report.now)
        report.actions.append(f"{row['name']} is {row['state']}: {why}")


# -- the bill ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Billed:
    """What the bill has for an object: US dollars, and the end of the last hour that names it.

    `doubtful` when a line that is its own, or may be, cannot be read: it may have cost more.
    """

    usd: Decimal = Decimal(0)
    until: datetime | None = None
    doubtful: bool = False


def _reconcile_bill(client: Together, ledger: Ledger, report: ReconcileReport) -> None:
    """Compare the complete hours of the provider's bill with our charges, object by object, and charge the difference.

    Of a deployment these are the hours up to the last that names it, and all that are older than `BILL_SILENCE`. What
    ended is compared until `BILL_SILENCE` after its end: only then is it certain that it cost nothing in its last hour.
    """
    complete, silent = _hour(report.now - BILL_LAG), _hour(report.now - BILL_SILENCE)
    jobs = [j for j in ledger.find("fine_tune_jobs", state=_ENDED_JOBS, reconciled_at=None) if j["remote_id"]]
    deployments = [d for d in ledger.find("deployments", reconciled_at=None) if d["remote_id"]]
    if not jobs and not deployments:
        return
    since = min(row["created_at"] for row in (*jobs, *deployments))
    remote_ids = {row["remote_id"] for row in (*jobs, *deployments)}
    billed = read_bill(client, remote_ids, since=since, until=complete, errors=report.errors)
    for job in jobs:
        if billed[job["remote_id"]].until or job["updated_at"] < silent:
            _adjust(ledger, "fine_tune_jobs", job, billed, None, job["updated_at"] < silent, report)
    for row in deployments:
        # What ended so long ago is on the bill: all of its charges count, also those of a clock that was ahead.
        final = row["state"] == "deleted" and row["updated_at"] < silent
        until = None if final else max(silent, billed[row["remote_id"]].until or silent)
        _adjust(ledger, "deployments", row, billed, until, final, report)
    report.difference_usd = report.billed_usd - report.charged_usd


def _hour(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def read_bill(
    client: Together, remote_ids: set[str], *, since: datetime, until: datetime, errors: list[str]
) -> dict[str, Billed]:
    """What the provider's bill has for each of these objects in the hours that end by `until`.

    A line that cannot be read is told in `errors`, and makes doubtful whose it is: all of them, where it does not say.
    """
    billed = {remote_id: Billed() for remote_id in remote_ids}
    month = _hour(since).replace(day=1, hour=0)
    while month < until:
        with asking(f"the bill of {month:%Y-%m}"):
            windows = listed(client.organization.usage.costs.list(granularity="hour", month=f"{month:%Y-%m}"))
        if odd := sum(_read_hour(window, billed, until) for window in windows):
            errors.append(f"the bill of {month:%Y-%m}: {odd} lines cannot be read, so it gives no money back for them")
        month = (month + timedelta(days=32)).replace(day=1)
    return billed


def _read_hour(window: Any, billed: dict[str, Billed], until: datetime) -> int:
    """Add an hour of the bill to what is `billed`; how many of its lines that are ours, or may be, cannot be read."""
    odd = 0
    end, lines = moment(getattr(window, "end_time", None)), getattr(window, "line_items", None)
    if end is not None and end > until:
        return odd
    for line in lines if isinstance(lines, list) else [None]:
        attributes, cost = getattr(line, "attributes", None), usd(getattr(line, "cost", None))
        named = list(attributes.values()) if isinstance(attributes, dict) else None
        ours = [entry for remote_id, entry in billed.items() if named is None or remote_id in named]
        if end is not None and cost is not None and named is not None:
            for entry in ours:
                entry.usd += cost
                entry.until = max(entry.until or end, end)
        elif ours:
            odd += 1
            for entry in ours:
                entry.doubtful = True
    return odd


def _adjust(
    ledger: Ledger,
    object_type: str,
    row: dict[str, Any],
    billed: dict[str, Billed],
    until: datetime | None,
    final: bool,
    report: ReconcileReport,
) -> None:
    """Charge what the bill has beyond our charges before `until`, or give it back. After a `final` one: never again."""
    charges = schema.charges
    column = "job_id" if object_type == "fine_tune_jobs" else "deployment_id"
    query = sa.select(sa.func.coalesce(sa.func.sum(charges.c.amount_nano), 0), sa.func.max(charges.c.ts)).where(
        charges.c[column] == row["id"]
    )
    if until is not None:
        query = query.where(charges.c.ts < until)
    with ledger.transaction() as connection:
        nano, last = connection.execute(query).one()
        charged = from_nano(int(nano))
        on_bill, doubtful = billed[row["remote_id"]].usd, billed[row["remote_id"]].doubtful
        report.charged_usd += charged
        report.billed_usd += on_bill
        if doubtful and on_bill <= charged:
            return
        if difference := from_nano(to_nano(on_bill) - to_nano(charged)):
            name = row["suffix"] if object_type == "fine_tune_jobs" else row["name"]
            ledger.charge(
                "adjustment",
                difference,
                key=f"adjustment:{row['id']}:{report.now.isoformat()}",
                what=f"{name}: the provider billed {format_usd(on_bill)}, charged was {format_usd(charged)}",
                decision_type=row["decision_type"],
                model_id=row["model_id"],
                # In the day and month of what it corrects: what is given back must not swell a later budget.
                ts=last or min(report.now, (until or report.now) - timedelta(microseconds=1)),
                now=report.now,
                **{column: row["id"]},
            )
            report.adjustments.append(f"{name}: {format_usd(difference)}")
        if final and not doubtful:
            ledger.update(object_type, row["id"], reconciled_at=report.now, now=row["updated_at"])
