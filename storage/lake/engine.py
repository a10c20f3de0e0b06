"""DuckDB with a lake attached. Extensions are those that are installed here: nothing is downloaded."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import duckdb

from storage.errors import DataFolderError
from storage.lake.address import LakeAddress
from storage.layout import Layout
from storage.log.schema import PARTITIONS, sql_columns

NAME = "lake"
_SECRET = re.compile(r"password=('(?:[^'\\]|\\.)*'|\S+)")


def attach_lake(con: duckdb.DuckDBPyConnection, layout: Layout, address: LakeAddress) -> None:
    """Attach the tables as `lake`, made where they are missing.

    Extensions come from the wheels `duckdb-extension-*` of this DuckDB's version, or from `extensions/` in the data
    folder. Raises `DataFolderError`.
    """
    con.execute("SET autoinstall_known_extensions = false")
    con.execute("SET autoload_known_extensions = false")
    con.execute(f"SET extension_directory = {_literal(str(layout.data.absolute() / 'extensions'))}")
    for name in ("postgres_scanner", "ducklake", *([] if address.data.startswith("file:") else ["httpfs"])):
        _load(con, name)
    files = address.data
    if files.startswith("file:"):
        files = unquote(urlsplit(files).path)
    else:
        con.execute("CREATE OR REPLACE SECRET bucket (TYPE s3, PROVIDER config)")
    with _named(address):
        # Rows are in files alone: those in the catalog's tables would be out of reach of who reads the bucket.
        con.execute(
            f"ATTACH {_literal('ducklake:postgres:' + conninfo(address))} AS {NAME} "
            f"(DATA_PATH {_literal(files)}, DATA_INLINING_ROW_LIMIT 0)"
        )
        _create_tables(con)


def _create_tables(con: duckdb.DuckDBPyConnection) -> None:
    """Make the tables, and the columns that are missing from those of an older version."""
    found = con.execute(
        "SELECT table_name, column_name FROM duckdb_columns() WHERE database_name = ?", [NAME]
    ).fetchall()
    for table, partitions in PARTITIONS.items():
        has = {column for of, column in found if of == table}
        columns = dict(sql_columns(table))
        if not has:
            kinds = ", ".join(f"{column} {kind}" for column, kind in columns.items())
            con.execute(f"CREATE TABLE IF NOT EXISTS {NAME}.{table} ({kinds})")
            con.execute(f"ALTER TABLE {NAME}.{table} SET PARTITIONED BY ({', '.join(partitions)})")
        elif missing := columns.keys() - has:
            for column in sorted(missing):
                con.execute(f"ALTER TABLE {NAME}.{table} ADD COLUMN IF NOT EXISTS {column} {columns[column]}")


def _load(con: duckdb.DuckDBPyConnection, name: str) -> None:
    spec = importlib.util.find_spec(f"duckdb_extension_{name}")
    for home in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(home) / "extensions" / f"v{duckdb.__version__}" / f"{name}.duckdb_extension"
        if path.exists():
            con.execute(f"LOAD {_literal(str(path))}")
            return
    try:
        con.execute(f"LOAD {name}")
    except duckdb.Error as error:
        raise DataFolderError(
            f"REASONING_LOG needs the extension {name} of DuckDB {duckdb.__version__}, which is not installed here and "
            f"is not downloaded: install duckdb-extension-{name.replace('_', '-')}=={duckdb.__version__} from PyPI "
            "(there is none for DuckDB 2.0 yet: then install duckdb 1.5.5, too), or put it into `extensions/` of the "
            "data folder with DuckDB's INSTALL"
        ) from error


def conninfo(address: LakeAddress) -> str:
    """The catalog as libpq takes it."""
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    return make_conninfo("", **{name: value for name, value in conninfo_to_dict(address.catalog).items() if value})


@contextmanager
def _named(address: LakeAddress) -> Iterator[None]:
    """Raise what DuckDB says of the catalog without its password."""
    try:
        yield
    except duckdb.Error as error:
        reason = _SECRET.sub("password=***", " ".join(str(error).split()))
        if password := urlsplit(address.catalog).password:
            reason = reason.replace(unquote(password), "***")
        raise DataFolderError(
            f"the log at {address!r} cannot be opened: {reason[:300]}; look at REASONING_LOG and its database"
        ) from None


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
