"""Append-only by any statement: on SQLite not by REPLACE either, on PostgreSQL not by TRUNCATE."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        for table in ("charges", "transitions"):
            op.execute(
                f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
                f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only()"
            )
        return
    for table, same in (("charges", "id = NEW.id OR key = NEW.key"), ("transitions", "id = NEW.id")):
        # REPLACE deletes without a delete trigger, unless a connection asks for recursive ones.
        op.execute(
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "  # noqa: S608 - only the constants above
            f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {same}) "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )


def downgrade() -> None:
    raise NotImplementedError("a ledger is never thrown away; restore a backup instead")
