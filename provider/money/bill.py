"""The provider's bill against our charges, object by object: what is missing is charged, what is too much given back.

Strict in money: nothing is given back by a bill that cannot be read, that is not there, or that has never named an
object of ours of that kind (`provider.money.billed.BillableKind`): what such a bill does not name may have cost all
the same. A completed job never costs less than its own price. How far the bill has got, the provider's clock tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal

from provider.errors import AccessDenied, RemoteNotFound
from provider.money.billed import BILLABLE_KINDS, Bill, Billable, BillableKind, Billed, Objects
from provider.port import Provider
from storage.ledger.charges import ChargedTo, Owner
from storage.ledger.ledger import Ledger
from storage.ledger.money import format_usd, round_up
from storage.ledger.reports import ENDED_STATES
from storage.ledger.rows import Deployment, DeploymentRole, DeploymentState, FineTuneJob, JobState

BILL_SILENCE = timedelta(hours=25)
"""The bill of a month that has ended may be a day behind (Together's reference, "Get billing usage"). An hour that the
bill still does not name an object in after so long did not cost anything, if the bill names such objects at all. Until
then what was charged stays: a late bill must not give money back."""

BILL_SKEW = timedelta(days=1)
"""By so much the bill's months are looked at earlier than anything was created, as its clock is not ours."""

BILL_CLOSED = timedelta(days=45)
"""What ended so long ago is not compared any more: its month is billed and paid. What was charged stays."""

BillState = Literal["compared", "unattributed", "absent", "denied", "nothing to compare", "not compared"]

_WORDS: dict[BillableKind, str] = {"deployments": "deployments", "fine_tune_jobs": "fine-tunes"}
_COLUMN: dict[BillableKind, Owner] = {"deployments": "deployment_id", "fine_tune_jobs": "job_id"}
_CENT = Decimal("0.01")


@dataclass(slots=True)
class Comparison:
    """US dollars of our objects on the bill and in the ledger before the correction, and the corrections in words."""

    now: datetime
    state: BillState = "nothing to compare"
    billed_usd: Decimal = Decimal(0)
    charged_usd: Decimal = Decimal(0)
    adjustments: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def reconcile_bill(provider: Provider, ledger: Ledger, *, now: datetime, errors: list[str]) -> Comparison:
    """Compare the complete hours of the provider's bill with our charges, object by object, and charge the difference.

    Of a deployment these are the hours up to the last that names it, and all that are older than `BILL_SILENCE`. What
    ended is compared until `BILL_SILENCE` after its end: only then is it certain that it cost nothing in its last hour.
    Lines that cannot be read are told in `errors`. A bill that this account does not have, that the key may not read,
    or that names nothing of ours is told in the state. Raises ProviderUnavailable, ProviderRefused.
    """
    compared = Comparison(now)
    ended = ledger.find(FineTuneJob, provider=provider.name, state=ENDED_STATES, reconciled_at=None)
    jobs = [job for job in ended if job.remote_id]
    # What is attached to a shared deployment is not billed by itself.
    roles = (DeploymentRole.OWN, DeploymentRole.SHARED)
    found = ledger.find(Deployment, provider=provider.name, reconciled_at=None, role=roles)
    deployments = [row for row in found if row.remote_id]
    if not jobs and not deployments:
        return compared
    billable: list[Billable] = [*jobs, *deployments]
    # An orphan is older than its row: its create was sent before it was found.
    since = min(min(row.created_at, row.attempted_at or now, now) for row in billable) - BILL_SKEW
    everything = Objects(
        deployments=ledger.find(Deployment, provider=provider.name),
        jobs=ledger.find(FineTuneJob, provider=provider.name),
    )
    try:
        bill = provider.read_bill(everything, since=since, now=now, errors=errors)
    except (RemoteNotFound, AccessDenied) as error:
        compared.state = "absent" if isinstance(error, RemoteNotFound) else "denied"
        ledger.note_state("billing", "api", compared.state, why=str(error), now=now)
        return compared
    ledger.note_state("billing", "api", "there", now=now)
    for kind in bill.named:
        ledger.note_state("billing", kind, "named", now=now)
    for job in jobs:
        _compare_job(ledger, bill, job, compared)
    for row in deployments:
        _compare_deployment(ledger, bill, row, everything.deployments, compared)
    _note_unnamed(ledger, bill, "fine_tune_jobs", jobs, now)
    _note_unnamed(ledger, bill, "deployments", deployments, now)
    compared.state = "unattributed" if any(_is_unnamed(ledger, kind) for kind in BILLABLE_KINDS) else "compared"
    compared.warnings = [said for kind in BILLABLE_KINDS if (said := _second_witness(ledger, bill, kind, everything))]
    return compared


# -- what the bill is worth -------------------------------------------------------------------------------------------


def bill_notes(ledger: Ledger) -> list[str]:
    """What people have to know of the provider's bill: nothing, where it is there and names what is ours."""
    notes = []
    api = ledger.history("billing", "api")
    if api and api[-1].to_state == "absent":
        notes.append(
            f"the provider has no bill for this account to read (404 since {api[-1].ts:%Y-%m-%d %H:%M} UTC): what "
            "was charged cannot be checked and stays as it is; compare it with the invoice, or ask the provider to "
            "enable billing usage for the organisation"
        )
    if api and api[-1].to_state == "denied":
        notes.append(
            f"the API key may not read the provider's bill (403 since {api[-1].ts:%Y-%m-%d %H:%M} UTC): charges cannot "
            "be checked and stay as they are; use a key that may read billing, or compare them with the invoice"
        )
    for kind in BILLABLE_KINDS:
        if _is_unnamed(ledger, kind):
            since = ledger.history("billing", kind)[-1].ts
            notes.append(
                f"the provider's bill cannot be attributed: it names none of our {_WORDS[kind]} (since "
                f"{since:%Y-%m-%d %H:%M} UTC). What was charged stays, at its worst; compare the sum with the invoice"
            )
    return notes


def _ever_named(ledger: Ledger, kind: BillableKind) -> bool:
    return any(step.to_state == "named" for step in ledger.history("billing", kind))


def _is_unnamed(ledger: Ledger, kind: BillableKind) -> bool:
    history = ledger.history("billing", kind)
    return bool(history) and history[-1].to_state == "unnamed"


def _note_unnamed(ledger: Ledger, bill: Bill, kind: BillableKind, rows: Sequence[Billable], now: datetime) -> None:
    """Say once that the bill has had its day for what we were charged for, and names none of it."""
    if kind in bill.named:
        return
    until = _hour(bill.as_of - BILL_SILENCE)
    ids = [row.id for row in rows if row.id not in bill.of]
    if not ids:
        return
    charged = ledger.charged_usd(_COLUMN[kind], ids, since=bill.since, until=until)
    # Where it has named others of the kind, silence about these alone is an answer, unless lines name nobody.
    if charged > 0 and (not _ever_named(ledger, kind) or any(bill.nameless[kind].values())):
        why = f"{format_usd(charged)} is charged to {len(ids)} that the bill does not name"
        ledger.note_state("billing", kind, "unnamed", why=why, now=now)


def _second_witness(ledger: Ledger, bill: Bill, kind: BillableKind, everything: Objects) -> str | None:
    """What the account pays for a kind of product, beyond what names others and what we were charged. In words."""
    nameless = sum(bill.nameless[kind].values(), Decimal(0))
    if not nameless:
        return None
    own = {row.id for row in (everything.jobs if kind == "fine_tune_jobs" else everything.deployments)}
    named = sum((billed.usd for object_id, billed in bill.of.items() if object_id in own), Decimal(0))
    charged = ledger.charged_usd(_COLUMN[kind], own, since=bill.since, until=bill.until)
    if named + nameless <= charged + _CENT:
        return None
    return (
        f"from {bill.since:%Y-%m-%d} to {bill.until:%Y-%m-%d %H:%M} UTC the account was billed "
        f"{format_usd(named + nameless)} for {_WORDS[kind]} that are ours or name nobody, and {format_usd(charged)} is "
        f"charged here: {format_usd(named + nameless - charged)} more than the ledger knows of; look at the provider's "
        "console for what else runs in the account"
    )


# -- the comparison ---------------------------------------------------------------------------------------------------


def _compare_job(ledger: Ledger, bill: Bill, job: FineTuneJob, compared: Comparison) -> None:
    final = job.updated_at < _hour(bill.as_of - BILL_SILENCE)
    billed = bill.of.get(job.id)
    if not final and (billed is None or not billed.until):
        return
    # A completed job owes its price. One that was cancelled or failed owes what the bill names, or else its price.
    owes = job.state == JobState.COMPLETED or billed is None or not billed.until
    floor = (job.price_usd or Decimal(0)) if owes else Decimal(0)
    _adjust(ledger, bill, "fine_tune_jobs", [job], until=None, floor=floor, final=final, compared=compared)


def _compare_deployment(
    ledger: Ledger,
    bill: Bill,
    row: Deployment,
    everything: list[Deployment],
    compared: Comparison,
) -> None:
    silent = _hour(bill.as_of - BILL_SILENCE)
    # What ended so long ago is on the bill: all of its charges count, also those of a clock that was ahead.
    final = row.state == DeploymentState.DELETED and row.updated_at < silent
    billed = bill.of.get(row.id)
    if (main := _main_of(row, everything)) is not None and billed is None:
        of_main = bill.of.get(main.id)
        if of_main is not None and of_main.by_endpoint:
            return  # a double whose endpoint is what the bill names: compared with the deployment that it doubles
    rows: list[Billable] = [row]
    if billed is not None and billed.by_endpoint:
        rows += [other for other in everything if _main_of(other, [row]) is row and other.id not in bill.of]
    until = None if final else max(silent, (billed and billed.until) or silent)
    _adjust(ledger, bill, "deployments", rows, until=until, floor=Decimal(0), final=final, compared=compared)


def _main_of(row: Deployment, everything: Sequence[Deployment]) -> Deployment | None:
    """The deployment that a double was found beside; None for what is not a double."""
    if row.name != row.remote_id or row.endpoint_id is None:
        return None
    return next((o for o in everything if o.endpoint_id == row.endpoint_id and o.name != o.remote_id), None)


def _adjust(
    ledger: Ledger,
    bill: Bill,
    kind: BillableKind,
    rows: Sequence[Billable],
    *,
    until: datetime | None,
    floor: Decimal,
    final: bool,
    compared: Comparison,
) -> None:
    """Charge what the bill has beyond our charges before `until`, or give it back, not below `floor`.

    `rows` are what the bill has as one; the first is charged. After a `final` comparison: never again.
    """
    row, billed = rows[0], bill.of.get(rows[0].id, Billed())
    with ledger.transaction():
        by_day, last = ledger.charged_by_day(_COLUMN[kind], [each.id for each in rows], until=until)
        charged = sum(by_day.values(), Decimal(0))
        compared.charged_usd += charged
        compared.billed_usd += billed.usd
        changes, sure = _differences(ledger, bill, kind, row, billed, by_day, floor)
        name = row.suffix if isinstance(row, FineTuneJob) else row.name
        for day, difference in changes.items():
            # In the day and month of what it corrects: what is given back must not swell a later budget.
            ledger.charge(
                "adjustment",
                difference,
                key=f"adjustment:{row.id}:{day}:{compared.now.isoformat()}",
                what=f"{name}: the provider billed {format_usd(billed.by_day.get(day, Decimal(0)))} for {day}, charged "
                f"was {format_usd(by_day.get(day, Decimal(0)))}",
                of=_charged_to(row),
                ts=last.get(day) or datetime.fromisoformat(day).replace(tzinfo=UTC),
                now=compared.now,
            )
        if changes:
            compared.adjustments.append(f"{name}: {format_usd(sum(changes.values(), Decimal(0)))}")
        closed = row.updated_at < bill.as_of - BILL_CLOSED and final
        if closed or (final and sure):
            for each in rows:
                if each.reconciled_at is None:
                    _close(ledger, each, compared.now)


def _close(ledger: Ledger, row: Billable, now: datetime) -> None:
    if isinstance(row, FineTuneJob):
        ledger.update(FineTuneJob, row.id, reconciled_at=now, now=row.updated_at)
    else:
        ledger.update(Deployment, row.id, reconciled_at=now, now=row.updated_at)


def _charged_to(row: Billable) -> ChargedTo:
    if isinstance(row, FineTuneJob):
        return ChargedTo(decision_type=row.decision_type, model_id=row.model_id, job_id=row.id)
    return ChargedTo(decision_type=row.decision_type, model_id=row.model_id, deployment_id=row.id)


def _differences(
    ledger: Ledger,
    bill: Bill,
    kind: BillableKind,
    row: Billable,
    billed: Billed,
    by_day: dict[str, Decimal],
    floor: Decimal,
) -> tuple[dict[str, Decimal], bool]:
    """What to charge (or, below zero, to give back) by day, and whether that is all that the bill will ever say."""
    differences = {
        day: round_up(billed.by_day.get(day, Decimal(0))) - by_day.get(day, Decimal(0))
        for day in sorted(by_day.keys() | billed.by_day.keys())
    }
    changes = {day: difference for day, difference in differences.items() if difference > 0}
    may_give = not billed.doubtful and not _month_is_missing(bill, row) and _ever_named(ledger, kind)
    sure = may_give
    # What there is to give before the object costs less than it owes.
    left = sum(by_day.values(), Decimal(0)) + sum(changes.values(), Decimal(0)) - floor
    for day, difference in differences.items():
        if difference >= 0:
            continue
        if not may_give or not bill.silence_is_sure(kind, day, named_that_day=day in billed.by_day):
            sure = False
            continue
        given = min(-difference, max(left, Decimal(0)))
        left -= given
        if given:
            changes[day] = -given
    return dict(sorted(changes.items())), sure or not differences


def _month_is_missing(bill: Bill, row: Billable) -> bool:
    """Is a month, in which this object may have cost something, not to be had?"""
    first, last = f"{row.created_at - BILL_SKEW:%Y-%m}", f"{row.updated_at + BILL_SKEW:%Y-%m}"
    return any(first <= month <= last for month in bill.missing)


def _hour(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
