"""What was charged: append-only costs, their sums by period, and the tokens that the decision log tells of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

import sqlalchemy as sa

from storage.errors import ChargeConflict
from storage.ledger import schema
from storage.ledger.database import LedgerDatabase, new_id, utc
from storage.ledger.money import Usd, format_usd, from_nano, to_nano
from storage.ledger.rows import Charge, to_columns, to_row

Period = Literal["hour", "day", "month", "total"]
PERIODS: tuple[Period, ...] = ("hour", "day", "month", "total")
ChargeKind = Literal["tokens", "training", "endpoint", "adjustment", "share"]
"""`share` moves a part of what a shared deployment cost to who used it: its charges sum to 0."""
Owner = Literal["job_id", "deployment_id"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargedTo:
    """What a cost is for, by ledger ids."""

    decision_type: str | None = None
    model_id: str | None = None
    job_id: str | None = None
    deployment_id: str | None = None


NOBODY = ChargedTo()


def period_start(period: Period, when: datetime) -> str:
    """Key of the period that holds `when` (UTC): `2026-11-22`, `2026-11`, or an empty string for `total`."""
    when = when.astimezone(UTC)
    return {"day": f"{when:%Y-%m-%d}", "month": f"{when:%Y-%m}"}.get(period, "")


@dataclass(slots=True)
class HourOfCharges:
    """An hour of a shared deployment: what its minutes cost, and what of that was given to (type, model)."""

    start: datetime
    charged_usd: Decimal = Decimal(0)
    minutes: int = 0
    shared_usd: defaultdict[tuple[str | None, str], Decimal] = field(default_factory=lambda: defaultdict(Decimal))


class LedgerCharges(LedgerDatabase):
    """The charges of an open ledger."""

    def spent(
        self, period: Period = "total", *, decision_type: str | None = None, now: datetime | None = None
    ) -> Decimal:
        """US dollars charged in the period that holds `now`."""
        with self.read() as connection:
            return from_nano(self._spent(connection, period, utc(now), decision_type or ""))

    def _spent(self, connection: sa.Connection, period: Period, now: datetime, decision_type: str) -> int:
        table = schema.totals
        query = sa.select(table.c.spent_nano).filter_by(
            period=period, start=period_start(period, now), decision_type=decision_type
        )
        return int(connection.execute(query).scalar() or 0)

    def charge(
        self,
        kind: ChargeKind,
        amount_usd: Usd,
        *,
        key: str,
        what: str,
        of: ChargedTo = NOBODY,
        quantity: int | None = None,
        ts: datetime | None = None,
        now: datetime | None = None,
    ) -> bool:
        """Write down a cost, once per `key`. Returns whether it is new.

        `ts` is when the cost arose (default `now`): it decides which day's and month's budget it counts in. Only an
        `adjustment` and a `share` may be negative. Raises ChargeConflict when the key was charged with another amount.
        """
        amount, now = to_nano(amount_usd), utc(now)
        if amount < 0 and kind not in ("adjustment", "share"):
            raise ValueError(f"{what}: a charge of kind {kind} cannot be negative: {amount_usd}")
        ts = utc(ts or now)
        with self.transaction() as connection:
            before = connection.execute(sa.select(schema.charges.c.amount_nano).filter_by(key=key)).scalar()
            if before is not None:
                if before != amount:
                    raise ChargeConflict(
                        f"{key} was charged {format_usd(from_nano(before))} before, now {format_usd(from_nano(amount))}"
                    )
                return False
            connection.execute(
                schema.charges.insert().values(
                    key=key,
                    ts=ts,
                    recorded_at=now,
                    kind=kind,
                    amount_nano=amount,
                    what=what,
                    quantity=quantity,
                    **asdict(of),
                )
            )
            for scope in {"", of.decision_type or ""}:
                for period in ("day", "month", "total"):
                    self._add_to_total(connection, period, period_start(period, ts), scope, amount)
            return True

    def _add_to_total(self, connection: sa.Connection, period: str, start: str, scope: str, amount: int) -> None:
        table, key = schema.totals, {"period": period, "start": start, "decision_type": scope}
        changed = connection.execute(
            table.update().filter_by(**key).values(spent_nano=table.c.spent_nano + amount)
        ).rowcount
        if not changed:
            connection.execute(table.insert().values(spent_nano=amount, **key))

    def charges(self, **where: Any) -> list[Charge]:
        """Charges in the order they were recorded, those whose fields equal `where`."""
        table = schema.charges
        query = sa.select(table).filter_by(**to_columns(Charge, where)).order_by(table.c.id)
        with self.read() as connection:
            return [to_row(Charge, row) for row in connection.execute(query).mappings()]

    def charged_usd(self, owner: Owner, ids: Collection[str], *, since: datetime, until: datetime) -> Decimal:
        """US dollars charged in [`since`, `until`) to these jobs or deployments."""
        charges = schema.charges
        column = charges.c[owner]
        query = sa.select(sa.func.sum(charges.c.amount_nano)).where(
            column.in_(list(ids)), charges.c.ts >= since, charges.c.ts < until
        )
        with self.read() as connection:
            return from_nano(int(connection.execute(query).scalar() or 0))

    def charged_by_day(
        self, owner: Owner, ids: Collection[str], *, until: datetime | None
    ) -> tuple[dict[str, Decimal], dict[str, datetime]]:
        """US dollars charged to jobs or deployments before `until`, by day (UTC), and the last charge of each day."""
        charges = schema.charges
        query = sa.select(charges.c.ts, charges.c.amount_nano).where(charges.c[owner].in_(list(ids)))
        if until is not None:
            query = query.where(charges.c.ts < until)
        by_day: defaultdict[str, int] = defaultdict(int)
        last: dict[str, datetime] = {}
        with self.read() as connection:
            for ts, nano in connection.execute(query.order_by(charges.c.ts)):
                day = period_start("day", ts)
                by_day[day] += nano
                last[day] = ts
        return {day: from_nano(nano) for day, nano in by_day.items()}, last

    def charged_by_hour(self, deployment_id: str, *, since: datetime) -> list[HourOfCharges]:
        """What was charged for a deployment from `since` on, by the hour (UTC) and by whom it was charged to."""
        charges = schema.charges
        query = sa.select(charges).where(charges.c.deployment_id == deployment_id, charges.c.ts >= since)
        hours: dict[datetime, HourOfCharges] = {}
        with self.read() as connection:
            for row in connection.execute(query.order_by(charges.c.ts)):
                start = row.ts.replace(minute=0, second=0, microsecond=0)
                hour = hours.setdefault(start, HourOfCharges(start))
                if row.kind == "endpoint":
                    hour.charged_usd += from_nano(row.amount_nano)
                    hour.minutes += row.quantity or 0
                elif row.kind == "share" and row.model_id is not None:
                    hour.shared_usd[row.decision_type, row.model_id] += from_nano(row.amount_nano)
        return list(hours.values())

    def meter(
        self,
        model: str,
        of: ChargedTo,
        day: str,
        *,
        requests: int,
        input_tokens: int,
        output_tokens: int,
        cost_usd: Usd,
        now: datetime | None = None,
    ) -> tuple[int, Decimal]:
        """Take in what the decision log holds of a model, a type and a day, and charge what is new of its cost.

        The totals replace those seen before; fewer than before (rows were erased) is no refund. It is charged to `of`,
        which has the decision type. Returns how many requests are new, and what was charged.
        """
        table, now = schema.meters, utc(now)
        key = {"model": model, "decision_type": of.decision_type, "day": day}
        values = {
            "requests": requests,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "cost_nano": to_nano(cost_usd),
        }
        with self.transaction() as connection:
            before = connection.execute(sa.select(table).filter_by(**key)).mappings().first()
            if before is None:
                connection.execute(table.insert().values(**key, **values))
            else:
                connection.execute(table.update().filter_by(**key).values(**values))
            increase = values["cost_nano"] - (before["cost_nano"] if before else 0)
            new = max(requests - (before["requests"] if before else 0), 0)
            if increase <= 0:
                return new, Decimal(0)
            tokens = input_tokens + output_tokens - (before["input_tokens"] + before["output_tokens"] if before else 0)
            end_of_day = datetime.fromisoformat(day).replace(tzinfo=UTC) + timedelta(days=1, microseconds=-1)
            self.charge(
                "tokens",
                from_nano(increase),
                key=f"tokens:{new_id(16)}",
                what=f"tokens of {model} on {day}",
                of=of,
                quantity=tokens,
                ts=min(now, end_of_day),
                now=now,
            )
            return new, from_nano(increase)
