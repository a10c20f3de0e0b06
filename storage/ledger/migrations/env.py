"""Alembic's entry: runs the migrations on the connection that `open_ledger` hands over, in its transaction."""

from __future__ import annotations

from alembic import context

from storage.ledger.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=False,  # the caller's transaction holds it: all migrations, or none
)
context.run_migrations()
