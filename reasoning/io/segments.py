"""The lines of a segment of the spool: how one is framed, checked and read.

Line: `<crc32 of the JSON, 8 lower-case hex digits> <JSON>\\n`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from reasoning.errors import RecordError, SegmentError
from reasoning.records import decode_record

_HEX = frozenset(b"0123456789abcdef")


class BadLine(NamedTuple):
    """A line that is no record: `offset` is in bytes from the start of the segment, `raw` as found, without newline."""

    line_no: int
    offset: int
    raw: bytes
    reason: str


def frame_line(payload: bytes) -> bytes:
    """One segment line of a record's JSON, which must not contain a newline byte (JSON never needs one)."""
    return b"%08x %b\n" % (crc32(payload), payload)


def check_line(line: bytes) -> bytes:
    """The JSON of one segment line, with or without its newline, its CRC verified. Raises `SegmentError`."""
    line = line.removesuffix(b"\n")
    if len(line) < 9 or line[8:9] != b" " or not _HEX.issuperset(line[:8]):
        raise SegmentError("no frame: a line starts with 8 hex digits and a space")
    payload = line[9:]
    if int(line[:8], 16) != crc32(payload):
        raise SegmentError(f"CRC mismatch: the line says {line[:8].decode()}, its bytes {crc32(payload):08x}")
    return payload


def parse_line(line: bytes) -> dict[str, Any]:
    """The record of one segment line, in the form of `reasoning.records.decode_record`. Raises `SegmentError`."""
    payload = check_line(line)
    try:
        return decode_record(payload)
    except RecordError as error:
        raise SegmentError(f"no record: {error}") from None


class Segment:
    """A segment being read, one line at a time: iterate `lines`; `bad` is complete when that is exhausted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bad: list[BadLine] = []
        self.lines = self._read()

    def _read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        offset = 0
        with self.path.open("rb") as file:
            for line_no, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    self.bad.append(BadLine(line_no, offset, line, "torn: no newline at the end"))
                    return
                try:
                    row = parse_line(line)
                except SegmentError as error:
                    self.bad.append(BadLine(line_no, offset, line[:-1], str(error)))
                else:
                    yield line_no, row
                offset += len(line)


def read_segment(path: Path | str) -> Segment:
    """Read a segment lazily. Line numbers start at 1. Raises OSError, while iterating, when it cannot be read."""
    return Segment(Path(path))
