"""A provider's bill as its adapter has read it: what it has for each of our objects, and what it leaves open."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Literal

from storage.ledger.rows import Deployment, FineTuneJob

BillableKind = Literal["deployments", "fine_tune_jobs"]
BILLABLE_KINDS: tuple[BillableKind, ...] = ("deployments", "fine_tune_jobs")
Billable = Deployment | FineTuneJob


@dataclass(frozen=True, slots=True)
class Objects:
    """Everything of ours that the provider ever billed or may bill."""

    deployments: list[Deployment]
    jobs: list[FineTuneJob]


@dataclass(slots=True)
class Billed:
    """What the bill has for an object: US dollars by day (UTC), and the end of the last hour that names it.

    `doubtful` when a line that is its own, or may be, cannot be read: it may have cost more. `by_endpoint` when a line
    names its endpoint only: then it is of all deployments that were under that.
    """

    by_day: defaultdict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    until: datetime | None = None
    doubtful: bool = False
    by_endpoint: bool = False

    @property
    def usd(self) -> Decimal:
        """The sum of all days."""
        return sum(self.by_day.values(), Decimal(0))


@dataclass(slots=True)
class Bill:
    """The complete hours of the provider's bill in [`since`, `until`), as they were at `as_of`.

    `of` has what is billed by the ledger id of our objects; `named` the kinds of which it names any of ours.
    `nameless` are the US dollars by kind and day of lines that name nobody and may be ours by their product; `unsure`
    the same of products that may be anything. `unreadable` counts lines that are ours or may be. `missing` are months
    (`2026-08`) that are not to be had.
    """

    since: datetime
    until: datetime
    as_of: datetime
    of: defaultdict[str, Billed] = field(default_factory=lambda: defaultdict(Billed))
    named: set[BillableKind] = field(default_factory=set)
    nameless: dict[BillableKind, defaultdict[str, Decimal]] = field(
        default_factory=lambda: {kind: defaultdict(Decimal) for kind in BILLABLE_KINDS}
    )
    unsure: defaultdict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    missing: list[str] = field(default_factory=list)
    unreadable: int = 0

    def silence_is_sure(self, kind: BillableKind, day: str, *, named_that_day: bool) -> bool:
        """Does a day's silence about an object mean that it did not cost anything? Not beside lines without a name."""
        return not self.nameless[kind].get(day) and (named_that_day or not self.unsure.get(day))
