"""Setup that hundreds of tests would otherwise repeat: loading trusted certificates and migrating a new ledger.

The real code does each once per process, and its result is reused. Child processes of tests do all of it.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

_Schema = tuple[list[str], list[tuple[str, list[dict[str, Any]]]]]
"""Statements that make tables, and the rows that are in them from the start."""


def share_tls_contexts(patch: pytest.MonkeyPatch) -> None:
    """One TLS context for all httpx clients that trust the usual certificates; loading those takes 25 ms of CPU."""
    from httpx import create_ssl_context as create

    made: dict[tuple[str | None, ...], ssl.SSLContext] = {}

    def shared(verify: Any = True, cert: Any = None, trust_env: bool = True) -> ssl.SSLContext:
        if verify is not True or cert is not None:
            return create(verify=verify, cert=cert, trust_env=trust_env)
        key = (str(trust_env), os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
        if key not in made:
            made[key] = create(verify=True, trust_env=trust_env)
        return made[key]

    patch.setattr("httpx._transports.default.create_ssl_context", shared)


def copy_new_ledgers(patch: pytest.MonkeyPatch) -> None:
    """Create an empty SQLite ledger by the statements that the first migration of this process gave; 60 ms of CPU."""
    import alembic.command

    upgrade: Callable[..., None] = alembic.command.upgrade
    made: list[_Schema] = []

    def copied(config: Any, revision: str, *arguments: Any, **options: Any) -> None:
        connection: sa.Connection = config.attributes["connection"]
        if connection.dialect.name != "sqlite" or sa.inspect(connection).get_table_names():
            upgrade(config, revision, *arguments, **options)
        elif not made:
            upgrade(config, revision, *arguments, **options)
            made.append(_read(connection))
        else:
            _write(connection, made[0])

    patch.setattr(alembic.command, "upgrade", copied)


def _read(connection: sa.Connection) -> _Schema:
    found = connection.exec_driver_sql("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid")
    statements = [row.sql for row in found if "sqlite_sequence" not in row.sql]
    rows = []
    for table in sa.inspect(connection).get_table_names():
        if content := connection.exec_driver_sql(f'SELECT * FROM "{table}"').mappings().all():
            rows.append((table, [dict(row) for row in content]))
    return statements, rows


def _write(connection: sa.Connection, schema: _Schema) -> None:
    statements, rows = schema
    for statement in statements:
        connection.exec_driver_sql(statement)
    for table, content in rows:
        for row in content:
            names, places = ", ".join(f'"{name}"' for name in row), ", ".join("?" * len(row))
            connection.exec_driver_sql(f'INSERT INTO "{table}" ({names}) VALUES ({places})', tuple(row.values()))
