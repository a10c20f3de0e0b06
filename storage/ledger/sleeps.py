"""When promoted models slept, and what that saved."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from storage.ledger import schema
from storage.ledger.database import LedgerDatabase, new_id
from storage.ledger.money import Usd, to_nano
from storage.ledger.rows import Sleep, SleepReason, to_row


def fall_asleep(
    ledger: LedgerDatabase, decision_type: str, model_id: str, *, why: SleepReason, saving_usd: Usd, now: datetime
) -> Sleep:
    """Write down that a promoted model sleeps from now on. One that sleeps already goes on with its sleep."""
    with ledger.transaction() as connection:
        if (sleep := sleeping(ledger, decision_type)) is not None and sleep.model_id == model_id:
            return sleep
        end_sleeps(ledger, decision_type, now=now)
        id = new_id()
        connection.execute(
            schema.sleeps.insert().values(
                id=id,
                decision_type=decision_type,
                model_id=model_id,
                why=SleepReason(why).value,
                slept_at=now,
                saving_nano=to_nano(saving_usd),
            )
        )
        return next(sleep for sleep in read_sleeps(ledger, decision_type=decision_type) if sleep.id == id)


def sleeping(ledger: LedgerDatabase, decision_type: str) -> Sleep | None:
    """The sleep that a type's model is in, or is being woken from; None where it is not asleep."""
    return next((sleep for sleep in read_sleeps(ledger, decision_type=decision_type) if sleep.ready_at is None), None)


def read_sleeps(
    ledger: LedgerDatabase, *, decision_type: str | None = None, since: datetime | None = None
) -> list[Sleep]:
    """The sleeps, the newest first; `since`: those that have not ended before."""
    table = schema.sleeps
    query = sa.select(table).order_by(table.c.slept_at.desc(), table.c.id)
    if decision_type is not None:
        query = query.where(table.c.decision_type == decision_type)
    if since is not None:
        query = query.where(sa.or_(table.c.ready_at.is_(None), table.c.ready_at >= since))
    with ledger.read() as connection:
        return [to_row(Sleep, row) for row in connection.execute(query).mappings()]


def note_sleep(ledger: LedgerDatabase, sleep_id: str, **columns: Any) -> None:
    """Write down of a sleep when its waking began (`woken_at`), ended (`ready_at`), or why it was `refused`."""
    with ledger.transaction() as connection:
        connection.execute(schema.sleeps.update().filter_by(id=sleep_id).values(**columns))


def end_savings(ledger: LedgerDatabase, model_ids: list[str], *, now: datetime) -> None:
    """Something runs again that these models share: the sleeps of theirs that saved its price save no more."""
    table = schema.sleeps
    with ledger.transaction() as connection:
        connection.execute(
            table.update()
            .where(table.c.model_id.in_(model_ids), table.c.saves_until.is_(None), table.c.woken_at.is_(None))
            .values(saves_until=now)
        )


def end_sleeps(ledger: LedgerDatabase, decision_type: str, *, now: datetime) -> None:
    """A type's model sleeps no more, for it was replaced, undeployed or deployed by hand."""
    table = schema.sleeps
    with ledger.transaction() as connection:
        open_ones = table.update().where(table.c.decision_type == decision_type, table.c.ready_at.is_(None))
        connection.execute(open_ones.where(table.c.woken_at.is_(None)).values(woken_at=now))
        connection.execute(open_ones.values(ready_at=now))
