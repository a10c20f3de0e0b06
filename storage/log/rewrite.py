"""Replacing all the files of a partition by one new file, in one step that a reader sees done or not done.

On Linux the new folder and the old one are *exchanged* (`renameat2`), which is the commit. Where the system cannot, a
*manifest* commits: `_hidden.json` in the folder names files that are not part of the table. It first names the new
file, which is then moved in; writing it anew, with the names of the old files, is the commit; then those are deleted
and it goes too. Whatever it names is garbage, so recovery after a kill is to delete that.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal
from uuid import uuid4

import duckdb
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reasoning.records import SCHEMA_VERSION
from storage.errors import TableError
from storage.files import CANNOT_EXCHANGE, exchange, make_folder, make_private, remove_tree, sync, write_atomic
from storage.layout import Layout
from storage.locks import check_held
from storage.log.landed import ID_COLUMNS, row_ids
from storage.log.schema import PARTITIONS, SCHEMAS, PartitionKey
from storage.log.table import (
    HIDDEN,
    SCHEMA_KEY,
    file_footer,
    foreign_files,
    landed_at,
    landed_segments,
    list_partitions,
    live_files,
    naming_unreadable,
    read_metadata,
)
from storage.log.views import scan, sql_text

Method = Literal["auto", "exchange", "manifest"]

_ROW_GROUP_ROWS = 20_480
_ROW_GROUP_BYTES = 64 << 20
# DuckDB sorts 2,048 rows at a time: of rows larger than this on average, they no longer fit into its memory limit.
_LARGE_ROW_BYTES = 32 << 10


def rewrite_partition(
    con: duckdb.DuckDBPyConnection,
    layout: Layout,
    key: PartitionKey,
    *,
    drop: str = "false",
    method: Method = "auto",
) -> int:
    """Write a partition anew as one file sorted by time, without the rows for which the SQL `drop` is true.

    A folder with files of others' in it is kept (the manifest's way). For one who holds the lock and has finished
    landing. Returns the number of rows dropped. Raises `TableError` when a file cannot be read, or is of a newer
    version, or the new file does not hold what it should; the partition is then as it was.
    """
    folder = _own_folder(layout, key)
    sources = live_files(folder)
    metadata = [read_metadata(path) for path in sources]
    rows = sum(file.num_rows for file in metadata)
    dropped = 0
    if drop != "false":
        query = f"SELECT count(*) FROM ({scan(key.table, sources)}) WHERE {drop}"  # noqa: S608 - `drop` is ours
        with naming_unreadable(sources):
            dropped = con.execute(query).fetchall()[0][0]
    if dropped == rows:
        remove_partition(layout, key)
        return dropped

    for path, file in zip(sources, metadata, strict=True):
        _check_version(path, key.table, file)
    uncompressed = sum(file.row_group(i).total_byte_size for file in metadata for i in range(file.num_row_groups))
    row_group = max(1, min(_ROW_GROUP_ROWS, _ROW_GROUP_BYTES * rows // max(uncompressed, 1)))
    staged = layout.staging(key.table) / uuid4().hex
    make_folder(staged)
    new = staged / f"data-{uuid4()}.parquet"
    try:
        landed = max(landed_at(path, file) for path, file in zip(sources, metadata, strict=True))
        footer = file_footer(sorted(landed_segments(folder)), landed)
        write = _write_large if uncompressed > rows * _LARGE_ROW_BYTES else _write
        with naming_unreadable(sources):
            write(con, key.table, sources, drop, row_group, footer, new)
        if pq.read_metadata(new).num_rows != rows - dropped:
            raise TableError(f"{new} has not the {rows - dropped} rows that it should; {folder} stays as it is")
        make_private(new)
        sync(new)
        sync(staged)
        check_held(layout)
        with _on_one_disk(layout, folder):
            _commit(folder, new, sources, "manifest" if method == "auto" and foreign_files(folder) else method)
    finally:
        remove_tree(staged)
    return dropped


def _check_version(path: Path, table: str, metadata: pq.FileMetaData) -> None:
    """Raise `TableError` for a file with more in it than this version knows: that would be lost in the new one."""
    version = int((metadata.metadata or {}).get(SCHEMA_KEY, SCHEMA_VERSION))
    names = {metadata.schema.column(number).path.partition(".")[0] for number in range(metadata.num_columns)}
    unknown = names - {*SCHEMAS[table].names, *PARTITIONS[table]}
    if version > SCHEMA_VERSION or unknown:
        columns = f", the columns {', '.join(sorted(unknown))}" if unknown else ""
        raise TableError(
            f"{path} has more in it than this version knows (schema {version}{columns}): it would lose that if it were "
            "written anew; upgrade custom-reasoning, then run it again. It can be read as it is"
        )


def _write(
    con: duckdb.DuckDBPyConnection,
    table: str,
    sources: list[Path],
    drop: str,
    row_group: int,
    footer: dict[bytes, bytes],
    new: Path,
) -> None:
    columns = ", ".join(SCHEMAS[table].names)
    pairs = ", ".join(f"{sql_text(name.decode())}: {sql_text(value.decode())}" for name, value in footer.items())
    # The page size: with DuckDB's own, a reader under a memory limit of 1 GB runs out of memory.
    con.execute(f"""
        COPY (
            SELECT {columns} FROM ({scan(table, sources)}) WHERE ({drop}) IS NOT true ORDER BY ts, {ID_COLUMNS[table]}
        ) TO {sql_text(str(new))} (
            FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 3, ROW_GROUP_SIZE {row_group},
            DATA_PAGE_SIZE_LIMIT 1048576, KV_METADATA {{{pairs}}}
        )
    """)  # noqa: S608 - names and predicates of our own


def _write_large(
    con: duckdb.DuckDBPyConnection,
    table: str,
    sources: list[Path],
    drop: str,
    row_group: int,
    footer: dict[bytes, bytes],
    new: Path,
) -> None:
    """`_write` for large rows: DuckDB orders their ids, and what they are of is gathered by pyarrow, group by group."""
    id_column = ID_COLUMNS[table]
    ordered = con.execute(f"""
        SELECT {id_column} FROM ({scan(table, sources)}) WHERE ({drop}) IS NOT true ORDER BY ts, {id_column}
    """).fetchall()  # noqa: S608 - names and predicates of our own
    order = pa.array([row[0].bytes for row in ordered], pa.binary(16))
    with ExitStack() as stack:
        groups = []  # of the sources, with the place of each of their rows in the new order; NULL where it is dropped
        for file in [stack.enter_context(pq.ParquetFile(path)) for path in sources]:
            for number in range(file.num_row_groups):
                ids = row_ids(table, file.read_row_group(number, columns=[id_column]))
                groups.append((file, number, pc.index_in(ids.cast(pa.binary(16)), value_set=order)))
        writer = stack.enter_context(pq.ParquetWriter(new, SCHEMAS[table], compression="zstd", compression_level=3))
        for first in range(0, len(order), row_group):
            rows, places = [], []
            for file, number, place in groups:
                wanted = pc.and_(pc.greater_equal(place, first), pc.less(place, first + row_group)).fill_null(False)
                if pc.any(wanted).as_py():
                    rows.append(_of_today(table, file.read_row_group(number).filter(wanted)))
                    places.append(place.filter(wanted))
            sorted_rows = pa.concat_tables(rows).take(pc.sort_indices(pa.concat_arrays(places)))
            writer.write_table(sorted_rows, row_group_size=row_group)
        writer.add_key_value_metadata(footer)


def _of_today(table: str, rows: pa.Table) -> pa.Table:
    """Rows of an older file, or one that DuckDB wrote, with the columns of today."""
    has, schema = set(rows.column_names), SCHEMAS[table]
    columns = [
        rows[field.name].cast(field.type) if field.name in has else pa.nulls(len(rows), field.type) for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _commit(folder: Path, new: Path, old: list[Path], method: Method) -> None:
    if method != "manifest":
        try:
            exchange(new.parent, folder)
        except OSError as error:
            if method == "exchange" or error.errno not in CANNOT_EXCHANGE:
                raise
        else:
            sync(folder.parent)
            sync(new.parent.parent)
            return  # the old folder, now in staging, is removed by the caller; paths to its files are gone already
    hidden = folder / HIDDEN
    write_atomic(hidden, orjson.dumps([new.name]))
    new.rename(folder / new.name)
    sync(folder)
    write_atomic(hidden, orjson.dumps([path.name for path in old]))
    _delete_hidden(folder)


def _delete_hidden(folder: Path) -> None:
    hidden = folder / HIDDEN
    for name in orjson.loads(hidden.read_bytes()):
        (folder / name).unlink(missing_ok=True)
    sync(folder)
    hidden.unlink()
    sync(folder)


def remove_partition(layout: Layout, key: PartitionKey) -> None:
    """Take a partition out of its table in one step, then delete its files. For one who holds the lock."""
    folder = _own_folder(layout, key)
    check_held(layout)
    if foreign_files(folder):
        write_atomic(folder / HIDDEN, orjson.dumps([path.name for path in live_files(folder)]))
        _delete_hidden(folder)
        return
    staging = layout.staging(key.table)
    make_folder(staging)
    removed = staging / uuid4().hex
    with _on_one_disk(layout, folder):
        folder.rename(removed)
    sync(folder.parent)
    remove_tree(removed)


def remove_files(layout: Layout, key: PartitionKey, files: list[Path]) -> None:
    """Take some files of a partition out of its table in one step, then delete them. For one who holds the lock."""
    folder = _own_folder(layout, key)
    if len(files) == len(live_files(folder)):
        remove_partition(layout, key)
        return
    check_held(layout)
    write_atomic(folder / HIDDEN, orjson.dumps([path.name for path in files]))
    _delete_hidden(folder)


def _own_folder(layout: Layout, key: PartitionKey) -> Path:
    folder = layout.data / key.folder
    if folder.is_symlink():
        raise TableError(
            f"{folder} is a symbolic link, so its files cannot be replaced in one step: move the folder itself there"
        )
    return folder


@contextmanager
def _on_one_disk(layout: Layout, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise TableError(f"{folder} cannot be replaced: {use_one_disk(layout)}, and run it again") from error


def use_one_disk(layout: Layout) -> str:
    """The mend where a rename crosses from one file system to another (EXDEV)."""
    return (
        f"the tables must be on the file system of {layout.data}, so that a file gets into them in one step: move the "
        "data folder as a whole (it may be a link itself) instead of linking or mounting a part of it"
    )


def recover(layout: Layout) -> None:
    """Undo, or finish, what a killed landing, compaction, expiry or erasure left. For one who holds the lock."""
    for table in PARTITIONS:
        remove_tree(layout.staging(table))
        for key in list_partitions(layout, table):
            if (layout.data / key.folder / HIDDEN).exists():
                _delete_hidden(layout.data / key.folder)
            for temporary in (layout.data / key.folder).glob("*.tmp"):
                temporary.unlink(missing_ok=True)
    for folder in (layout.quarantine, layout.spool):
        for temporary in folder.glob("*.tmp"):
            temporary.unlink(missing_ok=True)
