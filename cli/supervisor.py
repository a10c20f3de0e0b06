"""Supervise a group of child processes that start and stop together.

Each child is a session of its own, so that Ctrl-C in a terminal reaches the supervisor alone, which stops them in
order. On Linux the kernel sends a child SIGTERM when the supervisor dies without a chance to stop it (kill -9).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from cli.errors import ChildDied, PortInUse

_PR_SET_PDEATHSIG = 1
_POLL = 0.1  # seconds
_ROTATION = 10.0  # seconds between looks at the sizes of the logs
MAX_LOG_BYTES = 50 * 1024**2
"""A larger log is copied to `<name>.log.1`, over the one before, and truncated."""


@dataclass(frozen=True)
class Child:
    """A running child process and its log file."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


class Stopped(Exception):
    """SIGINT, SIGTERM or SIGHUP arrived."""


class Supervisor:
    """Starts children and stops them all on leaving the `with`, the last started first.

    After a SIGINT, SIGTERM or SIGHUP whatever waits here raises `Stopped`: never between a start and its record.
    """

    def __init__(self, logs: Path, env: Mapping[str, str], *, stop_timeout: float = 20.0) -> None:
        self.logs = logs
        self.env = dict(env)
        self.children: list[Child] = []
        self._stop_timeout = stop_timeout
        self._signal: signal.Signals | None = None
        self._handlers: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Also where SIGINT was ignored (a job in the background): what is ignored is inherited, and Prefect's
            # worker stops by sending itself one.
            self._handlers[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self._handlers:
            # Impatience must not leave half of them running: a second signal kills what is still there.
            signal.signal(number, self._hurry)
        for child in reversed(self.children):
            self._stop(child)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def start(self, name: str, command: Sequence[str], *, cwd: Path | None = None) -> Child:
        """Start `command` in the current folder or in `cwd`, its output going to `<logs>/<name>.log`.

        What the child of that name wrote before is kept in `<name>.log.1`: it may say why it ended.
        """
        log = self.logs / f"{name}.log"
        with suppress(FileNotFoundError):
            if log.stat().st_size:
                log.replace(_previous(log))
        with log.open("ab") as output:  # appending, so that a child goes on at the new end after `rotate`
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        child = Child(name, process, log)
        self.children.append(child)
        return child

    def run(self, name: str, command: Sequence[str], *, cwd: Path | None = None, timeout: float = 120.0) -> None:
        """Start `command` and wait until it is done. Raises `ChildDied` where it fails."""
        child = self.start(name, command, cwd=cwd)
        deadline = time.monotonic() + timeout
        while child.process.poll() is None:
            self.check(but=child)
            if time.monotonic() > deadline:
                raise ChildDied(f"{name} was not done after {timeout:g} s. See {child.log}")
            time.sleep(_POLL)
        self.children.remove(child)
        if child.process.returncode:
            raise ChildDied(_epitaph(child))

    def wait_until(self, what: str, ready: Callable[[], bool], *, timeout: float = 120.0) -> None:
        """Wait until `ready()`; raises `ChildDied` where any child ends first, or after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise ChildDied(f"{what} was not ready after {timeout:g} s. See the logs in {self.logs}")
            time.sleep(_POLL)

    def check(self, *, but: Child | None = None) -> None:
        """Raise `Stopped` after a signal, `ChildDied` if a child has ended."""
        if self._signal:
            raise Stopped(self._signal.name)
        for child in self.children:
            if child is not but and child.process.poll() is not None:
                raise ChildDied(_epitaph(child))

    def watch(self, also: Callable[[], None] = lambda: None) -> None:
        """Until a signal comes (`Stopped`), a child ends (`ChildDied`), or `also` raises; rotate the logs meanwhile."""
        looked = time.monotonic()
        while True:
            self.check()
            also()
            if time.monotonic() - looked > _ROTATION:
                self.rotate()
                looked = time.monotonic()
            time.sleep(_POLL)

    def rotate(self, max_bytes: int = MAX_LOG_BYTES) -> None:
        """Copy each log above `max_bytes` to `<name>.log.1` and truncate it: the child keeps its open file.

        Lines written between the two steps are lost, as with logrotate's `copytruncate`. A disk without room for the
        copy costs the old lines, not the service: the log is truncated without one.
        """
        for child in self.children:
            with suppress(OSError):
                if child.log.stat().st_size > max_bytes:
                    with suppress(OSError):
                        shutil.copyfile(child.log, _previous(child.log))
                    os.truncate(child.log, 0)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = signal.Signals(number)

    def _hurry(self, number: int, frame: FrameType | None) -> None:
        self._stop_timeout = 0.0

    def _stop(self, child: Child) -> None:
        if child.process.poll() is None:
            child.process.terminate()
            begun = time.monotonic()
            while child.process.poll() is None and time.monotonic() - begun < self._stop_timeout:
                time.sleep(_POLL / 2)
        with suppress(ProcessLookupError):  # whatever it left behind in its session
            os.killpg(child.process.pid, signal.SIGKILL)
        child.process.wait()


def free_port(host: str, port: int, *, what: str, option: str) -> int:
    """`port` if nothing listens there, or any free one for 0. Raises `PortInUse` with the mend."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise PortInUse(
                f"port {port} of {host}, which {what} needs, is not available ({error.strerror}). "
                f"Stop the program that listens there, or choose another port: {option} PORT (0 for any)"
            ) from error
        return int(listener.getsockname()[1])


def answers(url: str) -> bool:
    """Whether a GET of `url` is answered with success."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - our own http URL
            return bool(response.status < 300)
    except (OSError, urllib.error.URLError, ValueError):
        return False


def _previous(log: Path) -> Path:
    return log.with_name(f"{log.name}.1")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _epitaph(child: Child, lines: int = 8) -> str:
    code = child.process.returncode
    end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    tail = child.log.read_text(errors="replace").splitlines()[-lines:]
    return "\n".join([f"{child.name} {end}. The end of {child.log}:", *(f"  {line}" for line in tail)])
