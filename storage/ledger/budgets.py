"""What may be spent: budgets, reservations against them, and what is held for a whole cycle."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from storage.errors import BudgetExceeded, LedgerError, NoSuchObject, PriceUnknown
from storage.ledger import schema
from storage.ledger.charges import PERIODS, ChargedTo, ChargeKind, LedgerCharges, Period, period_start
from storage.ledger.database import utc
from storage.ledger.money import Usd, format_usd, from_nano, to_nano
from storage.ledger.rows import ReservationState

RESERVATION_TTL = timedelta(hours=1)
HOLD_TTL = timedelta(hours=6)
"""Longer than most fine-tunes take: what is held for a cycle must still be there when its model is to be deployed."""
_HOLD = "cycle of "

# Every budget with what is spent of it in its period (nothing for `hour`, which limits a rate).
_LIMITS = sa.select(schema.budgets, schema.totals.c.spent_nano).outerjoin(
    schema.totals,
    sa.and_(
        schema.totals.c.period == schema.budgets.c.period,
        schema.totals.c.decision_type == schema.budgets.c.decision_type,
        schema.totals.c.start
        == sa.case(
            (schema.budgets.c.period == "day", sa.bindparam("day")),
            (schema.budgets.c.period == "month", sa.bindparam("month")),
            else_="",
        ),
    ),
)

_RESERVE = schema.reservations.insert().returning(schema.reservations)

_LAPSE = (
    schema.reservations.update()
    .where(schema.reservations.c.state == "open", schema.reservations.c.expires_at <= sa.bindparam("now"))
    .values(state="lapsed", closed_at=sa.bindparam("now"))
)

# Deployments that may have run since they were last looked at. Created, but not looked at since: with all replicas.
_may_have_run = sa.case(
    (schema.deployments.c.state.in_(("intended", "provisioning", "degraded")), schema.deployments.c.max_replicas),
    else_=schema.deployments.c.replicas,
)
_since = sa.func.coalesce(schema.deployments.c.metered_until, schema.deployments.c.attempted_at)

# One query, as others wait meanwhile. What is open, by decision type and whether it is to lapse at `now`; and each
# deployment that may have run unseen (`replicas` is not NULL), with what it holds reserved.
_HELD = sa.union_all(
    sa.select(
        schema.reservations.c.decision_type,
        (schema.reservations.c.expires_at <= sa.bindparam("now")).label("lapsed"),
        sa.func.sum(schema.reservations.c.amount_nano).label("amount_nano"),
        sa.func.sum(schema.reservations.c.hourly_nano).label("hourly_nano"),
        sa.cast(sa.null(), sa.Integer).label("replicas"),
        sa.cast(sa.null(), schema.UtcDateTime).label("since"),
    )
    .where(schema.reservations.c.state == "open")
    .group_by(schema.reservations.c.decision_type, sa.text("2")),
    sa.select(
        schema.deployments.c.decision_type,
        sa.false(),
        sa.func.coalesce(schema.reservations.c.amount_nano, 0),
        schema.deployments.c.hourly_nano,
        _may_have_run,
        _since,
    )
    .outerjoin(
        schema.reservations,
        sa.and_(schema.reservations.c.id == schema.deployments.c.reservation_id, schema.reservations.c.state == "open"),
    )
    .where(schema.deployments.c.state.not_in(("stopped", "deleted")), _may_have_run > 0, _since < sa.bindparam("now")),
)


@dataclass(frozen=True, slots=True)
class Reservation:
    """Money set aside. `amount_usd` is what is still held of it."""

    id: int
    amount_usd: Decimal
    purpose: str
    decision_type: str | None
    model_id: str | None
    state: ReservationState
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit and how much of it is used.

    `reserved_usd` has what is set aside and what ran but is not metered yet; for the period `hour` it is the hourly
    rate of everything that holds a reservation, and `spent_usd` is 0.
    """

    period: Period
    decision_type: str | None
    limit_usd: Decimal
    spent_usd: Decimal
    reserved_usd: Decimal

    @property
    def left_usd(self) -> Decimal:
        """What may still be reserved, 0 when over."""
        return max(self.limit_usd - self.spent_usd - self.reserved_usd, Decimal(0))

    @property
    def used_usd(self) -> Decimal:
        """What is spent (for `hour`: the rate)."""
        return self.reserved_usd if self.period == "hour" else self.spent_usd

    @property
    def fraction(self) -> float:
        """Used share of the limit. A limit of 0 counts as used up."""
        return float(self.used_usd / self.limit_usd) if self.limit_usd else 1.0

    @property
    def name(self) -> str:
        """`day`, or `day of should_respond`."""
        return f"{self.period} of {self.decision_type}" if self.decision_type else self.period


class LedgerBudgets(LedgerCharges):
    """The budgets and reservations of an open ledger."""

    def set_budget(
        self, period: Period, limit_usd: Usd | None, decision_type: str | None = None, *, now: datetime | None = None
    ) -> None:
        """Set the most that may be spent in a period (None removes the limit).

        `day` and `month` are calendar ones in UTC; `hour` limits what everything that runs may cost an hour.
        """
        if period not in PERIODS:
            raise ValueError(f"no budget period {period!r}: use one of {', '.join(PERIODS)}")
        key = {"period": period, "decision_type": decision_type or ""}
        table = schema.budgets
        with self.transaction() as connection:
            connection.execute(table.delete().filter_by(**key))
            if limit_usd is not None:
                limit_nano = to_nano(limit_usd)
                if limit_nano < 0:
                    raise ValueError(f"a budget cannot be negative: {limit_usd}")
                if from_nano(limit_nano) != Decimal(limit_usd):
                    raise ValueError(f"a budget cannot be finer than a nano-dollar (0.000000001): {limit_usd}")
                connection.execute(table.insert().values(limit_nano=limit_nano, set_at=utc(now), **key))

    def budgets(self, now: datetime | None = None) -> list[Budget]:
        """Every budget, with what is spent and reserved of it in the period that holds `now`."""
        now = utc(now)
        with self.read() as connection:
            return self._budgets(connection, now)[0]

    def _budgets(self, connection: sa.Connection, now: datetime) -> tuple[list[Budget], bool]:
        """Every budget, and whether there are reservations that are to lapse."""
        held: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
        lapsed = False
        for row in connection.execute(_HELD, {"now": now}):
            if row.lapsed:
                lapsed = True
                continue
            amount, hourly = int(row.amount_nano), int(row.hourly_nano)
            if row.replicas is not None:
                # What must have run since the last look, beyond what is reserved for it. Without this, a guard that
                # has died would let the same money be reserved for something else.
                minutes = math.ceil((now - row.since).total_seconds() / 60)
                amount, hourly = max(-(-hourly * row.replicas * minutes // 60) - amount, 0), 0
            for scope in {"", row.decision_type or ""}:
                held[scope] = (held[scope][0] + amount, held[scope][1] + hourly)
        budgets: list[Budget] = []
        for row in connection.execute(_LIMITS, {"day": period_start("day", now), "month": period_start("month", now)}):
            amount, hourly = held[row.decision_type]
            is_rate = row.period == "hour"
            budgets.append(
                Budget(
                    period=row.period,
                    decision_type=row.decision_type or None,
                    limit_usd=from_nano(row.limit_nano),
                    spent_usd=from_nano(row.spent_nano or 0),
                    reserved_usd=from_nano(hourly if is_rate else amount),
                )
            )
        budgets.sort(key=lambda budget: (budget.decision_type or "", PERIODS.index(budget.period)))
        return budgets, lapsed

    def reserve(
        self,
        amount_usd: Usd | None,
        *,
        purpose: str,
        decision_type: str | None = None,
        model: str | None = None,
        hourly_usd: Usd = 0,
        ttl: timedelta | None = RESERVATION_TTL,
        shared: bool = False,
        now: datetime | None = None,
    ) -> Reservation:
        """Set money aside before it is spent, or refuse.

        It counts against every budget until it is settled or released, or lapses `ttl` after `now` (None: never, for
        a reservation that a job or deployment owns). `hourly_usd` is what the thing costs an hour while it runs. What
        is `shared` by several types is refused by the budgets of `decision_type` as well, and then held of no type's.

        Raises PriceUnknown when the amount is None, BudgetExceeded when a budget would be exceeded.
        """
        if amount_usd is None:
            raise PriceUnknown(f"{purpose}: its price is not known, so nothing is spent on it")
        amount, hourly, now = to_nano(amount_usd), to_nano(hourly_usd), utc(now)
        if amount < 0 or hourly < 0:
            raise ValueError(f"{purpose}: a reservation cannot be negative: {amount_usd}")
        with self.transaction() as connection:
            self._draw(connection, amount, hourly, decision_type, now)
            self._check_budgets(connection, amount, hourly, purpose, decision_type, now)
            values = {
                "ts": now,
                "expires_at": None if ttl is None else now + ttl,
                "state": "open",
                "amount_nano": amount,
                "hourly_nano": hourly,
                "purpose": purpose,
                "decision_type": None if shared else decision_type,
                "model_id": model,
            }
            return _read_reservation(connection.execute(_RESERVE, values).mappings().one())

    def _check_budgets(
        self,
        connection: sa.Connection,
        amount: int,
        hourly: int,
        purpose: str,
        decision_type: str | None,
        now: datetime,
    ) -> None:
        budgets, lapsed = self._budgets(connection, now)
        if lapsed:
            connection.execute(_LAPSE, {"now": now})
        for budget in budgets:
            if budget.decision_type not in (None, decision_type):
                continue
            wanted = from_nano(hourly if budget.period == "hour" else amount)
            if wanted and budget.spent_usd + budget.reserved_usd + wanted > budget.limit_usd:
                what = "an hour" if budget.period == "hour" else ""
                raise BudgetExceeded(
                    f"{purpose} needs {format_usd(wanted)} {what}".rstrip()
                    + f", but of the {budget.name} budget of {format_usd(budget.limit_usd)} only "
                    f"{format_usd(budget.left_usd)} is left ({format_usd(budget.spent_usd)} spent, "
                    f"{format_usd(budget.reserved_usd)} reserved). Raise the budget, or free some of it"
                )

    def reservation(self, reservation_id: int) -> Reservation:
        """A reservation as it is now. Raises NoSuchObject."""
        with self.read() as connection:
            return self._reservation(connection, reservation_id)

    def _reservation(self, connection: sa.Connection, reservation_id: int) -> Reservation:
        row = connection.execute(sa.select(schema.reservations).filter_by(id=reservation_id)).mappings().first()
        if row is None:
            raise NoSuchObject(f"the ledger has no reservation {reservation_id}")
        return _read_reservation(row)

    def resize(
        self,
        reservation: Reservation | int | None,
        amount_usd: Usd,
        *,
        hourly_usd: Usd | None = None,
        now: datetime | None = None,
    ) -> Reservation:
        """Hold another amount, and at another rate where `hourly_usd` is given.

        A reservation that has lapsed or was released opens again, for as long as it was made for; not one that is
        settled (LedgerError): it has been spent. Raises BudgetExceeded, changing nothing.
        """
        reservation_id, now = _reservation_id(reservation), utc(now)
        if to_nano(amount_usd) < 0 or to_nano(hourly_usd or 0) < 0:
            raise ValueError(f"reservation {reservation_id} cannot be negative: {amount_usd}")
        with self.transaction() as connection:
            row = connection.execute(sa.select(schema.reservations).filter_by(id=reservation_id)).mappings().first()
            if row is None:
                raise NoSuchObject(f"the ledger has no reservation {reservation_id}")
            if row["state"] == "settled":
                raise LedgerError(f"reservation {reservation_id} ({row['purpose']}) is settled: reserve anew")
            expires_at = row["expires_at"]
            is_open = row["state"] == "open" and (expires_at is None or expires_at > now)
            held, rate = (row["amount_nano"], row["hourly_nano"]) if is_open else (0, 0)
            if expires_at is not None and not is_open:
                expires_at = now + (expires_at - row["ts"])
            amount = to_nano(amount_usd)
            hourly = row["hourly_nano"] if hourly_usd is None else to_nano(hourly_usd)
            if amount > held or hourly > rate:
                if not row["purpose"].startswith(_HOLD):
                    self._draw(connection, max(amount - held, 0), max(hourly - rate, 0), row["decision_type"], now)
                self._check_budgets(
                    connection, max(amount - held, 0), max(hourly - rate, 0), row["purpose"], row["decision_type"], now
                )
            self._update_reservation(
                connection,
                reservation_id,
                amount_nano=amount,
                hourly_nano=hourly,
                state="open",
                closed_at=None,
                expires_at=expires_at,
            )
            return self._reservation(connection, reservation_id)

    def recheck(self, reservation: Reservation | int | None, *, now: datetime | None = None) -> None:
        """Refuse to spend what is reserved where other things have cost more than they had reserved meanwhile.

        Raises BudgetExceeded when a budget, by what is spent of it, has no room for the reservation any more.
        """
        now = utc(now)
        with self.read() as connection:
            held = self._reservation(connection, _reservation_id(reservation))
            budgets, _ = self._budgets(connection, now)
        for budget in budgets:
            covers = budget.period != "hour" and budget.decision_type in (None, held.decision_type)
            if covers and budget.spent_usd + held.amount_usd > budget.limit_usd:
                raise BudgetExceeded(
                    f"{held.purpose} needs {format_usd(held.amount_usd)}, but of the {budget.name} budget of "
                    f"{format_usd(budget.limit_usd)} {format_usd(budget.spent_usd)} is spent by now. Raise the budget"
                )

    def settle(
        self,
        reservation: Reservation | int | None,
        amount_usd: Usd,
        *,
        kind: ChargeKind,
        what: str,
        key: str | None = None,
        of: ChargedTo | None = None,
        quantity: int | None = None,
        now: datetime | None = None,
    ) -> bool:
        """Charge what it really cost and close the reservation, both or neither. Again is harmless.

        The true cost is charged even where it exceeds what was reserved: it is owed. Returns whether the charge is new.
        """
        reservation_id, now = _reservation_id(reservation), utc(now)
        with self.transaction() as connection:
            held = self._reservation(connection, reservation_id)
            new = self.charge(
                kind,
                amount_usd,
                key=key or f"reservation:{reservation_id}",
                what=what,
                of=of or ChargedTo(decision_type=held.decision_type, model_id=held.model_id),
                quantity=quantity,
                now=now,
            )
            if held.state != "settled":
                self._update_reservation(connection, reservation_id, amount_nano=0, state="settled", closed_at=now)
            return new

    def release(self, reservation: Reservation | int | None, *, now: datetime | None = None) -> None:
        """Give back what is held. Harmless when it is closed already."""
        reservation_id = _reservation_id(reservation)
        with self.transaction() as connection:
            if self._reservation(connection, reservation_id).state == "open":
                self._update_reservation(
                    connection, reservation_id, amount_nano=0, state="released", closed_at=utc(now)
                )

    # -- holds: the money of a whole cycle ------------------------------------------------------------------------

    def hold(
        self, amount_usd: Usd, decision_type: str, *, hourly_usd: Usd = 0, now: datetime | None = None
    ) -> Reservation:
        """Set the money of a whole cycle of a decision type aside before its first cent is spent, or refuse.

        Whatever is reserved for the type from then on is taken from it, so that the cycle's own steps do not compete
        with it. There is one hold a type: called again it gets these amounts, and another `HOLD_TTL` until it lapses,
        so a cycle that was killed and goes on holds nothing twice. Raises BudgetExceeded, changing nothing.
        """
        now, purpose = utc(now), f"{_HOLD}{decision_type}"
        with self.transaction() as connection:
            self.release_hold(decision_type, now=now)
            amount, hourly = to_nano(amount_usd), to_nano(hourly_usd)
            self._check_budgets(connection, amount, hourly, purpose, decision_type, now)
            values = {
                "ts": now,
                "expires_at": now + HOLD_TTL,
                "state": "open",
                "amount_nano": amount,
                "hourly_nano": hourly,
                "purpose": purpose,
                "decision_type": decision_type,
                "model_id": None,
            }
            return _read_reservation(connection.execute(_RESERVE, values).mappings().one())

    def release_hold(self, decision_type: str | None, *, now: datetime | None = None) -> None:
        """Release what is still held for the cycle of a type, or of every type (None). Harmless if nothing is."""
        with self.transaction() as connection:
            for row in connection.execute(self._holds(decision_type)).mappings():
                self._update_reservation(connection, row["id"], amount_nano=0, state="released", closed_at=utc(now))

    def held(self, decision_type: str, *, now: datetime | None = None) -> tuple[Decimal, Decimal]:
        """US dollars, and US dollars an hour, that are still held for a cycle of the type."""
        now = utc(now)
        with self.read() as connection:
            rows = [row for row in connection.execute(self._holds(decision_type)).mappings() if row["expires_at"] > now]
        return from_nano(sum(row["amount_nano"] for row in rows)), from_nano(sum(row["hourly_nano"] for row in rows))

    def _holds(self, decision_type: str | None) -> sa.Select[Any]:
        table = schema.reservations
        held = sa.select(table).where(table.c.state == "open", table.c.purpose == _HOLD + table.c.decision_type)
        return held if decision_type is None else held.where(table.c.decision_type == decision_type)

    def _draw(
        self, connection: sa.Connection, amount: int, hourly: int, decision_type: str | None, now: datetime
    ) -> None:
        """Take what is about to be reserved from what is held for the type's cycle, as far as that goes."""
        if decision_type is None:
            return
        for row in connection.execute(self._holds(decision_type)).mappings().all():
            if row["expires_at"] > now:
                self._update_reservation(
                    connection,
                    row["id"],
                    amount_nano=max(row["amount_nano"] - amount, 0),
                    hourly_nano=max(row["hourly_nano"] - hourly, 0),
                )

    def _update_reservation(self, connection: sa.Connection, reservation_id: int, **values: Any) -> None:
        table = schema.reservations
        connection.execute(table.update().where(table.c.id == reservation_id).values(**values))


def _read_reservation(row: sa.RowMapping) -> Reservation:
    return Reservation(
        id=row["id"],
        amount_usd=from_nano(row["amount_nano"]),
        purpose=row["purpose"],
        decision_type=row["decision_type"],
        model_id=row["model_id"],
        state=ReservationState(row["state"]),
        expires_at=row["expires_at"],
    )


def _reservation_id(reservation: Reservation | int | None) -> int:
    if reservation is None:
        raise NoSuchObject("the ledger has no reservation for this")
    return reservation if isinstance(reservation, int) else reservation.id
