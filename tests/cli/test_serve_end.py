"""How `reasoning serve` ends where the provider costs money: in a terminal, without one, and in one that is gone.

What ran until then is left out (`test_serve_attack` has it): `cli.serve.serve` only returns the signal, or raises.
"""

from __future__ import annotations

import os
import pty
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from provider.together.client import connect
from storage.ledger.ledger import open_ledger
from tests.provider.world import run_emulator

ENDED = "import cli.main, cli.serve; cli.serve.serve = lambda *a, **k: {ending}; cli.main.main()"
BY_CTRL_C, BY_HANGUP = "'SIGINT'", "'SIGHUP'"
BROKEN = "(_ for _ in ()).throw(OSError(28, 'No space left on device'))"


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with run_emulator(tmp_path_factory.mktemp("emulator")) as url:
        yield url


class Costly:
    """A data folder of which one deployment runs, and the arguments to end its `serve`."""

    def __init__(self, data: Path, url: str) -> None:
        self.client, self.data, self.url = connect(provider="local", base_url=url), data, url
        with open_ledger(data) as ledger:
            self.endpoint = self.client.endpoints.create(name=f"{ledger.prefix}abc").id
        self.client.endpoints.deployments.create(
            endpoint_id=self.endpoint,
            name="one",
            model="projects/proj_together/models/ml_qwen35_9b",
            config="projects/proj_together/configs/cr_qwen35_9b_h100",
            autoscaling={"min_replicas": 1, "max_replicas": 1},
        )

    def command(self, ending: str, *options: str) -> list[str]:
        serve = ["serve", "--provider", "together", "--data", str(self.data), *options]
        return [sys.executable, "-c", ENDED.format(ending=ending), *serve]

    def env(self, url: str | None = None) -> dict[str, str]:
        return os.environ | {"TOGETHER_BASE_URL": url or self.url, "TOGETHER_API_KEY": "the-key-of-the-user"}

    @property
    def runs(self) -> bool:
        (found,) = self.client.endpoints.deployments.list(self.endpoint).data or []
        assert found.autoscaling is not None
        return bool(found.autoscaling.max_replicas)


@pytest.fixture
def costly(tmp_path: Path, emulator: str) -> Costly:
    data = tmp_path / "data"
    data.mkdir()
    return Costly(data, emulator)


class Terminal:
    """A command in a terminal of its own, and what it said there."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.pid, self.screen = pty.fork()
        if not self.pid:
            os.execve(command[0], command, env)
        self.said = ""

    def wait_for(self, text: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while text not in self.said:
            assert time.monotonic() < end, self.said
            if select.select([self.screen], [], [], 0.2)[0]:
                try:
                    self.said += os.read(self.screen, 4096).decode(errors="replace")
                except OSError:  # it ended
                    assert text in self.said, self.said

    def press(self, keys: bytes) -> None:
        os.write(self.screen, keys)

    def code(self, seconds: float = 60) -> int:
        end = time.monotonic() + seconds
        while not (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            assert time.monotonic() < end, "it hangs"
            time.sleep(0.05)
        return os.waitstatus_to_exitcode(ended[1])


@pytest.mark.parametrize("keys, runs", [(b"KEEP \n", True), (b"\n", False), (b"\x03", False)])
def test_a_person_is_asked_and_only_keep_keeps(costly: Costly, keys: bytes, runs: bool) -> None:
    terminal = Terminal(costly.command(BY_CTRL_C), costly.env())
    terminal.wait_for("[stop/keep]")
    assert "$131.76 a day" in terminal.said and "reasoning stop --provider together" in terminal.said
    assert costly.runs
    terminal.press(keys)
    terminal.wait_for("Nothing watches its cost" if runs else "nothing of this installation runs at the provider")
    assert terminal.code() == 0 and costly.runs == runs


@pytest.mark.parametrize("ending, choice, runs", [(BY_HANGUP, "keep", True), (BY_CTRL_C, "stop", False)])
def test_on_exit_decides_without_a_question(costly: Costly, ending: str, choice: str, runs: bool) -> None:
    command = costly.command(ending, "--on-exit", choice)
    done = subprocess.run(command, env=costly.env(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "[stop/keep]" not in done.stderr and costly.runs == runs
    assert "$131.76 a day" in done.stderr


@pytest.mark.parametrize("ending, code", [(BY_HANGUP, 0), (BROKEN, 1)])
def test_a_terminal_that_is_gone_keeps_nothing_running(costly: Costly, ending: str, code: int) -> None:
    """Whatever ends `serve`: its guard is dead, and nobody is there to read."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(costly.command(ending), env=costly.env(), stdout=writer, stderr=writer, timeout=60)
    os.close(writer)
    assert not costly.runs and done.returncode in (code, 120)  # 120: Python could not flush its streams


def test_a_second_ctrl_c_ends_the_wait_for_a_provider_that_hangs(costly: Costly) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        env = costly.env(f"http://127.0.0.1:{silent.getsockname()[1]}")
        terminal = Terminal(costly.command(BY_CTRL_C), env)
        silent.settimeout(60)
        asked, _ = silent.accept()
        terminal.press(b"\x03")
        terminal.wait_for("is unknown", seconds=10)
        asked.close()
    terminal.wait_for("stop it: reasoning stop --provider together")
    assert "nothing of this installation runs" not in terminal.said and terminal.code() == 130


def test_nothing_is_stopped_where_serve_never_began(costly: Costly) -> None:
    """The other `serve` of the folder goes on, and so does what it serves."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "cli.main", "serve", "--provider", "together", "--data", str(costly.data)]
        command += ["--gateway-port", str(taken.getsockname()[1]), "--prefect-port", "0"]
        done = subprocess.run(command, env=costly.env(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "is not available" in done.stderr and costly.runs
