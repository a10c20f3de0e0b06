"""The tables of a lake: a record lands once, as its id is compared with those of its day before one commit of all.

One process at a time lands into a lake, whatever its host: `storage.locks` holds an advisory lock of the catalog's
PostgreSQL, which ends with its connection.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from storage.lake.address import LakeAddress
from storage.lake.engine import NAME, attach_lake
from storage.layout import Layout
from storage.locks import check_held
from storage.log.home import DecisionLog, FolderLog, Staged, lake_address
from storage.log.landed import ID_COLUMNS, KnownRows, LandedRows, id_bounds, row_ids
from storage.log.schema import SCHEMAS, PartitionKey, parse_uuids
from storage.log.views import literal_path, open_engine, sql_text


@contextmanager
def open_log(layout: Layout) -> Iterator[DecisionLog]:
    """The tables of a data folder, wherever they are, for one who holds the lock. Raises `DataFolderError`."""
    address = lake_address(layout)
    if address is None:
        yield FolderLog(layout)
    else:
        with open_lake(layout, address) as log:
            yield log


@contextmanager
def open_lake(layout: Layout, address: LakeAddress) -> Iterator[LakeLog]:
    """The tables of a lake, for one who holds the lock. Raises `DataFolderError`."""
    with open_engine("1GB") as con:
        attach_lake(con, layout, address)
        yield LakeLog(con, layout)


class LakeLog:
    """`storage.log.home.DecisionLog` of a lake."""

    def __init__(self, con: duckdb.DuckDBPyConnection, layout: Layout) -> None:
        self._con, self._layout = con, layout
        self._one_at_a_time = threading.Lock()  # landing asks from the threads that write

    def landed(self, key: PartitionKey) -> LakeRows:
        return LakeRows(self._con, self._one_at_a_time, key)

    def commit(self, outputs: Mapping[PartitionKey, Staged]) -> None:
        """One transaction for all partitions; a kill before its end leaves nothing of it."""
        files = [(key, path) for key, output in outputs.items() for path in output.staged]
        if not files:
            return
        check_held(self._layout)
        self._con.execute("BEGIN")
        try:
            for key, path in files:
                self._con.execute(_insert(key, path))
            self._con.execute("COMMIT")
        except BaseException:
            _roll_back(self._con)
            raise
        for _, path in files:
            path.unlink()


def _roll_back(con: duckdb.DuckDBPyConnection) -> None:
    """Roll back, where there is still a transaction."""
    try:
        con.execute("ROLLBACK")
    except duckdb.Error:
        return


def _insert(key: PartitionKey, path: Path) -> str:
    columns = ", ".join(SCHEMAS[key.table].names)
    kind = "" if key.decision_type is None else f", {sql_text(key.decision_type)} AS decision_type"
    return (
        f"INSERT INTO {NAME}.{key.table} BY NAME SELECT {columns}{kind}, DATE {sql_text(key.date)} AS date "  # noqa: S608
        f"FROM read_parquet({sql_text(literal_path(path))}, hive_partitioning = false)"
    )


class LakeRows:
    """The rows that a partition of a lake has, with those of files that are being landed into it."""

    def __init__(self, con: duckdb.DuckDBPyConnection, lock: threading.Lock, key: PartitionKey) -> None:
        self._con, self._lock, self._key = con, lock, key
        self._staged = LandedRows(key.table, [])

    def add(self, path: Path) -> None:
        self._staged.add(path)

    def find(self, rows: pa.Table) -> KnownRows:
        """Those of the rows that are among these. Only files whose ids may be among them are read."""
        known = self._staged.find(rows)
        ids = row_ids(self._key.table, rows)
        theirs = self._read(ids)
        if not len(theirs):
            return known
        places = pc.index_in(ids, value_set=row_ids(self._key.table, theirs))
        numbers = pc.indices_nonzero(places.is_valid())
        there = places.drop_null()
        known.add(
            self._key.table,
            numbers.to_pylist(),
            lambda name: rows[name].combine_chunks().take(numbers),
            lambda name: theirs[name].combine_chunks().take(there),
        )
        return known

    def _read(self, ids: pa.Array) -> pa.Table:
        id_column = ID_COLUMNS[self._key.table]
        schema = SCHEMAS[self._key.table]
        where = "" if self._key.decision_type is None else f"decision_type = {sql_text(self._key.decision_type)} AND"
        low, high = map(_uuid, id_bounds(ids))
        query = f"""
            SELECT {", ".join(schema.names)} FROM {NAME}.{self._key.table}
            WHERE {where} date = DATE {sql_text(self._key.date)} AND {id_column} BETWEEN '{low}' AND '{high}'
              AND {id_column} IN (SELECT id::UUID FROM wanted)
        """  # noqa: S608 - names of ours
        wanted = pa.table({"id": pa.array([_uuid(value) for value in ids.to_pylist()], pa.string())})
        with self._lock:
            self._con.register("wanted", wanted)
            found: pa.Table = self._con.execute(query).to_arrow_table()
            self._con.unregister("wanted")
        columns = [_convert(found.column(field.name), field.type) for field in schema]
        return pa.Table.from_arrays(columns, schema=schema)


def _uuid(value: bytes) -> str:
    text = value.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _convert(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    array: pa.Array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # of no rows
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.nulls(0, array.type)
    if kind == pa.uuid() and not isinstance(array, pa.ExtensionArray):
        return parse_uuids(array.cast(pa.string()))
    return array.cast(kind)
