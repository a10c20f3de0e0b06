"""Write files of a partition anew: merged, sorted by time, without rows that are to go.

Writing takes as long as there is data, so it is done without the data folder's lock, into a scratch folder. The lock is
taken for the exchange alone (`storage.log.replace`), where the files that were read must still be those of the table:
a compaction, an expiry or an erasure beside may have replaced them. Then `FilesChanged` is raised, nothing was changed,
and the caller lists the files again. Files that landed meanwhile stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reasoning.records import SCHEMA_VERSION
from storage.errors import TableError
from storage.files import make_folder, make_private, remove_tree, scratch_folder, sync
from storage.layout import Layout
from storage.log.landed import ID_COLUMNS, row_ids
from storage.log.replace import SCRATCH, Method, own_folder, replace_files
from storage.log.schema import PARTITIONS, SCHEMAS, PartitionKey
from storage.log.table import (
    SCHEMA_KEY,
    file_footer,
    landed_at,
    live_files,
    naming_unreadable,
    read_metadata,
    segments_of,
)
from storage.log.views import scan, sql_text
from storage.volumes import file_mark

_ROW_GROUP_ROWS = 20_480
_ROW_GROUP_BYTES = 64 << 20
# DuckDB sorts 2,048 rows at a time: of rows larger than this on average, they no longer fit into its memory limit.
_LARGE_ROW_BYTES = 32 << 10
# With DuckDB's own page size a reader under a memory limit of 1 GB runs out of memory. Before 2.0 it cannot be set.
_PAGE_SIZE = "DATA_PAGE_SIZE_LIMIT 1048576," if int(duckdb.__version__.split(".")[0]) >= 2 else ""
_REPLACED = "was replaced while it was being read; run it again"


class FilesChanged(TableError):
    """Files that were read to be written anew are not those of the table any more: another verb replaced them."""


@dataclass(frozen=True)
class Rewrite:
    """Files of one partition, by their marks, and the file that holds their rows without the `dropped` ones.

    `new` is None where no row is left.
    """

    key: PartitionKey
    sources: dict[Path, str]
    new: Path | None
    dropped: int


def mark_files(paths: Iterable[Path]) -> dict[Path, str]:
    """What tells a file from another one of its name. Raises `FilesChanged` where one is gone."""
    try:
        return {path: file_mark(path) for path in paths}
    except FileNotFoundError as error:
        raise FilesChanged(f"{error.filename} {_REPLACED}") from error


def check_unchanged(marks: dict[Path, str]) -> None:
    """Raise `FilesChanged` unless these files are what they were."""
    now = mark_files(marks)
    for path, mark in marks.items():
        if now[path] != mark:
            raise FilesChanged(f"{path} {_REPLACED}")


def write_anew(
    con: duckdb.DuckDBPyConnection, key: PartitionKey, sources: list[Path], scratch: Path, *, drop: str = "false"
) -> Rewrite:
    """Write the rows of some files of a partition into one new file in `scratch`, sorted by time and synced.

    Rows for which the SQL `drop` is true are left out. Needs no lock. Raises `FilesChanged`, and `TableError` where a
    file cannot be read, is of a newer version, or the new one does not hold what it should.
    """
    marks = mark_files(sources)
    try:
        return _write_anew(con, key, marks, scratch, drop)
    except (duckdb.Error, TableError, OSError, pa.ArrowException) as error:
        check_unchanged(marks)
        if not scratch.exists():  # a copied machine, of the same name, took it for left by a dead process
            raise FilesChanged(f"{scratch} was deleted while it was being written to; run it again") from error
        raise


def _write_anew(
    con: duckdb.DuckDBPyConnection, key: PartitionKey, marks: dict[Path, str], scratch: Path, drop: str
) -> Rewrite:
    sources = list(marks)
    metadata = [read_metadata(path) for path in sources]
    rows = sum(file.num_rows for file in metadata)
    dropped = count_rows(con, key, sources, drop)
    if dropped == rows:
        return Rewrite(key, marks, None, dropped)
    for path, file in zip(sources, metadata, strict=True):
        _check_version(path, key.table, file)
    uncompressed = sum(file.row_group(i).total_byte_size for file in metadata for i in range(file.num_row_groups))
    row_group = max(1, min(_ROW_GROUP_ROWS, _ROW_GROUP_BYTES * rows // max(uncompressed, 1)))
    landed = max(landed_at(path, file) for path, file in zip(sources, metadata, strict=True))
    footer = file_footer(sorted({segment for path in sources for segment in segments_of(path)}), landed)
    write = _write_large if uncompressed > rows * _LARGE_ROW_BYTES else _write
    new = scratch / f"data-{uuid4()}.parquet"
    make_folder(scratch)
    try:
        with naming_unreadable(sources):
            write(con, key.table, sources, drop, row_group, footer, new)
        if pq.read_metadata(new).num_rows != rows - dropped:
            raise TableError(
                f"{new} has not the {rows - dropped} rows that it should; {sources[0].parent} stays as it is"
            )
        make_private(new)
        sync(new)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    return Rewrite(key, marks, new, dropped)


def check_ready(rewrite: Rewrite) -> None:
    """Raise `FilesChanged` unless the sources are what they were, and the new file is there."""
    check_unchanged(rewrite.sources)
    if rewrite.new is not None and not rewrite.new.exists():
        raise FilesChanged(f"{rewrite.new} was deleted before it got into the table; run it again")


def count_rows(con: duckdb.DuckDBPyConnection, key: PartitionKey, files: list[Path], where: str) -> int:
    """How many rows of some files of a partition fulfil the SQL `where`."""
    if where == "false" or not files:
        return 0
    query = f"SELECT count(*) FROM ({scan(key.table, files)}) WHERE {where}"  # noqa: S608 - `where` is ours
    with naming_unreadable(files):
        return int(con.execute(query).fetchall()[0][0])


def commit(layout: Layout, rewrites: list[Rewrite], scratch: Path, *, method: Method = "auto") -> None:
    """Put the new files of one partition in the place of those that they were written from.

    For one who holds the lock. Raises `FilesChanged` before anything was changed, and what `replace_files` does.
    """
    if not rewrites:
        return
    key = rewrites[0].key
    old = [path for rewrite in rewrites for path in rewrite.sources]
    if gone := set(old).difference(live_files(own_folder(layout, key))):
        raise FilesChanged(f"{min(gone)} {_REPLACED}")
    for rewrite in rewrites:
        check_ready(rewrite)
    new = [rewrite.new for rewrite in rewrites if rewrite.new is not None]
    replace_files(layout, key, old, new, scratch=scratch, method=method)


def rewrite_partition(
    con: duckdb.DuckDBPyConnection,
    layout: Layout,
    key: PartitionKey,
    *,
    drop: str = "false",
    method: Method = "auto",
) -> int:
    """Write and exchange at once, for one who holds the lock all the while and has finished landing.

    With `drop` each file that has such rows is written anew, else all of them as one. Returns the number of rows
    dropped. Raises as `write_anew` and `commit` do.
    """
    sources = live_files(own_folder(layout, key))
    groups = [sources] if drop == "false" else [[path] for path in sources if count_rows(con, key, [path], drop)]
    with scratch_folder(layout.data, SCRATCH) as scratch:
        rewrites = [write_anew(con, key, group, scratch, drop=drop) for group in groups]
        commit(layout, rewrites, scratch, method=method)
        empty_folder(scratch)
    return sum(rewrite.dropped for rewrite in rewrites)


def empty_folder(folder: Path) -> None:
    """Delete all that is in a folder. Raises OSError where something stays."""
    for path in list(folder.iterdir()):
        if path.is_dir():
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)


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
    con.execute(f"""
        COPY (
            SELECT {columns} FROM ({scan(table, sources)}) WHERE ({drop}) IS NOT true ORDER BY ts, {ID_COLUMNS[table]}
        ) TO {sql_text(str(new))} (
            FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 3, ROW_GROUP_SIZE {row_group},
            {_PAGE_SIZE} KV_METADATA {{{pairs}}}
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
