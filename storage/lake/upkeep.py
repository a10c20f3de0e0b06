"""Compaction of a lake, and rows that are to leave it for good."""

from __future__ import annotations

import duckdb

from storage.lake.engine import NAME
from storage.log.schema import PARTITIONS

_READERS = "INTERVAL 1 HOUR"
"""How long files that compaction has replaced are kept for queries that began before."""


def count_files(con: duckdb.DuckDBPyConnection) -> tuple[int, int]:
    """How many files the tables have, and their bytes."""
    query = "SELECT coalesce(sum(file_count), 0)::BIGINT, coalesce(sum(file_size_bytes), 0)::BIGINT"
    files, size = con.execute(f"{query} FROM ducklake_table_info('{NAME}')").fetchall()[0]
    return files, size


def merge_files(con: duckdb.DuckDBPyConnection) -> None:
    """Merge small files of each partition, and delete those that were replaced more than an hour ago."""
    con.execute(f"CALL ducklake_merge_adjacent_files('{NAME}')")
    con.execute(f"CALL ducklake_expire_snapshots('{NAME}', older_than => now() - {_READERS})")
    con.execute(f"CALL ducklake_cleanup_old_files('{NAME}', older_than => now() - {_READERS})")


def delete_rows(con: duckdb.DuckDBPyConnection, table: str, where: str) -> int:
    """Delete rows of a table. They are still in its files, and in the catalog's statistics, until `purge`."""
    return int(con.execute(f"DELETE FROM {NAME}.{table} WHERE {where}").fetchall()[0][0])  # noqa: S608 - ours


def purge(con: duckdb.DuckDBPyConnection) -> None:
    """Write files without the rows that were deleted, and forget all snapshots before, with their files."""
    for table in PARTITIONS:
        con.execute(f"CALL ducklake_rewrite_data_files('{NAME}', '{table}', delete_threshold => 0)")
    con.execute(f"CALL ducklake_expire_snapshots('{NAME}', older_than => now())")
    con.execute(f"CALL ducklake_cleanup_old_files('{NAME}', cleanup_all => true)")
