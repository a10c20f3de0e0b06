"""Money, from the ledger: spent, running, forecast, budgets, by type; and whether a model pays."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import storage
from console.request import Request, Response, render
from pipeline.economy.overview import costs_now
from pipeline.reports import budget_rows
from provider.lifecycle.status import alerts, cost_report, running

DAYS = 30
_BY_DAY = """
SELECT ts::DATE AS day, kind, sum(amount_usd)::DECIMAL(38, 9) FROM costs WHERE ts >= $since AND ts <= $now GROUP BY ALL
"""


def page(request: Request) -> Response:
    """The page."""
    since = (request.now - timedelta(days=DAYS - 1)).replace(hour=0, minute=0, second=0, microsecond=0)

    def fetch(log: Any) -> list[tuple[Any, ...]]:
        return list(log.execute(_BY_DAY, {"since": since, "now": request.now}).fetchall())

    days = [(since + timedelta(days=number)).date() for number in range(DAYS)]
    series = {"training": dict.fromkeys(days, Decimal(0)), "serving": dict.fromkeys(days, Decimal(0))}
    for day, kind, amount in storage.read(request.data, fetch):
        series["training" if kind == "training" else "serving"][day] += amount
    costs = cost_report(request.data, period="month", now=request.now)
    return render(
        "money.html",
        visitor=request.visitor,
        days=days,
        series={name: list(values.values()) for name, values in series.items()},
        peak=max(sum(values) for values in zip(*(each.values() for each in series.values()), strict=True)),
        costs=costs,
        budgets=budget_rows(costs["budgets"]),
        types=costs_now(request.data, now=request.now),
        running=running(request.data),
        alerts=alerts(request.data, now=request.now),
        pays=request.live.get("pays"),
    )
