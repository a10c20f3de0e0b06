"""The provider's bill against our charges, object by object: what is missing is charged, what is too much given back.

A bill that cannot be read gives no money back. How far it has got, the provider's clock tells, not only ours: one that
is ahead would take hours that are not billed yet for hours that cost nothing.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from provider.answers import listed, moment, usd
from provider.client import asking
from provider.fine_tunes import ENDED_STATES
from storage import ledger_schema as schema
from storage.ledger import Ledger, period_start
from storage.money import format_usd, from_nano, to_nano

if TYPE_CHECKING:
    from together import Together

BILL_LAG = timedelta(hours=1)
"""How long after its end an hour of the provider's bill is taken for complete, if it names the object at all."""

BILL_SILENCE = timedelta(days=1)
"""An hour that the bill still does not name an object in after so long did not cost anything. Until then what was
charged stays: a late bill must not give money back."""

BILL_SKEW = timedelta(days=1)
"""By so much the bill's months are looked at earlier than anything was created, as its clock is not ours."""


@dataclass(slots=True)
class Comparison:
    """US dollars of our objects on the bill and in the ledger before the correction, and the corrections in words."""

    billed_usd: Decimal = Decimal(0)
    charged_usd: Decimal = Decimal(0)
    adjustments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Billed:
    """What the bill has for an object: US dollars by day (UTC), and the end of the last hour that names it.

    `doubtful` when a line that is its own, or may be, cannot be read: it may have cost more.
    """

    by_day: defaultdict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    until: datetime | None = None
    doubtful: bool = False

    @property
    def usd(self) -> Decimal:
        return sum(self.by_day.values(), Decimal(0))


def reconcile_bill(client: Together, ledger: Ledger, *, now: datetime, errors: list[str]) -> Comparison:
    """Compare the complete hours of the provider's bill with our charges, object by object, and charge the difference.

    Of a deployment these are the hours up to the last that names it, and all that are older than `BILL_SILENCE`. What
    ended is compared until `BILL_SILENCE` after its end: only then is it certain that it cost nothing in its last hour.
    Lines that cannot be read are told in `errors`. Raises ProviderUnavailable, ProviderRefused.
    """
    compared = Comparison()
    jobs = [j for j in ledger.find("fine_tune_jobs", state=ENDED_STATES, reconciled_at=None) if j["remote_id"]]
    deployments = [d for d in ledger.find("deployments", reconciled_at=None) if d["remote_id"]]
    if not jobs and not deployments:
        return compared
    rows = (*jobs, *deployments)
    remote_ids = {row["remote_id"] for row in rows}
    # An orphan is older than its row: its create was sent before it was found.
    since = min(min(row["created_at"], row["attempted_at"] or now, now) for row in rows) - BILL_SKEW
    billed, as_of = read_bill(client, remote_ids, since=since, now=now, errors=errors)
    silent = _hour(as_of - BILL_SILENCE)
    for job in jobs:
        if billed[job["remote_id"]].until or job["updated_at"] < silent:
            _adjust(ledger, "fine_tune_jobs", job, billed, None, job["updated_at"] < silent, now, compared)
    for row in deployments:
        # What ended so long ago is on the bill: all of its charges count, also those of a clock that was ahead.
        final = row["state"] == "deleted" and row["updated_at"] < silent
        until = None if final else max(silent, billed[row["remote_id"]].until or silent)
        _adjust(ledger, "deployments", row, billed, until, final, now, compared)
    return compared


def _hour(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def read_bill(
    client: Together, remote_ids: set[str], *, since: datetime, now: datetime, errors: list[str]
) -> tuple[dict[str, Billed], datetime]:
    """What the provider's bill has for each of these objects in its complete hours, and the time that it is of.

    That is `now`, or what the provider's clock says (the `Date` of its answer), if that is earlier. A line that cannot
    be read is told in `errors`, and makes doubtful whose it is: all of them, where it does not say.
    """
    months: dict[str, list[Any]] = {}
    as_of, month = now, _hour(since).replace(day=1, hour=0)
    while month < now:
        with asking(f"the bill of {month:%Y-%m}"):
            answer = client.organization.usage.costs.with_raw_response.list(granularity="hour", month=f"{month:%Y-%m}")
            months[f"{month:%Y-%m}"] = listed(answer.parse())
        as_of = min(as_of, _told_time(answer.headers.get("date")) or as_of)
        month = (month + timedelta(days=32)).replace(day=1)
    billed = {remote_id: Billed() for remote_id in remote_ids}
    for name, windows in months.items():
        if odd := sum(_read_hour(window, billed, _hour(as_of - BILL_LAG)) for window in windows):
            errors.append(f"the bill of {name}: {odd} lines cannot be read, so it gives no money back for them")
    return billed, as_of


def _told_time(date: str | None) -> datetime | None:
    """The time of an HTTP `Date` (RFC 9110), None where there is none or it is no time."""
    try:
        return moment(parsedate_to_datetime(date)) if date else None
    except ValueError:
        return None


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
                entry.by_day[period_start("day", end - timedelta(microseconds=1))] += cost
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
    now: datetime,
    compared: Comparison,
) -> None:
    """Charge what the bill has beyond our charges before `until`, or give it back. After a `final` one: never again."""
    charges = schema.charges
    column = "job_id" if object_type == "fine_tune_jobs" else "deployment_id"
    query = sa.select(charges.c.ts, charges.c.amount_nano).where(charges.c[column] == row["id"])
    if until is not None:
        query = query.where(charges.c.ts < until)
    bill = billed[row["remote_id"]]
    with ledger.transaction() as connection:
        by_day: defaultdict[str, int] = defaultdict(int)
        last: dict[str, datetime] = {}
        for ts, nano in connection.execute(query.order_by(charges.c.ts)):
            day = period_start("day", ts)
            by_day[day] += nano
            last[day] = ts
        charged, on_bill = from_nano(sum(by_day.values())), bill.usd
        compared.charged_usd += charged
        compared.billed_usd += on_bill
        if bill.doubtful and on_bill <= charged:
            return
        if on_bill != charged:
            name = row["suffix"] if object_type == "fine_tune_jobs" else row["name"]
            # In the day and month of what it corrects: what is given back must not swell a later budget.
            for day in sorted(by_day.keys() | bill.by_day.keys()):
                billed_usd, charged_usd = bill.by_day[day], from_nano(by_day[day])
                difference = from_nano(to_nano(billed_usd) - by_day[day])
                if not difference or (difference < 0 and bill.doubtful):
                    continue
                ledger.charge(
                    "adjustment",
                    difference,
                    key=f"adjustment:{row['id']}:{day}:{now.isoformat()}",
                    what=f"{name}: the provider billed {format_usd(billed_usd)} for {day}, charged was "
                    f"{format_usd(charged_usd)}",
                    decision_type=row["decision_type"],
                    model_id=row["model_id"],
                    ts=last.get(day) or datetime.fromisoformat(day).replace(tzinfo=UTC),
                    now=now,
                    **{column: row["id"]},
                )
            compared.adjustments.append(f"{name}: {format_usd(from_nano(to_nano(on_bill) - sum(by_day.values())))}")
        if final and not bill.doubtful:
            ledger.update(object_type, row["id"], reconciled_at=now, now=row["updated_at"])
