"""What `pays` found as tables, for the command line and Prefect's artifacts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from pipeline.economy.pays import TypePays


def pays_rows(found: Sequence[TypePays]) -> list[dict[str, Any]]:
    """What is known of each decision type as a table, a row a type."""
    return [
        {
            "decision_type": each.decision_type,
            "verdict": each.verdict,
            "decisions_a_day": round(each.decisions_a_day, 1),
            "fallback_usd_per_1000": each.fallback_usd_per_1000,
            "fallback_usd_per_month": _cents(each.fallback_usd_per_month),
            "costs_unknown": each.unknown_costs,
            "labels": each.labels,
            "labels_needed": each.labels_needed,
        }
        for each in found
    ]


def way_rows(found: TypePays) -> list[dict[str, Any]]:
    """The ways of serving one decision type as a table, what answers now first."""
    now = {
        "way": "the fallback, as now",
        "usd_per_month": _cents(found.fallback_usd_per_month),
        "usd_per_1000": found.fallback_usd_per_1000,
        "saves_usd_per_month": None,
        "breaks_even_per_hour": None,
        "training_usd": None,
        "note": f"{found.unknown_costs} answers of unknown cost" if found.unknown_costs else "",
        "price_from": ", ".join(found.price_sources),
    }
    return [now] + [
        {
            "way": way.title,
            "usd_per_month": _cents(way.usd_per_month),
            "usd_per_1000": None if way.usd_per_1000 is None else round(way.usd_per_1000, 4),
            "saves_usd_per_month": _cents(way.saved_usd_per_month),
            "breaks_even_per_hour": None if way.break_even_per_hour is None else math.ceil(way.break_even_per_hour),
            "training_usd": way.training_usd,
            "note": way.note,
            "price_from": way.source,
        }
        for way in found.ways
    ]


def _cents(amount: Decimal | None) -> Decimal | None:
    return None if amount is None else round(amount, 2)
