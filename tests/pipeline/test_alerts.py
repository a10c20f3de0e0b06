"""Alerts about money: each once, to real channels, and never in the guard's way."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.alerts import tell_guard, tell_reconciliation
from pipeline.money import guard
from provider.lifecycle.guard_report import GuardReport
from provider.lifecycle.reconcile import ReconcileReport
from storage.ledger.ledger import Budget, open_ledger

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


class Webhook(ThreadingHTTPServer):
    """Takes Slack's messages; `status` is what it answers."""

    status = 200
    texts: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/services/SECRET-TOKEN"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert body.keys() == {"text"}
        if server.status == 200:
            server.texts.append(body["text"])
        self.send_response(server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    with Webhook(("127.0.0.1", 0), _Handler) as server:
        server.texts = []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("REASONING_ALERT_URLS", server.url)
        yield server
        server.shutdown()


def tick(data: Path, spent: str = "0", at: datetime = NOW, warnings: list[str] | None = None) -> list[str]:
    budget = Budget("day", None, Decimal(10), Decimal(spent), Decimal(0))
    hour = Budget("hour", None, Decimal(1), Decimal(0), Decimal(1))
    return tell_guard(data, GuardReport(now=at, budgets=[budget, hour], warnings=warnings or []))


def test_each_share_of_a_budget_is_told_once_a_period(tmp_path: Path, webhook: Webhook) -> None:
    for minute, spent in enumerate(["1", "5", "6", "8.5", "9", "10", "10.5", "10.5"]):
        tick(tmp_path, spent, NOW + minute * MINUTE)
    assert webhook.texts == [
        "custom-reasoning: Budget day: $5.00 of $10.00 is spent (50%).",
        "custom-reasoning: Budget day: $8.50 of $10.00 is spent (85%).",
        "custom-reasoning: Budget day: $10.00 of $10.00 is spent (100%).",
    ]
    tick(tmp_path, "5", NOW + timedelta(days=1))
    assert "$5.00 of $10.00" in webhook.texts[-1] or "did not run" in webhook.texts[-1]
    assert len(webhook.texts) == 5  # the next day's half, and the guard that was away


def test_a_guard_that_was_away_is_told_by_itself_or_by_the_reconciliation(tmp_path: Path, webhook: Webhook) -> None:
    tick(tmp_path)
    tick(tmp_path, at=NOW + 5 * MINUTE)
    assert webhook.texts == []
    for _ in range(2):
        tell_reconciliation(tmp_path, ReconcileReport(now=NOW + 20 * MINUTE))
    tick(tmp_path, at=NOW + 21 * MINUTE)
    assert webhook.texts == ["custom-reasoning: The guard did not run for 15 minutes; costs were not watched."]


def test_orphans_and_refused_wakes_are_told(tmp_path: Path, webhook: Webhook) -> None:
    report = ReconcileReport(now=NOW, orphans=["endpoint rsn-x-1 (ep-1)"])
    for _ in range(2):
        tell_reconciliation(tmp_path, report)
    for cost in ("1", "2"):
        tick(tmp_path, warnings=[f"planning is asked for again and cannot be woken: the day has ${cost} left"])
    assert webhook.texts == [
        "custom-reasoning: Orphan: endpoint rsn-x-1 (ep-1), stopped and charged.",
        "custom-reasoning: Not woken: planning is asked for again and cannot be woken: the day has $1 left",
    ]


@pytest.mark.parametrize("how", ["refused", "closed"])
def test_a_dead_channel_is_tried_again_and_its_url_is_told_nobody(
    tmp_path: Path, webhook: Webhook, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    if how == "closed":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}/services/SECRET-TOKEN"
        monkeypatch.setenv("REASONING_ALERT_URLS", url)
    webhook.status = 500
    tell_reconciliation(tmp_path, ReconcileReport(now=NOW, orphans=["endpoint rsn-x-1 (ep-1)"]))
    assert tick(tmp_path) == ["alert channel 1 cannot be reached"]
    assert "SECRET-TOKEN" not in caplog.text + (tmp_path / "alerts.json").read_text()
    webhook.status = 200
    monkeypatch.setenv("REASONING_ALERT_URLS", webhook.url)
    assert tick(tmp_path, at=NOW + MINUTE) == []
    assert len(webhook.texts) == 1 and "Orphan" in webhook.texts[0]


@pytest.mark.parametrize("url", ["http://example.com/hook", "nonsense://x", "https://", "mailto://"])
def test_a_channel_that_is_none_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("REASONING_ALERT_URLS", url)
    assert tick(tmp_path, "9") == ["alert channel 1 cannot be reached"]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"guard_at": 1, "told": 2}', b'{"guard_at": null, "told": {"a": {}}}']
)
def test_a_damaged_file_costs_an_alert_twice_at_most(tmp_path: Path, webhook: Webhook, content: bytes) -> None:
    tick(tmp_path, "5")
    (tmp_path / "alerts.json").write_bytes(content)
    assert tick(tmp_path, "5") == [] and len(webhook.texts) == 2


def test_mail_goes_by_smtp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("apprise")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        mails: list[str] = []
        thread = threading.Thread(target=_serve_mail, args=(listener, mails), daemon=True)
        thread.start()
        port = listener.getsockname()[1]
        url = f"mailto://127.0.0.1:{port}?from=guard@example.com&to=you@example.com&mode=insecure"
        monkeypatch.setenv("REASONING_ALERT_URLS", url)
        assert tick(tmp_path, "8") == []
        thread.join(5)
    assert "Subject: custom-reasoning: costs" in mails[0] and "$8.00 of $10.00" in mails[0]


def _serve_mail(listener: socket.socket, mails: list[str]) -> None:
    """One SMTP session (RFC 5321)."""
    connection, _ = listener.accept()
    with connection, connection.makefile("rwb") as stream:

        def say(line: str) -> None:
            stream.write(line.encode() + b"\r\n")
            stream.flush()

        say("220 test")
        while line := stream.readline():
            command = line[:4].upper()
            if command == b"DATA":
                say("354 go on")
                lines = list(iter(stream.readline, b".\r\n"))
                mails.append(b"".join(lines).decode())
            elif command == b"QUIT":
                say("221 bye")
                return
            say("250 ok")


def test_the_guards_tick_tells_after_its_work_and_ends_well_with_a_dead_channel(
    tmp_path: Path, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REASONING_PROVIDER", "emulator")
    monkeypatch.setenv("REASONING_PROVIDER_URL", "http://127.0.0.1:9")
    data = tmp_path / "data"
    with open_ledger(data) as ledger:
        ledger.set_budget("total", "1")
        ledger.charge("tokens", "0.60", what="a test", key="k", now=NOW)
    guard(data, now=NOW)
    assert [text.split("total")[1] for text in webhook.texts] == [": $0.60 of $1.00 is spent (60%)."]
    webhook.status = 500
    with open_ledger(data) as ledger:
        ledger.charge("tokens", "0.30", what="a test", key="k2", now=NOW)
    report = guard(data, now=NOW + MINUTE)
    assert "alert channel 1 cannot be reached" in report.warnings and report.budgets
