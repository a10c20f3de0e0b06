"""Landing: turn sealed segments into rows of the decision log, each exactly once.

The rows of a group of segments are written to staging, synced, and renamed into their partitions as
`part-<segment>.parquet`, or `data-<uuid>.parquet` when several segments share the file; both list their segments in
the footer. Only then are the segments unlinked. A kill at any moment leaves either nothing visible or a file whose
segments are still in the spool. Landing them again, or any copy of them, skips the records that their partition
already has (`storage.log.landed`).

A segment whose writer died (`.open`, but nobody holds its flock, and that of another host has not changed for long) is
sealed and landed like the others. A line that is torn, fails its CRC, is not JSON or does not fit the schema goes to
the quarantine with the reason, and so does a record that has the id of another one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import time
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate, chain, islice, pairwise
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO, NamedTuple
from uuid import uuid4

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reasoning.io import hosts
from storage.errors import LandingError
from storage.files import make_folder, make_private, sync
from storage.lake.log import open_log
from storage.layout import Layout
from storage.locks import LOCK_TIMEOUT, check_held, data_lock
from storage.log.batches import Batch, Parsed, find_buried, parse_lines
from storage.log.clocks import ClockLimits, clock_limits, reject_off_clock
from storage.log.demonstrations import find_wrong_demonstrations, has_demonstrations
from storage.log.home import DecisionLog, Landed
from storage.log.landed import KnownRows, find_repeated, id_bounds, overlap, row_ids
from storage.log.quarantine import QuarantineWriter, reason_class
from storage.log.replace import recover, use_one_disk
from storage.log.schema import SCHEMAS, PartitionKey
from storage.log.table import file_footer
from storage.progress import OnProgress, Progress
from storage.volumes import file_mark, is_foreign, quiet_for, volume_kind

# Segments that share files: many small ones must not become as many small files. The figures bound memory too.
_GROUP_BYTES = 128 << 20
_GROUP_SEGMENTS = 512
_CHUNK_BYTES = 4 << 20  # of lines that are parsed together
# A row group of a file; and what all partitions together may hold back before the largest is written out.
ROW_GROUP_ROWS = 20_000
_ROW_GROUP_BYTES = 32 << 20
_BUFFERED_BYTES = 64 << 20
# A file's ids are kept until it is finished. This is reached only by a segment that is larger than a group may be.
_FILE_ROWS = 1_000_000
_PARSERS = 2  # threads that parse, each another chunk: pyarrow works outside of Python's lock
_WRITERS = 2  # threads that write files, each another one
# Columns of few distinct values. A dictionary of the others would cost time and be given up.
_DICTIONARY = [
    *("agent_id", "room_id", "episode_id", "subject_ids.list.element", "source", "model", "config_hash", "experiment"),
    *("arm", "messages.list.element.role", "decision", "completion", "fallback_reason", "error", "tags"),
    *("fallback_model", "price_source"),
    *("metric", "value", "kind", "author"),
]
_PLACE = "place"  # column of a line's number (from 0) in its group, while its row is buffered
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,150}")  # of a segment, also when somebody copied it
_ATTEMPT = re.compile(r"\.r\d+$")  # so `storage.log.reland` ends the names of quarantine files
_NOT_IN_NAME = re.compile(r"[^A-Za-z0-9._-]|^[^A-Za-z0-9]")
_EMPTY_SEGMENT_AGE = 3600.0  # seconds after which an empty segment without a writer is removed


@dataclass
class LandReport:
    """What one landing did. `quarantined` counts lines by reason; `bytes` are those of the segments read.

    `duplicates` are identical records that the log already had: of a copied segment, or of one whose landing was
    killed. They are skipped. (A record with the same id and other content is quarantined: "conflict".)
    """

    segments: int = 0
    decisions: int = 0
    feedback: int = 0
    duplicates: int = 0
    quarantined: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    files: int = 0
    taken_over: int = 0  # of the segments, those whose writer had died
    waiting: int = 0  # segments of other hosts that are alive, or not known to be dead yet: they are left


def land_decisions(
    data: Path | str,
    *,
    now: datetime | None = None,
    progress: OnProgress | None = None,
    lock_timeout: float = LOCK_TIMEOUT,
) -> LandReport:
    """Land every segment of `data` that no living writer holds.

    Raises `DataFolderError`, `DataFolderBusy`, and `LandingError` when the disk is full or fails, or some segments
    cannot be read (all others have landed then): what was not landed is still in the spool, and landing again goes on
    from there.
    """
    layout = Layout(data).check().create()
    with data_lock(layout, "landing", timeout=lock_timeout):
        return finish_landing(layout, now=now, progress=progress)


def finish_landing(layout: Layout, *, now: datetime | None = None, progress: OnProgress | None = None) -> LandReport:
    """`land_decisions` for one who holds the lock. Whoever rewrites partitions calls it first."""
    recover(layout)
    limits = clock_limits(now)
    report = LandReport()
    report.taken_over, report.waiting = _take_over(layout)
    foreign = {path for path in list_segments(layout, ".open", ".seal") if not os.access(path, os.R_OK)}
    unread = dict.fromkeys(foreign, "Permission denied")  # and why: the others land
    segments = [(path, path.stat().st_size) for path in list_segments(layout, ".seal") if path not in unread]
    total = sum(size for _, size in segments)
    if not segments and not unread:
        return report
    with (
        open_log(layout) as log,
        ThreadPoolExecutor(_PARSERS, "parse") as parsers,
        ThreadPoolExecutor(_WRITERS, "write") as writers,
    ):
        for group in _groups(segments):
            paths = [path for path, _ in group]
            while paths:
                landing = _Landing(layout, log, paths, parsers, writers, limits)
                try:
                    landing.run(report, lambda done: progress(Progress(done, total, "bytes")) if progress else None)
                    break
                except _ReadError as error:
                    found = {error.path: error.reason, **_find_unreadable(paths)}
                    paths = [path for path in paths if path not in found]
                    unread |= found
                except (OSError, pa.ArrowException, duckdb.Error) as error:
                    mend = "land again"
                    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                        mend = "the disk is full: free some space and land again"
                    elif getattr(error, "errno", None) == errno.EXDEV:
                        mend = f"{use_one_disk(layout)}, and land again"
                    raise LandingError(
                        f"landing stopped after {report.segments} of {len(segments)} segments, at "
                        f"{segment_name(group[0][0])}: {error}. "
                        f"The others are still in {layout.spool}, nothing is lost; {mend}"
                    ) from error
                finally:
                    landing.discard()
    left = sorted(path for path in unread if path.exists())
    if left:
        mend = "run `reasoning land` as the same user as the agents"
        if not foreign.issuperset(left):
            mend = "run `reasoning land` again; if the disk keeps failing, move them away and recover what can be read"
        raise LandingError(
            f"segments cannot be read ({len(left)}, the first is {segment_name(left[0])}: {unread[left[0]]}): they are "
            f"still in {layout.spool}, all others have landed; {mend}"
        )
    return report


class _ReadError(Exception):
    """A segment could not be read to its end."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(f"{path}: {error}")
        self.path = path
        self.reason = error.strerror or str(error)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise _ReadError(path, error) from error


def _find_unreadable(paths: list[Path]) -> dict[Path, str]:
    """Unreadable segments, and why. All are looked for at once, because each costs a restart."""
    found = {}
    for path in paths:
        try:
            with _reading(path) as file:
                while file.read(1 << 20):
                    pass
        except _ReadError as error:
            found[path] = error.reason
    return found


def list_segments(layout: Layout, *suffixes: str) -> list[Path]:
    """The segments in the spool, sorted. Links and folders are ignored, whatever their names."""
    with os.scandir(layout.spool) as entries:
        names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    return [layout.spool / name for name in sorted(names) if name.endswith(suffixes)]


def segment_name(path: Path) -> str:
    """The name used for a segment's files: its own, or a sanitised one with a hash."""
    name = path.stem
    if _NAME.fullmatch(name) and not _ATTEMPT.search(name):
        return name
    return f"{_NOT_IN_NAME.sub('_', name)[:100]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def _groups(segments: list[tuple[Path, int]]) -> Iterator[list[tuple[Path, int]]]:
    group: list[tuple[Path, int]] = []
    size = 0
    for path, segment_size in segments:
        if group and (size + segment_size > _GROUP_BYTES or len(group) == _GROUP_SEGMENTS):
            yield group
            group, size = [], 0
        group.append((path, segment_size))
        size += segment_size
    if group:
        yield group


def _take_over(layout: Layout) -> tuple[int, int]:
    """Seal the segments whose writer died, which released their flock. How many were sealed, and how many are left.

    Another host's flock may not be seen here: its segment must also have given no sign of life for `GRACE` seconds.
    """
    kind, own = volume_kind(layout), hosts.host_tag(layout.spool)
    paths = list_segments(layout, ".open")
    foreign = {}
    for path in paths:
        if is_foreign(hosts.segment_tag(path.stem), own, kind):
            with contextlib.suppress(OSError):  # just sealed
                foreign[path.stem] = file_mark(path)
    quiet = quiet_for(layout, "segments", foreign)
    taken = waiting = 0
    for path in paths:
        if quiet.get(path.stem, hosts.GRACE) < hosts.GRACE:
            waiting += 1
        elif _take_segment(path, locks=path.stem not in foreign):
            taken += 1
    if taken:
        sync(layout.spool)
    return taken, waiting


def _take_segment(path: Path, *, locks: bool) -> bool:
    """Seal one segment unless its writer holds it. Without `locks` a file system that has none is passed over."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return False  # just sealed, or owned by another user
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False  # alive
        except OSError:
            if locks:
                raise
        status = os.fstat(fd)
        pid = hosts.segment_pid(path.stem)
        if pid not in (None, os.getpid()) and hosts.has_open(pid, status):
            return False  # alive although it seems to hold no lock: flock cannot be trusted here
        if status.st_size == 0:
            # Its writer may be between open and flock. One that died there left nothing to land.
            if time.time() - status.st_mtime > _EMPTY_SEGMENT_AGE:
                path.unlink(missing_ok=True)
            return False
        sealed = path.with_suffix(".seal")
        if sealed.exists():  # a copy of it
            sealed = path.with_name(f"{path.stem}-{uuid4().hex}.seal")
        path.rename(sealed)
    except FileNotFoundError:
        return False  # just sealed
    finally:
        os.close(fd)
    return True


class _Piece(NamedTuple):
    """Successive lines of one segment, with the number (from 1) and the place in bytes of the first."""

    segment: str
    line_no: int
    offset: int
    lines: list[bytes]


def _lines(pieces: list[_Piece]) -> list[bytes]:
    return list(chain.from_iterable(piece.lines for piece in pieces))


def _cut(pieces: list[_Piece], firsts: list[int], cuts: list[tuple[int, int]]) -> list[_Piece]:
    """The same lines, but those of these numbers cut in two there: the second part leads a new piece."""
    result = []
    for piece, first in zip(pieces, firsts, strict=False):
        rest = piece
        for number, at in cuts:
            n = number - first + piece.line_no - rest.line_no
            if first <= number < first + len(piece.lines):
                line = rest.lines[n]
                result.append(rest._replace(lines=[*rest.lines[:n], line[:at]]))
                offset = rest.offset + sum(map(len, rest.lines[:n])) + at
                rest = rest._replace(line_no=rest.line_no + n, offset=offset, lines=[line[at:], *rest.lines[n + 1 :]])
        result.append(rest)
    return result


class _Conflict(NamedTuple):
    """A record that has the id of another one. `place` is its line's among those of the group."""

    place: int
    reason: str


class _Output:
    """The new files of one partition, usually one: buffered rows, and a writer once there are enough of them."""

    def __init__(self, layout: Layout, log: DecisionLog, key: PartitionKey, number: int, landed_at: datetime) -> None:
        self.key = key
        self._log = log
        self._landed_at = landed_at
        self.folder = layout.data / key.folder
        self.staged: dict[Path, list[str]] = {}  # the files, with the segments whose rows are in them
        self.buffer: list[pa.Table] = []
        self.segments: set[str] = set()  # of the buffer
        self.rows = 0
        self.nbytes = 0
        self.written = 0
        self.duplicates = 0
        self.conflicts: list[_Conflict] = []
        self.writing: Future[None] | None = None
        # A name that no other landing has: one that lost its lock must not move another's unfinished file.
        self._stem = layout.staging(key.table) / f"land-{uuid4().hex[:12]}-{number}"
        self._landed: Landed | None = None
        self._writer: pq.ParquetWriter | None = None
        self._path = Path()  # of the open file
        self._ids: list[pa.Array] = []  # of what is in the open file, which cannot be read yet
        self._sources: set[str] = set()  # segments of what is in it

    def write(self, tables: list[pa.Table], segments: set[str]) -> None:
        if self._landed is None:
            self._landed = self._log.landed(self.key)
        table = self._without_known(pa.concat_tables(tables), self._landed)
        if not len(table):
            return
        ts = table["ts"]
        if len(ts) > 1 and not pc.all(pc.less_equal(ts[:-1], ts[1:])).as_py():
            table = table.sort_by("ts")
        if self._writer is None:
            self._path = self._stem.with_name(f"{self._stem.name}-{len(self.staged)}.parquet")
            self.staged[self._path] = []
            make_folder(self._path.parent)
            self._writer = pq.ParquetWriter(
                self._path,
                SCHEMAS[self.key.table],
                compression="zstd",
                compression_level=3,
                use_dictionary=_DICTIONARY,
            )
        self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        self._ids.append(row_ids(self.key.table, table))
        self._sources |= segments
        self.written += len(table)
        if sum(map(len, self._ids)) >= _FILE_ROWS:
            self._change_file(self._landed)

    def _without_known(self, table: pa.Table, landed: Landed) -> pa.Table:
        """The rows that neither the partition nor this landing has yet, without their places."""
        if self._repeats(row_ids(self.key.table, table)):
            self._change_file(landed)
        table = self._without(table, landed.find(table))
        table = self._without(table, find_repeated(self.key.table, table))
        return table.drop_columns([_PLACE])

    def _repeats(self, ids: pa.Array) -> bool:
        bounds = id_bounds(ids)
        return any(
            overlap(id_bounds(written), bounds) and pc.any(pc.is_in(ids, value_set=written)).as_py()
            for written in self._ids
        )

    def _without(self, table: pa.Table, known: KnownRows) -> pa.Table:
        if not (known.same or known.differing):
            return table
        self.duplicates += len(known.same)
        self.conflicts += [_Conflict(table[_PLACE][row].as_py(), reason) for row, reason in known.differing.items()]
        gone = known.same | known.differing.keys()
        return table.filter(pa.array([row not in gone for row in range(len(table))], pa.bool_()))

    def _change_file(self, landed: Landed) -> None:
        """Start a new file for the next rows, because this one must be read and compared."""
        self.close()
        landed.add(self._path)
        self._ids = []

    def close(self) -> None:
        """Finish the file that is being written."""
        if self._writer is None:
            return
        segments = self.staged[self._path] = sorted(self._sources)
        self._writer.add_key_value_metadata(file_footer(segments, self._landed_at))
        self._writer.close()
        self._writer = None
        self._sources = set()
        make_private(self._path)
        sync(self._path)

    def commit(self) -> None:
        """Move the files into the partition."""
        make_folder(self.folder)
        for path, segments in self.staged.items():
            target = self.folder / f"part-{segments[0]}.parquet"
            if len(segments) > 1 or target.exists():  # some records of a segment may have come before the others
                target = self.folder / f"data-{uuid4()}.parquet"
            path.rename(target)
        sync(self.folder)

    def discard(self) -> None:
        if self._writer is not None and self._writer.is_open:
            with contextlib.suppress(OSError, pa.ArrowException):  # it failed before; the file is deleted
                self._writer.close()
        for path in self.staged:
            path.unlink(missing_ok=True)


class _Landing:
    """One group of segments being written into partitions."""

    def __init__(
        self,
        layout: Layout,
        log: DecisionLog,
        segments: list[Path],
        parsers: ThreadPoolExecutor,
        writers: ThreadPoolExecutor,
        limits: ClockLimits,
    ) -> None:
        self._limits = limits
        self._layout = layout
        self._log = log
        self._segments = segments
        self._parsers = parsers
        self._writers = writers
        self._outputs: dict[PartitionKey, _Output] = {}
        self._quarantine = {
            name: QuarantineWriter(layout.quarantine / f"{name}.jsonl", now=limits.now)
            for name in map(segment_name, segments)
        }
        self._reasons: Counter[str] = Counter()
        self._starts: list[tuple[int, _Piece]] = []  # the pieces, without their lines, by their place in the group
        self._shown: list[tuple[PartitionKey, pa.Table, set[str]]] = []  # feedback that waits for its decisions
        self._wrong: list[_Conflict] = []
        self._lines = 0
        self._buffered = 0
        self._pending: deque[Future[None]] = deque()

    def run(self, report: LandReport, progress: Callable[[int], None]) -> None:
        done = 0
        for pieces, parsed, done in self._parsed():
            self._take(pieces, parsed)
            progress(report.bytes + done)
        self._take_demonstrations()
        for output in self._outputs.values():
            self._flush(output)
        while self._pending:
            self._pending.popleft().result()
        for output in self._outputs.values():
            output.close()
        self._reject_conflicts()
        self._commit()
        report.segments += len(self._segments)
        for output in self._outputs.values():
            setattr(report, output.key.table, getattr(report, output.key.table) + output.written)
            report.duplicates += output.duplicates
            report.files += len(output.staged)
        report.bytes += done
        for reason, count in self._reasons.items():
            report.quarantined[reason] = report.quarantined.get(reason, 0) + count

    def discard(self) -> None:
        """Remove staged files after a failure. After a commit there are none."""
        for future in self._pending:
            future.exception()
        for output in self._outputs.values():
            output.discard()
        for writer in self._quarantine.values():
            writer.discard()

    def _chunks(self) -> Iterator[tuple[list[_Piece], int]]:
        """Lines of one segment or several, some megabytes at a time, with the number of bytes read so far."""
        pieces: list[_Piece] = []
        done = size = 0
        for path in self._segments:
            line_no, offset = 1, 0
            with _reading(path) as file:
                while lines := file.readlines(_CHUNK_BYTES - size):
                    pieces.append(_Piece(segment_name(path), line_no, offset, lines))
                    length = sum(map(len, lines))
                    line_no += len(lines)
                    offset += length
                    done += length
                    size += length
                    if size >= _CHUNK_BYTES:
                        yield pieces, done
                        pieces, size = [], 0
        yield pieces, done

    def _parsed(self) -> Iterator[tuple[list[_Piece], Parsed, int]]:
        """The chunks with what `parse_lines` makes of each, in order; the next ones are parsed meanwhile."""
        ahead: deque[tuple[list[_Piece], Future[Parsed], int]] = deque()
        for pieces, done in self._chunks():
            ahead.append((pieces, self._parsers.submit(parse_lines, _lines(pieces)), done))
            if len(ahead) > _PARSERS:
                pieces, parsed, done = ahead.popleft()
                yield pieces, parsed.result(), done
        for pieces, parsed, done in ahead:
            yield pieces, parsed.result(), done

    def _take(self, pieces: list[_Piece], parsed: Parsed) -> None:
        lines = _lines(pieces)
        firsts = list(accumulate((len(piece.lines) for piece in pieces), initial=0))
        batches, rejected = reject_off_clock(parsed, self._limits)
        cuts = [(number, at) for number in sorted(rejected) if (at := find_buried(lines[number])) is not None]
        if cuts:
            pieces = _cut(pieces, firsts, cuts)
            self._take(pieces, parse_lines(_lines(pieces)))
            return
        for number in sorted(rejected):
            at = bisect_right(firsts, number) - 1
            self._reject(pieces[at], number - firsts[at], rejected[number])
        for batch in batches:
            places = [bisect_left(batch.lines, first) for first in firsts]
            self._add(batch, {piece.segment for piece, (a, b) in zip(pieces, pairwise(places), strict=True) if a < b})
        self._starts += [
            (self._lines + first, piece._replace(lines=[])) for first, piece in zip(firsts[:-1], pieces, strict=True)
        ]
        self._lines += len(lines)
        while self._buffered > _BUFFERED_BYTES:
            self._flush(max(self._outputs.values(), key=lambda output: output.nbytes))

    def _reject(self, piece: _Piece, at: int, reason: str) -> None:
        offset = piece.offset + sum(map(len, piece.lines[:at]))
        raw = piece.lines[at].removesuffix(b"\n")
        self._quarantine[piece.segment].add(piece.segment, piece.line_no + at, offset, raw, reason)
        self._reasons[reason_class(reason)] += 1

    def _reject_conflicts(self) -> None:
        paths = {segment_name(path): path for path in self._segments}
        for place, reason in sorted(chain(self._wrong, *(output.conflicts for output in self._outputs.values()))):
            first, piece = self._starts[bisect_right(self._starts, place, key=itemgetter(0)) - 1]
            with _reading(paths[piece.segment]) as file:
                file.seek(piece.offset)
                lines = list(islice(file, place - first + 1))
            self._reject(piece._replace(lines=lines), place - first, reason)

    def _add(self, batch: Batch, segments: set[str]) -> None:
        """The rows, which are of these segments, to their partition."""
        places = pc.add(pa.array(batch.lines, pa.int64()), self._lines)
        table = batch.table.append_column(_PLACE, places)
        if batch.key.table == "feedback" and has_demonstrations(table):
            self._shown.append((batch.key, table, segments))
        else:
            self._buffer(batch.key, table, segments)

    def _take_demonstrations(self) -> None:
        """The feedback held until all decisions of the group were read, without invalid demonstrations."""
        for key, table, segments in self._shown:
            wrong = find_wrong_demonstrations(self._layout, self._segments, table)
            places = table[_PLACE].to_pylist() if wrong else []
            self._wrong += [_Conflict(places[row], reason) for row, reason in wrong.items()]
            if wrong:
                table = table.filter(pa.array([row not in wrong for row in range(len(table))]))
            if len(table):
                self._buffer(key, table, segments)

    def _buffer(self, key: PartitionKey, table: pa.Table, segments: set[str]) -> None:
        output = self._outputs.get(key)
        if output is None:
            output = self._outputs[key] = _Output(self._layout, self._log, key, len(self._outputs), self._limits.now)
        output.buffer.append(table)
        output.segments |= segments
        output.rows += len(table)
        output.nbytes += table.nbytes
        self._buffered += table.nbytes
        if output.rows >= ROW_GROUP_ROWS or output.nbytes >= _ROW_GROUP_BYTES:
            self._flush(output)

    def _flush(self, output: _Output) -> None:
        """Hand the buffer to a writer thread: compression releases the GIL, so parsing continues meanwhile."""
        if not output.buffer:
            return
        if output.writing is not None:  # one at a time, and in order
            output.writing.result()
        while len(self._pending) >= _WRITERS:
            self._pending.popleft().result()
        output.writing = self._writers.submit(output.write, output.buffer, output.segments)
        self._pending.append(output.writing)
        self._buffered -= output.nbytes
        output.buffer, output.segments, output.rows, output.nbytes = [], set(), 0, 0

    def _commit(self) -> None:
        check_held(self._layout)
        self._log.commit(self._outputs)
        for writer in self._quarantine.values():
            writer.add_earlier()
            writer.commit()
        if self._reasons:
            sync(self._layout.quarantine)
        for path in self._segments:
            path.unlink()
        sync(self._layout.spool)
