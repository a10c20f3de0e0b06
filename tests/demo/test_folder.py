"""The demo's folder, and what goes wrong before it begins: one clear line, exit 1, and nothing is touched."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from demo import folder
from demo.errors import DemoError
from demo.folder import MARKER, demo_folder
from tests.disks import small_disk


def run_demo(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli.main", "demo", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=60,
    )


def test_an_earlier_demo_is_cleared_away(tmp_path: Path) -> None:
    data = tmp_path / "demo"
    with demo_folder(data):
        (data / "spool" / "left.seal").write_text("x")
        (data / "report.html").write_text("x")
    with demo_folder(data):
        assert not list((data / "spool").iterdir())
        assert not (data / "report.html").exists()


def test_a_second_demo_at_once_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "demo"
    with demo_folder(data):
        (data / "spool" / "in-use.seal").write_text("x")
        second = run_demo("--data", str(data))
        assert second.returncode == 1
        assert second.stderr.count("\n") == 1
        assert f"another demo is running in {data}" in second.stderr
        assert (data / "spool" / "in-use.seal").exists()


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    refused = run_demo("--data", str(tmp_path))
    assert refused.returncode == 1
    assert "no demo made it" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_file_in_the_place_of_the_folder_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "demo"
    file.write_text("mine")
    with pytest.raises(DemoError, match="no demo made it"), demo_folder(file):
        pass
    assert file.read_text() == "mine"


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    data = tmp_path / "demo"
    with demo_folder(data):
        pass
    script = (
        f"import fcntl, os; f = open({str(data / MARKER)!r}); fcntl.flock(f, fcntl.LOCK_EX); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script], check=False)
    with demo_folder(data), (data / MARKER).open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_too_small_a_disk_is_told_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "NEEDED_BYTES", 1 << 60)
    with pytest.raises(DemoError, match="MB left, and the demo needs"), demo_folder(tmp_path / "demo"):
        pass


def test_a_full_disk_is_told_and_leaves_whole_segments(tmp_path: Path) -> None:
    with small_disk(tmp_path, 3) as disk:
        from rich.console import Console

        from demo.replay import ReplayClock
        from demo.run import COLLECT_FROM, Backend, Demo, collect, pick_episodes
        from reasoning.io.segments import read_segment
        from storage.layout import Layout

        Layout(disk / "demo").create()
        demo = Demo(
            disk / "demo", Backend("emulator", "http://127.0.0.1:9"), Console(quiet=True), ReplayClock(COLLECT_FROM)
        )
        with pytest.raises(DemoError, match=r"records could not be written to .*No space left on device"):
            collect(demo, pick_episodes(None)[0])
        (segment,) = (disk / "demo" / "spool").iterdir()
        read = read_segment(segment)
        assert sum(1 for _ in read.lines) > 500
        assert not read.bad


def test_conversations_that_do_not_parse_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "dataset.json"
    broken.write_text('{"a": {"messages": [[{"text": "hi"}]], "start": "2018-05-01T00:00:00Z"}}')
    failed = run_demo("--data", str(tmp_path / "demo"), "--conversations", str(broken))
    assert failed.returncode == 1
    assert str(broken) in failed.stderr
    assert "conversation a, messages[0][0]" in failed.stderr
    assert "Traceback" not in failed.stderr
    with demo_folder(tmp_path / "demo"):
        pass  # the folder is fit for the next


def test_the_mend_for_a_file_of_ones_own_is_not_to_reinstall_ours(tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text("# not JSON")
    failed = run_demo("--data", str(tmp_path / "demo"), "--conversations", str(mine))
    assert failed.returncode == 1
    assert f"{mine} is not JSON" in failed.stderr
    assert "Reinstall" not in failed.stderr


def test_together_without_a_key_is_refused(tmp_path: Path) -> None:
    refused = run_demo("--data", str(tmp_path / "demo"), "--provider", "together", TOGETHER_API_KEY="")
    assert refused.returncode == 1
    assert "TOGETHER_API_KEY is not set" in refused.stderr
    assert not (tmp_path / "demo").exists()
