"""What a budget buys, and budgets that contradict each other."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from pipeline.economy.budgets import Machine, describe_purchase, inconsistencies
from storage.ledger.charges import Period
from storage.ledger.ledger import Budget, open_ledger

MACHINE = Machine(Decimal("5.49"), "list price", 5)


@pytest.mark.parametrize(
    ("period", "usd", "says"),
    [
        (
            "day",
            "20",
            "3.6 h of one replica ($5.49 an hour, list price); shared by 5 types, 18.2 h of serving",
        ),
        ("month", "100", "18.2 h of one replica ($5.49 an hour, list price), 0.6 h a day; shared by"),
        ("hour", "12", "2 replicas at once"),
        ("hour", "5", "0 replicas at once"),
    ],
)
def test_what_an_amount_buys(period: Period, usd: str, says: str) -> None:
    assert says in describe_purchase(period, Decimal(usd), MACHINE)


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({("hour", None): "12", ("day", None): "25", ("month", None): "800"}, []),
        ({("day", None): "25", ("month", None): "100"}, ["month: $100.00 lasts 4 days at $25.00 a day"]),
        ({("day", None): "25", ("month", None): "20"}, ["day: $25.00 never binds, the month has $20.00"]),
        ({("hour", None): "30", ("day", None): "25"}, ["hour: $30.00 an hour spends the day's $25.00 within one hour"]),
        ({("hour", None): "6", ("day", None): "200"}, ["day: $200.00 never binds, $6.00 an hour allow $144.00"]),
        ({("hour", None): "3"}, ["hour: $3.00 buys no replica, one costs $5.49"]),
        (
            {("total", None): "50", ("month", None): "60"},
            ["month: $60.00 never binds, $50.00 is all that may be spent"],
        ),
        (
            {("day", None): "5", ("day", "planning"): "6"},
            ["day of planning: $6.00 is more than $5.00 for all types together"],
        ),
        (
            {("day", None): "5", ("day", "planning"): "4", ("day", "coding"): "3"},
            ["day: the types' budgets come to $7.00 together, more than the $5.00 of all"],
        ),
    ],
)
def test_contradictions_are_named(limits: dict[tuple[Period, str | None], str], says: list[str]) -> None:
    zero = Decimal(0)
    budgets = [Budget(period, kind, Decimal(usd), zero, zero) for (period, kind), usd in limits.items()]
    assert inconsistencies(budgets, MACHINE) == says


def test_the_command_prints_both(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "data"):
        pass
    found = CliRunner().invoke(app, ["costs", "set-budget", "20", "--period", "day", "--data", str(tmp_path / "data")])
    assert found.exit_code == 0, found.output
    assert "day budget: $20.00\nbuys 5 h of one replica ($3.99 an hour, docs.together.ai" in found.output
    assert "note: month: $100.00 lasts 5 days at $20.00 a day" in found.output
