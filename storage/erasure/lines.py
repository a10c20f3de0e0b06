"""The lines about a person in the spool and the quarantine: find them, and erase them.

Lines may be damaged, of another version or mended by hand. What cannot be read goes by the person's id in its text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import orjson

from reasoning.errors import SegmentError
from reasoning.io.segments import check_line, frame_line
from reasoning.records import SCHEMA_VERSION
from storage.files import sync
from storage.layout import Layout
from storage.log.batches import ERASED
from storage.log.land import list_segments
from storage.log.quarantine import QuarantineWriter, read_quarantine


@dataclass
class Outside:
    """Decisions that are not in the log but in the spool or the quarantine; they need not be sound ones.

    `erased` has those of the person: decision, request and episode. `kept` has the episodes of all others.
    """

    erased: set[tuple[str, str, str | None]] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)


def find_outside(layout: Layout, subject_id: str) -> Outside:
    """Read all of the spool and the quarantine."""
    outside = Outside()
    for path in list_segments(layout, ".open", ".seal"):
        with suppress(FileNotFoundError), _open(path) as file:  # without the lock it may just have landed
            for _, line, row in _records(file):
                _add(outside, line, row, subject_id)
    for path in layout.quarantine.glob("*.jsonl"):
        with suppress(FileNotFoundError):
            for _, raw in read_quarantine(path):
                _add(outside, raw, _tolerant(raw) or {}, subject_id)
    return outside


def _add(outside: Outside, raw: bytes, row: dict[str, Any], subject_id: str) -> None:
    if row.get("record") != "decision":
        return
    episode_id = row.get("episode_id")
    episode_id = episode_id if isinstance(episode_id, str) else None
    if _names(raw, row, subject_id):
        outside.erased.add((str(row.get("decision_id")), str(row.get("request_id")), episode_id))
    elif episode_id is not None:
        outside.kept.add(episode_id)


@dataclass(frozen=True)
class About:
    """How a record is matched to the subject: its ids, the erased decisions, and the episodes that become empty."""

    subject_id: str
    decision_ids: frozenset[str]
    episode_ids: frozenset[str]

    def matches(self, raw: bytes, row: dict[str, Any] | None) -> bool:
        """Whether a line is about the subject; `row` is its JSON object, sound or not, if there is one."""
        if row is None or row.get("record") == "decision":
            return _names(raw, row, self.subject_id)
        decision_id, episode_id = row.get("decision_id"), row.get("episode_id")
        return (
            (not _tells_whose(raw, row) and _names(raw, row, self.subject_id))
            or self.subject_id in _texts(row.get("author"))
            or (isinstance(decision_id, str) and decision_id.lower() in self.decision_ids)
            or (isinstance(episode_id, str) and episode_id in self.episode_ids)
        )


def _names(raw: bytes, row: dict[str, Any] | None, subject_id: str) -> bool:
    """Whether a line that is no sound feedback names the subject."""
    written = {orjson.dumps(subject_id), json.dumps(subject_id).encode()}  # who mends a line may leave \u escapes
    if row is None:  # that it cannot be read goes for less: the id anywhere in it, as a part of another one, too
        return any(text[1:-1] in raw for text in written)
    if not _tells_whose(raw, row) and any(text in raw for text in written):
        return True
    return subject_id in _texts(row.get("subject_ids"))


_NAMING = {"decision": {"subject_ids"}, "feedback": {"author", "decision_id", "episode_id"}}


def _tells_whose(raw: bytes, row: dict[str, Any]) -> bool:
    """Whether the fields are there by which a record is found.

    Where one is missing, its name may be damaged, or another one in a newer version.
    """
    record, schema = row.get("record"), row.get("schema")
    if not isinstance(record, str) or record not in _NAMING:
        return False
    return row.keys() >= _NAMING[record] or (schema == SCHEMA_VERSION and not _is_damaged(raw))


def _texts(value: Any) -> Iterator[str]:
    """The texts, and the numbers as text, in a field of any form: quarantined lines may have malformed fields."""
    parts = [value]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            parts += [*part, *part.values()]
        elif isinstance(part, list):
            parts += part
        elif isinstance(part, str) or type(part) in (int, float):
            yield str(part)


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("r+b")
    except FileNotFoundError:  # just sealed
        return path.with_suffix(".seal").open("r+b")


def _records(file: IO[bytes]) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """Offset, line and JSON object of every line with an intact frame. Landing quarantines the others."""
    offset = 0
    for line in file:
        with suppress(SegmentError, orjson.JSONDecodeError):
            if line.endswith(b"\n"):
                row = orjson.loads(check_line(line))  # of whatever schema: a newer client's will be quarantined
                if isinstance(row, dict) and row.get("record") != "erased":
                    yield offset, line, row
        offset += len(line)


def erase_spool(layout: Layout, about: About, kind: str) -> int:
    """Overwrite the subject's lines of one kind where they are: writers append, they never touch a line again.

    Landing has just finished, so these segments have live writers or were sealed since. Returns the number of lines.
    """
    erased = 0
    for path in list_segments(layout, ".open", ".seal"):
        with _open(path) as file:
            before = erased
            for offset, line, row in _records(file):
                if _kind(row) == kind and about.matches(line, row):
                    length = len(line) - len(frame_line(b""))
                    os.pwrite(file.fileno(), frame_line(ERASED.ljust(length)[:length]), offset)
                    erased += 1
            if erased > before:
                os.fsync(file.fileno())
    return erased


def erase_quarantine(layout: Layout, about: About, kind: str, now: datetime | None) -> tuple[int, int]:
    """Remove the subject's lines of one kind; together with decisions, also lines too damaged to classify.

    Returns the number of lines, and of those that are too damaged to tell and were kept.
    """
    erased = unreadable = 0
    for path in sorted(layout.quarantine.glob("*.jsonl")):
        kept = QuarantineWriter(path, now=now)
        found = 0
        for entry, raw in read_quarantine(path):
            row = _tolerant(raw)
            if _kind(row) == kind and about.matches(raw, row):
                found += 1
            else:
                unreadable += row is None and kind == "decision"
                kept.write(orjson.dumps(entry))
        if not found:
            kept.discard()
        elif kept.empty:
            path.unlink()
        else:
            kept.commit()
        erased += found
    sync(layout.quarantine)
    return erased, unreadable


def _kind(row: dict[str, Any] | None) -> str:
    return "feedback" if row is not None and row.get("record") == "feedback" else "decision"


def _is_damaged(raw: bytes) -> bool:
    """Whether the frame does not fit what it is of."""
    if raw.startswith(b"{"):  # bare JSON: somebody mended it
        return False
    try:
        check_line(raw)
    except SegmentError:
        return True
    return False


def _tolerant(raw: bytes) -> dict[str, Any] | None:
    """The JSON object of a line whose frame or schema is bad, or that was mended by hand, if there is one."""
    for text in (raw, raw[9:]):
        with suppress(orjson.JSONDecodeError):
            row = orjson.loads(text)
            return row if isinstance(row, dict) else None
    return None
