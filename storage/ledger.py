"""The ledger: what was spent, what may be spent, and what of ours exists at the provider.

One SQL database: `<data>/ledger.sqlite` (SQLite in WAL mode) unless `REASONING_LEDGER_URL` names a PostgreSQL. Every
change of money is one serialised transaction (`BEGIN IMMEDIATE`; on PostgreSQL under an advisory lock), so that
processes that reserve at the same moment never exceed a budget together. Charges are append-only, by trigger.

    with open_ledger("reasoning-data") as ledger:
        ledger.set_budget("day", "25")
        reservation = ledger.reserve("4.00", purpose="fine-tune of should_respond", decision_type="should_respond")
        ledger.settle(reservation, "4.00", kind="training", what="fine-tune of should_respond")
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from storage import ledger_schema as schema
from storage.errors import (
    BudgetExceeded,
    ChargeConflict,
    IllegalTransition,
    LedgerError,
    NoSuchObject,
    PriceUnknown,
)
from storage.installation import remember_installation
from storage.ledger_database import LedgerDatabase, new_id, open_database
from storage.money import Usd, format_usd, from_nano, to_nano

Period = Literal["hour", "day", "month", "total"]
PERIODS: tuple[Period, ...] = ("hour", "day", "month", "total")
ChargeKind = Literal["tokens", "training", "endpoint", "adjustment"]

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
    state: str
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


def period_start(period: Period, when: datetime) -> str:
    """Key of the period that holds `when` (UTC): `2026-11-22`, `2026-11`, or an empty string for `total`."""
    when = when.astimezone(UTC)
    return {"day": f"{when:%Y-%m-%d}", "month": f"{when:%Y-%m}"}.get(period, "")


def open_ledger(data_or_url: str | Path, *, now: datetime | None = None) -> Ledger:
    """Open the ledger of a data folder (or at an SQLAlchemy URL), creating and migrating it where needed.

    Raises LedgerError when the database cannot be opened, or was written by a newer version of this project.
    """
    engine, installation_id = open_database(data_or_url, _utc(now))
    if "://" not in str(data_or_url):
        remember_installation(data_or_url, installation_id)
    return Ledger(engine, installation_id)


class Ledger(LedgerDatabase):
    """An open ledger. Safe to use from several threads; every process opens its own (`open_ledger`)."""

    # -- budgets ------------------------------------------------------------------------------------------------

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
                connection.execute(table.insert().values(limit_nano=limit_nano, set_at=_utc(now), **key))

    def budgets(self, now: datetime | None = None) -> list[Budget]:
        """Every budget, with what is spent and reserved of it in the period that holds `now`."""
        now = _utc(now)
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

    def spent(
        self, period: Period = "total", *, decision_type: str | None = None, now: datetime | None = None
    ) -> Decimal:
        """US dollars charged in the period that holds `now`."""
        with self.read() as connection:
            return from_nano(self._spent(connection, period, _utc(now), decision_type or ""))

    def _spent(self, connection: sa.Connection, period: Period, now: datetime, decision_type: str) -> int:
        table = schema.totals
        query = sa.select(table.c.spent_nano).filter_by(
            period=period, start=period_start(period, now), decision_type=decision_type
        )
        return int(connection.execute(query).scalar() or 0)

    # -- reservations -------------------------------------------------------------------------------------------

    def reserve(
        self,
        amount_usd: Usd | None,
        *,
        purpose: str,
        decision_type: str | None = None,
        model: str | None = None,
        hourly_usd: Usd = 0,
        ttl: timedelta | None = RESERVATION_TTL,
        now: datetime | None = None,
    ) -> Reservation:
        """Set money aside before it is spent, or refuse.

        It counts against every budget until it is settled or released, or lapses `ttl` after `now` (None: never, for
        a reservation that a job or deployment owns). `hourly_usd` is what the thing costs an hour while it runs.

        Raises PriceUnknown when the amount is None, BudgetExceeded when a budget would be exceeded.
        """
        if amount_usd is None:
            raise PriceUnknown(f"{purpose}: its price is not known, so nothing is spent on it")
        amount, hourly, now = to_nano(amount_usd), to_nano(hourly_usd), _utc(now)
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
                "decision_type": decision_type,
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
        reservation: Reservation | int,
        amount_usd: Usd,
        *,
        hourly_usd: Usd | None = None,
        now: datetime | None = None,
    ) -> Reservation:
        """Hold another amount, and at another rate where `hourly_usd` is given.

        A reservation that has lapsed or was released opens again, for as long as it was made for; not one that is
        settled (LedgerError): it has been spent. Raises BudgetExceeded, changing nothing.
        """
        reservation_id, now = _reservation_id(reservation), _utc(now)
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

    def recheck(self, reservation: Reservation | int, *, now: datetime | None = None) -> None:
        """Refuse to spend what is reserved where other things have cost more than they had reserved meanwhile.

        Raises BudgetExceeded when a budget, by what is spent of it, has no room for the reservation any more.
        """
        now = _utc(now)
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
        reservation: Reservation | int,
        amount_usd: Usd,
        *,
        kind: ChargeKind,
        what: str,
        key: str | None = None,
        now: datetime | None = None,
        **charged_to: Any,
    ) -> bool:
        """Charge what it really cost and close the reservation, both or neither. Again is harmless.

        The true cost is charged even where it exceeds what was reserved: it is owed. Returns whether the charge is new.
        """
        reservation_id, now = _reservation_id(reservation), _utc(now)
        with self.transaction() as connection:
            held = self._reservation(connection, reservation_id)
            charged_to.setdefault("decision_type", held.decision_type)
            charged_to.setdefault("model_id", held.model_id)
            new = self.charge(
                kind, amount_usd, key=key or f"reservation:{reservation_id}", what=what, now=now, **charged_to
            )
            if held.state != "settled":
                self._update_reservation(connection, reservation_id, amount_nano=0, state="settled", closed_at=now)
            return new

    def release(self, reservation: Reservation | int, *, now: datetime | None = None) -> None:
        """Give back what is held. Harmless when it is closed already."""
        reservation_id = _reservation_id(reservation)
        with self.transaction() as connection:
            if self._reservation(connection, reservation_id).state == "open":
                self._update_reservation(
                    connection, reservation_id, amount_nano=0, state="released", closed_at=_utc(now)
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
        now, purpose = _utc(now), f"{_HOLD}{decision_type}"
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

    def release_hold(self, decision_type: str, *, now: datetime | None = None) -> None:
        """Give back what is still held for a cycle of the type. Harmless when there is nothing."""
        with self.transaction() as connection:
            for row in connection.execute(self._holds(decision_type)).mappings():
                self._update_reservation(connection, row["id"], amount_nano=0, state="released", closed_at=_utc(now))

    def held(self, decision_type: str, *, now: datetime | None = None) -> tuple[Decimal, Decimal]:
        """US dollars, and US dollars an hour, that are still held for a cycle of the type."""
        now = _utc(now)
        with self.read() as connection:
            rows = [row for row in connection.execute(self._holds(decision_type)).mappings() if row["expires_at"] > now]
        return from_nano(sum(row["amount_nano"] for row in rows)), from_nano(sum(row["hourly_nano"] for row in rows))

    def _holds(self, decision_type: str) -> sa.Select[Any]:
        return sa.select(schema.reservations).filter_by(
            state="open", decision_type=decision_type, purpose=f"{_HOLD}{decision_type}"
        )

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

    # -- charges ------------------------------------------------------------------------------------------------

    def charge(
        self,
        kind: ChargeKind,
        amount_usd: Usd,
        *,
        key: str,
        what: str,
        decision_type: str | None = None,
        model_id: str | None = None,
        job_id: str | None = None,
        deployment_id: str | None = None,
        quantity: int | None = None,
        ts: datetime | None = None,
        now: datetime | None = None,
    ) -> bool:
        """Write down a cost, once per `key`. Returns whether it is new.

        `ts` is when the cost arose (default `now`): it decides which day's and month's budget it counts in. Only an
        `adjustment` may be negative. Raises ChargeConflict when the key was charged with another amount.
        """
        amount, now = to_nano(amount_usd), _utc(now)
        if amount < 0 and kind != "adjustment":
            raise ValueError(f"{what}: a charge of kind {kind} cannot be negative: {amount_usd}")
        ts = _utc(ts or now)
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
                    decision_type=decision_type,
                    model_id=model_id,
                    job_id=job_id,
                    deployment_id=deployment_id,
                    quantity=quantity,
                )
            )
            for scope in {"", decision_type or ""}:
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

    def charges(self, **where: Any) -> list[dict[str, Any]]:
        """Charges in the order they were recorded, those whose columns equal `where`; `amount_usd` is a Decimal."""
        table = schema.charges
        with self.read() as connection:
            rows = connection.execute(sa.select(table).filter_by(**where).order_by(table.c.id)).mappings().all()
        return [{**row, "amount_usd": from_nano(row["amount_nano"])} for row in rows]

    # -- objects: datasets, fine_tune_jobs, models, deployments -------------------------------------------------

    def add(
        self, object_type: str, *, state: str, now: datetime | None = None, id: str | None = None, **values: Any
    ) -> dict[str, Any]:
        """Record a new object and return its row."""
        table, now = _table(object_type), _utc(now)
        object_id = id or new_id()
        with self.transaction() as connection:
            connection.execute(
                table.insert().values(id=object_id, state=state, created_at=now, updated_at=now, **values)
            )
            self._log_transition(connection, object_type, object_id, None, state, None, now)
            return self.get(object_type, object_id)

    def get(self, object_type: str, object_id: str) -> dict[str, Any]:
        """An object's row. Raises NoSuchObject."""
        with self.read() as connection:
            row = connection.execute(sa.select(_table(object_type)).filter_by(id=object_id)).mappings().first()
        if row is None:
            raise NoSuchObject(f"the ledger has no {object_type} {object_id!r}")
        return dict(row)

    def find(self, object_type: str, **where: Any) -> list[dict[str, Any]]:
        """Objects whose columns equal `where` (a list or tuple: one of them), oldest first."""
        table = _table(object_type)
        query = sa.select(table).order_by(table.c.created_at, table.c.id)
        for column, value in where.items():
            wanted = table.c[column]
            query = query.where(wanted.in_(value) if isinstance(value, (list, tuple, set)) else wanted == value)
        with self.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def update(self, object_type: str, object_id: str, *, now: datetime | None = None, **values: Any) -> dict[str, Any]:
        """Change columns of an object, not its state. Returns the row."""
        if "state" in values:
            raise ValueError("the state of an object changes by Ledger.transition")
        table = _table(object_type)
        with self.transaction() as connection:
            connection.execute(table.update().filter_by(id=object_id).values(updated_at=_utc(now), **values))
            return self.get(object_type, object_id)

    def transition(
        self,
        object_type: str,
        object_id: str,
        state: str,
        *,
        why: str | None = None,
        now: datetime | None = None,
        **values: Any,
    ) -> dict[str, Any]:
        """Move an object to a state, with other columns in the same step. To the state it is in: only the columns.

        Raises IllegalTransition where the state machine (`ledger_schema.TRANSITIONS`) has no such step.
        """
        table, now = _table(object_type), _utc(now)
        with self.transaction() as connection:
            before = self.get(object_type, object_id)["state"]
            if state != before:
                if state not in schema.TRANSITIONS[object_type].get(before, set()):
                    raise IllegalTransition(f"{object_type} {object_id}: cannot go from {before} to {state}")
                self._log_transition(connection, object_type, object_id, before, state, why, now)
            connection.execute(table.update().filter_by(id=object_id).values(state=state, updated_at=now, **values))
            return self.get(object_type, object_id)

    def _log_transition(
        self,
        connection: sa.Connection,
        object_type: str,
        object_id: str,
        before: str | None,
        after: str,
        why: str | None,
        now: datetime,
    ) -> None:
        connection.execute(
            schema.transitions.insert().values(
                ts=now, object=object_type, object_id=object_id, from_state=before, to_state=after, why=why
            )
        )

    def history(self, object_type: str, object_id: str) -> list[dict[str, Any]]:
        """Every change of state of an object, oldest first."""
        table = schema.transitions
        query = sa.select(table).filter_by(object=object_type, object_id=object_id).order_by(table.c.id)
        with self.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def note_state(
        self, subject: str, subject_id: str, state: str, *, why: str | None = None, now: datetime | None = None
    ) -> bool:
        """Remember the state of something that has no table, such as the provider's bill; see it in `history`.

        The state that it is in already is not written again. Returns whether it has changed.
        """
        with self.transaction() as connection:
            before = next((step["to_state"] for step in reversed(self.history(subject, subject_id))), None)
            if before == state:
                return False
            self._log_transition(connection, subject, subject_id, before, state, why, _utc(now))
            return True

    def meter(
        self,
        model: str,
        decision_type: str,
        day: str,
        *,
        requests: int,
        input_tokens: int,
        output_tokens: int,
        cost_usd: Usd,
        now: datetime | None = None,
    ) -> tuple[int, Decimal]:
        """Take in what the decision log holds of a model, a type and a day, and charge what is new of its cost.

        The totals replace those seen before; fewer than before (rows were erased) is no refund. Returns how many
        requests are new, and what was charged.
        """
        table, now = schema.meters, _utc(now)
        key = {"model": model, "decision_type": decision_type, "day": day}
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
                decision_type=decision_type,
                quantity=tokens,
                ts=min(now, end_of_day),
                now=now,
            )
            return new, from_nano(increase)


def _utc(now: datetime | None) -> datetime:
    if now is None:
        return datetime.now(UTC)
    if now.tzinfo is None:
        raise ValueError(f"time without a time zone: {now!r}; use datetime.now(UTC)")
    return now.astimezone(UTC)


def _table(object_type: str) -> sa.Table:
    if object_type not in schema.OBJECTS:
        raise ValueError(f"the ledger keeps no {object_type!r}: use one of {', '.join(schema.OBJECTS)}")
    return schema.OBJECTS[object_type]


def _read_reservation(row: sa.RowMapping) -> Reservation:
    return Reservation(
        id=row["id"],
        amount_usd=from_nano(row["amount_nano"]),
        purpose=row["purpose"],
        decision_type=row["decision_type"],
        model_id=row["model_id"],
        state=row["state"],
        expires_at=row["expires_at"],
    )


def _reservation_id(reservation: Reservation | int) -> int:
    return reservation if isinstance(reservation, int) else reservation.id
