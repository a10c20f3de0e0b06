"""What each way of serving a decision type would cost a month, at the volume that the log shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from pipeline.economy.workload import HOURS_A_MONTH, Workload
from prices.serving import Serving


@dataclass(frozen=True, slots=True)
class Way:
    """One way of serving one decision type.

    `usd_per_month` is at the volume of the log, without training. `saved_usd_per_month` is against the fallback
    answering everything; None where its cost is not known. `break_even_per_hour` is how many decisions an hour it must
    replace for its price, 0 where each one saves; None: never, or not known. `training_usd` is what one training costs
    at least. `note` says what the figure rests on, or why the way is not open.
    """

    name: str
    title: str
    usd_per_month: Decimal | None
    usd_per_1000: Decimal | None
    saved_usd_per_month: Decimal | None
    break_even_per_hour: Decimal | None
    training_usd: Decimal
    trained: bool
    open: bool
    note: str
    source: str


SharedHours = Callable[[Sequence[str]], float]
"""Hours that one machine for several decision types would run in the window."""


def price_ways(
    workload: Workload, all_types: Mapping[str, Workload], serving: Sequence[Serving], shared_hours: SharedHours
) -> list[Way]:
    """Every way of serving, the cheapest open one first."""
    ways = [_price(workload, all_types, each, shared_hours) for each in serving]
    return sorted(ways, key=lambda way: (not way.open, way.usd_per_month or Decimal(0), way.name))


def _price(workload: Workload, all_types: Mapping[str, Workload], serving: Serving, shared_hours: SharedHours) -> Way:
    note, is_open = "", True
    if serving.forms and workload.kind.answer not in serving.forms:
        note, is_open = f"only for answers of the form {', '.join(serving.forms)}", False
    usd: Decimal | None = None
    if is_open:
        usd, note = _monthly(workload, all_types, serving, shared_hours)
    fallback = workload.fallback.usd_per_decision
    return Way(
        name=serving.name,
        title=serving.title,
        usd_per_month=usd,
        usd_per_1000=None if usd is None else 1000 * usd / workload.a_month,
        saved_usd_per_month=None if usd is None or fallback is None else fallback * workload.a_month - usd,
        break_even_per_hour=_break_even(workload, serving, fallback) if is_open else None,
        training_usd=serving.training_usd,
        trained=serving.trained,
        open=is_open,
        note=note,
        source=serving.source,
    )


def _monthly(
    workload: Workload, all_types: Mapping[str, Workload], serving: Serving, shared_hours: SharedHours
) -> tuple[Decimal, str]:
    """US dollars a month, and what that rests on."""
    if serving.kind in ("per_token", "decision_model"):
        return _per_decision(workload, serving) * workload.a_month, "tokens estimated" if workload.estimated else ""
    hourly = serving.hourly_usd or Decimal(0)
    if serving.kind == "home":
        return hourly * HOURS_A_MONTH, "on a machine that runs anyway"
    if serving.kind == "replica":
        awake = _monthly_hours(workload, workload.awake_hours)
        replicas = _replicas(workload.peak_an_hour, serving)
        note = f"awake {awake / HOURS_A_MONTH:.0%} of the time"
        return hourly * awake * replicas, note + (f", {replicas} replicas" if replicas > 1 else "")
    sharers = _sharers(workload, all_types, serving.max_adapters or 1)
    hours = workload.awake_hours if len(sharers) == 1 else shared_hours([each.kind.name for each in sharers])
    replicas = _replicas(sum(each.peak_an_hour for each in sharers), serving)
    share = Decimal(workload.decisions) / sum(each.decisions for each in sharers)
    awake = _monthly_hours(max(sharers, key=lambda each: each.hours), hours)  # of the longest of their windows
    alone = "alone on it: no other type of its tier is in the log"
    note = alone if len(sharers) == 1 else f"{share:.0%} of a replica for {len(sharers)} types of one base"
    return hourly * awake * replicas * share, note


def _sharers(workload: Workload, all_types: Mapping[str, Workload], limit: int) -> list[Workload]:
    """The types that could share a replica: of one tier, the busiest first, the one in question among them."""
    others = [each for each in all_types.values() if each.kind.tier == workload.kind.tier and each is not workload]
    return [workload, *sorted(others, key=lambda each: each.a_month, reverse=True)[: limit - 1]]


def _monthly_hours(workload: Workload, hours: float) -> Decimal:
    """Hours in the window as hours a month, at most all of them."""
    return min(Decimal(hours) / workload.months, Decimal(HOURS_A_MONTH))


def _replicas(peak_an_hour: int, serving: Serving) -> int:
    limit = serving.max_decisions_per_hour
    return max(math.ceil(peak_an_hour / limit), 1) if limit else 1


def _per_decision(workload: Workload, serving: Serving) -> Decimal:
    rate_in, rate_out = serving.input_usd_per_mtok or Decimal(0), serving.output_usd_per_mtok or Decimal(0)
    return (rate_in * Decimal(workload.input_tokens) + rate_out * Decimal(workload.output_tokens)) / 1_000_000


def _break_even(workload: Workload, serving: Serving, fallback: Decimal | None) -> Decimal | None:
    """Decisions an hour that pay for it. A machine's price is by the hour while it runs, so volume alone decides."""
    if fallback is None or fallback <= 0:
        return None
    if serving.kind in ("per_token", "decision_model"):
        return Decimal(0) if _per_decision(workload, serving) < fallback else None
    return (serving.hourly_usd or Decimal(0)) / fallback
