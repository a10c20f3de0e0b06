"""What costs money at the provider: shown, asked about and stopped, by `reasoning stop` and when `serve` ends."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import sys
from collections.abc import Iterator
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from cli.environment import provider_name, use_emulator
from cli.output import print_note
from reasoning.errors import ReasoningError

if TYPE_CHECKING:
    from provider.lifecycle.stop import Running, StopReport

ANSWER_SECONDS = 60.0
"""So long a question waits. Meanwhile nothing watches the cost, so silence means stop."""


class OnExit(StrEnum):
    """The values of `--on-exit`: what happens at the provider when `reasoning serve` ends."""

    STOP = "stop"
    KEEP = "keep"


def last_provider(data: Path) -> str | None:
    """The provider that this data folder was served with last, also by a `serve` that is dead."""
    from storage.layout import Layout

    try:
        found = json.loads(Layout(data).serve_lock.read_text() or "{}").get("provider")
    except (OSError, ValueError, AttributeError):
        return None
    return found if found in ("local", "emulator", "together") else None


def stop_command(data: Path, provider: str) -> str:
    """The command that stops all of it, as it is to be typed."""
    import shlex

    chosen = " --provider together" if provider == "together" else ""
    return f"reasoning stop{chosen} --data {shlex.quote(str(data))}"


def describe_running(each: Running) -> str:
    """One line: what it is, and what it costs."""
    from storage.ledger.money import format_usd

    if each.kind == "fine-tune":
        price = "price unknown" if each.job_usd is None else f"{format_usd(each.job_usd)} when it completes"
        return f"fine-tune {each.name} ({each.remote_id}, {each.state}): {price}"
    price = "price unknown"
    if each.hourly_usd is not None:
        price = f"{format_usd(each.hourly_usd)} an hour, {format_usd(each.hourly_usd * 24)} a day"
    return f"deployment {each.name} ({each.remote_id}, {each.state}): {price}"


def total_a_day(found: list[Running]) -> str:
    """What the deployments cost a day together; unknown prices are named, not counted."""
    from storage.ledger.money import format_usd

    daily = [each.daily_usd for each in found if each.kind == "deployment"]
    known = sum((price for price in daily if price is not None), Decimal(0))
    unknown = sum(price is None for price in daily)
    return f"{format_usd(known)} a day" + (f" and {unknown} of unknown price" if unknown else "")


def report_lines(report: StopReport, command: str) -> list[str]:
    """What a person reads of a report, after a stop or a dry run. It claims nothing that the provider did not say."""
    lines = [f"  {describe_running(each)}" for each in report.remaining]
    if lines:
        lines.insert(0, f"Still running at the provider ({total_a_day(report.remaining)}):")
    for error in report.errors:
        lines.append(f"unknown or refused: {error}")
    lines += [f"note: {note}" for note in report.notes]
    if report.others:
        names = ", ".join(report.others)
        lines.append(f"note: of another installation, so not touched: {names}")
        lines.append("note: if one is yours, add `--installation ID` (the part between `rsn-` and the next dash)")
    if not report.is_clear:
        lines.append(f"Look again: {command} --dry-run; stop it: {command}")
        lines.append("In the provider's console: Endpoints and Fine-tuning, names that begin with rsn-")
    return lines


def stop_running(data: Path, provider: str, *, dry_run: bool = False, installations: list[str]) -> StopReport:
    """Stop (or list) what costs money. Raises `ProviderError` where the provider cannot be asked at all.

    Registered models, which need no provider, lose their routes all the same.
    """
    from provider.errors import ProviderError
    from provider.lifecycle.stop import stop_everything, withdraw_registered
    from provider.providers import open_provider

    try:
        opened = open_provider(data, provider, timeout=20)
    except ProviderError as error:
        withdrawn = [] if dry_run else withdraw_registered(data)
        told = f". Withdrawn all the same: {', '.join(withdrawn)}" if withdrawn else ""
        raise type(error)(f"{error}{told}") from error
    with opened:
        return stop_everything(opened, data, dry_run=dry_run, installations=installations)


def settle_at_exit(data: Path, provider: str, on_exit: OnExit | None, *, may_ask: bool) -> int:
    """End of a `serve` whose provider costs money: nothing watches the cost from here on. Returns the exit code.

    In a terminal a person is asked, for `ANSWER_SECONDS`; else `on_exit` decides, by default stop. A second Ctrl-C at
    the question means stop; during the stop it gives up at once and says that the outcome is unknown. Code 0: it is
    known that nothing costs money, or it was to be kept.
    """
    command = stop_command(data, provider)
    with _interruptible():
        try:
            listed = stop_running(data, provider, dry_run=True, installations=[])
            if listed.is_clear:
                say("Nothing of this installation runs at the provider.", *report_lines(listed, command))
                return 0
            say(*report_lines(listed, command))
            choice = on_exit or (_ask() if may_ask and listed.found else OnExit.STOP)
            if choice is OnExit.KEEP:
                say("Kept. Nothing watches its cost until `reasoning serve` runs again.")
                return 1 if listed.errors else 0
            say("Stopping it ... (Ctrl-C gives up)")
            report = stop_running(data, provider, installations=[])
        except KeyboardInterrupt:
            say("Given up. What runs at the provider is unknown.", f"Look: {command} --dry-run; stop it: {command}")
            return 130
        except (ReasoningError, OSError) as error:
            say(*_by_ledger(data), f"What runs at the provider is unknown: {error}")
            say(f"Look again: {command} --dry-run; stop it: {command}")
            return 1
        say(*report_lines(report, command))
        if report.is_clear:
            say("Stopped: nothing of this installation runs at the provider.")
        return 0 if report.is_clear else 1


def _by_ledger(data: Path) -> list[str]:
    """What the ledger says, where the provider does not answer."""
    from provider.lifecycle.status import running

    try:
        return [f"According to the ledger: {each['what']}: `{each['mend']}`" for each in running(data)]
    except Exception as error:
        return [f"The ledger does not know either: {error}"]


def _ask() -> OnExit:
    say(f"Stop it, or keep it running with nothing watching its cost? [stop/keep], stops in {ANSWER_SECONDS:g} s")
    try:
        ready, _, _ = select.select([sys.stdin], [], [], ANSWER_SECONDS)
        answer = sys.stdin.readline().strip().lower() if ready else ""
    except (KeyboardInterrupt, OSError, ValueError):
        return OnExit.STOP
    return OnExit.KEEP if answer in ("keep", "k") else OnExit.STOP


def in_terminal() -> bool:
    """Whether there is a person to ask."""
    try:
        return sys.stdin.isatty() and sys.stderr.isatty()
    except (AttributeError, ValueError):
        return False


def say(*lines: str) -> None:
    """To stderr. A terminal that is gone must not keep anything from being stopped."""
    for line in lines:
        with contextlib.suppress(OSError, ValueError):
            print_note(line)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise `KeyboardInterrupt`, SIGHUP is ignored: the terminal is gone, the money is not."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    handlers: dict[signal.Signals, Any] = dict.fromkeys((signal.SIGINT, signal.SIGTERM), interrupt)
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def folder_to_stop(data: Path | None) -> Path:
    """The data folder that is meant, whatever state it is in. The emulator of a running `serve` is taken too."""
    from cli.serve import served
    from reasoning.config import load_config
    from storage.layout import Layout

    try:
        folder = load_config(data).data
    except ReasoningError:  # a damaged reasoning.toml must not keep the money running
        if data is None:
            raise
        folder = data.absolute()
    Layout(folder).check()
    if emulator := served(folder).get("emulator"):
        use_emulator(emulator)
    return folder


def chosen_provider(option: str | None, data: Path) -> str:
    """The provider to stop at: as asked for, else the environment's, else the one that was served last, else local."""
    return option or provider_name() or last_provider(data) or "local"
