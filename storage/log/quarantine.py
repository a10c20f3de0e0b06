"""The quarantine: rejected lines of segments, each with the reason, to be inspected and landed again.

`quarantine/<segment>.jsonl`, one JSON object a line: `segment`, `line` (from 1), `offset` (bytes), `reason`,
`quarantined_at`, and the line as found in `raw`, or `raw_base64` when it is not UTF-8.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import orjson

from storage.errors import QuarantineError
from storage.files import open_private

_QUARANTINED_AT = re.compile(rb'"quarantined_at":"[^"]*",')


def reason_class(reason: str) -> str:
    """The key that reports count by: the reason up to its first colon ("torn", "CRC mismatch", "decision_type")."""
    return reason.partition(":")[0]


class QuarantineWriter:
    """Collects the bad lines of one segment. Nothing is made before the first, nothing is visible before `commit`."""

    def __init__(self, path: Path, *, now: datetime | None = None) -> None:
        self.path = path
        self._temporary = path.with_name(f"{path.name}.{secrets.token_hex(6)}.tmp")
        self._now = (now or datetime.now(UTC)).isoformat()
        self._file: IO[bytes] | None = None

    def add(self, segment: str, line_no: int, offset: int, raw: bytes, reason: str) -> None:
        entry = {"segment": segment, "line": line_no, "offset": offset, "reason": reason, "quarantined_at": self._now}
        try:
            entry["raw"] = raw.decode()
        except UnicodeDecodeError:
            entry["raw_base64"] = base64.b64encode(raw).decode()
        self.write(orjson.dumps(entry))

    def write(self, entry: bytes) -> None:
        if self._file is None:
            self._file = open(self._temporary, "wb", opener=open_private)  # noqa: SIM115 - open until `commit`
        self._file.write(entry + b"\n")

    @property
    def empty(self) -> bool:
        return self._file is None

    def add_earlier(self) -> None:
        """Keep the file's present content: bad lines of another segment of this name, or of a part of this one."""
        if self._file is None or not self.path.exists():
            return
        self._file.flush()
        with self._temporary.open("rb") as file:
            own = {_without_time(entry) for entry in file}
        with self.path.open("rb") as file:
            for entry in file:
                if _without_time(entry) not in own:
                    self.write(entry.removesuffix(b"\n"))

    def commit(self) -> None:
        """Make the file visible. The caller syncs the folder."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self.path)

    def discard(self) -> None:
        if self._file is not None:
            self._file.close()
            self._temporary.unlink(missing_ok=True)


def _without_time(entry: bytes) -> bytes:
    return hashlib.sha256(_QUARANTINED_AT.sub(b"", entry.removesuffix(b"\n"), count=1)).digest()


def read_quarantine(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The entries of one quarantine file with the raw line of each. Raises `QuarantineError` where one is no entry."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                entry = orjson.loads(line)
                if not {"line", "offset", "reason"} <= entry.keys():
                    raise KeyError("line, offset or reason")
                raw = entry["raw"].encode() if "raw" in entry else base64.b64decode(entry["raw_base64"])
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise QuarantineError(
                    f"{path}, line {number}: not an entry of the quarantine ({error!r}); repair the line or remove it"
                ) from error
            yield entry, raw
