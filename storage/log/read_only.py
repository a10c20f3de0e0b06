"""A DuckDB connection that can read the files of one log snapshot and do nothing else with files.

What a query may do cannot be told from its text: in DuckDB 2.0 `WITH x AS (COPY … TO 'file') FROM x` is a SELECT
statement, and `allowed_directories` allows writing as well as reading. So the local file system is closed to the
connection, and the files of the snapshot are served under `log://` by a file system that has no way to write.
"""

from __future__ import annotations

import fnmatch
import io
import os
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import duckdb
from fsspec.spec import AbstractFileSystem

from storage.errors import QueryRefused

PROTOCOL = "log"

_QUERIES = {"SELECT", "EXPLAIN", "MULTI"}  # MULTI: a PIVOT, which DuckDB takes apart
_SETTINGS = (
    f"SET allowed_directories = ['{PROTOCOL}://']",
    "SET python_enable_replacements = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET allow_community_extensions = false",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)


class _Reader(io.RawIOBase):
    """A file with a position for each thread.

    DuckDB reads at a place by a seek and a read, and lets go of Python's lock in between. With one position for all
    threads, one reads where another has sought: `TProtocolException: Invalid data`, seen on a busy machine.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._local = threading.local()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell()}.get(whence)
        self._local.at = offset + (os.fstat(self._fd).st_size if begin is None else begin)
        return self.tell()

    def tell(self) -> int:
        return int(getattr(self._local, "at", 0))

    def read(self, size: int | None = -1) -> bytes:
        at = self.tell()
        left = os.fstat(self._fd).st_size - at if size is None or size < 0 else size
        parts = []
        while left > 0 and (part := os.pread(self._fd, left, at)):
            parts.append(part)
            at, left = at + len(part), left - len(part)
        self._local.at = at
        return b"".join(parts)

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


class LogFiles(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The files that `show` was last given, for reading. Every other path does not exist, and nothing can be written.

    `refused` is the path of the last attempt to write, None without one.
    """

    protocol = PROTOCOL
    cachable = False  # one per connection: fsspec would hand out the same one again

    def __init__(self, data: Path) -> None:
        super().__init__()
        self.refused: str | None = None
        self._data = data
        self._paths: dict[str, Path] = {}

    def show(self, paths: Iterable[Path]) -> None:
        """Serve these files of the data folder, and no others."""
        self._paths = {PurePosixPath(path.relative_to(self._data)).as_posix(): path for path in paths}

    def name(self, path: Path) -> str:
        """The URL of a file of the data folder, as DuckDB's readers take it."""
        relative = PurePosixPath(path.relative_to(self._data)).as_posix()
        return f"{PROTOCOL}://" + "".join(f"[{c}]" if c in "*?[" else c for c in relative)

    def open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        if mode != "rb":
            self.refused = path
            raise PermissionError(f"{path} is read-only")
        return _Reader(self._path(path))

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        status = self._path(path).stat()
        return {"name": path, "size": status.st_size, "type": "file", "mtime": status.st_mtime}

    def modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(self._path(path).stat().st_mtime, UTC)

    def exists(self, path: str, **_: Any) -> bool:
        return self._strip_protocol(path) in self._paths

    def isfile(self, path: str) -> bool:
        return self.exists(path)

    def isdir(self, path: str) -> bool:
        return False

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        return []

    def glob(self, path: str, **_: Any) -> list[str]:
        return fnmatch.filter(self._paths, self._strip_protocol(path))

    def _path(self, path: str) -> Path:
        found = self._paths.get(self._strip_protocol(path))
        if found is None:
            raise FileNotFoundError(path)
        return found


def check_is_query(query: str) -> None:
    """Raise `QueryRefused` for a text with a statement that is not a query.

    This only makes the message a good one; what keeps files safe is `lock_down`.
    """
    for statement in duckdb.extract_statements(query):
        if (kind := statement.type.name) not in _QUERIES:
            raise refusal(f"only queries are run here, and {kind} is none (SELECT, FROM, WITH, DESCRIBE, EXPLAIN are)")


def refusal(why: str) -> QueryRefused:
    """The error for a query that wants more than to read the views."""
    return QueryRefused(
        f"{why}; SQL can only read the views. `reasoning sql --unsafe` (in Python: without read_only) allows everything"
    )


def lock_down(con: duckdb.DuckDBPyConnection) -> None:
    """Permanently close everything except `log://` to a connection: files, network, extensions and settings."""
    for setting in _SETTINGS:
        con.execute(setting)
