"""A demo that is stopped on the way: at once, in one line, with nothing left running and a folder that is whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import storage
from storage.log.land import land_decisions


@pytest.mark.torture
@pytest.mark.parametrize(
    ("after", "victim", "number"),
    [
        ("collect", "demo", signal.SIGINT),
        ("check", "demo", signal.SIGINT),
        ("turn", "demo", signal.SIGTERM),
        ("check", "emulator", signal.SIGKILL),
    ],
)
def test_stopped_on_the_way(tmp_path: Path, after: str, victim: str, number: signal.Signals) -> None:
    data, errors = tmp_path / "demo", tmp_path / "stderr"
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-u", "-m", "cli.main", "demo", "--provider", "emulator", "--data", str(data)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "COLUMNS": "160"},
        ) as demo,
    ):
        assert demo.stdout
        assert any(line.startswith(f"✓ {after}") for line in demo.stdout)
        children = psutil.Process(demo.pid).children(recursive=True)
        processes = {"demo": psutil.Process(demo.pid)} | {child.cmdline()[2]: child for child in children}
        processes[victim].send_signal(number)
        demo.wait(timeout=60)
    said = errors.read_text()
    assert "Traceback" not in said
    if victim == "demo":
        assert demo.returncode == 128 + number
        assert said.count("\n") == 1
        assert said.startswith(f"{number.name}: the demo and its servers are stopped")
    else:
        assert demo.returncode == 1
        assert said.startswith(f"error: {victim} was killed by {number.name}. The end of ")
    assert not psutil.wait_procs(children, timeout=20)[1]
    land_decisions(data)
    ((decisions, copies),) = storage.sql(data, "SELECT count(DISTINCT decision_id), count(*) FROM decisions").rows
    assert decisions == copies > 4000
