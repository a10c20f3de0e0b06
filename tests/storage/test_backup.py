"""Backups that are taken while agents write and verbs run, and what comes back of them."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from reasoning.io.spool import SegmentWriter
from storage import backup
from storage.backup import MANIFEST, back_up, restore_backup, verify_backup
from storage.erasure.erase import erase_subject
from storage.errors import BackupError
from storage.layout import Layout
from storage.ledger.ledger import open_ledger
from storage.log.compact import compact_decisions
from storage.log.land import land_decisions
from tests.postgres import fresh_database, run_postgres
from tests.storage.logs import NOON, landed_ids, make_days, make_decision, make_feedback, write_dataset, write_segment

ROOT = Path(__file__).parents[2]


def fill(data: Path) -> None:
    """A log with landed, quarantined, sealed and open records, a dataset and a ledger."""
    decisions = make_days(2, 5)
    write_segment(data, [*decisions, make_feedback(decision_id=decisions[0].decision_id)])
    (data / "spool" / "bad.seal").write_bytes(b"garbage\n")
    land_decisions(data)
    write_segment(data, make_days(1, 3))
    write_dataset(data, [("train", decisions[0], "bob")])
    (data / "routes.json").write_text("{}")
    (data / "gateway.token").write_text("hunter2")
    (data / "gateway.secret").write_bytes(bytes(32))  # with it labels of decisions before the backup are still taken
    (data / "installation.ids").write_text("abc234\n")
    with open_ledger(data) as ledger:
        ledger.set_budget("day", "7")


def contents(data: Path) -> dict[str, bytes]:
    return {
        path.relative_to(data).as_posix(): path.read_bytes()
        for path in sorted(data.rglob("*"))
        if path.is_file()
        and path.suffix not in (".sqlite", ".lock")
        and not path.name.startswith((".", "ledger.sqlite-"))
    }


def test_what_is_restored_is_what_was_backed_up(tmp_path: Path) -> None:
    data, new = tmp_path / "data", tmp_path / "new"
    fill(data)
    before = contents(data)
    report = back_up(data, tmp_path / "target")
    assert contents(data) == before
    assert report.ledger == "included" and report.left_out == ["gateway.token"]
    assert verify_backup(tmp_path / "target").problems == []
    restore_backup(tmp_path / "target", new)
    assert contents(new) == {name: content for name, content in before.items() if name != "gateway.token"}
    with open_ledger(new) as ledger, open_ledger(data) as old:
        assert ledger.installation_id == old.installation_id
    assert land_decisions(new).decisions == 3
    assert len(landed_ids(new)) == 13
    assert "hunter2" not in "".join(path.read_text(errors="replace") for path in new.rglob("*") if path.is_file())


def test_a_backup_while_everything_runs_has_every_acknowledged_record_once(tmp_path: Path) -> None:
    data = tmp_path / "data"
    Layout(data).create()
    done = threading.Event()
    acknowledged: list[UUID] = []
    failures: list[Exception] = []

    def agent() -> None:
        writer = SegmentWriter(data / "spool", max_bytes=20_000, max_age=0.2, sync_interval=0.05)
        while not done.is_set():
            decision = make_decision(NOON + timedelta(seconds=len(acknowledged) % 1000))
            if writer.write(decision):
                acknowledged.append(decision.decision_id)
            time.sleep(0.002)
        writer.close()

    def repeat(verb: Callable[[Path], object]) -> None:
        while not done.is_set():
            try:
                verb(data)
            except Exception as error:
                failures.append(error)
                return
            time.sleep(0.02)

    def target_of(function: Callable[..., None], *values: Any) -> threading.Thread:
        thread = threading.Thread(target=function, args=values)
        thread.start()
        return thread

    threads = [
        target_of(agent),
        target_of(agent),
        target_of(repeat, land_decisions),
        target_of(repeat, compact_decisions),
    ]
    try:
        wanted = []
        for _ in range(4):
            time.sleep(0.3)
            wanted.append(set(acknowledged))
            back_up(data, tmp_path / "target")
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert verify_backup(tmp_path / "target").problems == []
    backups = backup._list_backups(tmp_path / "target")
    for number, (each, ids) in enumerate(zip(backups, wanted, strict=True)):
        new = tmp_path / f"new-{number}"
        restore_backup(each, new)
        assert land_decisions(new).quarantined == {}
        landed = landed_ids(new)
        assert len(landed) == len(set(landed)) and ids <= set(landed) <= set(acknowledged)
    assert len(wanted[-1]) > 200


def test_an_unchanged_file_is_linked_and_not_copied_again(tmp_path: Path) -> None:
    data, target = tmp_path / "data", tmp_path / "target"
    fill(data)
    first = back_up(data, target, now=NOON)
    write_segment(data, make_days(1, 1, NOON + timedelta(days=1)))
    land_decisions(data)
    second = back_up(data, target, now=NOON)
    assert first.reused == 0 and second.reused >= 4
    assert Path(second.path).name == f"{Path(first.path).name}.0001"
    shared = [path for path in Path(second.path).rglob("*.parquet") if path.stat().st_nlink == 2]
    assert len(shared) >= 4
    third = back_up(data, target, keep=1, now=NOON + timedelta(days=1))
    assert third.removed == [Path(first.path).name, Path(second.path).name]
    assert verify_backup(target).backups == [Path(third.path).name]
    assert verify_backup(target).problems == []


@pytest.mark.parametrize("at", ["linking", "copying", "manifest"])
def test_a_killed_backup_is_none_and_the_next_one_tidies_up(tmp_path: Path, at: str) -> None:
    data, target = tmp_path / "data", tmp_path / "target"
    fill(data)
    function = {"linking": "_link_all", "copying": "_whole_lines", "manifest": "write_atomic"}[at]
    code = (
        "import os, signal, sys; from storage import backup\n"
        f"backup.{function} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "backup.back_up(sys.argv[1], sys.argv[2])"
    )
    child = subprocess.run([sys.executable, "-c", code, str(data), str(target)], cwd=ROOT)
    assert child.returncode == -signal.SIGKILL
    with pytest.raises(BackupError, match="no finished backup"):
        verify_backup(target)
    with pytest.raises(BackupError, match="no finished backup"):
        restore_backup(target, tmp_path / "new")
    land_decisions(data)  # the lock went with the process
    back_up(data, target)
    assert verify_backup(target).problems == []
    assert [path.name for path in target.iterdir()] == verify_backup(target).backups
    assert not list(data.glob(".backup-*"))


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "add", "manifest", "shorten manifest"])
def test_every_damage_is_found_and_is_not_restored(tmp_path: Path, damage: str) -> None:
    data, target = tmp_path / "data", tmp_path / "target"
    fill(data)
    made = Path(back_up(data, target).path)
    path = next(iter(sorted(made.rglob("*.parquet"))))
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-1])
    elif damage == "delete":
        path.unlink()
    elif damage == "add":
        (made / "spool" / "evil.seal").write_text("x")
    elif damage == "manifest":
        (made / MANIFEST).write_text((made / MANIFEST).read_text().replace('"size": ', '"size": 1', 1))
    else:
        (made / MANIFEST).write_text((made / MANIFEST).read_text()[:-20])
    assert len(verify_backup(target).problems) == 1
    new = tmp_path / "new"
    if damage == "add":
        restore_backup(target, new)
        assert not (new / "spool" / "evil.seal").exists()
    else:
        with pytest.raises(BackupError):
            restore_backup(target, new)
        assert not new.exists() and not list(tmp_path.glob(".new-*"))


def test_a_manifest_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    data, target = tmp_path / "data", tmp_path / "target"
    fill(data)
    made = Path(back_up(data, target).path)
    import orjson

    manifest = orjson.loads((made / MANIFEST).read_bytes())
    manifest["files"]["../../evil"] = {"size": 0, "sha256": ""}
    manifest["files_sha256"] = backup._digest(manifest["files"])
    (made / MANIFEST).write_bytes(orjson.dumps(manifest))
    with pytest.raises(BackupError, match="damaged"):
        restore_backup(target, tmp_path / "new")


def test_without_hard_links_the_files_are_copied_under_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, target = tmp_path / "data", tmp_path / "target"
    fill(data)

    def link(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    assert [back_up(data, target).reused for _ in range(2)] == [0, 0]
    restore_backup(target, tmp_path / "new")
    assert contents(tmp_path / "new") == {k: v for k, v in contents(data).items() if k != "gateway.token"}


def test_a_target_without_rights_links_and_locks_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FAT stick, a share of a NAS. Before: "Operation not permitted", or "No locks available"."""
    data, target = tmp_path / "data", tmp_path / "target"
    fill(data)
    back_up(data, target)

    def refusing(module: Any, name: str, code: int) -> None:
        real = getattr(module, name)

        def call(path: Any, *values: Any, **options: Any) -> Any:
            place = str(Path(f"/proc/self/fd/{path}").readlink() if isinstance(path, int) else path)
            if place.startswith((str(target), str(tmp_path / ".new"))):
                raise OSError(code, os.strerror(code))
            return real(path, *values, **options)

        monkeypatch.setattr(module, name, call)

    refusing(os, "link", errno.EPERM)
    refusing(os, "chmod", errno.EPERM)
    refusing(Path, "chmod", errno.EPERM)
    refusing(fcntl, "flock", errno.ENOLCK)
    sync_file = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync_file(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    assert back_up(data, target).reused == 0
    assert verify_backup(target).problems == []
    assert restore_backup(target, tmp_path / "new").files > 5


def test_a_full_target_keeps_nothing_of_the_backup(tmp_path: Path) -> None:
    data, target = tmp_path / "data", tmp_path / "target"
    fill(data)
    made = back_up(data, target).path
    (data / "evaluations").mkdir()
    (data / "evaluations" / "large.json").write_bytes(b"x" * 2_000_000)
    # A limit of the size of a file is told by the same error as a full disk, and needs no mount.
    code = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nfrom storage import backup\n"
    code += "from storage.errors import BackupError\nresource.setrlimit(resource.RLIMIT_FSIZE, (900_000, 900_000))\n"
    for call in (f"back_up({str(data)!r}, {str(target)!r})", f"restore_backup({made!r}, {str(tmp_path / 'new')!r})"):
        limit = code if "back_up" in call else code.replace("900_000", "10_000")
        run = subprocess.run([sys.executable, "-c", f"{limit}backup.{call}"], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 1 and "File too large" in run.stderr, run.stderr
    assert [str(path) for path in target.iterdir()] == [made] and verify_backup(target).problems == []
    assert not list(data.glob(".backup-*")) and not list(tmp_path.glob(".new-*")) and not (tmp_path / "new").exists()
    restore_backup(made, tmp_path / "new")


def test_a_clock_that_jumps_does_not_change_which_backup_is_the_latest(tmp_path: Path) -> None:
    """Before: one backup of a night in 2100 stayed the one that is restored, and `keep` deleted those after it."""
    data, target = tmp_path / "data", tmp_path / "target"
    fill(data)
    back_up(data, target, now=NOON.replace(year=2100))
    for days in range(3):
        write_segment(data, make_days(1, 1, NOON + timedelta(days=days)))
        made = back_up(data, target, keep=2, now=NOON + timedelta(days=days))
        assert backup._list_backups(target)[-1] == Path(made.path) and len(backup._list_backups(target)) <= 2
    restored = restore_backup(target, tmp_path / "new")
    assert restored.backup == made.path and restored.taken_at == (NOON + timedelta(days=2)).isoformat()
    land_decisions(tmp_path / "new")
    assert len(landed_ids(tmp_path / "new")) == 10 + 3 + 3


def test_a_rotten_file_is_not_linked_for_ever(tmp_path: Path) -> None:
    data, target = tmp_path / "data", tmp_path / "target"
    fill(data)
    first = Path(back_up(data, target, now=NOON).path)
    cut, flipped = sorted(first.rglob("*.parquet"))[:2]
    cut.write_bytes(cut.read_bytes()[:-1])
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    second = Path(back_up(data, target, now=NOON + timedelta(days=1)).path)  # that a file is shorter is seen at once
    (problem,) = verify_backup(second).problems
    assert flipped.name in problem and "delete this file" in problem
    (second / flipped.relative_to(first)).unlink()
    third = Path(back_up(data, target, now=NOON + timedelta(days=2)).path)
    assert verify_backup(third).problems == []


def test_who_was_erased_does_not_come_back_without_a_word(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_segment(data, make_days(1, 2, subject_ids=["ann"]))
    land_decisions(data)
    back_up(data, tmp_path / "target", now=NOON)
    erase_subject(data, "ann")
    report = restore_backup(tmp_path / "target", tmp_path / "new")
    assert len(landed_ids(tmp_path / "new")) == 2  # a backup is what it was
    assert f"erased since {NOON.isoformat()}" in report.warnings[0] and "reasoning erase" in report.warnings[0]
    assert erase_subject(tmp_path / "new", "ann").decisions == 2


def test_targets_and_folders_that_will_not_do_are_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    fill(data)
    for target in (data, data / "backups", tmp_path):
        with pytest.raises(BackupError, match="inside each other"):
            back_up(data, target)
    made = back_up(data, tmp_path / "target").path
    with pytest.raises(BackupError, match="is one backup"):
        back_up(data, made)
    with pytest.raises(BackupError, match="is not empty"):
        restore_backup(made, data)
    (tmp_path / "empty").mkdir()
    assert restore_backup(made, tmp_path / "empty").files > 5


def test_a_backup_is_for_its_owner_alone(tmp_path: Path) -> None:
    data, target = tmp_path / "data", tmp_path / "target"
    before = os.umask(0)
    try:
        fill(data)
        back_up(data, target)
        restore_backup(target, tmp_path / "new")
    finally:
        os.umask(before)
    for root in (target, tmp_path / "new"):
        for path in (root, *root.rglob("*")):
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_ledger_that_is_written_to_is_whole_in_the_backup(tmp_path: Path) -> None:
    data, target = tmp_path / "data", tmp_path / "target"
    Layout(data).create()
    done = threading.Event()

    def spend() -> None:
        with open_ledger(data) as ledger:
            number = 0
            while not done.is_set():
                number += 1
                ledger.set_budget("day", str(number))

    thread = threading.Thread(target=spend)
    thread.start()
    try:
        made = [Path(back_up(data, target).path) for _ in range(5)]
    finally:
        done.set()
        thread.join()
    for each in made:
        with sqlite3.connect(each / "ledger.sqlite") as copy:
            assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert not list(each.glob("ledger.sqlite-*"))


def test_a_ledger_on_postgresql_is_said_not_to_be_included(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    fill(data)
    with run_postgres() as server, fresh_database(server) as url:
        monkeypatch.setenv("REASONING_LEDGER_URL", url)
        report = back_up(data, tmp_path / "target")
    assert "pg_dump" in report.ledger and "password" not in report.ledger
    assert not (Path(report.path) / "ledger.sqlite").exists()


class TestPlainTools:
    """The recipe of docs/guides/storage.md: the spool first, then everything."""

    def copy(self, data: Path, target: Path, between: Callable[[], object], *, spool_first: bool) -> None:
        target.mkdir()
        first, second = ("spool", "decisions") if spool_first else ("decisions", "spool")
        shutil.copytree(data / first, target / first)
        between()
        shutil.copytree(data / second, target / second)
        if spool_first:  # "then everything": what came to the spool since
            shutil.copytree(data / "spool", target / "spool", dirs_exist_ok=True)

    @pytest.mark.parametrize("spool_first", [True, False])
    def test_a_landing_between_the_copies(self, tmp_path: Path, spool_first: bool) -> None:
        data = tmp_path / "data"
        write_segment(data, make_days(2, 250))
        land_decisions(data)
        write_segment(data, make_days(2, 250))
        self.copy(data, tmp_path / "copy", lambda: land_decisions(data), spool_first=spool_first)
        land_decisions(tmp_path / "copy")
        found = landed_ids(tmp_path / "copy")
        assert len(found) == len(set(found)) == (1000 if spool_first else 500)  # half of them in neither place

    def test_under_the_lock_of_the_folder_no_verb_runs_beside_the_copy(self, tmp_path: Path) -> None:
        data = tmp_path / "data"
        fill(data)
        assert shutil.which("flock"), "the recipe uses flock(1) of util-linux"
        (recipe,) = re.findall(r"^flock .*$", (ROOT / "docs/guides/storage.md").read_text(), re.MULTILINE)
        recipe = recipe.replace("sh -c '", "sh -c 'echo held; ").replace("spool copy/;", "spool copy/; sleep 1;")
        data.rename(tmp_path / "reasoning-data")
        data = tmp_path / "reasoning-data"
        (tmp_path / "copy").mkdir()
        with subprocess.Popen(["sh", "-c", recipe], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None and child.stdout.readline() == "held\n"
            began = time.monotonic()
            land_decisions(data)
            assert time.monotonic() - began > 0.5
        assert child.returncode == 0
        land_decisions(tmp_path / "copy")
        assert len(landed_ids(tmp_path / "copy")) == 13
