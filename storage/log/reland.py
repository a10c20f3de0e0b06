"""Landing what is in the quarantine again, after an upgrade or a mend: what fits now becomes rows, exactly once.

The lines that fit are written to the spool as one sealed segment per quarantine file, `<segment>-r<n>`. What will
stay is decided, and written as `<segment>.r<n>.jsonl`, before that segment is, and the old file goes last: a kill in
between makes the next run write the same segment again, whose records landing passes over if it has them.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from reasoning.io.segments import frame_line
from storage.files import sync, write_atomic
from storage.layout import Layout
from storage.locks import LOCK_TIMEOUT, check_held, data_lock
from storage.log.batches import parse_lines
from storage.log.clocks import ClockLimits, clock_limits, reject_off_clock
from storage.log.home import check_folder
from storage.log.land import finish_landing
from storage.log.landed import ID_COLUMNS, LandedRows, find_repeated
from storage.log.quarantine import read_quarantine, reason_class
from storage.log.schema import PartitionKey
from storage.log.table import live_files
from storage.progress import OnProgress, Progress

_NAME = re.compile(r"(?P<segment>.+?)(?:\.r(?P<attempt>\d+))?\.jsonl")


_Seen = dict[tuple[PartitionKey, str], bytes]  # the hash of a record, by what it is known by when it lands


@dataclass
class RelandReport:
    """What landing the quarantine again did, counted in lines.

    `relanded` are rows of the decision log now; `duplicates` were that already, and left the quarantine. `kept` are no
    records still, by reason; `examples` has for each such reason a line as it was found wanting, with the quarantine
    file and the number (from 1) of its line there.
    """

    files: int = 0
    relanded: int = 0
    duplicates: int = 0
    kept: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)


def reland_quarantine(
    data: Path | str,
    *,
    now: datetime | None = None,
    progress: OnProgress | None = None,
    lock_timeout: float = LOCK_TIMEOUT,
) -> RelandReport:
    """Try every quarantined line again by the rules of today; what is in the spool is landed as well.

    A line whose CRC does not fit its JSON stays. To land one that was mended by hand, correct `raw` in the quarantine
    file and drop its frame (the first nine characters): a line that is bare JSON is taken at its word. Raises as
    `land_decisions` does, and `QuarantineError` for a quarantine file that is not one of ours.
    """
    layout = Layout(data).check().create()
    check_folder(layout, "landing the quarantine")
    report = RelandReport()
    with data_lock(layout, "landing the quarantine", timeout=lock_timeout):
        finish_landing(layout, now=now)
        files, seen, limits = _files(layout), _Seen(), clock_limits(now)
        for done, (path, attempt, segment) in enumerate(files, 1):
            after = path.with_name(f"{segment}.r{attempt + 1}.jsonl")
            fits, stays, duplicates = _sort(layout, path, after, seen, limits)
            report.files += 1
            report.relanded += len(fits)
            report.duplicates += duplicates
            if fits or duplicates:
                check_held(layout)
                write_atomic(after, b"".join(orjson.dumps(entry) + b"\n" for entry in stays))
                if fits:
                    write_atomic(layout.spool / f"{segment}-r{attempt + 1}.seal", b"".join(fits))
                path.unlink()
                path = after
            if not stays:
                path.unlink()
            sync(layout.quarantine)
            for number, entry in enumerate(stays, 1):
                reason = reason_class(entry["reason"])
                report.kept[reason] = report.kept.get(reason, 0) + 1
                report.examples.setdefault(reason, f"{entry['reason']} ({path.name}:{number})")
            if progress:
                progress(Progress(done, len(files), "files"))
        finish_landing(layout, now=now)
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


def _sort(
    layout: Layout, path: Path, plan: Path, seen: _Seen, limits: ClockLimits
) -> tuple[list[bytes], list[dict[str, Any]], int]:
    """The segment lines of what fits, the entries of what stays with the reason of today, and how many duplicates.

    `seen` has what fitted of the files before, which is not landed yet.
    """
    planned = {_place(entry) for entry, _ in read_quarantine(plan)} if plan.exists() else set()
    entries, lines = [], []
    for entry, raw in read_quarantine(path):
        entries.append(entry)
        lines.append(_frame(raw))
    batches, rejected = reject_off_clock(parse_lines(lines), limits)
    duplicates = set()
    for batch in batches:
        landed = LandedRows(batch.key.table, live_files(layout.data / batch.key.folder))
        for known in (find_repeated(batch.key.table, batch.table), landed.find(batch.table)):
            duplicates |= {batch.lines[row] for row in known.same}
            rejected |= {batch.lines[row]: reason for row, reason in known.differing.items()}
        for number in set(batch.lines) - duplicates - rejected.keys():
            row = orjson.loads(lines[number][9:])
            record_id = row[ID_COLUMNS[batch.key.table]].lower()
            digest = hashlib.sha256(orjson.dumps(row, option=orjson.OPT_SORT_KEYS)).digest()
            if (before := seen.setdefault((batch.key, record_id), digest)) is digest:
                continue
            if before == digest:
                duplicates.add(number)
            else:
                rejected[number] = (
                    f"conflict: another quarantined record has the {ID_COLUMNS[batch.key.table]} {record_id}"
                )
    fits, stays = [], []
    for number, (entry, line) in enumerate(zip(entries, lines, strict=True)):
        if number in duplicates:
            continue
        if number not in rejected and _place(entry) not in planned:
            fits.append(line)
        else:
            stays.append(entry | {"reason": rejected.get(number, entry["reason"])})
    return fits, stays, len(duplicates)


def _place(entry: dict[str, Any]) -> tuple[int, int]:
    return entry["line"], entry["offset"]


def _frame(raw: bytes) -> bytes:
    """A quarantined line as a segment has it. Bare JSON gets its CRC; what is none is left for parsing to reject."""
    if raw.startswith(b"{"):
        with suppress(orjson.JSONDecodeError):
            raw = frame_line(orjson.dumps(orjson.loads(raw)))
    return raw.removesuffix(b"\n") + b"\n"
