"""Work that hundreds of tests would otherwise repeat: loading certificates, migrating a ledger, judging a dataset.

Certificates and migrations: the real code runs once per process, and its result is reused. Child processes of tests do
all of it.
"""

from __future__ import annotations

import math
import os
import ssl
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

if TYPE_CHECKING:
    from quality.checks.gate import Profile
    from quality.checks.report import QualityReport

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


def judge_without_great_expectations(patch: pytest.MonkeyPatch) -> None:
    """Let datasets and logs be judged by `judge_quickly`; Great Expectations takes 0.4 s of CPU, and 4 s to import.

    Tests of the gate itself use the fixture `great_expectations`. Only what is imported by now is patched.
    """
    for name in _JUDGES:
        if name in sys.modules:
            patch.setattr(f"{name}.judge_profiles", judge_quickly)


def judge_with_great_expectations(patch: pytest.MonkeyPatch) -> None:
    """Undo `judge_without_great_expectations`."""
    from quality.checks.gate import judge_profiles

    for name in _JUDGES:
        patch.setattr(f"{name}.judge_profiles", judge_profiles)


_JUDGES = ("quality.checks.log", "quality.dataset.export")


def judge_quickly(profiles: Sequence[Profile], *, docs: Path | None = None) -> QualityReport:
    """What `quality.checks.gate.judge_profiles` reports, without its pages; `test_checks` compares the two."""
    from quality.checks.data_docs import write_data_docs
    from quality.checks.gate import _plain
    from quality.checks.report import Failure, QualityReport

    failures: list[Failure] = []
    for profile in profiles:
        frame = profile.frame
        if frame.empty and not profile.may_be_empty:
            failures.append(Failure(profile.name, f"the {profile.name} have rows", "critical", 0))
        for check in () if frame.empty else profile.expected:
            values = frame[check.column].astype(float)
            least = -math.inf if check.min_value is None else check.min_value
            most = math.inf if check.max_value is None else check.max_value
            wrong = frame[values.notna() & ~values.between(least, most)]
            if not wrong.empty:
                where = [" ".join(str(row[key]) for key in profile.keys) for _, row in wrong.iterrows()]
                observed = [_plain(value) for value in wrong[check.column]]
                failures.append(Failure(profile.name, check.meaning, check.severity, observed, where))
    checked = sum(1 + (0 if profile.frame.empty else len(profile.expected)) for profile in profiles)
    success = not any(failure.severity == "critical" for failure in failures)
    report = QualityReport(success, checked, failures, None if docs is None else docs / "index.html")
    if docs is not None:
        write_data_docs(docs, report, {profile.name: "<html></html>" for profile in profiles})
    return report
