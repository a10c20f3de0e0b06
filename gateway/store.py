"""The small store that the gateways of one machine share, `<data>/gateway.sqlite`: where sessions are, which messages
are of which conversation. By it they agree, and a restarted one goes on; without it each goes by its own memory.

It is read in the event loop (some 20 us) and written in one thread, each with a connection of its own: in SQLite's WAL
mode a reader waits for no writer, be it of another process.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_log = logging.getLogger("gateway")

MAX_WAITING = 10_000
"""Writes that may wait for the disk; more are left out, and known to this process only."""
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS sessions (session TEXT PRIMARY KEY, side TEXT, ts REAL)",
    "CREATE TABLE IF NOT EXISTS marks (mark BLOB PRIMARY KEY, episode TEXT, ts REAL) WITHOUT ROWID",
)


class Store:
    """A store that cannot be used is told once and done without: nothing is read from it, nothing written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gateway-store")
        self._begun = self._written = 0
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
            self._writer = sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)
            self._writer.execute("PRAGMA journal_mode=WAL")
            self._writer.execute("PRAGMA synchronous=NORMAL")
            for statement in _SCHEMA:
                self._writer.execute(statement)
            self._reader = sqlite3.connect(path, timeout=0.0, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            self._reader = None
            _log.warning("%s: sessions and episodes are kept in memory only: %s", path, error)

    def read(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows; none where the store cannot be read."""
        if self._reader is None:
            return []
        try:
            return self._reader.execute(query, parameters).fetchall()
        except sqlite3.Error:
            return []

    def write(self, statement: str, *rows: Sequence[Any]) -> None:
        """Execute a statement for each of `rows`, soon. Never waits."""
        if self._reader is not None and self._begun - self._written < MAX_WAITING:
            self._begun += 1
            self._thread.submit(self._write, statement, rows)

    def flush(self) -> None:
        """Wait until all is written."""
        self._thread.submit(lambda: None).result()

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        for connection in (self._reader, self._writer):
            if connection is not None:
                connection.close()

    def _write(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        assert self._writer is not None
        try:
            self._writer.executemany(statement, rows)
        except sqlite3.Error as error:
            _log.warning("%s was not written: %s", self._path, error)
        self._written += 1
