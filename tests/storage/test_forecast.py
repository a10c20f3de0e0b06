"""The forecast: what the guard would stop, and when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.ledger.forecast import HORIZON, forecast_spend
from storage.ledger.ledger import Budget, Period

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
MONTH_END = datetime(2026, 12, 1, tzinfo=UTC)


def budget(period: Period, limit: str, spent: str = "0", decision_type: str | None = None) -> Budget:
    return Budget(period, decision_type, Decimal(limit), Decimal(spent), Decimal(0))


def forecast(*budgets: Budget, usd: dict[str | None, int], owed: Any = None, until: datetime | None = MONTH_END):  # type: ignore[no-untyped-def]
    rates = {kind: Decimal(rate) for kind, rate in usd.items()}
    spent, exhausted = forecast_spend(budgets, rates, owed or {}, now=NOON, until=until)
    return round(spent, 6), exhausted


def test_without_a_budget_what_runs_goes_on() -> None:
    assert forecast(usd={"planning": 6}, until=NOON + timedelta(hours=12)) == (72, [])
    assert forecast(budget("hour", "1"), usd={None: 6}) == (6 * (12 + 24 * 8), [None])


def test_a_spent_budget_ends_what_it_covers_and_that_does_not_begin_again() -> None:
    spent, (day,) = forecast(budget("day", "25", "7"), usd={"planning": 6})
    assert (spent, day) == (18, NOON + timedelta(hours=3))
    assert forecast(budget("day", "25", "30"), usd={"planning": 6}) == (0, [NOON])
    assert forecast(budget("total", "0"), usd={}) == (0, [NOON])


def test_a_day_begins_anew_at_midnight() -> None:
    spent, (day,) = forecast(budget("day", "100"), usd={None: 5})  # 60 today, 120 a whole day
    assert (spent, day) == (160, NOON + timedelta(hours=12 + 20))
    assert forecast(budget("day", "120"), usd={None: 4})[1] == [None]


def test_the_month_begins_anew_on_the_first() -> None:
    _, (month,) = forecast(budget("month", "300"), usd={None: 1})  # 204 this month; December has 744 hours
    assert month == MONTH_END + timedelta(hours=300)


def test_a_budget_of_one_type_leaves_the_others_running() -> None:
    budgets = budget("day", "20", "0", "planning"), budget("total", "50")
    spent, (planning, total) = forecast(*budgets, usd={"planning": 10, "coding": 2})
    assert planning == NOON + timedelta(hours=2)
    assert total == NOON + timedelta(hours=2 + 13)  # 24 by then, and 26 of coding alone
    assert spent == 50


def test_what_another_budget_stops_before_exhausts_no_other() -> None:
    _, (day, total) = forecast(budget("day", "6"), budget("total", "1000"), usd={None: 6})
    assert (day, total) == (NOON + timedelta(hours=1), None)


def test_jobs_under_way_are_owed_and_count() -> None:
    spent, (day,) = forecast(budget("day", "10", "1"), usd={"planning": 5}, owed={"planning": Decimal(4)})
    assert (spent, day) == (9, NOON + timedelta(hours=1))


def test_the_guard_drains_before_the_limit() -> None:
    spent, (day,) = forecast_spend(
        [budget("day", "10")], {None: Decimal(5)}, {}, now=NOON, until=MONTH_END, drain_share=0.9
    )
    assert (round(spent, 6), day) == (9, NOON + timedelta(hours=1, minutes=48))


BUDGETS = st.lists(
    st.builds(
        Budget,
        st.sampled_from(["hour", "day", "month", "total"]),
        st.sampled_from([None, "planning", "coding"]),
        st.decimals(0, 1000, places=2),
        st.decimals(0, 1000, places=9),
        st.just(Decimal(0)),
    ),
    max_size=5,
)


@given(BUDGETS, st.dictionaries(st.sampled_from([None, "planning", "coding"]), st.decimals(0, 100, places=9)))
def test_it_comes_to_an_end_and_exceeds_no_budget(budgets: list[Budget], rates: dict[str | None, Decimal]) -> None:
    spent, exhausted = forecast_spend(budgets, rates, {}, now=NOON, until=NOON + timedelta(hours=12))
    assert 0 <= spent <= sum(rates.values()) * 12 + Decimal("1e-6")
    for each, at in zip(budgets, exhausted, strict=True):
        assert at is None or NOON <= at <= NOON + HORIZON
        if each.period != "hour" and each.decision_type is None:
            assert spent <= max(each.limit_usd - each.spent_usd, Decimal(0)) + Decimal("1e-6")


@pytest.mark.parametrize("rate", ["0.000000001", "99999999"])
def test_odd_rates_end_too(rate: str) -> None:
    _, (total,) = forecast_spend([budget("total", "0.01")], {None: Decimal(rate)}, {}, now=NOON, until=None)
    assert (total is None) == (rate == "0.000000001")
