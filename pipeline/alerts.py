"""Alerts about money: each once, to whoever should know, without ever standing in the guard's way.

`REASONING_ALERT_URLS` names the channels, separated by spaces. They are secrets, so they come from the environment
alone, and reach no log, no report and no file. An `https://` URL gets a POST of Slack's form, `{"text": "..."}`
(`http://` only on this machine); any other is apprise's, such as `mailtos://` for SMTP (extra `alerts`).

Told are 50, 80 and 100 % of a budget, orphans, a guard that missed ticks, and models that could not be woken. What was
told is in `alerts.json` of the data folder. A channel that cannot be reached is tried again at the next tick.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from pipeline.exclusive import exclusive_run
from provider.lifecycle.guard_report import GuardReport
from provider.lifecycle.reconcile import ReconcileReport
from reasoning.errors import ReasoningError
from storage.files import write_atomic
from storage.ledger.ledger import Budget
from storage.ledger.money import format_usd
from storage.ledger.reports import period_bounds

SHARES = (0.5, 0.8, 1.0)
MISSED = timedelta(minutes=5)
"""A guard that runs every minute and was away for so long has missed ticks."""
TRIED = timedelta(days=1)
"""For so long an alert is sent again to a channel that could not be reached."""
KEPT = timedelta(days=400)
TIMEOUT_S = 5.0

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
log = logging.getLogger(__name__)

Alert = tuple[str, str]
"""What it is about, which is told once, and the text."""


def tell_guard(data: Path, report: GuardReport) -> list[str]:
    """Send what a tick of the guard found; returns the channels that could not be reached, by number. Never raises."""
    if report.skipped:
        return []
    found = [*budget_alerts(report.budgets, report.now), *wake_alerts(report.warnings, report.now)]
    return _tell(data, found, report.now, tick=True)


def tell_reconciliation(data: Path, report: ReconcileReport) -> list[str]:
    """Send what a reconciliation found, and that the guard is dead if it is. As `tell_guard`."""
    found = [(f"orphan: {each}", f"Orphan: {each}, stopped and charged.") for each in report.orphans]
    return _tell(data, found, report.now, tick=False)


def budget_alerts(budgets: Iterable[Budget], now: datetime) -> list[Alert]:
    """The highest share of each budget that is used. Limits of a rate are left out: they are no sum that fills."""
    found = []
    for budget in budgets:
        reached = max((share for share in SHARES if budget.fraction >= share), default=None)
        if budget.period == "hour" or reached is None or not budget.limit_usd:
            continue
        start, _ = period_bounds(budget.period, now)
        key = f"budget {budget.name} of {budget.limit_usd:f} since {start}: {reached:.0%}"
        used = f"{format_usd(budget.spent_usd)} of {format_usd(budget.limit_usd)}"
        found.append((key, f"Budget {budget.name}: {used} is spent ({budget.fraction:.0%})."))
    return found


def wake_alerts(warnings: Iterable[str], now: datetime) -> list[Alert]:
    """Models that were asked for and could not be started, once a day for each decision type."""
    refused = [each for each in warnings if "cannot be woken" in each]
    return [(f"wake of {each.split()[0]} on {now:%Y-%m-%d}", f"Not woken: {each}") for each in refused]


def _tell(data: Path, alerts: list[Alert], now: datetime, *, tick: bool) -> list[str]:
    channels = os.environ.get("REASONING_ALERT_URLS", "").split()
    if not channels:
        return []
    try:
        with exclusive_run(data, "alerts", "skip" if tick else "wait") as ours:
            return _tell_alone(data / "alerts.json", channels, alerts, now, tick=tick) if ours else []
    except (OSError, ReasoningError) as error:
        log.warning("alerts.json cannot be used, alerts may come twice or late: %s", type(error).__name__)
        return []


def _tell_alone(file: Path, channels: Sequence[str], alerts: list[Alert], now: datetime, *, tick: bool) -> list[str]:
    told, last = _read(file)
    if last is not None and now - last > MISSED:
        minutes = (now - last) / timedelta(minutes=1)
        text = f"The guard did not run for {minutes:.0f} minutes; costs were not watched."
        alerts.append((f"no guard since {last}", text))
    for key, text in alerts:
        told.setdefault(key, {"text": text, "at": now.isoformat(), "sent": []})
    failed: set[int] = set()
    for alert in told.values():
        fresh = now - datetime.fromisoformat(alert["at"]) < TRIED
        for number, url in enumerate(channels):
            if fresh and number not in alert["sent"] and number not in failed:
                if _send(url, f"custom-reasoning: {alert['text']}", number):
                    alert["sent"].append(number)
                else:
                    failed.add(number)
    at = now if tick else last
    kept = {key: alert for key, alert in told.items() if now - datetime.fromisoformat(alert["at"]) < KEPT}
    write_atomic(file, orjson.dumps({"guard_at": at.isoformat() if at else None, "told": kept}))
    return [f"alert channel {number + 1} cannot be reached" for number in sorted(failed)]


def _send(url: str, text: str, number: int) -> bool:
    """Send one text. What goes wrong is told by its class alone: messages of libraries quote URLs."""
    try:
        return _post(url, text) if url.startswith(("https://", "http://")) else _notify(url, text)
    except Exception as error:  # whatever a channel does, the guard goes on
        log.warning("alert channel %d: %s", number + 1, type(error).__name__)
        return False


def _post(url: str, text: str) -> bool:
    import httpx

    if url.startswith("http://") and urlsplit(url).hostname not in _LOOPBACK:
        raise ValueError("a webhook is https")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it logs every URL
    response = httpx.post(url, json={"text": text}, timeout=TIMEOUT_S, follow_redirects=False)
    if not response.is_success:
        log.warning("an alert was answered with HTTP %d", response.status_code)
    return response.is_success


def _notify(url: str, text: str) -> bool:
    try:
        import apprise
    except ImportError:
        log.warning("this alert channel needs apprise: pip install 'custom-reasoning[alerts]'")
        return False
    logging.getLogger("apprise").setLevel(logging.CRITICAL)  # its warnings quote hosts and users
    channel = apprise.Apprise()
    return bool(channel.add(url)) and bool(channel.notify(body=text, title="custom-reasoning: costs"))


def _read(file: Path) -> tuple[dict[str, dict[str, Any]], datetime | None]:
    """What was told, to which channels and when, and when the guard last ran. A file that cannot be read: nothing."""
    try:
        found = orjson.loads(file.read_bytes())
        last = datetime.fromisoformat(found["guard_at"]) if found["guard_at"] else None
        told = {
            str(key): {"text": str(each["text"]), "at": each["at"], "sent": list(each["sent"])}
            for key, each in found["told"].items()
            if datetime.fromisoformat(each["at"]).tzinfo is not None
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}, None
    return told, last
