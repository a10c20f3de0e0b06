from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.errors import SegmentError
from reasoning.ids import uuid7
from reasoning.io import spool
from reasoning.io.segments import check_line, frame_line, parse_line, read_segment
from reasoning.io.spool import SegmentWriter
from reasoning.records import Decision
from tests.reasoning.conftest import at_bytecode
from tests.reasoning.writers import record


def number(row: dict[str, Any]) -> int:
    return int(row["value"].strip('"').split(":")[0])


def read_all(folder: Path) -> tuple[list[int], list[str]]:
    """The numbers of the records in all segments, and the reasons of the bad lines."""
    good, bad = [], []
    for path in sorted(folder.iterdir()):
        segment = read_segment(path)
        good += [number(row) for _, row in segment.lines]
        bad += [line.reason for line in segment.bad]
    return good, bad


def names(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


class TestLines:
    @given(st.binary().filter(lambda payload: b"\n" not in payload))
    def test_a_line_holds_what_was_framed(self, payload: bytes) -> None:
        assert check_line(frame_line(payload)) == payload

    def test_a_line_is_the_documented_form(self) -> None:
        assert (
            frame_line(b"{}") == b"745aeb8b".replace(b"745aeb8b", b"%08x" % __import__("zlib").crc32(b"{}")) + b" {}\n"
        )

    @pytest.mark.parametrize(
        "line", [b"", b"\n", b"0123", b"zzzzzzzz {}", b"0123456 {}", b"ABCDEF01 {}", b"00000000 {}"]
    )
    def test_what_has_no_frame_or_a_wrong_one_is_refused(self, line: bytes) -> None:
        with pytest.raises(SegmentError):
            check_line(line)

    def test_a_good_frame_around_no_record_is_refused(self) -> None:
        with pytest.raises(SegmentError, match="no record"):
            parse_line(frame_line(b'{"record":"vote"}'))


class TestReading:
    def test_bit_flips_are_found_and_the_rest_kept(self, tmp_path: Path) -> None:
        writer = SegmentWriter(tmp_path / "s")
        assert all(writer.write(record(i)) for i in range(3))
        writer.close()
        (path,) = (tmp_path / "s").iterdir()
        whole = path.read_bytes()
        middle = range(len(whole.split(b"\n")[0]) + 1, whole.rindex(b"\n", 0, -1) + 1)
        for at in middle:
            for bit in (0, 3, 7):
                broken = bytearray(whole)
                broken[at] ^= 1 << bit
                path.write_bytes(broken)
                segment = read_segment(path)
                found = [number(row) for _, row in segment.lines]
                assert segment.bad
                assert found == [0, 2] or (at == middle[-1] and found == [0])  # its newline gone, two lines are one
                assert set(found) <= {0, 1, 2}

    def test_every_truncation_keeps_the_lines_before_it(self, tmp_path: Path) -> None:
        lines = [frame_line(spool.encode_record(record(i))) for i in range(3)]
        whole = b"".join(lines)
        ends = [sum(map(len, lines[:n])) for n in range(4)]
        for end in range(len(whole)):
            (tmp_path / "x.open").write_bytes(whole[:end])
            segment = read_segment(tmp_path / "x.open")
            complete = sum(1 for e in ends[1:] if e <= end)
            assert [number(row) for _, row in segment.lines] == list(range(complete))
            torn = whole[ends[complete] : end]
            assert [(b.line_no, b.offset, b.raw) for b in segment.bad] == (
                [(complete + 1, ends[complete], torn)] if torn else []
            )

    def test_large_records_and_odd_characters_come_back(self, tmp_path: Path) -> None:
        now = datetime.fromtimestamp(1_700_000_000, UTC)
        texts = ["x" * 20_000, "y" * 2_000_000, "\x00\U0001f600\u2028\r\n", "\ud800"]
        writer = SegmentWriter(tmp_path)
        for text in texts:
            messages = [{"role": "user", "content": text}]
            assert writer.write(Decision(uuid7(now), uuid7(now), now, "t", "original", True, messages))  # type: ignore[arg-type]
        writer.close()
        (path,) = tmp_path.iterdir()
        kept = [row["messages"][0]["content"] for _, row in read_segment(path).lines]
        assert kept == [*texts[:3], "\\ud800"]


class TestWriting:
    def test_a_segment_is_open_and_held_until_it_is_sealed(self, tmp_path: Path) -> None:
        writer = SegmentWriter(tmp_path / "deep" / "spool")
        assert not (tmp_path / "deep").exists()
        assert writer.write(record())
        (path,) = (tmp_path / "deep" / "spool").iterdir()
        assert path.name.endswith(f"-{os.getpid()}.open")
        with path.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        writer.seal()
        assert names(path.parent) == [".seal"]
        assert writer.write(record(1))
        writer.close()
        assert names(path.parent) == [".seal", ".seal"] and read_all(path.parent) == ([0, 1], [])

    def test_it_rotates_by_size(self, tmp_path: Path) -> None:
        writer = SegmentWriter(tmp_path, max_bytes=1000)
        for i in range(20):
            assert writer.write(record(i, 300))
        writer.close()
        assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
        assert read_all(tmp_path) == (list(range(20)), [])

    def test_a_record_larger_than_a_segment_has_one_of_its_own(self, tmp_path: Path) -> None:
        writer = SegmentWriter(tmp_path, max_bytes=100)
        assert writer.write(record(0, 5000)) and writer.write(record(1, 5000))
        writer.close()
        assert read_all(tmp_path) == ([0, 1], []) and len(names(tmp_path)) == 2

    def test_its_thread_seals_by_age_and_syncs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        synced = threading.Event()
        real = spool._datasync
        monkeypatch.setattr(spool, "_datasync", lambda fd: (real(fd), synced.set()))
        writer = SegmentWriter(tmp_path, max_age=0.0, sync_interval=0.005)
        assert writer.write(record())
        assert synced.wait(20)
        while names(tmp_path) != [".seal"]:
            time.sleep(0.005)
        writer.close()

    def test_a_writer_that_is_forgotten_seals(self, tmp_path: Path) -> None:
        SegmentWriter(tmp_path).write(record())
        assert names(tmp_path) == [".seal"]

    def test_threads_share_a_writer(self, tmp_path: Path) -> None:
        writer = SegmentWriter(tmp_path, max_bytes=20_000)
        threads = [
            threading.Thread(target=lambda k=k: [writer.write(record(k * 300 + i)) for i in range(300)])
            for k in range(8)
        ]
        for thread in threads:
            thread.start()
        for _ in range(20):
            writer.seal()
        for thread in threads:
            thread.join()
        writer.close()
        good, bad = read_all(tmp_path)
        assert sorted(good) == list(range(2400)) and bad == [] and writer.written == 2400

    def test_a_clock_that_jumps_back_loses_nothing(self, tmp_path: Path) -> None:
        times = iter([2e9, 1e9, 1e9, 0.0])
        writer = SegmentWriter(tmp_path, clock=lambda: next(times))
        for i in range(4):
            assert writer.write(record(i))
            writer.seal()
        assert sorted(read_all(tmp_path)[0]) == [0, 1, 2, 3]

    def test_a_record_in_the_middle_of_a_short_write_goes_elsewhere(self, tmp_path: Path, monkeypatch: Any) -> None:
        writer, real = SegmentWriter(tmp_path), os.write

        def write(fd: int, line: bytes) -> int:
            monkeypatch.setattr(os, "write", real)
            done = real(fd, line[:20])
            assert writer.write(record(1))  # as a signal handler would between two bytecodes
            writer.seal()
            return done

        monkeypatch.setattr(os, "write", write)
        assert writer.write(record(0)) and writer.write(record(2))
        writer.close()
        assert sorted(read_all(tmp_path)[0]) == [0, 1, 2] and read_all(tmp_path)[1] == []


class TestSignals:
    """A handler runs between two bytecodes, so here it runs, or raises, at every single one of them in turn."""

    @pytest.mark.timeout(400)  # tracing makes it long where others work too
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it raises in `__del__` as well
    @pytest.mark.parametrize("handler", ["records", "raises"])
    def test_a_handler_at_every_bytecode_of_the_writer(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handler: str
    ) -> None:
        monkeypatch.setattr(spool, "_datasync", lambda fd: None)
        at = 0
        ended = []  # kept, so that no `__del__` of an earlier one is what the handler interrupts
        while True:
            folder = tmp_path / str(at)
            # Of these records the second ends the first one's segment, and the first write of it is a short one.
            writer, acknowledged = SegmentWriter(folder, max_bytes=500, sync_interval=3600), []
            assert writer.write(record(0, 100))

            def act(writer: SegmentWriter = writer, acknowledged: list[int] = acknowledged) -> None:
                if handler == "raises":
                    raise KeyboardInterrupt
                assert writer.write(record(1, 100))
                acknowledged.append(1)

            with monkeypatch.context() as patch:
                patch.setattr(os, "write", Fault(os.write, 1, 0, 20))
                with contextlib.suppress(KeyboardInterrupt), at_bytecode(at, spool.__file__, act) as reached:
                    if writer.write(record(2, 300)):
                        acknowledged.append(2)
            assert all(writer.write(record(i, 100)) for i in (3, 4))
            writer.close()
            good, bad = read_all(folder)
            assert len(set(good)) == len(good) and {0, 3, 4, *acknowledged} <= set(good) <= {0, 1, 2, 3, 4}
            if handler == "records":
                assert bad == [] and sorted(good) == [0, *([1] if reached else []), 2, 3, 4]
            assert bad in ([], ["torn: no newline at the end"])
            shutil.rmtree(folder)
            ended.append(writer)
            if not reached:
                break
            at += 1
        assert at > 200

    def test_handlers_that_interrupt_each_other(self, tmp_path: Path) -> None:
        writer, acknowledged = SegmentWriter(tmp_path, max_bytes=20_000), []
        numbers, depth = itertools.count(10_000), [0]

        def on_signal(signum: int, _: object) -> None:
            if depth[0] < 3:
                depth[0] += 1
                n = next(numbers)
                signal.raise_signal(signal.SIGUSR1)
                if writer.write(record(n)):
                    acknowledged.append(n)
                depth[0] -= 1

        before = {s: signal.signal(s, on_signal) for s in (signal.SIGUSR1, signal.SIGALRM)}
        try:
            for i in range(2000):
                if i % 7 == 0:
                    signal.setitimer(signal.ITIMER_REAL, 0.00005 + i % 13 * 0.00001)
                if writer.write(record(i)):
                    acknowledged.append(i)
                if i % 100 == 0:
                    writer.seal()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for s, handler in before.items():
                signal.signal(s, handler)
        writer.close()
        good, bad = read_all(tmp_path)
        assert sorted(good) == sorted(acknowledged) and bad == [] and writer.dropped == {}


class TestForks:
    def test_a_child_writes_a_segment_of_its_own_and_holds_none_of_its_parents(self, tmp_path: Path) -> None:
        writer = SegmentWriter(tmp_path)
        assert writer.write(record(0))
        (parents,) = tmp_path.iterdir()
        ready, done = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                assert writer.written == 0
                assert writer.write(record(1))
                os.write(ready[1], b"x")
                os.read(done[0], 1)
                code = 0
            finally:
                os._exit(code)
        os.read(ready[0], 1)
        assert writer.write(record(2))
        writer.close()
        # The child lives, yet nobody holds the parent's segment.
        with parents.with_suffix(".seal").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(done[1], b"x")
        assert os.waitpid(child, 0)[1] == 0
        assert sorted(read_all(tmp_path)[0]) == [0, 1, 2] and len(names(tmp_path)) == 2

    def test_forks_while_threads_write(self, tmp_path: Path) -> None:
        writer = SegmentWriter(tmp_path, max_bytes=5_000, sync_interval=0.001)
        stop = threading.Event()
        written: list[int] = []

        def work(k: int) -> None:
            i = 0
            while not stop.is_set():
                if writer.write(record(k * 1_000_000 + i)):
                    written.append(k * 1_000_000 + i)
                i += 1

        threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
        for thread in threads:
            thread.start()
        children = []
        for n in range(12):
            pid = os.fork()
            if pid == 0:
                os._exit(0 if writer.write(record(9_000_000 + n)) else 1)
            children.append(pid)
        assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 12
        stop.set()
        for thread in threads:
            thread.join()
        writer.close()
        good, bad = read_all(tmp_path)
        assert sorted(good) == sorted(written + [9_000_000 + n for n in range(12)]) and bad == []


class Fault:
    """Let the n-th call of a function fail, counted from the making of it on; partly, when it is a write."""

    def __init__(self, real: Callable[..., Any], nth: int, code: int, partial: int | None = None) -> None:
        self.real, self.nth, self.code, self.partial, self.calls = real, nth, code, partial, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == self.nth:
            if self.partial is not None:
                return self.real(args[0], args[1][: self.partial])
            raise OSError(self.code, os.strerror(self.code))
        return self.real(*args, **kwargs)


class TestFailingDisk:
    """Every I/O call of the writer fails once, in turn: what was acknowledged is there, the rest is counted."""

    @pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
    @pytest.mark.parametrize(
        ("module", "function"),
        [
            (os, "write"),
            (os, "open"),
            (os, "fstat"),
            (os, "stat"),
            (os, "mkdir"),
            (os, "rename"),
            (os, "dup"),
            (fcntl, "flock"),
            (spool, "_datasync"),
        ],
    )
    def test_each_call_once(self, tmp_path: Path, monkeypatch: Any, module: Any, function: str, code: int) -> None:
        reached = 0
        for nth in range(1, 40):
            folder = tmp_path / str(nth)
            with monkeypatch.context() as patch:
                fault = Fault(getattr(module, function), nth, code)
                patch.setattr(module, function, fault)
                writer = SegmentWriter(folder / "spool", max_bytes=600, sync_interval=3600)
                acknowledged = []
                for i in range(12):
                    if writer.write(record(i, 100)):
                        acknowledged.append(i)
                    if i == 6:
                        writer.seal()
                    if i % 4 == 3:
                        writer._sync()
                writer.close()
            good, bad = read_all(folder / "spool")
            assert good == acknowledged and bad == []
            assert sum(writer.dropped.values()) == 12 - len(acknowledged) <= 1
            assert writer.written == len(acknowledged)
            reached += fault.calls >= nth
            if fault.calls < nth:
                break
        assert reached >= 1

    @pytest.mark.parametrize("partial", [1, 8, 9, 100])
    def test_a_short_write_is_completed(self, tmp_path: Path, monkeypatch: Any, partial: int) -> None:
        for nth in range(1, 5):
            folder = tmp_path / str(nth)
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", Fault(os.write, nth, 0, partial))
                writer = SegmentWriter(folder)
                assert all(writer.write(record(i, 100)) for i in range(4))
                writer.close()
            assert read_all(folder) == ([0, 1, 2, 3], [])

    def test_a_short_write_that_cannot_be_completed_leaves_nothing(self, tmp_path: Path, monkeypatch: Any) -> None:
        real = os.write
        outcomes = iter([None, 20, OSError(errno.ENOSPC, "full"), None])

        def write(fd: int, data: bytes) -> int:
            outcome = next(outcomes)
            if isinstance(outcome, OSError):
                raise outcome
            return real(fd, data if outcome is None else data[:outcome])

        writer = SegmentWriter(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write)
            assert [writer.write(record(i)) for i in range(3)] == [True, False, True]
        writer.close()
        assert read_all(tmp_path) == ([0, 2], []) and writer.dropped == {"ENOSPC": 1}

    def test_a_half_line_that_cannot_be_cut_off_ends_its_segment(self, tmp_path: Path, monkeypatch: Any) -> None:
        real = os.write
        outcomes = iter([None, 20, OSError(errno.EIO, "broken"), None])

        def write(fd: int, data: bytes) -> int:
            outcome = next(outcomes)
            if isinstance(outcome, OSError):
                raise outcome
            return real(fd, data if outcome is None else data[:outcome])

        writer = SegmentWriter(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write)
            patch.setattr(os, "ftruncate", Fault(os.ftruncate, 1, errno.EIO))
            assert [writer.write(record(i)) for i in range(3)] == [True, False, True]
        writer.close()
        good, bad = read_all(tmp_path)
        assert good == [0, 2] and bad == ["torn: no newline at the end"] and len(names(tmp_path)) == 2

    def test_a_full_file_system_drops_and_counts_and_goes_on(self, tmp_path: Path) -> None:
        """The kernel itself refuses: RLIMIT_FSIZE gives a short write, then EFBIG, like a disk that fills up."""
        writer = SegmentWriter(tmp_path)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
            acknowledged = [i for i in range(30) if writer.write(record(i, 300))]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, before)
        assert 5 < len(acknowledged) < 30 and writer.dropped == {"EFBIG": 30 - len(acknowledged)}
        assert writer.write(record(30))
        writer.close()
        assert read_all(tmp_path) == ([*acknowledged, 30], [])

    def test_a_folder_that_cannot_be_made_is_counted(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "file").touch()
        writer = SegmentWriter(tmp_path / "file" / "spool")
        with caplog.at_level(logging.WARNING, "reasoning"):
            assert not any(writer.write(record(i)) for i in range(100))
        assert writer.dropped == {"ENOTDIR": 100} and "Not a directory" in str(writer.last_error)
        assert len(caplog.records) == 7  # the 1st, 2nd, 4th, … 64th
        (tmp_path / "file").unlink()
        assert writer.write(record())
        writer.close()

    def test_a_record_that_cannot_be_encoded_is_refused_and_counted(self, tmp_path: Path) -> None:
        writer = SegmentWriter(tmp_path)
        bad = record()
        bad.value = float("nan")
        assert not writer.write(bad)
        assert writer.dropped == {"refused": 1} and not any(tmp_path.iterdir())

    def test_landing_may_take_a_segment_between_its_open_and_its_lock(self, tmp_path: Path, monkeypatch: Any) -> None:
        real, taken = fcntl.flock, []

        def flock(fd: int, how: int) -> None:
            if not taken:  # landing was faster: it took the empty file away
                (path,) = tmp_path.glob("*.open")
                taken.append(path)
                path.unlink()
            real(fd, how)

        monkeypatch.setattr(fcntl, "flock", flock)
        writer = SegmentWriter(tmp_path)
        assert writer.write(record())
        writer.close()
        assert read_all(tmp_path) == ([0], []) and len(taken) == 1


class TestVanishingSegments:
    """Whoever deletes, moves or unmounts what is written to: it is counted, told, and gone on with in a new segment."""

    WAYS: ClassVar[dict[str, tuple[str, Callable[[Path], object]]]] = {
        "segment deleted": ("deleted", lambda path: path.unlink()),
        "folder deleted": ("deleted", lambda path: shutil.rmtree(path.parent)),
        "segment moved": ("moved", lambda path: path.rename(path.parent.parent / "elsewhere")),
        "segment renamed": ("moved", lambda path: path.rename(path.with_name("elsewhere.open"))),
        "folder moved": ("moved", lambda path: path.parent.rename(path.parent.parent / "elsewhere")),
        "folder replaced by a file": ("deleted", lambda path: (shutil.rmtree(path.parent), path.parent.touch())),
        "another file in its place": ("deleted", lambda path: (path.unlink(), path.write_bytes(b"not ours"))),
    }

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("found_by", ["thread", "seal", "close", "size"])
    def test_every_way_and_whoever_finds_it(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, way: str, found_by: str
    ) -> None:
        reason, vanish = self.WAYS[way]
        interval = 0.01 if found_by == "thread" else 3600
        writer = SegmentWriter(tmp_path / "deep" / "spool", sync_interval=interval, max_bytes=4000)
        assert all(writer.write(record(i)) for i in range(3))
        (path,) = (tmp_path / "deep" / "spool").iterdir()
        vanish(path)
        with caplog.at_level(logging.WARNING, "reasoning"):
            if found_by == "thread":
                wait_until(lambda: bool(writer.dropped) and writer._fd is None)
                wait_until(lambda: bool(caplog.records))
            elif found_by == "size":
                writer.write(record(9, 5000))
            else:
                getattr(writer, found_by)()
        found = read_all(path.parent)[0] if path.parent.is_dir() else []
        assert writer.dropped[reason] == 3
        assert [entry.message for entry in caplog.records if f"was {reason} with 3 records" in entry.message]
        if way == "folder replaced by a file":
            path.parent.unlink()
        assert writer.write(record(10))
        writer.close()
        good = read_all(path.parent)[0]
        assert 10 in good and writer.written == len([n for n in good if n not in (0, 1, 2)]) >= len(found) - 3
        if way == "another file in its place":
            assert path.read_bytes() == b"not ours"

    @pytest.mark.parametrize("code", [errno.ESTALE, errno.ENOENT])
    def test_network_file_systems_say_so_in_fstat(self, tmp_path: Path, monkeypatch: Any, code: int) -> None:
        """Before: the thread died in it, 101 records were "written" and 0 dropped, nothing was ever sealed again."""
        writer = SegmentWriter(tmp_path / "spool", sync_interval=0.01)
        assert all(writer.write(record(i)) for i in range(5))
        (path,) = (tmp_path / "spool").iterdir()
        path.unlink()
        real, lost = os.fstat, writer._fd

        def fstat(fd: int) -> os.stat_result:
            if fd == lost and not writer.dropped:
                raise OSError(code, os.strerror(code))
            return real(fd)

        monkeypatch.setattr(os, "fstat", fstat)
        wait_until(lambda: writer.dropped == {"deleted": 5})
        assert writer._thread is not None and writer._thread.is_alive()
        wait_until(lambda: writer._fd is None)
        assert writer.write(record(5))
        writer.close()
        assert read_all(tmp_path / "spool") == ([5], [])

    @pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
    def test_what_cannot_be_looked_at_for_a_while_is_not_given_up(
        self, tmp_path: Path, monkeypatch: Any, code: int
    ) -> None:
        writer = SegmentWriter(tmp_path, sync_interval=3600)
        assert writer.write(record(0))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fstat", Fault(os.fstat, 1, code))
            writer._tick()
        assert writer.write(record(1)) and writer.dropped == {}
        writer.close()
        assert read_all(tmp_path) == ([0, 1], []) and len(names(tmp_path)) == 1

    @pytest.mark.parametrize(
        ("module", "function"),
        [
            *((os, name) for name in ("fstat", "stat", "rename", "dup", "utime", "close", "fsync", "open")),
            *((spool, name) for name in ("_datasync", "_sync_folder", "steady")),
            (time, "monotonic"),
            (SegmentWriter, "_is_gone"),
            (SegmentWriter, "_tell_lost"),
            (SegmentWriter, "_count_tick_error"),
        ],
    )
    @pytest.mark.parametrize("error", [RuntimeError("odd"), MemoryError(), OSError(errno.ESTALE, "stale")])
    def test_nothing_ends_the_thread(
        self, tmp_path: Path, monkeypatch: Any, module: Any, function: str, error: Exception
    ) -> None:
        writer = SegmentWriter(tmp_path, sync_interval=0.005, max_age=0.01)
        assert writer.write(record(0))
        failed = threading.Event()
        real = getattr(module, function)

        def fail(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is writer._thread:
                failed.set()
                raise error
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(module, function, fail)
            if function == "_count_tick_error":
                patch.setattr(writer, "_tick", fail)
            assert writer.write(record(1)) or writer.dropped
            failed.wait(0.3)
            thread = writer._thread
        assert thread is not None and thread.is_alive()
        assert writer.write(record(2))
        wait_until(lambda: writer._fd is None)  # sealed by age: the thread does its work again
        writer.close()
        assert 2 in read_all(tmp_path)[0]

    def test_a_thread_that_could_not_start_gets_a_successor(self, tmp_path: Path, monkeypatch: Any) -> None:
        def start(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        writer = SegmentWriter(tmp_path, sync_interval=0.005, max_age=0.01)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            assert writer.write(record(0))
            writer.seal()
        assert writer.write(record(1))
        wait_until(lambda: writer._fd is None)
        writer.close()
        assert read_all(tmp_path) == ([0, 1], [])


def wait_until(happened: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.005)


def kill_writers(folder: Path, kills: int) -> tuple[int, int, int]:
    """SIGKILL so many writers in the middle of their work. Acknowledged, found beyond that, torn."""
    acknowledged: list[int] = []
    for n in range(kills):
        start = n * 1_000_000
        argv = [sys.executable, "-m", "tests.reasoning.writers", str(folder), str(start)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as child:
            assert child.stdout is not None
            for _ in range(50 + n * 37 % 400):
                acknowledged.append(int(child.stdout.readline()))
            child.send_signal(signal.SIGKILL)
            acknowledged += [int(line) for line in child.stdout.read().split(b"\n")[:-1]]
    good, bad = read_all(folder)
    assert set(acknowledged) <= set(good), "an acknowledged record was lost"
    assert len(set(good)) == len(good), "a record was duplicated"
    assert set(bad) <= {"torn: no newline at the end"}, "a record was corrupted"
    return len(acknowledged), len(good) - len(acknowledged), len(bad)


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    acknowledged, extra, torn = kill_writers(tmp_path, 6)
    assert acknowledged > 300 and 0 <= extra <= 6 and 0 <= torn <= 6


@pytest.mark.torture
@pytest.mark.timeout(1800)
def test_kill_9_a_thousand_writers(tmp_path: Path) -> None:
    acknowledged, extra, torn = kill_writers(tmp_path, 1000)
    print(f"{acknowledged} acknowledged, 0 lost, 0 duplicated, 0 corrupt, {extra} extra, {torn} torn tails")
