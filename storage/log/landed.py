"""Find rows that a partition already has by their ids, so that a record lands once however many copies arrive.

A segment may arrive twice under any name: after a kill, from a restored backup, from another host that copied its
spool, truncated the first time. So records are identified by id. Ids are UUIDv7, ordered by time, and Parquet stores
the minimum and maximum of every row group: only row groups that may contain one of the ids are read, which is almost
none while every record arrives once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.log.schema import SCHEMAS
from storage.log.table import unreadable

ID_COLUMNS = {"decisions": "decision_id", "feedback": "feedback_id"}


@dataclass
class KnownRows:
    """Rows whose ids are known, by index: the `same` in all columns, or `differing`, with why that is a conflict."""

    same: set[int] = field(default_factory=set)
    differing: dict[int, str] = field(default_factory=dict)

    def add(
        self, table: str, rows: list[int], mine: Callable[[str], pa.Array], theirs: Callable[[str], pa.Array]
    ) -> None:
        """Compare `rows` with the ones that have their ids. A column of both is asked for at a time."""
        unlike: list[list[str]] = [[] for _ in rows]
        for column in SCHEMAS[table]:
            ours, others = mine(column.name), theirs(column.name)
            if not ours.equals(others):
                for names, a, b in zip(unlike, ours.to_pylist(), others.to_pylist(), strict=True):
                    if a != b:
                        names.append(column.name)
        ids = mine(ID_COLUMNS[table])
        for n, (row, names) in enumerate(zip(rows, unlike, strict=True)):
            if not names:
                self.same.add(row)
                self.differing.pop(row, None)
            elif row not in self.same:
                self.differing[row] = (
                    f"conflict: another record has the {ID_COLUMNS[table]} {ids[n].as_py()}: {', '.join(names)} differ"
                )


class _RowGroup(NamedTuple):
    path: Path
    number: int
    bounds: tuple[bytes, bytes] | None  # None where the file does not tell


class LandedRows:
    """The rows of some files of one table."""

    def __init__(self, table: str, files: Iterable[Path]) -> None:
        self._table = table
        self._row_groups: list[_RowGroup] = []
        for path in files:
            self.add(path)

    def add(self, path: Path) -> None:
        """Raises `TableError` where that is no Parquet file of the table."""
        try:
            metadata = pq.read_metadata(path)
            names = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
            at = names.index(ID_COLUMNS[self._table])
        except (OSError, ValueError) as error:
            raise unreadable(path, error) from error
        for number in range(metadata.num_row_groups):
            statistics = metadata.row_group(number).column(at).statistics
            told = statistics is not None and statistics.has_min_max
            self._row_groups.append(_RowGroup(path, number, (statistics.min, statistics.max) if told else None))

    def find(self, rows: pa.Table) -> KnownRows:
        """Those of the rows that are among these. Raises `TableError` where a file cannot be read."""
        ids = row_ids(self._table, rows)
        known = KnownRows()
        for group in self._row_groups:
            if group.bounds is None or overlap(group.bounds, id_bounds(ids)):
                try:
                    self._compare(group, ids, rows, known)
                except (OSError, pa.ArrowException) as error:
                    raise unreadable(group.path, error) from error
        return known

    def _compare(self, group: _RowGroup, ids: pa.Array, rows: pa.Table, known: KnownRows) -> None:
        with pq.ParquetFile(group.path) as file:
            landed = file.read_row_group(group.number, columns=[ID_COLUMNS[self._table]])
            places = pc.index_in(ids, value_set=row_ids(self._table, landed))
            numbers = pc.indices_nonzero(places.is_valid())
            if not len(numbers):
                return
            there = places.drop_null()
            has = set(file.schema_arrow.names)

            def theirs(name: str) -> pa.Array:
                kind = SCHEMAS[self._table].field(name).type
                if name not in has:
                    return pa.nulls(len(numbers), kind)
                column = file.read_row_group(group.number, columns=[name])[name]
                return _array(column).take(there).cast(kind)

            known.add(self._table, numbers.to_pylist(), lambda name: _array(rows[name]).take(numbers), theirs)


def find_repeated(table: str, rows: pa.Table) -> KnownRows:
    """Those of the rows whose id an earlier one of them has."""
    ids = row_ids(table, rows)
    known = KnownRows()
    if len(ids.unique()) < len(ids):
        firsts = pc.index_in(ids, value_set=ids)
        again = pc.indices_nonzero(pc.not_equal(firsts, pa.array(range(len(ids)), pa.int32())))
        of = firsts.take(again)
        known.add(
            table,
            again.to_pylist(),
            lambda name: _array(rows[name]).take(again),
            lambda name: _array(rows[name]).take(of),
        )
    return known


def row_ids(table: str, rows: pa.Table) -> pa.Array:
    """The ids of rows as 16 bytes each."""
    ids = _array(rows[ID_COLUMNS[table]])
    return ids.storage if isinstance(ids, pa.ExtensionArray) else ids


def id_bounds(ids: pa.Array) -> tuple[bytes, bytes]:
    """The least and the greatest of some ids."""
    bounds = pc.min_max(ids)
    return bounds["min"].as_py(), bounds["max"].as_py()


def overlap(a: tuple[bytes, bytes], b: tuple[bytes, bytes]) -> bool:
    """Whether two closed intervals overlap."""
    return a[0] <= b[1] and b[0] <= a[1]


def _array(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks()
