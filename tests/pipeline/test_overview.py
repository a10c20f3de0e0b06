"""What a decision type costs today and this month, and what a model saves: from the ledger and the log."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from pipeline.economy.overview import NO_TYPE, costs_now
from storage.ledger.charges import ChargedTo
from storage.ledger.ledger import open_ledger
from storage.log.land import land_decisions
from tests.pipeline.workloads import NOW, Recorded, record
from tests.storage.logs import make_decision, write_segment


def test_serving_training_and_savings_by_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reasoning.toml").touch()
    monkeypatch.setenv("REASONING_CONFIG", str(tmp_path / "reasoning.toml"))
    now = NOW + timedelta(hours=10)
    data = record(tmp_path / "data", Recorded(decision_type="planning", per_hour=10, days=2, cost_usd=0.01))
    write_segment(data, [make_decision(NOW, decision_type="planning", source="custom") for _ in range(50)])
    land_decisions(data)
    with open_ledger(data) as ledger:
        of = ChargedTo(decision_type="planning")
        yesterday, before = NOW - timedelta(hours=3), NOW - timedelta(days=40)
        ledger.charge("endpoint", "0.20", key="a", what="minutes", of=of, now=now)
        ledger.charge("endpoint", "0.05", key="b", what="minutes", of=of, now=yesterday)
        ledger.charge("training", "0.10", key="c", what="a job", of=of, now=yesterday)
        ledger.charge("training", "9", key="d", what="a job", of=of, now=before)
        ledger.charge("endpoint", "0.07", key="e", what="idle minutes", now=now)
    planning, idle = costs_now(data, now=now)
    assert (planning.serving_today_usd, planning.serving_month_usd) == (Decimal("0.20"), Decimal("0.25"))
    assert (planning.training_month_usd, planning.by_models) == (Decimal("0.10"), 50)
    assert planning.saved_month_usd == Decimal("0.50") - Decimal("0.25") - Decimal("0.10")
    assert planning.fallback_month_usd == Decimal("4.8") and planning.fallback_unknown == 0
    assert (idle.decision_type, idle.serving_today_usd, idle.saved_month_usd) == (NO_TYPE, Decimal("0.07"), None)
