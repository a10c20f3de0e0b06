"""The demo: one agent, four weeks of real conversations, one full cycle.

=========  =====================================================================================================
collect    the agent decides by its own rules; outcomes become known later
land       the log becomes Parquet, and Great Expectations checks it
turn       both decision types at once: export, fine-tune, deploy, evaluate on unseen days, promote
serve      the night after: an A/B test of model and rules, with the guard running
keep       trained on this machine (the default): the models stay, for they cost nothing
shut down  with another provider: the budget is used up, routes withdrawn, deployments stopped, the agent continues by
           its own rules
=========  =====================================================================================================

On this machine and with the emulator everything runs on the clock of the data (spring 2018), the emulator's too, so
that its bill is that of the hours that were replayed. With Together it runs on the real one.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from demo import gather
from demo.conversations import read_rooms
from demo.episodes import Episode
from demo.errors import DemoError
from demo.functions import read_tasks
from demo.replay import Replay, ReplayClock, Served
from demo.report import print_report, print_value, write_report
from demo.result import DemoResult, GuardAction, Reconciliation, StepResult
from demo.story import print_story, read_story
from pipeline.cycle import last_cycle
from pipeline.economy.pays import pays
from pipeline.reports import to_jsonable
from reasoning.client import DecisionClient
from reasoning.config import load_config
from storage.ledger.ledger import open_ledger
from storage.ledger.rows import LOCAL, Deployment, DeploymentState
from tasks.entrypoints import load_flow

TYPES = ("should_respond", "planning")
COLLECT_FROM = datetime(2018, 4, 10, tzinfo=UTC)
TURN_AT = datetime(2018, 5, 5, 2, tzinfo=UTC)
SERVE_UNTIL = datetime(2018, 5, 5, 14, tzinfo=UTC)
TASKS_COLLECTED = 130
"""How many of the 200 planning tasks come before the cycle."""
TICK = timedelta(minutes=30)
"""The time between two runs of the guard."""
BUDGET_USD = Decimal(110)
"""With the emulator: used up before the replay ends."""
REPORT = "report.html"


@dataclass(slots=True)
class Step:
    """One step of the cycle for the report's timeline: seconds of real time, and its result."""

    name: str
    seconds: float
    said: str


@dataclass(frozen=True, slots=True)
class Backend:
    """The provider of the demo: its name, and the address of an emulator."""

    name: str
    emulator_url: str | None = None

    @property
    def is_real(self) -> bool:
        """Does it cost real money, in real time?"""
        return self.name == "together"


@dataclass(slots=True)
class Demo:
    """What the steps share."""

    data: Path
    backend: Backend
    console: Console
    clock: ReplayClock
    check_servers: Callable[[], None] = lambda: None
    steps: list[Step] = field(default_factory=list)
    guard: list[dict[str, Any]] = field(default_factory=list)
    quality: dict[str, Any] = field(default_factory=dict)
    training_seconds: dict[str, float] = field(default_factory=dict)
    reconciliation: dict[str, Any] = field(default_factory=dict)

    @property
    def now(self) -> datetime | None:
        """The time to hand to whatever asks for one: the replay's, or None for the real one."""
        return None if self.backend.is_real else self.clock.now

    def move_clock(self, moment: datetime) -> None:
        """Let it be `moment` for the client."""
        self.clock.move_to(moment)

    def move_provider(self, *, frozen: bool = True) -> None:
        """Let it be the same time at the emulator; `frozen` until it is moved again."""
        if self.backend.emulator_url:
            self._emulator_clock({"now": self.clock.now.isoformat(), "frozen": frozen})

    def follow_provider(self) -> None:
        """Catch up with the emulator's clock, and stop that."""
        if self.backend.emulator_url:
            there = datetime.fromisoformat(self._emulator_clock({"frozen": True})["now"])
            self.clock.move_to(there + timedelta(seconds=1))

    def release_provider(self) -> None:
        """Let the emulator's clock run with the machine's: what is deployed afterwards would wait for ever."""
        if self.backend.emulator_url:
            self._emulator_clock({"now": datetime.now(UTC).isoformat(), "frozen": False})

    def _emulator_clock(self, order: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.backend.emulator_url}/emulator/clock", data=json.dumps(order).encode())  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - our own http URL
                return dict(json.load(response))
        except urllib.error.HTTPError as error:
            raise DemoError(f"the emulator's clock cannot be set: {error.read().decode()}") from error

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
        line = Table.grid(padding=(0, 1))
        line.add_row("[green]✓[/]", f"[bold]{name:<10}[/]", f"{escape(said[0])}  [dim]{seconds:.1f} s[/]")
        self.console.print(line)


def pick_episodes(conversations: Path | None) -> tuple[list[Episode], list[Episode]]:
    """Episodes before and after the cycle: no conversation and no task is on both sides."""
    rooms = read_rooms(conversations)
    before = [room for room in rooms if room.turns[0].ts >= COLLECT_FROM and room.end < TURN_AT]
    after = [room for room in rooms if room.turns[0].ts >= TURN_AT and room.end < SERVE_UNTIL]
    if not before or not after:
        raise DemoError(
            f"the conversations hold {len(before)} rooms from {COLLECT_FROM:%Y-%m-%d} to {TURN_AT:%Y-%m-%d %H:%M} and "
            f"{len(after)} from then to {SERVE_UNTIL:%H:%M}; both are needed"
        )
    until = max(room.end for room in after)
    total = len(read_tasks())
    early = read_tasks(start=COLLECT_FROM, spacing=(TURN_AT - COLLECT_FROM) / (TASKS_COLLECTED + 1))[:TASKS_COLLECTED]
    spacing = (until - TURN_AT) / (total - TASKS_COLLECTED + 1)
    late = read_tasks(start=TURN_AT - TASKS_COLLECTED * spacing, spacing=spacing)[TASKS_COLLECTED:]
    return before + early, after + late


def run_demo(
    data: Path,
    *,
    backend: Backend,
    conversations: Path | None = None,
    budget_usd: Decimal | None = None,
    console: Console,
    confirm: Callable[[str], bool] = lambda question: False,
    wait_for_servers: Callable[[], None] = lambda: None,
    check_servers: Callable[[], None] = lambda: None,
) -> DemoResult:
    """Run a full cycle in `data`, the demo's own folder (`demo_folder`); returns what the report shows.

    Prefect's server has to be at `PREFECT_API_URL`, and the provider be the one of the settings. `budget_usd` in all is
    by default `BUDGET_USD`, with a real provider what the training and one hour cost; where nothing costs anything
    there is none. `confirm(question)` is asked before real money is spent. `check_servers` is called while the agent
    or flows are at work, and raises when a server is gone. Raises `DemoError` and what the rooms raise; flows may then
    still be at work in daemon threads.
    """
    begun = time.monotonic()
    before, after = pick_episodes(conversations)
    demo = Demo(data, backend, console, ReplayClock(COLLECT_FROM), check_servers)
    collect(demo, before)
    with demo.step("servers") as say:
        wait_for_servers()
        say("Prefect's server and the emulator are up" if backend.emulator_url else "Prefect's server is up")
    turned_at = datetime.now(UTC) if backend.is_real else TURN_AT
    demo.clock.move_to(TURN_AT)
    _land_and_check(demo)
    _set_budget(demo, budget_usd, confirm)
    _turn(demo)
    _serve(demo, after)
    if backend.name == LOCAL:
        _keep_serving(demo)
    else:
        _shut_down(demo)
        demo.release_provider()
    _settle_prefect()
    with demo.step("report") as say:
        result = _gather(demo, turned_at, time.monotonic() - begun)
        write_report(result, data / REPORT)
        say(f"{data / REPORT}")
    print_story(read_story(data, turned_at), console)
    print_value(pays(data, now=demo.now), console)
    print_report(result, console)
    return result


def _client(demo: Demo) -> DecisionClient:
    return DecisionClient(demo.data, agent_id="nova", clock=time.time if demo.backend.is_real else demo.clock)


def _require_all_written(client: DecisionClient) -> None:
    """Fail if records were dropped: the client survives a full disk, but the demo needs its records."""
    records = client.stats()["records"]
    if dropped := sum(records["dropped"].values()):
        raise DemoError(
            f"{dropped:,} records could not be written to {client.config.spool}: {records['last_error']}. "
            "Mend that and start again; what was written is whole"
        )


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # elsewhere it leaves an empty line
    )


def collect(demo: Demo, episodes: list[Episode]) -> None:
    """Replay the episodes with the agent's own rules, and record them."""
    turns = sum(len(episode.turns) for episode in episodes)
    asked: Counter[str] = Counter()
    with demo.step("collect") as say, _client(demo) as client:
        replay = Replay(client, demo.move_clock)
        with _progress(demo.console) as bar:
            task = bar.add_task("collect", total=turns, said="")
            for served in replay.run(episodes):
                demo.check_servers()
                asked[served.turn.decision_type] += 1
                bar.update(task, advance=1, said=f"{served.turn.ts:%-d %B %H:%M}")
        replay.finish()
        _require_all_written(client)
        say(
            f"{asked['should_respond']:,} should_respond and {asked['planning']:,} planning decisions "
            f"by the agent's own rules, {COLLECT_FROM:%-d %B} to {TURN_AT:%-d %B %Y}"
        )


def _flow(demo: Demo, name: str, **parameters: Any) -> Any:
    """Run a flow in this process, observed by Prefect's server."""
    run = _in_background(name, **parameters)
    while not run.done():
        demo.check_servers()
        wait([run], timeout=0.2)
    return run.result()


def _land_and_check(demo: Demo) -> None:
    with demo.step("land") as say:
        landed = _flow(demo, "land_decisions", data=demo.data, now=demo.now)
        say(f"{landed.decisions:,} decisions and {landed.feedback:,} feedbacks in Parquet, exactly once")
    with demo.step("check") as say:
        report = _flow(demo, "check_decisions", data=demo.data, now=demo.now)
        demo.quality = report.as_dict()
        say(f"Great Expectations: {report.checked} expectations, {len(report.failures)} not met")


def _set_budget(demo: Demo, budget_usd: Decimal | None, confirm: Callable[[str], bool]) -> None:
    from provider.providers import open_provider
    from reasoning.decision_types import get_decision_type
    from storage.ledger.money import format_usd

    demo.move_provider(frozen=False)  # training and starting take their time
    with open_provider(demo.data) as provider:
        bases = {name: provider.base_model(get_decision_type(name, load_config(demo.data)).tier) for name in TYPES}
        least = provider.capabilities.minimum_training_usd
        if provider.capabilities.free:
            return
    hourly = sum((base.hourly_usd for base in bases.values()), Decimal(0))
    training = least * len(TYPES)
    limit = budget_usd or (training + hourly if demo.backend.is_real else BUDGET_USD)
    if demo.backend.is_real and not confirm(
        f"This costs real money at Together: at least {format_usd(training)} to fine-tune "
        f"{' and '.join(base.name for base in bases.values())}, and {format_usd(hourly)} for every hour that they are "
        f"deployed. The budget will be {format_usd(limit)} in total, and the guard stops everything there. Go on?"
    ):
        raise DemoError("nothing was spent. Without --provider together the demo costs nothing")
    with open_ledger(demo.data, now=demo.now) as ledger:
        for period in ("day", "month", "total"):
            ledger.set_budget(period, limit, now=demo.now)
        ledger.set_budget("hour", hourly, now=demo.now)


def _turn(demo: Demo) -> None:
    """Run the cycles of both types at once, each in its own flow run; the table of steps follows their progress."""
    with demo.step("turn") as say, _progress(demo.console) as bar:
        runs = {
            name: _in_background(
                "turn_flywheel",
                decision_type=name,
                data=demo.data,
                now=demo.now,
                weight=0.9,
                canary_weight=None,
                any_price=True,  # it shows how a model is proven; the rules that it replaces are free
                shadow_original=True,
                force=True,
                anyway=True,  # the demo shows every step, also on few conversations
            )
            for name in TYPES
        }
        tasks = {name: bar.add_task(name, total=len(_MILESTONES), said="export") for name in TYPES}
        training: dict[str, float] = {}
        while not all(run.done() for run in runs.values()):
            demo.check_servers()
            for name, task in tasks.items():
                done, said = _progress_of(demo.data, name)
                bar.update(task, completed=done, said=said)
                if said == "fine-tune":
                    training.setdefault(name, time.monotonic())
                elif name in training:
                    demo.training_seconds.setdefault(name, time.monotonic() - training[name])
            time.sleep(0.5)  # each look opens the ledger twice, and the cycles are at work in this process
        outcomes = {name: run.result()[0] for name, run in runs.items()}
        demo.follow_provider()
        say(", ".join(f"{name} {turn.outcome}" for name, turn in outcomes.items()))


def _in_background(name: str, **parameters: Any) -> Future[Any]:
    """A flow in its own thread, so that the main thread notices a dead server or Ctrl-C."""
    future: Future[Any] = Future()

    async def flow() -> Any:
        return await load_flow(name)(**parameters)

    def run() -> None:
        try:
            future.set_result(asyncio.run(flow()))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


_MILESTONES = ("dataset_id", "model_id", "deployment_id", "evaluation_id", "finished_at")
_NEXT = ("export", "fine-tune", "deploy", "evaluate", "promote", "done")


def _progress_of(data: Path, decision_type: str) -> tuple[int, str]:
    """How many steps of a type's cycle are done, and which one is running."""
    cycle = last_cycle(data, decision_type)
    done = sum(getattr(cycle, milestone) is not None for milestone in _MILESTONES) if cycle else 0
    return done, _NEXT[done]


def _serve(demo: Demo, episodes: list[Episode]) -> None:
    """The A/B test. Between two turns the guard runs: land, then meter, enforce and renew the lease."""
    turns = sum(len(episode.turns) for episode in episodes)
    with demo.step("serve") as say, _client(demo) as client:
        _round(demo)
        due = demo.clock.now + TICK
        replay = Replay(client, demo.move_clock)
        by_source: Counter[str] = Counter()
        with _progress(demo.console) as bar:
            task = bar.add_task("serve", total=turns, said="")
            for served in replay.run(episodes):
                demo.check_servers()
                by_source[served.answer.source] += 1
                bar.update(task, advance=1, said=_say_spend(demo, served))
                if demo.clock.now >= due:
                    client.close()  # seals its segment, so that what it holds lands
                    _round(demo)
                    # What drains is stopped by the next round, which is a minute away in life.
                    due = demo.clock.now + (timedelta(minutes=1) if demo.guard[-1]["actions"] else TICK)
        replay.finish()
        _require_all_written(client)
        say(
            f"{by_source.total():,} decisions, {by_source['custom']:,} by custom models, in {len(demo.guard)} rounds "
            f"of the guard, until {demo.clock.now:%-d %B %H:%M}"
        )


def _say_spend(demo: Demo, served: Served) -> str:
    said = f"{served.turn.ts:%-d %B %H:%M}"
    for budget in demo.guard[-1]["budgets"]:
        if budget["period"] == "total":
            said += f", ${float(budget['spent_usd']):.2f} of ${float(budget['limit_usd']):.2f}"
    return said


def _round(demo: Demo) -> None:
    demo.move_provider()
    _flow(demo, "land_decisions", data=demo.data, now=demo.now)
    report = _flow(
        demo,
        "guard_costs",
        data=demo.data,
        idle_minutes=60,
        lease_minutes=1.5 * TICK.total_seconds() / 60,
        now=demo.now,
    )
    demo.guard.append(to_jsonable(report))


def _keep_serving(demo: Demo) -> None:
    """Leave the models serving: nothing of this machine costs anything. The lease is of today, not of the data."""
    from pipeline.money import guard

    with demo.step("keep") as say:
        _flow(demo, "land_decisions", data=demo.data, now=demo.now)  # what was asked since the last round
        guard(demo.data, idle_minutes=None)
        with open_ledger(demo.data) as ledger:
            ready = [row for row in ledger.find(Deployment, state=DeploymentState.READY) if row.served_name]
            spent = ledger.spent()
        demo.reconciliation = {"billed_usd": spent, "charged_usd": spent, "difference_usd": 0, "orphans": []}
        say(f"{len(ready)} models stay deployed on this machine, for nothing")


def _shut_down(demo: Demo) -> None:
    """Stop what the guard has not stopped yet, then compare the provider's bill with our charges."""
    from storage.ledger.money import format_usd

    with demo.step("shut down") as say:
        demo.clock.move_to(demo.clock.now + TICK)
        _round(demo)
        acted = sum(len(tick["actions"]) for tick in demo.guard)
        for name in TYPES:
            ended = _flow(demo, "undeploy_model", model=name, data=demo.data, why="the demo ended", now=demo.now)
            actions = [f"undeployed {row['model_id']}: the demo ended" for row in ended]
            demo.guard.append({"now": to_jsonable(demo.clock.now), "actions": actions})
        demo.clock.move_to(demo.clock.now + timedelta(hours=2))  # the bill of an hour is complete an hour later
        demo.move_provider()
        _flow(demo, "land_decisions", data=demo.data, now=demo.now)
        report = _flow(demo, "reconcile_provider", data=demo.data, now=demo.now)
        demo.reconciliation = to_jsonable(report)
        bill = f"the provider billed {format_usd(report.billed_usd)}, we charged {format_usd(report.charged_usd)}"
        if demo.backend.is_real:
            bill = "the provider's bill is not complete yet"
        say(f"the guard acted {acted} times; {bill}, {len(report.orphans)} orphans")


def _gather(demo: Demo, turned_at: datetime, seconds: float) -> DemoResult:
    cycles = [cycle for name in TYPES if (cycle := last_cycle(demo.data, name)) is not None]
    with open_ledger(demo.data) as ledger:
        budgets = [to_jsonable(budget) for budget in ledger.budgets(demo.now) if budget.period != "hour"]
    return DemoResult(
        provider=demo.backend.name,
        seconds=seconds,
        collected_from=to_jsonable(COLLECT_FROM),
        turned_at=to_jsonable(turned_at),
        served_until=to_jsonable(demo.clock.now),
        steps=[StepResult(name=step.name, seconds=step.seconds, said=step.said) for step in demo.steps],
        decisions=gather.count_decisions(demo.data, turned_at),
        funnels=gather.read_funnels(demo.data, cycles),
        quality=demo.quality,
        trainings=gather.read_trainings(demo.data, cycles, demo.training_seconds),
        comparisons=gather.compare(demo.data, cycles, turned_at),
        calibration=gather.read_calibration(demo.data, turned_at),
        latencies_ms=gather.read_latencies(demo.data),
        budgets=budgets,
        spend=gather.read_spend(demo.data),
        actions=[GuardAction(ts=tick["now"], what=action) for tick in demo.guard for action in tick["actions"]],
        reconciliation=Reconciliation(
            billed_usd=demo.reconciliation["billed_usd"],
            charged_usd=demo.reconciliation["charged_usd"],
            difference_usd=demo.reconciliation["difference_usd"],
            orphans=demo.reconciliation["orphans"],
        ),
        places=gather.list_places(demo.data, demo.data / REPORT),
    )


def _settle_prefect() -> None:
    """Flush Prefect's queue: at exit, with the server gone, flushing would wait forever."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (EventsWorker, APILogWorker):
        worker.drain_all(timeout=10, at_exit=False)
