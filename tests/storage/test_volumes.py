"""Volumes that several hosts share: whose locks hold, whose do not, and that no acknowledged record is lost."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest

from reasoning.ids import uuid7
from reasoning.io import hosts, spool
from reasoning.io.spool import SegmentWriter
from storage import locks, volumes
from storage.backup import back_up, restore_backup, verify_backup
from storage.erasure.erase import erase_subject
from storage.errors import DataFolderBusy, DataFolderError, LedgerError, LockLost, StorageError
from storage.layout import Layout
from storage.ledger.ledger import open_ledger
from storage.locks import check_held, data_lock
from storage.log import expire, land, reland, rewrite
from storage.log.compact import compact_decisions
from storage.log.expire import expire_decisions
from storage.log.land import land_decisions
from storage.log.reland import reland_quarantine
from storage.volumes import Mount, classify, find_mount, quiet_for
from tests.postgres import fresh_database, run_postgres
from tests.storage.logs import NOON, landed_ids, make_days, make_decision, to_line, write_lines, write_segment

ROOT = Path(__file__).parents[2]


def start(role: str, data: Path, host: str, seconds: float, **env: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "tests.storage.two_hosts", role, str(data), host, str(seconds)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **env})


def share(folders: dict[str, Path], seconds: float, **env: str) -> tuple[set[UUID], int, list[str]]:
    """An agent, landing and compaction on each host. What was acknowledged, how many dropped, what the verbs said."""
    agents = [start("agent", data, host, seconds, **env) for host, data in folders.items()]
    verbs = [start(verb, data, host, seconds, **env) for host, data in folders.items() for verb in ("land", "compact")]
    acknowledged, dropped = set(), 0
    for process in agents:
        lines = process.communicate(timeout=60 + seconds)[0].splitlines()
        dropped += int(lines[-1].split()[1])
        acknowledged |= {UUID(line) for line in lines[:-1]}
    said = []
    for process in verbs:
        said += process.communicate(timeout=60 + seconds)[0].splitlines()
        assert process.returncode == 0
    assert all(process.returncode == 0 for process in agents)
    return acknowledged, dropped, said


class TestTwoHosts:
    def test_hosts_that_do_not_see_each_others_locks_lose_nothing(self, tmp_path: Path) -> None:
        """Before: 4,596 of 17,200 records missing, 1,200 doubled, one corrupt file (measured in the same way)."""
        data = tmp_path / "data"
        Layout(data).create()
        # GRACE is short, as the dead are not to be waited for; HEARTBEAT is a tenth of it.
        env = {"FLOCKS": str(tmp_path / "flocks"), "KIND": "unknown", "GRACE": "4", "HEARTBEAT": "0.3"}
        env["REASONING_VOLUME"] = "shared-locks"
        acknowledged, dropped, said = share({"a": data, "b": data}, 6.0, **env)
        assert dropped == 0 and len(acknowledged) > 500
        assert any(not line.startswith("done 0 ") for line in said), said
        land_decisions(data)
        landed = landed_ids(data)
        assert len(landed) == len(set(landed)) and set(landed) == acknowledged

    @pytest.mark.torture
    @pytest.mark.skipif(
        not (shutil.which("bindfs") and os.access("/dev/fuse", os.W_OK)), reason="needs FUSE and bindfs"
    )
    @pytest.mark.parametrize("setting", ["auto", "single-host", "shared-locks"])
    def test_two_fuse_mounts_of_one_folder(self, tmp_path: Path, setting: str) -> None:
        """What two hosts see of a bucket mount. Before: 5,331 of 5,730 acknowledged records gone, 130 doubled."""
        data = tmp_path / "data"
        Layout(data).create()
        with bound(data, tmp_path / "a") as first, bound(data, tmp_path / "b") as second:
            env = {"GRACE": "20", "HEARTBEAT": "1", "REASONING_VOLUME": setting}
            acknowledged, dropped, said = share({"": first, " ": second}, 15.0, **env)
        if setting == "auto":
            assert [line.split()[1] for line in said[::2]] == ["0", "0"], said  # and nothing there was to compact
        land_decisions(data)
        landed = landed_ids(data)
        assert dropped == 0 and len(acknowledged) > 1000
        assert len(landed) == len(set(landed)) and set(landed) == acknowledged
        print(f"{setting}: {len(acknowledged)} acknowledged, 0 lost, 0 doubled; {said}")


class TestRandomInterleavings:
    @pytest.mark.torture
    @pytest.mark.timeout(200)
    @pytest.mark.parametrize("seed", range(4))
    def test_what_was_acknowledged_is_there_exactly_once(self, tmp_path: Path, seed: int) -> None:
        """Agents, landing, compaction and backup on two hosts that see no lock of each other; stopped and killed.

        Every other seed: the hosts have one identity, as copied machines have.
        """
        data, choose = tmp_path / "data", random.Random(seed)
        Layout(data).create()
        env = {"FLOCKS": str(tmp_path / "flocks"), "KIND": "unknown", "GRACE": "2.5", "HEARTBEAT": "0.25"}
        env |= {"REASONING_VOLUME": "shared-locks", "TARGET": str(tmp_path / "target")}
        env |= {"IDENTITY": "one image"} if seed % 2 else {}
        outputs: list[Path] = []

        def begin(role: str, host: str) -> subprocess.Popen[str]:
            outputs.append(tmp_path / f"{len(outputs)}-{role}")
            argv = [sys.executable, "-m", "tests.storage.two_hosts", role, str(data), host, "3600"]
            with outputs[-1].open("w") as file, outputs[-1].with_suffix(".err").open("w") as errors:
                return subprocess.Popen(
                    argv, stdout=file, stderr=errors, cwd=ROOT, env={**os.environ, **env}, text=True
                )

        who = [(role, host) for host in "ab" for role in ("agent", "land", "compact")] + [("backup", "a")]
        running = [begin(role, host) for role, host in who]
        stopped: dict[int, float] = {}
        while not list((tmp_path / "target").glob("[0-9]*")) or len(list((data / "spool").iterdir())) < 2:
            time.sleep(0.1)
        end = time.monotonic() + 25
        while time.monotonic() < end:
            time.sleep(choose.uniform(0.1, 0.8))
            for number in [number for number, until in stopped.items() if until < time.monotonic()]:
                running[number].send_signal(signal.SIGCONT)
                del stopped[number]
            number = choose.randrange(len(running))
            if number not in stopped and choose.random() < 0.8:
                running[number].send_signal(signal.SIGSTOP)
                stopped[number] = time.monotonic() + choose.uniform(0.5, 6)
            elif number not in stopped:
                running[number].kill()
                running[number].wait()
                running[number] = begin(*who[number])
        for process in running:
            process.send_signal(signal.SIGCONT)
        time.sleep(1)
        for process in running:
            process.kill()
            process.wait()
        errors = [text for path in outputs if (text := path.with_suffix(".err").read_text())]
        assert errors == []
        acknowledged: set[UUID] = set()
        for path in outputs:
            whole = path.read_text().rpartition("\n")[0].splitlines()
            acknowledged |= {UUID(line) for line in whole if path.name.endswith("agent")}
        for path in (data / "spool").glob("*.open"):
            path.rename(path.with_suffix(".seal"))
        (data / ".lock").unlink(missing_ok=True)
        land_decisions(data)
        landed = landed_ids(data)
        assert len(acknowledged) > 50
        assert len(landed) == len(set(landed)) and acknowledged <= set(landed)
        assert verify_backup(tmp_path / "target").problems == []
        restore_backup(tmp_path / "target", tmp_path / "new")
        land_decisions(tmp_path / "new")
        restored = landed_ids(tmp_path / "new")
        assert len(restored) == len(set(restored)) and set(restored) <= set(landed)


@contextmanager
def bound(folder: Path, mount: Path) -> Iterator[Path]:
    mount.mkdir()
    subprocess.run(["bindfs", str(folder), str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["fusermount", "-u", "-z", str(mount)], check=True)


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The steady clock as a list of one number, with the real grace."""
    now = [1000.0]
    monkeypatch.setattr(hosts, "steady", lambda: now[0])
    return now


def of_host(tag: str) -> str:
    return f"{uuid7(NOON)}-{tag}-1"


OTHER_HOST = "f" * 16


def after_call(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, then: Callable[..., None]) -> None:
    real = getattr(module, name)

    def call(*values: Any, **options: Any) -> Any:
        result = real(*values, **options)
        then()
        return result

    monkeypatch.setattr(module, name, call)


def on_unknown_volume(monkeypatch: pytest.MonkeyPatch, setting: str = "shared-locks") -> None:
    """Let the data folder be on a file system of which nobody knows whether its locks hold between hosts."""
    monkeypatch.setattr(volumes, "_find_mount", lambda *_: Mount("/mnt/bucket", "fuse.s3fs", frozenset()))
    monkeypatch.setattr(locks, "SETTLE", 0.0)
    monkeypatch.setenv("REASONING_VOLUME", setting)


class TestTakingOver:
    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        Layout(tmp_path / "data").create()
        return tmp_path / "data"

    def test_the_segment_of_another_host_is_taken_when_it_was_quiet_for_long(
        self, data: Path, short_grace: list[float]
    ) -> None:
        decisions = make_days(1, 3)
        path = write_lines(data, [to_line(decisions[0])], of_host(OTHER_HOST), ".open")
        for _ in range(3):  # it gives signs of life
            assert (land_decisions(data).taken_over, land_decisions(data).waiting) == (0, 1)
            short_grace[0] += hosts.GRACE - 1
            with path.open("ab") as file:
                file.write(to_line(decisions[1]))
            os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
        assert land_decisions(data).waiting == 1
        short_grace[0] += hosts.GRACE - 1
        assert land_decisions(data).waiting == 1
        short_grace[0] += 2
        report = land_decisions(data)
        assert (report.taken_over, report.waiting, report.decisions) == (1, 0, 2)

    @pytest.mark.parametrize("seconds", [-4e8, 4e8])
    def test_clocks_that_jump_take_nothing(
        self, data: Path, short_grace: list[float], seconds: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither the clock of landing nor the modification times, by whatever clock they are, say who is dead."""
        path = write_lines(data, [to_line(make_decision())], of_host(OTHER_HOST), ".open")
        assert land_decisions(data).waiting == 1
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + seconds)
        assert land_decisions(data, now=NOON + timedelta(seconds=seconds)).waiting == 1
        os.utime(path, (real() + seconds, real() + seconds))
        assert land_decisions(data).waiting == 1
        short_grace[0] += hosts.GRACE - 1
        assert land_decisions(data).waiting == 1
        short_grace[0] = 5.0  # another boot, whose clock began anew: what was seen before does not count
        assert land_decisions(data).waiting == 1
        short_grace[0] += hosts.GRACE + 1
        assert land_decisions(data).taken_over == 1

    @pytest.mark.parametrize("kind", ["local", "shared", "unknown"])
    def test_what_this_machine_left_before_it_was_rebooted(
        self, data: Path, short_grace: list[float], kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On a local volume at once. On others it may be another host that has the machine's id (a copied image)."""
        monkeypatch.setattr("storage.log.land.volume_kind", lambda layout: kind)
        tag = hosts.host_tag(data)[:8] + "0" * 8
        write_lines(data, [to_line(make_decision())], of_host(tag), ".open")
        assert land_decisions(data).taken_over == (1 if kind == "local" else 0)
        short_grace[0] += hosts.GRACE + 1
        assert land_decisions(data).taken_over == (0 if kind == "local" else 1)

    def test_a_segment_of_an_older_version_has_no_host(
        self, data: Path, short_grace: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_lines(data, [to_line(make_decision())], suffix=".open")
        monkeypatch.setattr("storage.log.land.volume_kind", lambda layout: "unknown")
        assert land_decisions(data).waiting == 1
        monkeypatch.undo()
        assert land_decisions(data).taken_over == 1

    def test_where_nobody_knows_the_locks_our_own_tag_proves_nothing(
        self, data: Path, short_grace: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Copied machines have equal tags and process ids, and each a clock and locks of its own."""
        on_unknown_volume(monkeypatch)
        write_lines(data, [to_line(make_decision())], of_host(hosts.host_tag(data)), ".open")
        assert land_decisions(data).waiting == 1
        short_grace[0] += hosts.GRACE + 1
        assert land_decisions(data).taken_over == 1

    def test_processes_of_one_host_go_by_flock(self, data: Path) -> None:
        """Containers of one host as well: whatever their names, process ids and machine ids."""
        code = (
            "import os, sys, time; from pathlib import Path; from reasoning.io import hosts\n"
            "hosts._machine = lambda: '0' * 8\n"
            "from tests.storage.logs import make_decision; from reasoning.io.spool import SegmentWriter\n"
            "writer = SegmentWriter(Path(sys.argv[1])); assert writer.write(make_decision())\n"
            "print('ready', flush=True); time.sleep(60)"
        )
        argv = [sys.executable, "-c", code, str(data / "spool")]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            assert land_decisions(data).segments == 0
            child.kill()
        report = land_decisions(data)
        assert report.waiting == 1  # another machine's: only its own flock is trusted at once
        (path,) = (data / "spool").glob("*.open")
        path.rename(path.with_name(f"{of_host(hosts.host_tag(data))}.open"))
        assert land_decisions(data).taken_over == 1

    def test_a_flock_that_is_granted_to_all_is_seen_through(self, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """On this very host: a sandbox or a driver whose flock does nothing."""
        code = (
            "import fcntl, os, sys, time; from pathlib import Path; fcntl.flock = lambda fd, how: None\n"
            "from tests.storage.logs import make_decision; from reasoning.io.spool import SegmentWriter\n"
            "from storage.layout import Layout; from storage.locks import check_held, data_lock\n"
            "writer = SegmentWriter(Path(sys.argv[1], 'spool')); assert writer.write(make_decision())\n"
            "with data_lock(Layout(sys.argv[1]), 'compaction'): print('ready', flush=True); sys.stdin.readline()\n"
            "print('released', flush=True); time.sleep(60)"
        )
        argv = [sys.executable, "-c", code, str(data)]
        with subprocess.Popen(argv, stdin=-1, stdout=-1, text=True, cwd=ROOT) as child:
            assert child.stdin is not None and child.stdout is not None and child.stdout.readline() == "ready\n"
            monkeypatch.setattr(fcntl, "flock", lambda fd, how: None)
            with pytest.raises(DataFolderBusy, match=rf"compaction \(process {child.pid}\)"):
                land_decisions(data, lock_timeout=0.1)
            child.stdin.write("\n")
            child.stdin.flush()
            assert child.stdout.readline() == "released\n"
            assert land_decisions(data).segments == 0
            child.kill()
        assert land_decisions(data).taken_over == 1

    def test_a_full_disk_takes_nothing_over(
        self, data: Path, short_grace: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "full")

        write_lines(data, [to_line(make_decision())], of_host(OTHER_HOST), ".open")
        monkeypatch.setattr(volumes, "write_atomic", full)
        for _ in range(3):
            assert land_decisions(data).waiting == 1
            short_grace[0] += hosts.GRACE + 1


class TestSuspendedWriter:
    def test_one_that_slept_goes_on_in_a_new_segment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [0.0]
        monkeypatch.setattr(spool, "steady", lambda: now[0])
        writer = SegmentWriter(tmp_path / "spool", sync_interval=3600)
        assert writer.write(make_decision())
        (before,) = (tmp_path / "spool").glob("*.open")
        now[0] += hosts.FENCE + 1
        before.rename(before.with_suffix(".seal"))  # another host took it for dead
        assert writer.write(make_decision())
        writer.close()
        assert len(list((tmp_path / "spool").glob("*.seal"))) == 2
        assert writer.dropped == {} and writer.written == 2

    def test_one_that_slept_between_its_look_and_its_write_writes_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """SIGSTOP inside `write`, on a mount that hangs: meanwhile another host landed the segment and removed it."""
        data, now = tmp_path / "data", [0.0]
        monkeypatch.setattr(spool, "steady", lambda: now[0])
        writer = SegmentWriter(data / "spool", sync_interval=3600)
        first, second = make_decision(), make_decision()
        assert writer.write(first)
        write = os.write

        def suspended(fd: int, content: bytes) -> int:
            if now[0] == 0:
                now[0] = hosts.GRACE + 1
                (segment,) = (data / "spool").glob("*.open")
                segment.rename(segment.with_suffix(".seal"))
                assert land_decisions(data).decisions == 1
            return write(fd, content)

        monkeypatch.setattr(os, "write", suspended)
        assert writer.write(second)
        writer.close()
        land_decisions(data)
        assert sorted(landed_ids(data)) == sorted([first.decision_id, second.decision_id])
        assert (writer.written, dict(writer.dropped)) == (2, {})

    def test_one_that_slept_between_its_look_and_its_sign_of_life_goes_on_in_a_new_segment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data, now = tmp_path / "data", [0.0]
        monkeypatch.setattr(spool, "steady", lambda: now[0])
        writer = SegmentWriter(data / "spool", sync_interval=3600)
        assert writer.write(make_decision())
        utime = os.utime

        def suspended(*values: Any) -> None:
            now[0] += hosts.GRACE + 1
            (segment,) = (data / "spool").glob("*.open")
            segment.rename(segment.with_suffix(".seal"))
            assert land_decisions(data).decisions == 1
            utime(*values)

        monkeypatch.setattr(os, "utime", suspended)
        writer._sync()
        monkeypatch.undo()
        monkeypatch.setattr(spool, "steady", lambda: now[0])
        assert writer.write(make_decision())
        writer.close()
        land_decisions(data)
        assert len(landed_ids(data)) == 2

    def test_a_stale_handle_loses_nothing_that_is_written_after_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """NFS, when the server no longer knows the file. Before: all was dropped until the thread looked."""
        writer = SegmentWriter(tmp_path / "spool", sync_interval=3600)
        assert writer.write(make_decision())
        stale, write = writer._fd, os.write

        def stale_write(fd: int, content: bytes) -> int:
            if fd == stale:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return write(fd, content)

        monkeypatch.setattr(os, "write", stale_write)
        assert writer.write(make_decision()) and writer.write(make_decision())
        writer.close()
        assert land_decisions(tmp_path).decisions == 3 == writer.written

    def test_an_idle_writer_gives_signs_of_life(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(spool, "HEARTBEAT", 0.05)
        writer = SegmentWriter(tmp_path / "spool", sync_interval=0.02)
        assert writer.write(make_decision())
        (path,) = (tmp_path / "spool").glob("*.open")
        for _ in range(3):
            seen, end = path.stat().st_mtime_ns, time.monotonic() + 10
            while path.stat().st_mtime_ns == seen:
                assert time.monotonic() < end
                time.sleep(0.01)
        writer.close()

    def test_a_file_system_without_locks_is_written_to_under_a_tag_of_nobodys(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = tmp_path / "data"
        Layout(data).create()

        def flock(fd: object, how: int) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "flock", flock)
            writer = SegmentWriter(data / "spool")
            assert writer.write(make_decision())
            (path,) = (data / "spool").glob("*.open")
            assert hosts.segment_tag(path.stem) not in (None, hosts.host_tag(data))
            with pytest.raises(DataFolderError, match="without locks"):
                land_decisions(data)
        assert land_decisions(data).waiting == 1
        writer.close()
        assert land_decisions(data).decisions == 1


class TestLock:
    @pytest.fixture
    def layout(self, tmp_path: Path) -> Layout:
        return Layout(tmp_path / "data").create()

    def claim(self, layout: Layout, **changes: Any) -> None:
        claim = {"verb": "compaction", "pid": 7, "host": "elsewhere", "tag": OTHER_HOST, "nonce": "n", "beat": 0}
        layout.lock.write_bytes(orjson.dumps(claim | changes))

    def test_another_hosts_claim_is_waited_for_and_named(self, layout: Layout, short_grace: list[float]) -> None:
        for beat in range(3):
            self.claim(layout, beat=beat)
            with (
                pytest.raises(
                    DataFolderBusy, match=r"busy with compaction \(process 7\) on host elsewhere.*300 s after"
                ),
                data_lock(layout, "landing", timeout=0),
            ):
                pass
            short_grace[0] += hosts.GRACE - 1
        with pytest.raises(DataFolderBusy), data_lock(layout, "landing", timeout=0):
            pass
        short_grace[0] += 2
        with data_lock(layout, "landing", timeout=0):
            pass
        assert layout.lock.read_bytes() == b""  # withdrawn

    def test_a_claim_of_this_host_ended_with_its_flock(self, layout: Layout) -> None:
        for tag in (hosts.host_tag(layout.data), hosts.host_tag(layout.data)[:8] + "0" * 8):
            self.claim(layout, tag=tag)
            with data_lock(layout, "landing", timeout=0):
                pass

    def test_the_holder_gives_signs_of_life(self, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hosts, "HEARTBEAT", 0.02)
        with data_lock(layout, "landing"):
            end = time.monotonic() + 10
            while orjson.loads(layout.lock.read_bytes())["beat"] < 3:
                assert time.monotonic() < end
                time.sleep(0.01)

    @pytest.mark.parametrize("verb", ["land", "compact", "expire", "erase", "reland"])
    def test_a_verb_that_was_suspended_changes_nothing_once_another_host_is_at_work(
        self, layout: Layout, short_grace: list[float], verb: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Before: it went on, with the files of the other host's landing as its own."""
        monkeypatch.setenv("REASONING_MAX_DAYS_BEHIND", "366")
        for _ in range(2):
            write_segment(
                layout.data, [*make_days(2, 3, subject_ids=["ann"]), make_decision(NOON - timedelta(days=400))]
            )
            land_decisions(layout.data, now=NOON)
        if verb == "land":
            write_segment(layout.data, make_days(1, 3))
        monkeypatch.setenv("REASONING_MAX_DAYS_BEHIND", "1000")  # so that there is something to reland
        on_unknown_volume(monkeypatch)
        verbs: dict[str, Callable[[], object]] = {
            "land": lambda: land_decisions(layout.data, now=NOON),
            "compact": lambda: compact_decisions(layout.data),
            "expire": lambda: expire_decisions(layout.data, retention_days=1, now=NOON + timedelta(days=30)),
            "erase": lambda: erase_subject(layout.data, "ann"),
            "reland": lambda: reland_quarantine(layout.data, now=NOON),
        }

        def suspended(*_: Any) -> None:
            short_grace[0] += hosts.GRACE + 1
            if verb == "land":  # either sign is enough
                self.claim(layout)

        rejecting = [(module, "reject_off_clock") for module in (land, reland)]
        for module, name in (*rejecting, (rewrite, "live_files"), (expire, "live_files")):
            after_call(monkeypatch, module, name, suspended)
        before = {path: path.read_bytes() for path in layout.data.rglob("*") if path.suffix in (".parquet", ".jsonl")}
        with pytest.raises(LockLost, match="run it again"):
            verbs[verb]()
        after = {path: path.read_bytes() for path in before if path.exists()}
        assert after == before
        monkeypatch.undo()
        monkeypatch.setenv("REASONING_MAX_DAYS_BEHIND", "1000")
        layout.lock.unlink(missing_ok=True)
        verbs[verb]()

    def test_whose_lock_file_was_deleted_stops_before_its_next_step(self, layout: Layout) -> None:
        """By somebody who took it for a stale one."""
        with data_lock(layout, "landing"):
            layout.lock.unlink()
            with pytest.raises(LockLost, match="its file was deleted"):
                check_held(Layout(layout.data))
        with data_lock(layout, "landing"):
            layout.lock.unlink()
            code = (
                "import sys; from storage.layout import Layout; from storage.locks import data_lock\n"
                "with data_lock(Layout(sys.argv[1]), 'compaction'): print('held', flush=True); sys.stdin.read()"
            )
            argv = [sys.executable, "-c", code, str(layout.data)]
            with subprocess.Popen(argv, stdin=-1, stdout=-1, text=True, cwd=ROOT) as child:
                assert child.stdout is not None and child.stdout.readline() == "held\n"
                with pytest.raises(LockLost, match=r"compaction \(process \d+\) has it"):
                    check_held(layout)
        with data_lock(layout, "landing", timeout=0):
            check_held(layout)

    def test_on_a_local_disk_a_long_sleep_ends_nothing(self, layout: Layout, short_grace: list[float]) -> None:
        with data_lock(layout, "landing"):
            short_grace[0] += 10 * hosts.GRACE
            check_held(layout)

    @pytest.mark.parametrize("alive", [True, False])
    def test_a_claim_under_our_own_tag_is_not_held_to_be_ours_where_nobody_knows_the_locks(
        self, layout: Layout, short_grace: list[float], alive: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Copied machines have one identity, and a `flock` that the other does not see."""
        on_unknown_volume(monkeypatch)
        child = subprocess.Popen(["sleep", "60"])
        try:
            space = "pid:[elsewhere]" if alive else locks._process_space()
            self.claim(layout, tag=hosts.host_tag(layout.data), pid=child.pid, space=space)
            with pytest.raises(DataFolderBusy), data_lock(layout, "landing", timeout=0):
                pass
        finally:
            child.kill()
            child.wait()
        if alive:  # or nobody can tell
            with pytest.raises(DataFolderBusy), data_lock(layout, "landing", timeout=0):
                pass
            short_grace[0] += hosts.GRACE
        with data_lock(layout, "landing", timeout=0):
            pass

    def test_two_hosts_that_claim_at_one_moment(self, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whose claim is the later one has the lock; the other sees it once it has settled."""
        monkeypatch.setattr(locks, "check_volume", lambda layout, verb: "unknown")
        monkeypatch.setattr(locks, "SETTLE", 0.05)
        write = locks._write

        def overwritten(fd: int, claim: dict[str, Any]) -> None:
            write(fd, claim)
            self.claim(layout)

        monkeypatch.setattr(locks, "_write", overwritten)
        with pytest.raises(DataFolderBusy, match="on host elsewhere"), data_lock(layout, "landing", timeout=0.1):
            raise AssertionError("two hosts have the lock")

    def test_single_host_is_not_believed_while_another_one_writes(
        self, layout: Layout, short_grace: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        on_unknown_volume(monkeypatch, "single-host")
        write_lines(layout.data, [to_line(make_decision())], of_host(OTHER_HOST), ".open")
        with pytest.raises(DataFolderBusy, match="another host, or another mount"):
            land_decisions(layout.data)
        short_grace[0] += hosts.GRACE + 1
        land_decisions(layout.data)

    def test_a_ledger_on_postgresql_keeps_two_hosts_apart(
        self, layout: Layout, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Though neither the flock nor the claim does."""
        with run_postgres() as server, fresh_database(server) as url:
            monkeypatch.setenv("REASONING_LEDGER_URL", url)
            monkeypatch.setattr(fcntl, "flock", lambda fd, how: None)
            monkeypatch.setattr(locks, "_read_path", lambda path: None)
            with data_lock(layout, "landing"):
                with (
                    pytest.raises(DataFolderBusy, match="the ledger's lock of this folder"),
                    data_lock(layout, "compaction", timeout=0),
                ):
                    raise AssertionError("two have the lock")
                other = Layout(layout.data.parent / "other").create()
                with data_lock(other, "landing", timeout=0):  # another folder of the same ledger
                    pass
            with data_lock(layout, "compaction", timeout=0):
                pass

    def test_a_ledger_that_is_down_refuses(self, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("REASONING_LEDGER_URL", "postgresql://u:hunter2@127.0.0.1:1/x")
        with pytest.raises(LedgerError) as caught, data_lock(layout, "landing"):
            raise AssertionError("locked without the ledger")
        assert "hunter2" not in str(caught.value)


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:50 / /mnt/nfs rw,relatime shared:2 - nfs4 server:/x rw,vers=4.2,local_lock=none
31 22 0:51 / /mnt/own rw shared:3 - nfs server:/x rw,vers=3,nolock
32 22 0:52 / /mnt/own2 rw - nfs server:/x rw,vers=3,local_lock=flock
33 22 0:53 / /mnt/with\\040blank rw - fuse.s3fs s3fs rw
34 22 0:54 / /mnt/over rw - ext4 /dev/sdb rw
35 34 0:55 / /mnt/over rw - 9p host rw,trans=virtio
36 22 0:56 / /mnt/lustre rw,flock - lustre x rw
37 22 0:57 / /mnt/lustre2 rw,localflock - lustre x rw
38 22 0:58 / /mnt/ntfs rw - fuseblk /dev/sdc rw
39 22 0:59 / /mnt/share rw - cifs //x rw
40 22 0:60 / /mnt/vm rw - virtiofs x rw
41 22 0:61 / /mnt/gpfs rw - gpfs x rw
42 22 0:62 / /mnt/ceph rw - ceph x rw
"""


class TestVolumes:
    @pytest.mark.parametrize(
        ("folder", "kind"),
        [
            ("/home/x", "local"),
            ("/mnt/nfsx", "local"),
            ("/mnt/nfs/deep/x", "shared"),
            ("/mnt/own", "unknown"),
            ("/mnt/own2", "unknown"),
            ("/mnt/with blank/x", "unknown"),
            ("/mnt/over/x", "unknown"),
            ("/mnt/lustre", "shared"),
            ("/mnt/lustre2", "unknown"),
            ("/mnt/ntfs", "local"),
            ("/mnt/share", "unknown"),
            ("/mnt/vm", "unknown"),
            ("/mnt/gpfs", "unknown"),
            ("/mnt/ceph", "shared"),
        ],
    )
    def test_whose_locks_hold_between_hosts(self, folder: str, kind: str) -> None:
        assert classify(find_mount(Path(folder), MOUNTS)) == kind

    def test_this_disk_is_local_with_proc_and_without(self, tmp_path: Path) -> None:
        assert classify(find_mount(tmp_path)) == classify(volumes._mount_without_proc(tmp_path)) == "local"

    @pytest.mark.parametrize("verb", ["land", "compact", "expire", "erase", "reland", "backup", "ledger"])
    def test_every_verb_refuses_a_volume_of_unknown_locks(
        self, tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = tmp_path / "data"
        for _ in range(2):
            write_segment(data, make_days(1, 1))
            land_decisions(data)
        write_segment(data, make_days(1, 1))
        verbs: dict[str, Callable[[], object]] = {
            "land": lambda: land_decisions(data),
            "compact": lambda: compact_decisions(data),
            "expire": lambda: expire_decisions(data, retention_days=1),
            "erase": lambda: erase_subject(data, "ann"),
            "reland": lambda: reland_quarantine(data),
            "backup": lambda: back_up(data, tmp_path / "target"),
            "ledger": lambda: open_ledger(data).close(),
        }
        monkeypatch.setattr(volumes, "_find_mount", lambda *_: Mount("/mnt/bucket", "fuse.s3fs", frozenset()))
        monkeypatch.setattr(locks, "SETTLE", 0.0)
        with pytest.raises(StorageError, match=r"fuse\.s3fs .*mounted at /mnt/bucket.*REASONING_VOLUME=single-host"):
            verbs[verb]()
        assert len(list((data / "spool").iterdir())) == 1
        monkeypatch.setenv("REASONING_VOLUME", "single-host")
        verbs[verb]()

    def test_agents_are_never_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(volumes, "_find_mount", lambda *_: Mount("/mnt/bucket", "fuse.s3fs", frozenset()))
        write_segment(tmp_path, make_days(1, 1))
        assert len(list((tmp_path / "spool").glob("*.seal"))) == 1

    def test_what_was_seen_is_of_its_group_and_of_this_host(self, tmp_path: Path, short_grace: list[float]) -> None:
        layout = Layout(tmp_path).create()
        assert quiet_for(layout, "a", {"x": "1"}) == {"x": 0}
        short_grace[0] += 10
        assert quiet_for(layout, "b", {"x": "1"}) == {"x": 0}
        assert quiet_for(layout, "a", {"x": "1", "y": "1"}) == {"x": 10, "y": 0}
        assert quiet_for(layout, "a", {"x": "2"}) == {"x": 0}
        (path,) = tmp_path.glob(".seen-*")
        path.write_bytes(b"garbage")
        assert quiet_for(layout, "a", {"x": "2"}) == {"x": 0}
