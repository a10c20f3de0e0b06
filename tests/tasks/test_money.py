"""What the guard's task publishes for people: where the money is and goes, at every tick."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from provider.guard import GuardReport
from storage.ledger import open_ledger
from storage.money import to_nano
from tasks.reports import hide, markdown, text

NOW = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found: dict[str, Any] = {}
    monkeypatch.setattr("tasks.money_tasks.publish", lambda key, report, *, title: found.update({key: report}))
    for name in ("REASONING_PROVIDER", "REASONING_PROVIDER_URL", "REASONING_LEDGER_URL"):
        monkeypatch.delenv(name, raising=False)
    return found


def test_the_guard_publishes_costs_budgets_and_models(tmp_path: Path, published: dict[str, Any]) -> None:
    from tasks.money_tasks import guard  # with Prefect, which takes two seconds

    with open_ledger(tmp_path, now=NOW) as ledger:
        model = ledger.add(
            "models", state="promoted", base_model="b", model_object_id="ml_1", decision_type="planning", now=NOW
        )
        deployment = ledger.add(
            "deployments",
            state="intended",
            name="d",
            model_id=model["id"],
            decision_type="planning",
            hourly_nano=to_nano("6"),
            max_replicas=1,
            model_object_id="ml_1",
            config="c",
            hardware="h",
            now=NOW,
        )
        for state in ("provisioning", "ready"):
            ledger.transition("deployments", deployment["id"], state, replicas=1, metered_until=NOW, now=NOW)
    guard.fn(tmp_path, idle_minutes=None, lease_minutes=3, now=NOW)
    assert set(published) == {"guard", "costs", "costs-by-model", "budgets", "models"}
    hour, day, month = published["budgets"]
    assert (day["period"], day["used"], list(day)[5:7]) == ("day", "0.0%", ["used", "exhausted_at"])
    assert (hour["exhausted_at"], day["exhausted_at"]) == (None, NOW + timedelta(hours=23.75 / 6))  # 95 % of 25
    assert month["exhausted_at"] is None  # the day's ends it before
    assert published["costs"]["forecast_usd"] == Decimal("23.75")
    (status,) = published["models"]
    assert list(status)[:4] == ["model_id", "decision_type", "state", "enabled"]
    assert status["hourly_usd"] == 6


def test_a_report_is_told_in_times_and_money_that_people_read() -> None:
    report = GuardReport(now=NOW, charged_usd=Decimal("0.091500001"), errors=["no|good"])
    assert markdown(hide(report, "budgets", "skipped")).splitlines() == [
        "| what | value |",
        "| --- | --- |",
        "| now | 2026-11-22 12:00:00 |",
        "| level | ok |",
        "| charged usd | 0.0915 |",
        "| errors | no\\|good |",
        "| lease | none |",
    ]
    assert [text(value) for value in (None, True, 1234, 1 / 3, [NOW], {"a": Decimal(4)})] == [
        "",
        "yes",
        "1,234",
        "0.3333",
        "2026-11-22 12:00:00",
        "a 4",
    ]
