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
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate, chain
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reasoning.records import SCHEMA_VERSION
from storage.batches import Batch, parse_lines
from storage.errors import LandingError
from storage.files import make_folder, sync
from storage.layout import Layout
from storage.locks import LOCK_TIMEOUT, data_lock
from storage.quarantine import QuarantineWriter, reason_class
from storage.rewrite import recover
from storage.schema import SCHEMAS, PartitionKey
from storage.table import SCHEMA_KEY, SEGMENTS_KEY, landed_segments

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)

# Segments that share files: many small ones must not become as many small files. The figures bound memory too.
_GROUP_BYTES = 128 << 20
_GROUP_SEGMENTS = 512
_CHUNK_BYTES = 4 << 20  # of lines that are parsed together
# A row group of a file; and what all partitions together may hold back before the largest is written out.
ROW_GROUP_ROWS = 20_000
_ROW_GROUP_BYTES = 32 << 20
_BUFFERED_BYTES = 64 << 20
_WRITERS = 2  # threads that write files, each another one
# Columns of few distinct values. A dictionary of the others would cost time and be given up.
_DICTIONARY = [
    *("agent_id", "room_id", "episode_id", "subject_ids.list.element", "source", "model", "config_hash", "experiment"),
    *("arm", "messages.list.element.role", "decision", "completion", "fallback_reason", "error", "tags"),
    *("metric", "value", "kind", "author"),
]
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
    segments = [(path, path.stat().st_size) for path in list_segments(layout, ".seal")]
    total = sum(size for _, size in segments)
    with ThreadPoolExecutor(_WRITERS, thread_name_prefix="land") as executor:
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


def list_segments(layout: Layout, *suffixes: str) -> list[Path]:
    """The segments in the spool, sorted. Links and folders are none of ours, whatever their names."""
    with os.scandir(layout.spool) as entries:
        names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    return [layout.spool / name for name in sorted(names) if name.endswith(suffixes)]


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
    for path in list_segments(layout, ".open"):
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


class _Piece(NamedTuple):
    """Successive lines of one segment, with the number (from 1) and the place in bytes of the first."""

    segment: str
    line_no: int
    offset: int
    lines: list[bytes]


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
        self.writing: Future[None] | None = None

    def write(self, tables: list[pa.Table]) -> None:
        if self.writer is None:
            make_folder(self.staged.parent)
            self.writer = pq.ParquetWriter(
                self.staged,
                SCHEMAS[self.key.table],
                compression="zstd",
                compression_level=3,
                use_dictionary=_DICTIONARY,
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

    def _chunks(self) -> Iterator[tuple[list[_Piece], int]]:
        """Lines of one segment or several, some megabytes at a time, with the number of bytes read so far."""
        pieces: list[_Piece] = []
        done = size = 0
        for path in self._segments:
            line_no, offset = 1, 0
            with path.open("rb") as file:
                while lines := file.readlines(_CHUNK_BYTES - size):
                    pieces.append(_Piece(path.stem, line_no, offset, lines))
                    length = sum(map(len, lines))
                    line_no += len(lines)
                    offset += length
                    done += length
                    size += length
                    if size >= _CHUNK_BYTES:
                        yield pieces, done
                        pieces, size = [], 0
        yield pieces, done

    def _take(self, pieces: list[_Piece]) -> None:
        lines = list(chain.from_iterable(piece.lines for piece in pieces))
        firsts = list(accumulate((len(piece.lines) for piece in pieces), initial=0))
        batches, rejected = parse_lines(lines)
        for number in sorted(rejected):
            at = bisect_right(firsts, number) - 1
            self._reject(pieces[at], number - firsts[at], rejected[number])
        for batch in batches:
            segments = [pieces[bisect_right(firsts, number) - 1].segment for number in batch.lines]
            self._add(batch, segments)
        while self._buffered > _BUFFERED_BYTES:
            self._flush(max(self._outputs.values(), key=lambda output: output.nbytes))

    def _reject(self, piece: _Piece, at: int, reason: str) -> None:
        offset = piece.offset + sum(map(len, piece.lines[:at]))
        raw = piece.lines[at].removesuffix(b"\n")
        self._quarantine[piece.segment].add(piece.segment, piece.line_no + at, offset, raw, reason)
        self._reasons[reason_class(reason)] += 1

    def _add(self, batch: Batch, segments: list[str]) -> None:
        """The rows to their partition, without those of segments that it has already. `segments` has one for each."""
        output = self._outputs.get(batch.key)
        if output is None:
            output = self._outputs[batch.key] = _Output(self._layout, batch.key, len(self._outputs))
        table = batch.table
        names = set(segments)
        if not names.isdisjoint(output.landed):
            table = table.filter(pa.array([segment not in output.landed for segment in segments], pa.bool_()))
            names -= output.landed
            if not names:
                return
        output.segments |= names
        output.buffer.append(table)
        output.rows += len(table)
        output.nbytes += table.nbytes
        self._rows[batch.key.table] += len(table)
        self._buffered += table.nbytes
        if output.rows >= ROW_GROUP_ROWS or output.nbytes >= _ROW_GROUP_BYTES:
            self._flush(output)

    def _flush(self, output: _Output) -> None:
        """Hand the buffer to a writing thread: compression leaves Python's lock, so parsing goes on beside it."""
        if not output.buffer:
            return
        if output.writing is not None:  # one at a time, and in order
            output.writing.result()
        while len(self._pending) >= _WRITERS:
            self._pending.popleft().result()
        output.writing = self._executor.submit(output.write, output.buffer)
        self._pending.append(output.writing)
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
