"""Children that live and die together, with real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli.errors import ChildDied, PortInUse
from cli.supervisor import Stopped, Supervisor, free_port

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, subprocess, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid, flush=True)\n"
    "time.sleep(600)",
]


def test_a_child_that_dies_takes_all_the_others_down_and_is_named(tmp_path: Path):
    failing = [sys.executable, "-c", "import sys; print('no more disk'); sys.exit(3)"]
    with pytest.raises(ChildDied) as raised, Supervisor(tmp_path, os.environ) as children:
        survivor = children.start("survivor", SLEEP)
        children.start("failing", failing)
        children.watch()
    assert "failing ended with exit code 3" in str(raised.value)
    assert "no more disk" in str(raised.value)
    assert survivor.process.returncode == -signal.SIGTERM


def test_what_ignores_sigterm_is_killed_with_its_own_children(tmp_path: Path):
    with Supervisor(tmp_path, os.environ, stop_timeout=0.2) as children:
        child = children.start("stubborn", STUBBORN)
        children.wait_until("stubborn", lambda: child.log.read_text().endswith("\n"))
        grandchild = int(child.log.read_text())
    assert child.process.returncode == -signal.SIGKILL
    assert _ends(grandchild)  # the kernel's signal is sent, but takes its moment on a machine with much to do


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_wait_and_the_children(tmp_path: Path, number: signal.Signals):
    with pytest.raises(Stopped, match=number.name), Supervisor(tmp_path, os.environ) as children:
        child = children.start("child", SLEEP)
        os.kill(os.getpid(), number)
        children.watch()
    assert child.process.returncode == -signal.SIGTERM


def test_what_must_end_well_before_the_rest_starts_fails_with_the_end_of_its_log(tmp_path: Path):
    with pytest.raises(ChildDied, match="deploy ended with exit code 1"), Supervisor(tmp_path, os.environ) as children:
        children.run("deploy", [sys.executable, "-c", "raise SystemExit('nothing to deploy')"])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children that their parent died")
def test_kill_9_of_the_supervisor_leaves_no_children(tmp_path: Path):
    script = (
        "import os, sys; from pathlib import Path; from cli.supervisor import Supervisor\n"
        f"with Supervisor(Path({str(tmp_path)!r}), os.environ) as children:\n"
        f"    print(children.start('child', {SLEEP!r}).process.pid, flush=True); children.watch()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        child = int(supervisor.stdout.readline())
        supervisor.kill()
    assert _ends(child), "the child outlived its supervisor"


def test_a_port_in_use_names_the_port_and_the_option():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortInUse, match=f"port {port} .* --gateway-port PORT"):
            free_port("127.0.0.1", port, what="the gateway", option="--gateway-port")
    assert free_port("127.0.0.1", port, what="the gateway", option="--gateway-port") == port
    assert free_port("127.0.0.1", 0, what="the gateway", option="--gateway-port") > 0


def _ends(pid: int) -> bool:
    """Is the process gone within ten seconds?"""
    for _ in range(200):
        if not _runs(pid):
            return True
        time.sleep(0.05)
    return False


def _runs(pid: int) -> bool:
    """Does the process exist, other than as a zombie that nobody waited for?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second where it ends while it is read
        return False


def test_logs_are_rotated_while_the_child_writes_and_the_last_run_is_kept(tmp_path: Path):
    chatty = "import sys, time\nfor n in range(600): print(f'line {n:04}', flush=True); time.sleep(0.001 * (n > 300))"
    with Supervisor(tmp_path, os.environ) as children:
        child = children.start("chatty", [sys.executable, "-c", chatty])
        children.wait_until("some lines", lambda: child.log.stat().st_size > 1000)
        children.rotate(max_bytes=100)
        children.wait_until("the last line", lambda: "line 0599" in child.log.read_text())
        rotated, current = (tmp_path / "chatty.log.1").read_text(), child.log.read_text()
        assert rotated.startswith("line 0000")
        assert "\0" not in current, "the child wrote at its old position: a sparse file as large as before"
    with Supervisor(tmp_path, os.environ) as children:
        children.run("chatty", [sys.executable, "-c", "print('the next run')"])
    assert (tmp_path / "chatty.log").read_text() == "the next run\n"
    assert (tmp_path / "chatty.log.1").read_text() == current
