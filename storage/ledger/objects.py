"""What of ours exists at the provider: datasets, fine-tune jobs, models and deployments, with their state machines."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from storage.errors import IllegalTransition, NoSuchObject
from storage.ledger import schema
from storage.ledger.database import LedgerDatabase, new_id, utc
from storage.ledger.rows import ObjectT, Transition, to_columns, to_row


class LedgerObjects(LedgerDatabase):
    """The objects of an open ledger."""

    def add(
        self, kind: type[ObjectT], *, state: str, now: datetime | None = None, id: str | None = None, **values: Any
    ) -> ObjectT:
        """Record a new object and return its row. `values` are fields of `kind`."""
        table, now = schema.OBJECTS[kind.TABLE], utc(now)
        object_id = id or new_id()
        with self.transaction() as connection:
            columns = to_columns(kind, {"state": state, **values})
            connection.execute(table.insert().values(id=object_id, created_at=now, updated_at=now, **columns))
            self._log_transition(connection, kind.TABLE, object_id, None, columns["state"], None, now)
            return self.get(kind, object_id)

    def get(self, kind: type[ObjectT], object_id: str) -> ObjectT:
        """An object's row. Raises NoSuchObject."""
        with self.read() as connection:
            row = connection.execute(sa.select(schema.OBJECTS[kind.TABLE]).filter_by(id=object_id)).mappings().first()
        if row is None:
            raise NoSuchObject(f"the ledger has no {kind.TABLE} {object_id!r}")
        return to_row(kind, row)

    def find(self, kind: type[ObjectT], **where: Any) -> list[ObjectT]:
        """Objects whose fields equal `where` (a list or tuple: one of them), oldest first."""
        table = schema.OBJECTS[kind.TABLE]
        query = sa.select(table).order_by(table.c.created_at, table.c.id)
        for column, value in to_columns(kind, where).items():
            wanted = table.c[column]
            query = query.where(wanted.in_(value) if isinstance(value, list) else wanted == value)
        with self.read() as connection:
            return [to_row(kind, row) for row in connection.execute(query).mappings()]

    def update(self, kind: type[ObjectT], object_id: str, *, now: datetime | None = None, **values: Any) -> ObjectT:
        """Change fields of an object, not its state. Returns the row."""
        if "state" in values:
            raise ValueError("the state of an object changes by Ledger.transition")
        table = schema.OBJECTS[kind.TABLE]
        with self.transaction() as connection:
            connection.execute(
                table.update().filter_by(id=object_id).values(updated_at=utc(now), **to_columns(kind, values))
            )
            return self.get(kind, object_id)

    def transition(
        self,
        kind: type[ObjectT],
        object_id: str,
        state: str,
        *,
        why: str | None = None,
        numbers: str | None = None,
        now: datetime | None = None,
        **values: Any,
    ) -> ObjectT:
        """Move an object to a state, with other fields in the same step. To the state it is in: only the fields.

        `numbers` is JSON, the figures behind the change.
        Raises IllegalTransition where the state machine (`ledger_schema.TRANSITIONS`) has no such step.
        """
        table, now = schema.OBJECTS[kind.TABLE], utc(now)
        with self.transaction() as connection:
            before = self.get(kind, object_id).state
            if state != before:
                if state not in schema.TRANSITIONS[kind.TABLE].get(before, set()):
                    raise IllegalTransition(f"{kind.TABLE} {object_id}: cannot go from {before} to {state}")
                self._log_transition(connection, kind.TABLE, object_id, before, state, why, now, numbers)
            columns = to_columns(kind, {"state": state, **values})
            connection.execute(table.update().filter_by(id=object_id).values(updated_at=now, **columns))
            return self.get(kind, object_id)

    def _log_transition(
        self,
        connection: sa.Connection,
        subject: str,
        object_id: str,
        before: str | None,
        after: str,
        why: str | None,
        now: datetime,
        numbers: str | None = None,
    ) -> None:
        connection.execute(
            schema.transitions.insert().values(
                ts=now,
                object=subject,
                object_id=object_id,
                from_state=before and str(before),
                to_state=str(after),
                why=why,
                numbers=numbers,
            )
        )

    def history(self, kind: type[ObjectT] | str, object_id: str) -> list[Transition]:
        """Every change of state of an object, oldest first; or of the subject that `note_state` remembers."""
        table, subject = schema.transitions, kind if isinstance(kind, str) else kind.TABLE
        query = sa.select(table).filter_by(object=subject, object_id=object_id).order_by(table.c.id)
        with self.read() as connection:
            return [to_row(Transition, row) for row in connection.execute(query).mappings()]

    def note_state(
        self, subject: str, subject_id: str, state: str, *, why: str | None = None, now: datetime | None = None
    ) -> bool:
        """Remember the state of something that has no table, such as the provider's bill; see it in `history`.

        The state that it is in already is not written again. Returns whether it has changed.
        """
        with self.transaction() as connection:
            before = next((step.to_state for step in reversed(self.history(subject, subject_id))), None)
            if before == state:
                return False
            self._log_transition(connection, subject, subject_id, before, state, why, utc(now))
            return True
