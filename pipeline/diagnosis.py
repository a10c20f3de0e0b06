"""How things stand, a line each: ok, or a warning or failure with what to do about it.

`look_at_state` is what `reasoning status` shows: it asks nobody but this machine. `look_at_machine` and
`look_at_provider` come with `reasoning doctor`. A check that fails itself is a failure with its error, so that one
broken part never hides the others.
"""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import duckdb

import storage
from pipeline.cycle import why_no_cycle
from pipeline.economy.budgets import inconsistencies, machine_of
from prices.settings import load_prices
from provider.lifecycle.status import alerts, cost_report, model_status
from provider.providers import open_provider
from provider.settings import provider_name
from quality.dataset.readiness import LIMITED_BELOW, NARROW_EPISODES
from quality.dataset.statistics import summarize_log
from reasoning.config import data_source, load_config, settings_file
from reasoning.errors import ReasoningError, RoutesError
from reasoning.serving.routes import read_routes
from storage.layout import Layout
from storage.ledger.ledger import open_ledger
from storage.ledger.money import format_usd
from storage.log.search import spooled_decisions

Level = Literal["ok", "warn", "fail"]

_LOW_BYTES, _NO_BYTES = 5 << 30, 500 << 20
_LATE = timedelta(hours=2)
"""Landing runs every few minutes: a sealed segment that old waits for nobody."""
_CLOCK_AHEAD = timedelta(minutes=2)
_CLOCK_WARN, _CLOCK_FAIL = 30, 300
"""Seconds by which this machine's clock and the provider's may differ."""
_PACKAGES = ("custom-reasoning", "duckdb", "pyarrow", "sqlalchemy", "prefect", "together")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, and what to do where it is not `ok`."""

    name: str
    level: Level
    text: str
    remedy: str = ""


Check = Callable[[Path], Iterable[Finding]]


def look_at_state(
    data: Path, *, given: Path | None = None, quick: bool = False, now: datetime | None = None
) -> list[Finding]:
    """The state of a data folder, from its files. `given` is the folder that was named on the command line.

    `quick` leaves out what has to read the whole log.
    """
    now = now or datetime.now(UTC)
    checks: list[tuple[str, Check]] = [
        ("settings", lambda data: _settings(data, given)),
        ("agents", lambda data: _agents(data, now)),
        ("landing", lambda data: _landing(data, now)),
        ("decisions", lambda data: _readiness(data, now)),
        ("cycle", _cycles),
        ("routes", lambda data: _routes(data, now)),
        ("models", _models),
        ("budget", _budgets),
        ("money", lambda data: [Finding("money", "warn", each) for each in alerts(data, now=now)]),
    ]
    slow = ("decisions", "cycle") if quick else ()
    return [finding for name, check in checks if name not in slow for finding in _guarded(name, check, data)]


def look_at_machine(data: Path) -> list[Finding]:
    """This machine: disk, versions, GPU."""
    checks: list[tuple[str, Check]] = [("disk", _disk), ("versions", _versions), ("gpu", _gpu)]
    return [finding for name, check in checks for finding in _guarded(name, check, data)]


def look_at_provider(data: Path) -> list[Finding]:
    """Whether the provider answers, and takes the key. Asks it, for nothing."""
    return list(_guarded("provider", _provider, data))


def _guarded(name: str, check: Check, data: Path) -> Iterator[Finding]:
    try:
        yield from check(data)
    except (ReasoningError, OSError, duckdb.Error) as error:
        first, _, rest = str(error).partition("; ")
        yield Finding(name, "fail", first, rest)


def _settings(data: Path, given: Path | None) -> Iterator[Finding]:
    file = settings_file()
    if file.exists():
        yield Finding("settings", "ok", f"read {file.absolute()}")
    else:
        yield Finding("settings", "warn", f"no {file.name} here: defaults hold", "`reasoning init` writes one")
    source = data_source(given)
    if source == "default":
        yield Finding(
            "data folder",
            "warn",
            f"{data} (by default: it depends on the folder that a command is started in)",
            f"have agents and `serve` use one: REASONING_DATA={data}, or `data` in reasoning.toml",
        )
    else:
        yield Finding("data folder", "ok", f"{data} (by {source})")
    if data.stat().st_mode & 0o007:
        yield Finding("rights", "warn", f"other users of this machine may enter {data}", f"chmod -R go= {data}")
    keys = load_config(given).keys
    for bound in keys:
        if bound.key is None:
            yield Finding(
                "keys", "warn", f"{bound.variable} is not set ([keys])", f"set it to the key of {bound.urls[0]}"
            )


def _agents(data: Path, now: datetime) -> Iterator[Finding]:
    found = storage.sql(
        data, "SELECT coalesce(agent_id, '(no agent_id)'), count(*), max(ts) FROM decisions GROUP BY 1 ORDER BY 1"
    )
    seen: dict[str, tuple[int, datetime]] = {name: (count, last) for name, count, last in found.rows}
    for row in spooled_decisions(data):
        name = row.get("agent_id") or "(no agent_id)"
        count, last = seen.get(name, (0, row["ts"]))
        seen[name] = (count + 1, max(last, row["ts"]))
    if not seen:
        yield Finding(
            "agents",
            "warn",
            "no decision is in this folder yet",
            f"start one with REASONING_DATA={data}, or send it through the gateway (`reasoning init`)",
        )
    for name, (count, last) in sorted(seen.items()):
        yield Finding("agents", "ok", f"{name}: {count:,} answers, the latest {_ago(now - last)}")
    newest = max((last for _, last in seen.values()), default=now)
    if newest > now + _CLOCK_AHEAD:
        ahead = _ago(newest - now).removesuffix(" ago")
        yield Finding("clock", "warn", f"an agent's clock is {ahead} ahead of this machine's", "set both by NTP")


def _landing(data: Path, now: datetime) -> Iterator[Finding]:
    layout = Layout(data)
    waiting = sorted(layout.spool.glob("*.seal"))
    oldest = min((each.stat().st_mtime for each in waiting), default=now.timestamp())
    quarantined = len(list(layout.quarantine.glob("*.jsonl")))
    late = now.timestamp() - oldest > _LATE.total_seconds()
    yield Finding(
        "landing",
        "warn" if late else "ok",
        f"{len(waiting)} segments wait to be landed, {len(list(layout.spool.glob('*.open')))} are being written",
        "nobody lands: `reasoning serve`, or `reasoning land`" if late else "",
    )
    if quarantined:
        yield Finding(
            "quarantine",
            "warn",
            f"{quarantined} files of lines that could not be landed",
            "look at them; `reasoning reland`",
        )


def _readiness(data: Path, now: datetime) -> Iterator[Finding]:
    for each in summarize_log(data, now=now):
        labels = each.verdict.rows
        text = (
            f"{each.decision_type}: {each.questions:,} questions, {labels:,} of {LIMITED_BELOW} labelled, "
            f"{each.verdict.episodes:,} of {NARROW_EPISODES} episodes: {each.verdict.level}"
        )
        fit = each.verdict.level in ("Good", "Excellent", "Limited")
        yield Finding("decisions", "ok" if fit else "warn", text, "" if fit else " ".join(each.verdict.advice))


def _cycles(data: Path) -> Iterator[Finding]:
    declared = load_config(data).decision_types
    found = storage.sql(data, "SELECT DISTINCT decision_type FROM decisions ORDER BY 1")
    for (name,) in found.rows:
        if name not in declared:
            yield Finding(
                "cycle",
                "warn",
                f"{name} is in the log and not declared",
                f"add [decision_types.{name}] to reasoning.toml",
            )
            continue
        why = why_no_cycle(data, name)
        yield Finding("cycle", "ok", f"{name}: " + ("due now" if why is None else f"not due: {why}"))


def _routes(data: Path, now: datetime) -> Iterator[Finding]:
    try:
        routes = read_routes(Layout(data).routes)
    except FileNotFoundError:
        yield Finding("routes", "ok", "none: the fallback answers everything")
        return
    except RoutesError as error:
        yield Finding("routes", "fail", str(error), "the fallback answers everything; `reasoning guard` writes it anew")
        return
    names = ", ".join(sorted(routes.routes)) or "none"
    if routes.in_force(now):
        yield Finding("routes", "ok", f"{names}: in force until {routes.expires_at:%Y-%m-%d %H:%M:%SZ}")
    elif routes.routes:
        yield Finding(
            "routes",
            "warn",
            f"{names}: the lease ended {_ago(now - routes.expires_at)}, the fallback answers",
            "the guard does not run: `reasoning serve`, or `reasoning guard`",
        )
    else:
        yield Finding("routes", "ok", "none: the fallback answers everything")


def _models(data: Path) -> Iterator[Finding]:
    rows = model_status(data)
    if not rows:
        yield Finding("models", "ok", "none yet")
    for row in rows:
        price = Decimal(row["hourly_usd"] or 0)
        runs = row["deployment_state"] or "none"
        text = f"{row['model_id']} of {row['decision_type']}: {row['state']}, deployment {runs}"
        text += f", {format_usd(price)} an hour" if price else ""
        unknown = row["deployment_state"] == "unknown"
        yield Finding("models", "warn" if unknown else "ok", text, "`reasoning reconcile`" if unknown else "")


def _budgets(data: Path) -> Iterator[Finding]:
    costs = cost_report(data)
    hourly = sum((Decimal(row["hourly_usd"] or 0) for row in model_status(data)), Decimal(0))
    with open_ledger(data) as ledger:
        machine = machine_of(ledger, load_prices().serving)
        contradictions = inconsistencies(ledger.budgets(), machine)
    if not costs["budgets"]:
        costly = provider_name() != "local"
        yield Finding(
            "budget",
            "warn" if costly else "ok",
            "none: nothing is limited",
            "`reasoning costs set-budget 25 --period month`" if costly else "",
        )
    for budget in costs["budgets"]:
        left = Decimal(budget["left_usd"])
        of = f" of {budget['decision_type']}" if budget["decision_type"] else ""
        text = f"{budget['period']}{of}: {format_usd(left)} of {format_usd(Decimal(budget['limit_usd']))} left"
        if hourly > 0:
            text += f", {left / hourly:,.1f} h of what runs"
        elif machine is not None:
            text += f", {left / machine.hourly_usd:,.1f} h of a replica"
        yield Finding(
            "budget", "ok" if left > 0 else "warn", text, "" if left > 0 else "raise it, or wait for the period's end"
        )
    for each in contradictions:
        yield Finding("budget", "warn", each, "`reasoning costs set-budget`")


def _disk(data: Path) -> Iterator[Finding]:
    usage = shutil.disk_usage(data)
    level: Level = "fail" if usage.free < _NO_BYTES else "warn" if usage.free < _LOW_BYTES else "ok"
    text = f"{usage.free / (1 << 30):,.1f} GiB free of {usage.total / (1 << 30):,.0f} GiB"
    yield Finding(
        "disk", level, text, "" if level == "ok" else "free some, or set [retention]: a full disk loses records"
    )


def _versions(data: Path) -> Iterator[Finding]:
    found = [f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} is not installed")
    old = sys.version_info < (3, 11)
    yield Finding("versions", "fail" if old else "ok", ", ".join(found), "use Python 3.11 or newer" if old else "")


def _gpu(data: Path) -> Iterator[Finding]:
    cards = []
    for card in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = card.read_text().splitlines()
        cards += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    if not cards and platform.system() == "Darwin" and platform.machine() == "arm64":
        cards = ["of this Mac"]
    yield Finding(
        "gpu", "ok", ", ".join(cards) or "none found: models are trained and run on the CPU, or at a provider"
    )


def _provider(data: Path) -> Iterator[Finding]:
    """Opening and listing needs the right key. A clock that is off makes records late and bills wrong."""
    name = provider_name()
    with open_provider(data, timeout=10) as provider:
        endpoints = provider.endpoints()
        yield Finding("provider", "ok", f"{name} answers and takes the key; {len(endpoints)} endpoints there")
        theirs = provider.time()
    if theirs is not None:
        off = abs((datetime.now(UTC) - theirs).total_seconds())
        level: Level = "ok" if off < _CLOCK_WARN else "warn" if off < _CLOCK_FAIL else "fail"
        remedy = "" if level == "ok" else "set this machine's clock by NTP: charges go by the provider's"
        yield Finding("clock", level, f"{off:,.0f} s off the provider's clock", remedy)


def _ago(age: timedelta) -> str:
    seconds = max(age.total_seconds(), 0)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
