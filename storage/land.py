"""Landing: sealed segments become rows of the decision log, each exactly once.

The rows of a group of segments are written to staging, synced, and renamed into their partitions as
`part-<segment>.parquet`, or `data-<uuid>.parquet` when several segments share the file; both list their segments in
the footer. Only then are the segments unlinked. A kill at any moment leaves either no trace that counts or a file whose
segments are still in the spool: landing them again skips the partitions that have them already.

A segment whose writer died (`.open`, but nobody holds its flock) is sealed and landed like the others. A line that is
torn, fails its CRC, is not JSON or does not fit the schema goes to the quarantine with the reason.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reasoning.errors import SegmentError
from reasoning.records import SCHEMA_VERSION
from reasoning.spool import check_line, parse_line
from storage.errors import LandingError
from storage.files import make_folder, sync
from storage.layout import Layout
from storage.locks import LOCK_TIMEOUT, data_lock
from storage.quarantine import QuarantineWriter, reason_class
from storage.rewrite import recover
from storage.schema import SCHEMAS, PartitionKey, SchemaViolation, partition_of, to_table
from storage.table import SCHEMA_KEY, SEGMENTS_KEY, landed_segments

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)

# Segments that share files: many small ones must not become as many small files. The figures bound memory too.
_GROUP_BYTES = 128 << 20
_GROUP_SEGMENTS = 512
# Lines that are parsed and turned into Arrow together.
_CHUNK_ROWS = 2048
_CHUNK_BYTES = 4 << 20
# A row group of a file; and what all partitions together may hold back before the largest is written out.
ROW_GROUP_ROWS = 20_000
_ROW_GROUP_BYTES = 32 << 20
_BUFFERED_BYTES = 64 << 20
# Columns of few distinct values. A dictionary of the others would cost time and be given up.
_DICTIONARY = [
    *("agent_id", "room_id", "episode_id", "subject_ids.list.element", "source", "model", "config_hash", "experiment"),
    *("arm", "messages.list.element.role", "decision", "completion", "fallback_reason", "error", "tags"),
    *("metric", "value", "kind", "author"),
]
# What `storage.erase` leaves of a line, filled up with blanks to its length. Landing passes over it.
ERASED = b'{"record":"erased"}'
_EMPTY_SEGMENT_AGE = 3600.0  # seconds after which an empty segment without a writer is removed


@dataclass
class LandReport:
    """What one landing did. `quarantined` counts lines by reason; `bytes` are those of the segments read."""

    segments: int = 0
    decisions: int = 0
    feedback: int = 0
    quarantined: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    files: int = 0
    taken_over: int = 0  # of the segments, those whose writer had died


def land_decisions(
    data: Path | str,
    *,
    now: datetime | None = None,
    progress: Progress | None = None,
    lock_timeout: float = LOCK_TIMEOUT,
) -> LandReport:
    """Land every segment of `data` that no living writer holds.

    Raises `DataFolderError`, `DataFolderBusy`, and `LandingError` when the disk is full or fails: what was not landed
    is still in the spool, and landing again goes on from there.
    """
    layout = Layout(data).check().create()
    with data_lock(layout, "landing", timeout=lock_timeout):
        return finish_landing(layout, now=now, progress=progress)


def finish_landing(layout: Layout, *, now: datetime | None = None, progress: Progress | None = None) -> LandReport:
    """`land_decisions` for one who holds the lock. Whoever rewrites partitions calls it first."""
    recover(layout)
    report = LandReport(taken_over=_take_over(layout))
    segments = [(path, path.stat().st_size) for path in sorted(layout.spool.glob("*.seal"))]
    total = sum(size for _, size in segments)
    with ThreadPoolExecutor(1, thread_name_prefix="land") as executor:
        for group in _groups(segments):
            landing = _Landing(layout, [path for path, _ in group], executor, now)
            try:
                landing.run(report, lambda done: progress(done, total) if progress else None)
            except (OSError, pa.ArrowException) as error:
                full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
                mend = "the disk is full: free some space and land again" if full else "land again"
                raise LandingError(
                    f"landing stopped after {report.segments} of {len(segments)} segments, at "
                    f"{group[0][0].name}: {error}. The others are still in {layout.spool}, nothing is lost; {mend}"
                ) from error
            finally:
                landing.discard()
    return report


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


def _take_over(layout: Layout) -> int:
    """Seal the segments whose writer died: the kernel let go of their flock."""
    taken = 0
    for path in sorted(layout.spool.glob("*.open")):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # sealed this moment
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(fd)
            if status.st_size == 0:
                # Its writer may be between open and flock. One that died there left nothing to land.
                if time.time() - status.st_mtime > _EMPTY_SEGMENT_AGE:
                    path.unlink(missing_ok=True)
                continue
            path.rename(path.with_suffix(".seal"))
            taken += 1
        except (BlockingIOError, FileNotFoundError):
            continue  # alive, or sealed this moment
        finally:
            os.close(fd)
    if taken:
        sync(layout.spool)
    return taken


def _is_erased(line: bytes) -> bool:
    try:
        return check_line(line).startswith(ERASED)
    except SegmentError:
        return False


class _Line(NamedTuple):
    segment: str
    line_no: int
    offset: int
    raw: bytes
    row: dict[str, Any]
    key: PartitionKey


class _Output:
    """The new file of one partition: buffered rows, and the writer once there were enough of them."""

    def __init__(self, layout: Layout, key: PartitionKey, number: int) -> None:
        self.key = key
        self.folder = layout.data / key.folder
        self.staged = layout.staging(key.table) / f"land-{number}.parquet"
        self.landed = landed_segments(self.folder)
        self.segments: set[str] = set()
        self.buffer: list[pa.Table] = []
        self.rows = 0
        self.nbytes = 0
        self.written = 0
        self.writer: pq.ParquetWriter | None = None

    def write(self, tables: list[pa.Table]) -> None:
        if self.writer is None:
            make_folder(self.staged.parent)
            self.writer = pq.ParquetWriter(
                self.staged,
                SCHEMAS[self.key.table],
                compression="zstd",
                compression_level=3,
                use_dictionary=_DICTIONARY,
                sorting_columns=None,
            )
        table = pa.concat_tables(tables)
        ts = table["ts"]
        if len(ts) > 1 and not pc.all(pc.less_equal(ts[:-1], ts[1:])).as_py():
            table = table.sort_by("ts")
        self.writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        self.written += len(table)


class _Landing:
    """One group of segments on its way into the partitions."""

    def __init__(
        self, layout: Layout, segments: list[Path], executor: ThreadPoolExecutor, now: datetime | None
    ) -> None:
        self._layout = layout
        self._segments = segments
        self._executor = executor
        self._outputs: dict[PartitionKey, _Output] = {}
        self._quarantine = {
            path.stem: QuarantineWriter(layout.quarantine / f"{path.stem}.jsonl", now=now) for path in segments
        }
        self._reasons: Counter[str] = Counter()
        self._rows: Counter[str] = Counter()
        self._buffered = 0
        self._pending: deque[Future[None]] = deque()

    def run(self, report: LandReport, progress: Callable[[int], None]) -> None:
        done = 0
        for chunk, done in self._chunks():
            self._take(chunk)
            progress(report.bytes + done)
        for output in self._outputs.values():
            self._flush(output)
        while self._pending:
            self._pending.popleft().result()
        self._commit()
        report.segments += len(self._segments)
        report.decisions += self._rows["decisions"]
        report.feedback += self._rows["feedback"]
        report.files += sum(1 for output in self._outputs.values() if output.written)
        report.bytes += done
        for reason, count in self._reasons.items():
            report.quarantined[reason] = report.quarantined.get(reason, 0) + count

    def discard(self) -> None:
        """After a failure (after a commit there is nothing left to do): give back what was taken on the disk."""
        for future in self._pending:
            future.exception()
        for output in self._outputs.values():
            if output.writer is not None and output.writer.is_open:
                with contextlib.suppress(OSError, pa.ArrowException):  # it failed before; the file goes away
                    output.writer.close()
            output.staged.unlink(missing_ok=True)
        for writer in self._quarantine.values():
            writer.discard()

    def _chunks(self) -> Iterator[tuple[list[_Line], int]]:
        """Lines that parse, some thousands at a time, with the number of bytes read so far."""
        lines: list[_Line] = []
        done = size = 0
        for path in self._segments:
            segment = path.stem
            offset = 0
            with path.open("rb") as file:
                for line_no, raw in enumerate(file, 1):
                    if not raw.endswith(b"\n"):
                        self._reject(segment, line_no, offset, raw, "torn: no newline at the end")
                    else:
                        try:
                            row = parse_line(raw)
                            lines.append(_Line(segment, line_no, offset, raw, row, partition_of(row)))
                        except (SegmentError, SchemaViolation) as error:
                            if not _is_erased(raw):
                                self._reject(segment, line_no, offset, raw[:-1], str(error))
                    offset += len(raw)
                    size += len(raw)
                    if len(lines) == _CHUNK_ROWS or size > _CHUNK_BYTES:
                        yield lines, done + offset
                        lines, size = [], 0
            done += offset
        yield lines, done

    def _reject(self, segment: str, line_no: int, offset: int, raw: bytes, reason: str) -> None:
        self._quarantine[segment].add(segment, line_no, offset, raw, reason)
        self._reasons[reason_class(reason)] += 1

    def _take(self, lines: list[_Line]) -> None:
        by_key: dict[PartitionKey, list[_Line]] = {}
        for line in lines:
            by_key.setdefault(line.key, []).append(line)
        for key, of_key in by_key.items():
            output = self._outputs.get(key)
            if output is None:
                output = self._outputs[key] = _Output(self._layout, key, len(self._outputs))
            if output.landed:
                of_key = [line for line in of_key if line.segment not in output.landed]
            output.segments.update(line.segment for line in of_key)
            for table in self._tables(key, of_key):
                output.buffer.append(table)
                output.rows += len(table)
                output.nbytes += table.nbytes
                self._rows[key.table] += len(table)
                self._buffered += table.nbytes
            if output.rows >= ROW_GROUP_ROWS or output.nbytes >= _ROW_GROUP_BYTES:
                self._flush(output)
        while self._buffered > _BUFFERED_BYTES:
            self._flush(max(self._outputs.values(), key=lambda output: output.nbytes))

    def _tables(self, key: PartitionKey, lines: list[_Line]) -> Iterator[pa.Table]:
        """The lines as Arrow tables, without those that do not fit: found by halving."""
        if not lines:
            return
        try:
            yield to_table(key.table, [line.row for line in lines])
        except SchemaViolation as error:
            if len(lines) == 1:
                line = lines[0]
                self._reject(line.segment, line.line_no, line.offset, line.raw[:-1], str(error))
                return
            middle = len(lines) // 2
            yield from self._tables(key, lines[:middle])
            yield from self._tables(key, lines[middle:])

    def _flush(self, output: _Output) -> None:
        """Hand the buffer to the writing thread: compression leaves Python's lock, so parsing goes on beside it."""
        if not output.buffer:
            return
        while len(self._pending) >= 2:
            self._pending.popleft().result()
        self._pending.append(self._executor.submit(output.write, output.buffer))
        self._buffered -= output.nbytes
        output.buffer, output.rows, output.nbytes = [], 0, 0

    def _commit(self) -> None:
        outputs = [output for output in self._outputs.values() if output.writer is not None]
        for output in outputs:
            assert output.writer is not None
            output.writer.add_key_value_metadata(
                {SEGMENTS_KEY: orjson.dumps(sorted(output.segments)), SCHEMA_KEY: str(SCHEMA_VERSION).encode()}
            )
            output.writer.close()
            sync(output.staged)
        for output in outputs:
            make_folder(output.folder)
            name = f"part-{next(iter(output.segments))}" if len(output.segments) == 1 else f"data-{uuid4()}"
            output.staged.rename(output.folder / f"{name}.parquet")
            sync(output.folder)
        for writer in self._quarantine.values():
            writer.commit()
        if self._reasons:
            sync(self._layout.quarantine)
        for path in self._segments:
            path.unlink()
        sync(self._layout.spool)
