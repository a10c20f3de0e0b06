"""Landing what is in the quarantine again, after an upgrade or a mend: what fits now becomes rows, exactly once.

The lines that fit are written to the spool as one sealed segment per quarantine file, `<segment>-r<n>`. What will
stay is decided, and written as `<segment>.r<n>.jsonl`, before that segment is, and the old file goes last: a kill in
between makes the next run write the same segment again, which landing skips if it has it.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from reasoning.errors import SegmentError
from reasoning.spool import frame_line
from storage.batches import parse_lines
from storage.files import sync, write_atomic
from storage.land import LandReport, finish_landing
from storage.layout import Layout
from storage.locks import LOCK_TIMEOUT, data_lock
from storage.quarantine import read_quarantine, reason_class

_NAME = re.compile(r"(?P<segment>.+?)(?:\.r(?P<attempt>\d+))?\.jsonl")


@dataclass
class RelandReport:
    """What landing the quarantine again did: lines that fit now, and by reason those that still do not."""

    files: int = 0
    relanded: int = 0
    kept: dict[str, int] = field(default_factory=dict)
    landing: LandReport = field(default_factory=LandReport)


def reland_quarantine(
    data: Path | str, *, now: datetime | None = None, lock_timeout: float = LOCK_TIMEOUT
) -> RelandReport:
    """Try every quarantined line again by the rules of today. Raises as `land_decisions` does.

    A line whose CRC does not fit its JSON stays. To land one that was mended by hand, correct `raw` in the quarantine
    file and drop its frame (the first nine characters): a line that is bare JSON is taken at its word.
    """
    layout = Layout(data).check().create()
    report = RelandReport()
    kept: Counter[str] = Counter()
    with data_lock(layout, "landing the quarantine", timeout=lock_timeout):
        finish_landing(layout, now=now)
        for path, attempt, segment in _files(layout):
            after = path.with_name(f"{segment}.r{attempt + 1}.jsonl")
            fits, stays = _sort(path, after)
            report.files += 1
            report.relanded += len(fits)
            kept.update(reason_class(entry["reason"]) for entry in stays)
            if fits:
                write_atomic(after, b"".join(orjson.dumps(entry) + b"\n" for entry in stays))
                write_atomic(layout.spool / f"{segment}-r{attempt + 1}.seal", b"".join(fits))
                path.unlink()
                path = after
            if not stays:
                path.unlink()
            sync(layout.quarantine)
        report.landing = finish_landing(layout, now=now)
    report.kept = dict(kept)
    return report


def _files(layout: Layout) -> list[tuple[Path, int, str]]:
    """The quarantine files, the first of each segment: a second one is the plan of a run that was killed."""
    found: dict[str, tuple[Path, int, str]] = {}
    for path in layout.quarantine.glob("*.jsonl"):
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        segment, attempt = match["segment"], int(match["attempt"] or 0)
        if segment not in found or attempt < found[segment][1]:
            found[segment] = (path, attempt, segment)
    return sorted(found.values())


def _sort(path: Path, plan: Path) -> tuple[list[bytes], list[dict[str, Any]]]:
    """The segment lines of what fits, and the entries of what stays with the reason of today."""
    planned = None
    if plan.exists():
        planned = {_place(entry) for entry, _ in read_quarantine(plan)}
    fits, stays = [], []
    for entry, raw in read_quarantine(path):
        try:
            line = _fit(raw)
        except SegmentError as error:
            line, entry["reason"] = b"", str(error)
        if line and (planned is None or _place(entry) not in planned):
            fits.append(line)
        else:
            stays.append(entry)
    return fits, stays


def _place(entry: dict[str, Any]) -> tuple[int, int]:
    return entry["line"], entry["offset"]


def _fit(raw: bytes) -> bytes:
    """The segment line of a record that fits its table. Raises `SegmentError`."""
    if raw.startswith(b"{"):
        try:
            raw = frame_line(orjson.dumps(orjson.loads(raw)))
        except orjson.JSONDecodeError as error:
            raise SegmentError(f"no record: not JSON: {error}") from None
    line = raw.removesuffix(b"\n") + b"\n"
    _, rejected = parse_lines([line])
    if rejected:
        raise SegmentError(rejected[0])
    return line
