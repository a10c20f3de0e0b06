"""The ledger's database: where it is, its schema, its transactions and its locks.

Every change of money is one serialised transaction (`BEGIN IMMEDIATE`; on PostgreSQL under an advisory lock).
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random

from storage.errors import LedgerError, LedgerUnavailable
from storage.files import make_folder, open_private
from storage.layout import Layout
from storage.ledger import schema
from storage.ledger.money import to_nano
from storage.volumes import check_alone, check_volume

# What a fresh ledger allows, so that forgetting to set a budget is not a blank cheque. An hour carries a candidate
# beside its incumbent, at $5.49 each: with less, every cycle but the first would be refused.
DEFAULT_BUDGETS = {"hour": "12", "day": "25", "month": "100"}

_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # no 0/o, 1/l: ids are read aloud and typed
_LOCK_TIMEOUT_S = 60
_ONE_AT_A_TIME = sa.text("SELECT pg_advisory_xact_lock(hashtext(:key))")


def new_id(length: int = 8) -> str:
    """A random id in lower case, unmistakable when read aloud."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def utc(now: datetime | None) -> datetime:
    """This time in UTC; None is the present. Raises ValueError for a time without a zone."""
    if now is None:
        return datetime.now(UTC)
    if now.tzinfo is None:
        raise ValueError(f"time without a time zone: {now!r}; use datetime.now(UTC)")
    return now.astimezone(UTC)


def ledger_url(data_or_url: str | Path) -> sa.URL:
    """URL of the ledger of a data folder (`Layout.ledger_url`), or this URL itself.

    Raises LedgerError, which names the setting and never its value, when it is no URL of a database that can hold it.
    """
    given = "://" in str(data_or_url)
    what = "the ledger's URL" if given or "REASONING_LEDGER_URL" not in os.environ else "REASONING_LEDGER_URL"
    mend = "write postgresql://USER:PASSWORD@HOST/DATABASE, or sqlite:////FOLDER/FILE"
    try:
        url = sa.make_url(str(data_or_url) if given else Layout(data_or_url).ledger_url)
    except (sa.exc.ArgumentError, ValueError):
        raise LedgerError(f"{what} is not the URL of a database: {mend}") from None
    backend = url.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise LedgerError(f"{what} names {backend}, where the ledger cannot live: {mend}")
    if backend == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if url.database in (None, "", ":memory:"):
        raise LedgerError(f"{what} names no file, and a ledger in memory would forget what was spent: {mend}")
    return url


def shown_url(url: sa.URL) -> str:
    """A URL for people: without its password, also where that is one of its parameters."""
    harmless = {name: value for name, value in url.query.items() if name in ("host", "port", "dbname", "sslmode")}
    return url.set(query=harmless).render_as_string(hide_password=True)


def open_database(
    data_or_url: str | Path, now: datetime, *, take_in: Callable[[sa.Connection], None] | None = None
) -> tuple[sa.Engine, str]:
    """Reach the database of a ledger, creating and migrating it where needed; with the id of the installation.

    `take_in` is called in the transaction that brings the schema up to date.

    Raises LedgerError when the database cannot be opened, or was written by a newer version of this project, and
    DataFolderError or DataFolderBusy where an SQLite file is on a volume whose locks are not to be trusted.
    """
    url, local = ledger_url(data_or_url), True
    try:
        if url.get_backend_name() == "sqlite":
            path = Path(str(url.database))
            make_folder(path.parent)
            local = check_volume(Layout(path.parent), "opening the ledger") == "local"
            check_alone(Layout(path.parent), "opening the ledger")
            # SQLite gives its other files the rights of this one.
            os.close(open_private(path, os.O_RDWR | os.O_CREAT))
        # The memory that WAL shares between processes is of one host.
        engine = _make_engine(url, journal="WAL" if local else "DELETE")
        _migrate(engine, now, take_in)
        with engine.connect() as connection:
            installation_id = connection.execute(sa.select(schema.installation.c.id)).scalar_one()
    except sa.exc.SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip()
        raise LedgerError(f"cannot open the ledger {shown_url(url)}: {reason}") from None
    except OSError as error:
        raise LedgerError(f"cannot make {error.filename} for the ledger: {error.strerror}") from None
    except ImportError as error:
        raise LedgerError(
            f"cannot open the ledger: {error}. Install the driver: pip install 'psycopg[binary]'"
        ) from None
    return engine, installation_id


def _make_engine(url: sa.URL, *, journal: str) -> sa.Engine:
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, pool_pre_ping=True)
    engine = sa.create_engine(url, connect_args={"timeout": _LOCK_TIMEOUT_S})

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # sqlite3 would begin late and deferred; `begin` below does it
        connection.execute(f"PRAGMA busy_timeout = {_LOCK_TIMEOUT_S * 1000}")
        # SQLite does not wait for its busy timeout where two connections to a new database switch at once.
        for attempt in Retrying(
            retry=retry_if_exception_type(sqlite3.OperationalError),
            stop=stop_after_delay(_LOCK_TIMEOUT_S),
            wait=wait_random(0.01, 0.1),
            reraise=True,
        ):
            with attempt:
                connection.execute(f"PRAGMA journal_mode = {journal}")
        connection.execute("PRAGMA synchronous = FULL")  # a commit of money survives a power cut
        connection.execute("PRAGMA foreign_keys = ON")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        write = connection.get_execution_options().get("write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _migrate(engine: sa.Engine, now: datetime, take_in: Callable[[sa.Connection], None] | None) -> None:
    """Bring the schema to `REVISION` and make the installation, in one transaction that others wait for."""
    if _revision(engine) == schema.REVISION:
        return
    from alembic.command import upgrade
    from alembic.config import Config
    from alembic.util import CommandError

    with engine.connect().execution_options(write=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('reasoning ledger migration'))"))
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
        config.attributes["connection"] = connection
        try:
            upgrade(config, "head")
        except CommandError as error:
            raise LedgerError(f"the ledger was written by a newer version of this project: {error}") from None
        if take_in is not None:
            take_in(connection)
        if connection.execute(sa.select(schema.installation.c.id)).first() is None:
            connection.execute(schema.installation.insert().values(id=new_id(6), created_at=now))
            for period, limit in DEFAULT_BUDGETS.items():
                connection.execute(
                    schema.budgets.insert().values(
                        period=period, decision_type="", limit_nano=to_nano(limit), set_at=now
                    )
                )


def _revision(engine: sa.Engine) -> str | None:
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


class LedgerDatabase:
    """An open database of a ledger. Safe to use from several threads; every process opens its own."""

    def __init__(self, engine: sa.Engine, installation_id: str) -> None:
        self.engine = engine
        self.installation_id = installation_id
        self._open: threading.local = threading.local()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self.engine.dispose()

    @property
    def prefix(self) -> str:
        """What the name of every remote object of this installation starts with."""
        return f"rsn-{self.installation_id}-"

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """One serialised transaction of writes. Nested, it joins the one that is open: all of it, or nothing.

        Other writers of ours are waited for, however long they take. Raises LedgerUnavailable when the database is
        locked by others for too long, read-only, full, damaged or gone.
        """
        if (connection := getattr(self._open, "connection", None)) is not None:
            yield connection
            return
        with (
            self._reached(),
            self.engine.connect().execution_options(write=True) as connection,
            self._turn(),
            connection.begin(),
        ):
            if self.engine.dialect.name == "postgresql":
                connection.execute(_ONE_AT_A_TIME, {"key": f"{self.installation_id} write"})
            self._open.connection = connection
            try:
                yield connection
            finally:
                self._open.connection = None

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Writers of an SQLite file queue for a file lock: for its own they would poll, and mostly sleep."""
        if self.engine.dialect.name == "postgresql":
            yield
        else:
            with self.exclusive("write", wait=True):
                yield

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One consistent view for reading (the open transaction, inside of one). Raises LedgerUnavailable."""
        if (connection := getattr(self._open, "connection", None)) is not None:
            yield connection
            return
        with self._reached(), self.engine.connect() as connection:
            if self.engine.dialect.name == "postgresql":  # else each statement sees what others have committed by then
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Say in one line what is wrong with the database, and what to do."""
        try:
            yield
        except sa.exc.DatabaseError as error:
            if isinstance(error, (sa.exc.IntegrityError, sa.exc.ProgrammingError, sa.exc.DataError)):
                raise  # the database is well, and what it was asked is wrong
            reason = str(error.orig).strip().splitlines()[0]
            raise LedgerUnavailable(
                f"the ledger {shown_url(self.engine.url)} cannot be used: {reason}. What it could "
                f"not take down was not done, or the next run makes it good: {_mend(reason)}, then run the same again"
            ) from error

    @contextmanager
    def exclusive(self, name: str, *, wait: bool = False) -> Iterator[bool]:
        """Hold the lock `name` of this ledger while the block runs; yields whether it was got.

        It ends with its process, however that ends: a file lock beside an SQLite file, an advisory lock on PostgreSQL.
        """
        if self.engine.dialect.name == "postgresql":
            call = "pg_advisory_lock" if wait else "pg_try_advisory_lock"
            with (
                self._reached(),
                self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
            ):
                key = f"{self.installation_id} {name}"
                got = connection.execute(sa.text(f"SELECT {call}(hashtext(:key))"), {"key": key}).scalar() is not False
                try:
                    yield got
                finally:
                    if got:
                        connection.execute(sa.text("SELECT pg_advisory_unlock(hashtext(:key))"), {"key": key})
            return
        path = Path(f"{self.engine.url.database}.{name}.lock")
        try:
            file = open(path, "ab", opener=open_private)  # noqa: SIM115 - its failing is another error than the lock's
        except OSError as error:
            raise LedgerUnavailable(f"{path} cannot be written: {error.strerror}: {_mend(str(error))}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True  # closing the file releases it


def _mend(reason: str) -> str:
    reason = reason.lower()
    if "readonly" in reason or "read-only" in reason or "permission" in reason:
        return "make it and its folder writable"
    if "full" in reason or "no space" in reason:
        return "free some space"
    if "malformed" in reason or "not a database" in reason or "no such table" in reason:
        return "put a backup in its place"
    if "locked" in reason:
        return "end the program that holds it"
    return "make the database reachable"
