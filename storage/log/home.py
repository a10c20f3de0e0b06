"""Where the tables of the decision log are: the folder's Parquet files, or a lake. Landing speaks to both alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from storage.errors import DataFolderError
from storage.lake.address import LakeAddress, parse_log_url
from storage.layout import Layout
from storage.log.landed import KnownRows, LandedRows
from storage.log.schema import PartitionKey
from storage.log.table import live_files


class Landed(Protocol):
    """The rows that a partition has, with those of files that are being landed into it."""

    def find(self, rows: pa.Table) -> KnownRows:
        """Those of the rows that are among these."""
        ...

    def add(self, path: Path) -> None:
        """Let it have the rows of a file, too."""
        ...


class Staged(Protocol):
    """New files of one partition, with the segments that their rows are of."""

    key: PartitionKey
    staged: dict[Path, list[str]]

    def commit(self) -> None:
        """Move the files into the partition's folder."""
        ...


class DecisionLog(Protocol):
    """The tables, for one who holds the lock."""

    def landed(self, key: PartitionKey) -> Landed:
        """What the partition has."""
        ...

    def commit(self, outputs: Mapping[PartitionKey, Staged]) -> None:
        """Make the rows of the staged files visible: a lake those of all partitions at once."""
        ...


class FolderLog:
    """The Parquet files of the data folder."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def landed(self, key: PartitionKey) -> Landed:
        return LandedRows(key.table, live_files(self._layout.data / key.folder))

    def commit(self, outputs: Mapping[PartitionKey, Staged]) -> None:
        for output in outputs.values():
            if output.staged:
                output.commit()


def lake_address(layout: Layout) -> LakeAddress | None:
    """Where the tables are, None for the data folder. Raises `DataFolderError`."""
    return parse_log_url(layout.log_url)


def check_folder(layout: Layout, verb: str) -> None:
    """Raise `DataFolderError` where the tables are in a lake, for a verb that knows only the folder's."""
    if lake_address(layout) is not None:
        raise DataFolderError(
            f"{verb} does not know a log in a lake (REASONING_LOG) yet: it was not begun and nothing was changed"
        )
