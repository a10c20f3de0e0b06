"""Turns a ledger of today back into one of an older version."""

from __future__ import annotations

import sqlalchemy as sa

_THIRD = ("DROP TABLE evaluations", "DROP TABLE cycles", "DROP TABLE promotions")
_COLUMNS = {
    "models": (
        *("name", "base_url", "key_variable", "logprobs", "provider", "input_million_nano", "output_million_nano"),
        *("hourly_nano", "adapter_object_id", "adapter_name"),
    ),
    "deployments": ("provider", "role", "replica_id", "max_adapters"),
    "transitions": ("numbers",),
    "fine_tune_jobs": ("provider",),
}
# Where the cycles themselves are kept, their later column goes.
_THIRD_KEPT = ("ALTER TABLE cycles DROP COLUMN due",)
_LATER = (
    "DROP TABLE past_cycles",
    *("DROP INDEX models_name", "DROP INDEX deployments_replica", "DROP TABLE sleeps", "DROP TABLE model_routes"),
    *(f"ALTER TABLE {table} DROP COLUMN {column}" for table, columns in _COLUMNS.items() for column in columns),
)


def forget_migrations(connection: sa.Connection, *, keep_third: bool = False) -> None:
    """Undo what the third and all later migrations did; with `keep_third` only the later ones."""
    for statement in (*(_THIRD_KEPT if keep_third else _THIRD), *_LATER):
        connection.execute(sa.text(statement))
    version = "0003" if keep_third else "0002"
    connection.execute(sa.text(f"UPDATE alembic_version SET version_num = '{version}'"))
