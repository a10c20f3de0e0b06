"""The demo: one agent, five real days, the whole wheel.

=========  =====================================================================================================
collect    the agent answers by its own rules; what was right comes to light later
land       the log becomes Parquet, and Great Expectations look at it
turn       both decision types at once: export, fine-tune, deploy, evaluate on unseen days, promote
serve      the following night: an A/B of custom model and rules, with the guard making its rounds
shut down  the budget is used up: routes withdrawn, deployments stopped, the agent goes on by its own rules
=========  =====================================================================================================

With the local provider everything runs on the clock of the data (May 2018), the provider's too, so that its bill is that
of the seven hours that were replayed. With Together it runs on the real one.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import shutil
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from demo.conversations import read_rooms
from demo.episodes import Episode
from demo.errors import DemoError
from demo.functions import read_tasks
from demo.replay import Replay, ReplayClock, Served
from reasoning.client import DecisionClient
from reasoning.config import load_config
from storage.layout import Layout
from storage.ledger import open_ledger
from tasks.entrypoints import load_flow
from tasks.turn import read_turn

TYPES = ("should_respond", "planning")
COLLECT_FROM = datetime(2018, 5, 1, tzinfo=UTC)
TURN_AT = datetime(2018, 5, 5, 2, tzinfo=UTC)
SERVE_UNTIL = datetime(2018, 5, 5, 9, tzinfo=UTC)
TASKS_COLLECTED = 130
"""So many of the 200 planning tasks come before the turn."""
TICK = timedelta(minutes=15)
"""Between two rounds of the guard."""
BUDGET_USD = Decimal(75)
MARKER = ".demo"


@dataclass(slots=True)
class Step:
    """One step of the wheel, for the report's timeline: seconds of real time, and what came out."""

    name: str
    seconds: float
    said: str


@dataclass(slots=True)
class Demo:
    """What the steps share."""

    data: Path
    provider: str
    emulator_url: str | None
    console: Console
    clock: ReplayClock
    steps: list[Step] = field(default_factory=list)
    guard: list[dict[str, Any]] = field(default_factory=list)

    @property
    def now(self) -> datetime | None:
        """The time to hand to whatever asks for one: the replay's, or None for the real one."""
        return self.clock.now if self.emulator_url else None

    def move_clock(self, moment: datetime) -> None:
        """Let it be `moment` for the client."""
        self.clock.move_to(moment)

    def move_provider(self) -> None:
        """Let it be the same time at the local provider."""
        if self.emulator_url:
            set_emulator_clock(self.emulator_url, self.clock.now)

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[str], None]]:
        """Time a step and say how it went; the block says what came out."""
        begun, said = time.monotonic(), [""]

        def say(what: str) -> None:
            said[0] = what

        with self.console.status(f"{name} …") if self.console.is_terminal else nullcontext():
            yield say
        seconds = time.monotonic() - begun
        self.steps.append(Step(name, seconds, said[0]))
        self.console.print(f"[green]✓[/] [bold]{name:<10}[/] {said[0]}  [dim]{seconds:.1f} s[/]")


def set_emulator_clock(url: str, now: datetime) -> None:
    """Set the local provider's clock and let it run on from there."""
    body = json.dumps({"now": now.isoformat()}).encode()
    request = urllib.request.Request(  # noqa: S310 - our own http URL
        f"{url}/emulator/clock", data=body, headers={"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=10):  # noqa: S310
        pass


@contextmanager
def demo_folder(data: Path) -> Iterator[Path]:
    """A data folder of the demo's own, emptied of an earlier demo, and locked against another one.

    Raises `DemoError` where the folder holds something else, or another demo is at work in it.
    """
    lock_path = data.with_name(f".{data.name}.lock")
    try:
        data.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_path.open("a")
    except OSError as error:
        raise DemoError(f"cannot write to {data.parent} ({error.strerror}). Choose another folder: --data FOLDER") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(
                f"another demo is at work in {data}. Wait for it, or take another folder: --data FOLDER"
            ) from None
        if data.exists() and any(data.iterdir()):
            if not (data / MARKER).is_file():
                raise DemoError(f"{data} is not empty and no demo made it. Choose another folder: --data FOLDER")
            shutil.rmtree(data)
        data.mkdir(exist_ok=True)
        (data / MARKER).write_text("The demo's own folder: the next demo empties it.\n")
        Layout(data).create()
        yield data
        lock_path.unlink(missing_ok=True)


def pick_episodes(conversations: Path | None) -> tuple[list[Episode], list[Episode]]:
    """Episodes before and after the turn of the wheel, disjoint in time and in people."""
    rooms = read_rooms(conversations)
    before = [room for room in rooms if COLLECT_FROM <= room.turns[0].ts and room.end < TURN_AT]
    after = [room for room in rooms if room.turns[0].ts >= TURN_AT and room.end < SERVE_UNTIL]
    if not before or not after:
        raise DemoError(
            f"the conversations hold {len(before)} rooms from {COLLECT_FROM:%Y-%m-%d} to {TURN_AT:%Y-%m-%d %H:%M} and "
            f"{len(after)} from then to {SERVE_UNTIL:%H:%M}; both are needed"
        )
    total = len(read_tasks())
    early = read_tasks(start=COLLECT_FROM, spacing=(TURN_AT - COLLECT_FROM) / (TASKS_COLLECTED + 1))[:TASKS_COLLECTED]
    spacing = (SERVE_UNTIL - TURN_AT) / (total - TASKS_COLLECTED + 1)
    late = read_tasks(start=TURN_AT - TASKS_COLLECTED * spacing, spacing=spacing)[TASKS_COLLECTED:]
    return before + early, after + late
