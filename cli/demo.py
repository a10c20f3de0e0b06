"""`reasoning demo`: a Prefect server and a provider of its own, and the demo between them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from cli.environment import replace_environment
from cli.output import new_console
from cli.serve import HOST, PREFECT_SERVER, environment
from cli.stopping import OnExit, settle_at_exit
from cli.supervisor import Supervisor, answers, free_port
from demo.folder import demo_folder

if TYPE_CHECKING:
    from demo.result import DemoResult


class Interrupted(BaseException):
    """A signal ends the demo; its number."""

    def __init__(self, number: int) -> None:
        self.number = number


def run(
    data: Path,
    *,
    provider: str,
    conversations: Path | None,
    budget_usd: Decimal | None,
    confirm: Callable[[str], bool],
) -> DemoResult:
    """Run the demo in `data`; returns its result. Its servers stop with it.

    Raises what `demo.run.run_demo` does, `ChildDied` when a server cannot start or dies, and `Interrupted`. Flows may
    then be at work in threads still, which Python would wait for at exit, with their servers gone: end by `os._exit`.
    """
    with demo_folder(data.absolute()) as folder, tempfile.TemporaryDirectory(prefix="reasoning-demo-") as scratch:
        prefect = f"http://{HOST}:{free_port(HOST, 0, what='Prefect', option='')}"
        emulator = None
        if provider == "emulator":
            emulator = f"http://{HOST}:{free_port(HOST, 0, what='the emulator', option='')}"
        env = environment(folder, provider=provider, prefect=prefect, emulator=emulator, scratch=Path(scratch))
        # The flows run in this process, and Prefect and the provider package read their settings here, on import.
        replace_environment({**env, "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"})
        with Supervisor(folder / "logs", env, stop_timeout=5) as children:
            check = _catch_signals(children)
            wait = _start_servers(children, folder, prefect=prefect, emulator=emulator)

            from demo.run import Backend, run_demo

            try:
                return run_demo(
                    folder,
                    backend=Backend(provider, emulator),
                    conversations=conversations,
                    budget_usd=budget_usd,
                    console=new_console(),
                    confirm=confirm,
                    wait_for_servers=wait,
                    check_servers=check,
                )
            except BaseException:
                _silence()
                if provider == "together":
                    with contextlib.redirect_stderr(sys.__stderr__):
                        settle_at_exit(folder, provider, OnExit.STOP, may_ask=False)
                # What a dead server did to the demo is not the news; that it died is.
                children.check()
                raise


def _catch_signals(children: Supervisor) -> Callable[[], None]:
    """End the demo at once on a signal; returns a check that raises when a signal came or a server died.

    The supervisor notes signals for its own waits, and the demo works between them. A signal is noted here as well,
    because an exception that is raised anywhere may be lost (in a callback, by what catches all).
    """
    noted: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        noted.append(number)
        raise Interrupted(number)

    def check() -> None:
        if noted:
            raise Interrupted(noted[0])
        children.check()

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, interrupt)
    return check


def _start_servers(children: Supervisor, folder: Path, *, prefect: str, emulator: str | None) -> Callable[[], None]:
    """Start Prefect's server, and the emulator where it is the provider; returns a wait until they answer."""
    if emulator:
        port = emulator.rpartition(":")[2]
        command = [sys.executable, "-m", "emulator", "--data", str(folder / "emulator"), "--port", port]
        children.start("emulator", [*command, "--clock", "2018-04-01T00:00:00Z"])
    children.start("prefect-server", PREFECT_SERVER, cwd=children.logs)

    def wait() -> None:
        if emulator:
            children.wait_until("the emulator", lambda: answers(f"{emulator}/emulator/healthz"))
        children.wait_until("Prefect's server", lambda: answers(f"{prefect}/api/health"))

    return wait


def _silence() -> None:
    """From here on flows in threads can only complain, at length, that their servers go."""
    import logging

    logging.disable(logging.CRITICAL)
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for the rest of the process
