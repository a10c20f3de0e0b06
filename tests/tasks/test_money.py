"""What the guard's task publishes for people: where the money is and goes, at every tick."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.money import guard as watch
from pipeline.money import reconcile
from pipeline.reports import budget_rows, cost_fields, cost_rows, markdown, text, to_jsonable, without
from provider.errors import ProviderSettingsError
from provider.lifecycle.guard_report import GuardReport
from provider.lifecycle.status import cost_report, model_status
from storage.ledger.charges import ChargedTo
from storage.ledger.ledger import open_ledger
from storage.ledger.rows import Deployment, FineTuneJob, Model
from tasks.runs import publish

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
            Model, state="promoted", base_model="b", model_object_id="ml_1", decision_type="planning", now=NOW
        )
        deployment = ledger.add(
            Deployment,
            state="intended",
            name="d",
            model_id=model.id,
            decision_type="planning",
            hourly_usd=Decimal("6"),
            max_replicas=1,
            model_object_id="ml_1",
            config="c",
            hardware="h",
            now=NOW,
        )
        for state in ("provisioning", "ready"):
            ledger.transition(Deployment, deployment.id, state, replicas=1, metered_until=NOW, now=NOW)
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
    assert markdown(without(report, "budgets", "skipped")).splitlines() == [
        "| what | value |",
        "| --- | --- |",
        "| now | 2026-11-22 12:00:00Z |",
        "| level | ok |",
        "| charged usd | 0.0915 |",
        "| errors | no\\|good |",
        "| lease | none |",
    ]
    assert [text(Decimal(usd)) for usd in ("1e-9", "-0.00001", "0E-8", "1234.50")] == [
        "0.000000001",
        "-0.00001",
        "0",
        "1,234.5",
    ]
    assert to_jsonable([Decimal("1E-9"), Decimal("0E-8")]) == ["0.000000001", "0.00000000"]
    assert [text(value) for value in (None, True, 1234, 1 / 3, [NOW], {"a": Decimal(4)})] == [
        "",
        "yes",
        "1,234",
        "0.3333",
        "2026-11-22 12:00:00Z",
        "a 4",
    ]


def test_a_time_without_a_zone_is_not_taken_for_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert text(datetime(2026, 1, 1)) == "2026-01-01 00:00:00"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_kind_of_charge_and_the_budget_of_all_types_have_the_names_that_people_know() -> None:
    assert cost_fields({"total_usd": 4, "by_kind_usd": {"training": 4}, "models": [], "budgets": []}) == {
        "total_usd": 4,
        "training_usd": 4,
    }
    budget = {"period": "day", "decision_type": None, "used_fraction": 0.5, "exhausted_at": None, "left_usd": 1}
    assert budget_rows([budget])[0]["decision_type"] == "all"


def test_function_table_json_and_artifacts_say_the_same_figures(
    tmp_path: Path, published: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cli.main import app
    from tasks.money_tasks import guard

    now = datetime.now(UTC)
    with open_ledger(tmp_path, now=now) as ledger:
        ledger.set_budget("day", "35.5", "planning")
        model = ledger.add(
            Model, state="trained", base_model="b/1", model_object_id="ml_1", decision_type="planning", now=now
        ).id
        for number, (kind, usd) in enumerate([("training", "4"), ("endpoint", "1.830000001"), ("adjustment", "-0.25")]):
            ledger.charge(
                kind,  # type: ignore[arg-type]
                usd,
                key=str(number),
                what=kind,
                quantity=20 if kind == "endpoint" else None,
                now=now,
                of=ChargedTo(decision_type="planning", model_id=model),
            )
        ledger.charge("tokens", "0.123456789", key="t", what="tokens", now=now, of=ChargedTo(decision_type="coding"))
        ledger.reserve("2.2", purpose="next", decision_type="coding", now=now)

    def asked(*command: str) -> str:
        shown = CliRunner().invoke(app, [*command, "--data", str(tmp_path)], catch_exceptions=False)
        assert shown.exit_code == 0, shown.output
        return str(shown.stdout)

    def table(title: str, shown: str) -> list[list[str]]:
        lines = [line.strip() for line in shown.splitlines()]
        rows = lines[lines.index(title) + 4 :]  # an empty line, the columns, a rule
        return [re.split(r" {2,}", row) for row in takewhile(bool, rows)]

    monkeypatch.setattr("tasks.money_tasks.money.guard", lambda *_, **__: GuardReport(now=now))
    guard.fn(tmp_path, idle_minutes=None, lease_minutes=3, now=now)
    costs, (status,) = cost_report(tmp_path, now=now), model_status(tmp_path, now=now)
    assert costs["total_usd"] == Decimal("5.703456790")
    moving = {"now"}  # by the moment of asking
    as_json = json.loads(asked("costs", "report", "--json"))
    assert {key: value for key, value in as_json.items() if key not in moving} == {
        key: value for key, value in to_jsonable(costs).items() if key not in moving
    }
    assert published["costs"] == cost_fields(costs)
    assert published["costs-by-model"] == cost_rows(costs["models"]) == costs["models"]
    assert published["budgets"] == budget_rows(costs["budgets"])
    (json_status,) = json.loads(asked("models", "list", "--json"))
    assert json_status == to_jsonable(status) == to_jsonable(published["models"][0])
    assert Decimal(json_status["cost_usd"]) == Decimal("5.580000001") == costs["models"][0]["total_usd"]

    shown = asked("costs", "report")
    assert table("Budgets", shown) == [
        [text(value) for value in row.values() if value is not None] for row in published["budgets"]
    ]
    assert "5.7035" in shown and "5.7035" in markdown(published["costs"])
    (line,) = table("Models", asked("models", "list"))
    assert line[-1] == text(status["cost_usd"])


def test_the_columns_of_an_artifact_are_named_as_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}
    monkeypatch.setattr("tasks.runs.create_table_artifact", lambda rows, *, key, description: made.update({key: rows}))
    publish("models", [{"cost_usd": Decimal("5.49")}], title="The models")
    assert made == {"models": [{"cost usd": "5.49"}]}


def test_what_is_at_another_provider_than_the_settings_name_is_not_held_for_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings name this machine, by default; a job and a deployment that cost money are at Together."""
    for name in ("REASONING_PROVIDER", "REASONING_PROVIDER_URL", "REASONING_LEDGER_URL"):
        monkeypatch.delenv(name, raising=False)
    job = {"suffix": "rsn-1", "remote_id": "ft-1", "base_model": "Qwen/Q", "parameters": "{}", "estimate_usd": 4}
    served = {"model_object_id": "ml_1", "config": "c", "hardware": "h", "hourly_usd": 6, "max_replicas": 1}
    with open_ledger(tmp_path, now=NOW) as ledger:
        trains = ledger.add(FineTuneJob, state="running", now=NOW, **job)
    for add_deployment in (False, True):
        if add_deployment:
            with open_ledger(tmp_path) as ledger:
                ledger.transition(FineTuneJob, trains.id, "failed")
                runs = ledger.add(Deployment, state="ready", name="d", replicas=1, now=NOW, **served)
        report = watch(tmp_path, now=NOW + timedelta(hours=1))
        assert "set REASONING_PROVIDER=together" in str(report.errors)
        with pytest.raises(ProviderSettingsError, match="set REASONING_PROVIDER=together"):
            reconcile(tmp_path, now=NOW + timedelta(hours=1))
        with open_ledger(tmp_path) as ledger:
            if add_deployment:
                assert ledger.get(Deployment, runs.id).state not in ("stopped", "deleted")  # what it costs goes on
            else:
                assert ledger.get(FineTuneJob, trains.id).state == "running"
