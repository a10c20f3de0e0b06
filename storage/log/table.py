"""A table of the decision log: folders of Parquet files, listed so that no row is seen twice or missed.

A table is plain Hive Parquet, `decisions/decision_type=<t>/date=<d>/(part|data)-*.parquet`; files of other names are
left alone. Files are never changed. Landing adds files; compaction and erasure replace some files of a partition in one
step (`storage.log.replace`). So a *list* of files is a consistent snapshot, and reading one that was replaced since
fails loudly (no such file): take a new snapshot and read again, as `storage.read` does. A glob over a table that is
being compacted may be silently wrong.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import duckdb
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from reasoning.records import SCHEMA_VERSION
from storage.errors import TableError
from storage.layout import Layout
from storage.log.schema import DECISION_TYPE, PARTITIONS, PartitionKey

# Keys in a Parquet file's footer.
SEGMENTS_KEY = b"reasoning.segments"  # JSON list of the segments whose rows are in the file
SCHEMA_KEY = b"reasoning.schema"  # the SCHEMA_VERSION of the writer
LANDED_KEY = b"reasoning.landed_at"  # when the last of its rows landed, by the clock of landing (ISO 8601, UTC)

# Names the files of its folder that are not (or no longer) part of the table. See `storage.log.replace`.
HIDDEN = "_hidden.json"

_OURS = re.compile(r"(part|data)-.+\.parquet", re.DOTALL)
_ATTEMPTS = 1000


@dataclass(frozen=True)
class Snapshot:
    """The files that make up both tables at one moment."""

    decisions: tuple[Path, ...]
    feedback: tuple[Path, ...]


def file_footer(segments: list[str], landed_at: datetime) -> dict[bytes, bytes]:
    """What the footer of a file of these segments says of it."""
    return {
        SEGMENTS_KEY: orjson.dumps(segments),
        SCHEMA_KEY: str(SCHEMA_VERSION).encode(),
        LANDED_KEY: landed_at.astimezone(UTC).isoformat().encode(),
    }


def take_snapshot(layout: Layout) -> Snapshot:
    """List the files of both tables. Rows never move between partitions, so each partition is listed by itself."""
    return Snapshot(*(tuple(list_files(layout, table)) for table in PARTITIONS))


def list_files(layout: Layout, table: str) -> Iterator[Path]:
    """The live files of a table, sorted by partition and name."""
    for key in list_partitions(layout, table):
        yield from live_files(layout.data / key.folder)


def list_partitions(layout: Layout, table: str) -> list[PartitionKey]:
    """The partitions that a table has, sorted. Folders that are none of ours are left alone."""
    root = layout.table(table)
    keys = []
    for decision_type, folder in _subfolders(root, "decision_type") if table == "decisions" else [(None, root)]:
        if decision_type is not None and not DECISION_TYPE.fullmatch(decision_type):
            continue
        keys += [PartitionKey(table, decision_type, day) for day, _ in _subfolders(folder, "date") if _is_date(day)]
    return sorted(keys, key=lambda key: (key.decision_type or "", key.date))


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text  # 20261120 and 2026-W47-5 are ISO dates as well
    except ValueError:
        return False


def _subfolders(folder: Path, name: str) -> Iterable[tuple[str, Path]]:
    try:
        entries = [entry.name for entry in os.scandir(folder) if entry.name.startswith(f"{name}=") and entry.is_dir()]
    except FileNotFoundError:
        return
    for entry in sorted(entries):
        yield entry.removeprefix(f"{name}="), folder / entry


def live_files(folder: Path) -> list[Path]:
    """The files of one partition as of one moment: all from before a replacement of the folder, or all from after.

    The folder's inode (which cannot be reused while it is open) and the list of hidden files are looked at again
    after listing, and listing repeated when they changed.
    """
    for _ in range(_ATTEMPTS):
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return []
        try:
            hidden = _hidden(folder)
            names = os.listdir(fd)  # noqa: PTH208 - of the open folder, whatever its path names by now
            same = os.fstat(fd).st_ino == folder.stat().st_ino and _hidden(folder) == hidden
        except FileNotFoundError:
            continue
        finally:
            os.close(fd)
        if same:
            return [folder / name for name in sorted(names) if _OURS.fullmatch(name) and name not in hidden]
    raise TableError(f"{folder} was replaced {_ATTEMPTS} times while it was being listed")


def foreign_files(folder: Path) -> list[str]:
    """What is in a partition's folder and none of our own: someone's notes, what a file manager leaves."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    return [name for name in names if not (_OURS.fullmatch(name) or name == HIDDEN or name.endswith(".tmp"))]


def _hidden(folder: Path) -> frozenset[str]:
    try:
        return frozenset(orjson.loads((folder / HIDDEN).read_bytes()))
    except FileNotFoundError:
        return frozenset()


def landed_segments(folder: Path) -> set[str]:
    """The ids of the segments whose rows are in a partition, by the names and footers of its files."""
    return {segment for path in live_files(folder) for segment in segments_of(path)}


def segments_of(path: Path) -> list[str]:
    """The ids of the segments whose rows are in a file: of one, its name says it, else its footer."""
    return [path.stem.removeprefix("part-")] if path.name.startswith("part-") else file_segments(path)


def file_segments(path: Path) -> list[str]:
    """The ids of the segments whose rows are in a file, by its footer."""
    segments: list[str] = orjson.loads((read_metadata(path).metadata or {}).get(SEGMENTS_KEY, b"[]"))
    return segments


def landed_at(path: Path, metadata: pq.FileMetaData) -> datetime:
    """When the last of a file's rows landed; of a file that does not say so, when it was written."""
    try:
        return datetime.fromisoformat((metadata.metadata or {})[LANDED_KEY].decode()).astimezone(UTC)
    except (KeyError, ValueError, OverflowError):
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def read_metadata(path: Path) -> pq.FileMetaData:
    """The footer of a file. Raises `TableError` where it cannot be read."""
    try:
        return pq.read_metadata(path)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> TableError:
    """The error for a file of a table that cannot be read."""
    reason = " ".join(str(error).split())  # Thrift's are of several lines
    return TableError(f"{path} cannot be read ({reason}); move it out of the table and look at it")


@contextmanager
def naming_unreadable(paths: Iterable[Path]) -> Iterator[None]:
    """Where DuckDB fails: look through these files, and raise `TableError` for one that is damaged.

    DuckDB's own error names the file only for some damage. Where all can be read it stays: it is about another thing.
    """
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.InterruptException):
        raise  # of no file: to read them all for it would take long
    except duckdb.Error as error:
        for path in paths:
            try:
                with pq.ParquetFile(path) as file:
                    for _ in file.iter_batches():
                        pass
            except FileNotFoundError:
                continue
            except (OSError, pa.ArrowException) as found:
                raise unreadable(path, found) from error
        raise
