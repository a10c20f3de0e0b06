"""What is spent now, today and this month by decision type, and what that saves against the fallback."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import storage
from pipeline.economy.workload import FALLBACK_ANSWERS, fallback_cost, rows
from prices.settings import load_prices

if TYPE_CHECKING:
    import duckdb

NO_TYPE = "(no type)"
"""What was charged for no decision type, such as the hours of a shared replica in which nobody asked."""

_CHARGED = """
SELECT coalesce(decision_type, $no_type) AS decision_type,
       coalesce(sum(amount_usd) FILTER (kind <> 'training' AND ts >= $today), 0) AS serving_today,
       coalesce(sum(amount_usd) FILTER (kind <> 'training'), 0) AS serving_month,
       coalesce(sum(amount_usd) FILTER (kind = 'training'), 0) AS training_month
FROM costs WHERE ts >= $month AND ts <= $now GROUP BY ALL
"""
_SERVED = """
SELECT decision_type, count(*) AS by_models FROM decisions
WHERE source = 'custom' AND served AND date >= $month::DATE AND ts <= $now GROUP BY ALL
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeCosts:
    """One decision type, US dollars of the current day and month (UTC).

    `saved_month_usd` is what the fallback would have cost for the decisions that models served, less serving and
    training; None where what the fallback costs is not known. `fallback_month_usd` counts the answers whose cost is
    known; `fallback_unknown` are the others.
    """

    decision_type: str
    serving_today_usd: Decimal
    serving_month_usd: Decimal
    training_month_usd: Decimal
    by_models: int
    fallback_month_usd: Decimal
    fallback_unknown: int
    saved_month_usd: Decimal | None


def costs_now(data: Path, *, now: datetime | None = None) -> list[TypeCosts]:
    """Every decision type that cost something this month or was answered, by name; what has no type comes last."""
    now = (now or datetime.now(UTC)).astimezone(UTC)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    month = today.replace(day=1)
    prices = load_prices()

    def fetch(log: duckdb.DuckDBPyConnection) -> tuple[dict[str, Any], dict[str, int], list[dict[str, Any]]]:
        window = {"month": month, "now": now}
        since = {"since": month, "since_date": month.date(), "now": now}
        charged = rows(log, _CHARGED, {**window, "today": today, "no_type": NO_TYPE})
        served = dict(log.execute(_SERVED, window).fetchall())
        return {row["decision_type"]: row for row in charged}, served, rows(log, FALLBACK_ANSWERS, since)

    charged, served, answers = storage.read(data, fetch)
    names = {*charged, *served, *(row["decision_type"] for row in answers)}
    found = []
    for name in sorted(names, key=lambda name: (name == NO_TYPE, name)):
        spent = charged.get(name, {})
        own = (row for row in answers if row["decision_type"] == name)
        fallback = fallback_cost(own, prices.models, prices.fallback_usd_per_1000.get(name))
        serving, training = (Decimal(spent.get(f"{what}_month", 0)) for what in ("serving", "training"))
        per, count = fallback.usd_per_decision, served.get(name, 0)
        found.append(
            TypeCosts(
                decision_type=name,
                serving_today_usd=Decimal(spent.get("serving_today", 0)),
                serving_month_usd=serving,
                training_month_usd=training,
                by_models=count,
                fallback_month_usd=round(fallback.usd, 6),
                fallback_unknown=fallback.answers - fallback.priced,
                saved_month_usd=None if per is None else round(per * count - serving - training, 6),
            )
        )
    return found
