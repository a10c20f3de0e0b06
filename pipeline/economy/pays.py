"""Does a model pay? From the log alone: what a decision type costs now, what each way of serving would, a verdict.

Nothing is recommended that cannot win: where the fallback is free and good, where no way of serving is cheaper at the
volume of the log, or where what the fallback costs is not known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Literal

import orjson

from pipeline.economy.ways import Way, price_ways
from pipeline.economy.workload import Workload, read_workloads, shared_awake_hours
from pipeline.parameters import PaysSettings
from pipeline.reports import to_jsonable
from prices.settings import load_prices
from quality.dataset.readiness import LIMITED_BELOW
from quality.evaluation.promotion import MIN_ROWS
from quality.settings import ExportSettings
from reasoning.config import Config, load_config
from reasoning.decision_types import get_decision_type
from storage.files import write_atomic

Verdict = Literal["train", "do not train", "not yet"]

GOOD = 0.9
"""A free fallback that agrees with so many of the demonstrations is left alone."""
LEAST_DECISIONS = 200
LEAST_HOURS = 24
KNOWN_SHARE = 0.5
"""Of the fallback's answers, the cost of so many must be known."""
_Z = 1.96
_LEAST_DISAGREEMENT = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class TypePays:
    """What is known of one decision type, and the verdict. Money in US dollars; what is not known is None.

    `fallback_usd_per_month` is what the fallback would cost if it answered everything, `now_usd_per_month` what is paid
    at present: the fallback for what it answers, and what the ledger charged. `unknown_costs` are answers of the
    fallback whose cost is not known; `price_sources` counts the others by the source of their price.
    `quality_needed` is the least agreement with the demonstrations that a model must show, None where there are none.
    """

    decision_type: str
    verdict: Verdict
    why: str
    decisions: int
    decisions_a_day: float
    peak_an_hour: int
    volume_by_hour: tuple[float, ...]
    fallback_usd_per_1000: Decimal | None
    fallback_usd_per_month: Decimal | None
    now_usd_per_month: Decimal | None
    unknown_costs: int
    price_sources: dict[str, int]
    fallback_quality: float | None
    quality_needed: float | None
    labels: int
    labels_needed: int
    labels_missing: int
    ways: list[Way]


def pays(
    data: Path | str,
    decision_type: str | None = None,
    *,
    settings: PaysSettings | None = None,
    now: datetime | None = None,
    config: Config | None = None,
) -> list[TypePays]:
    """Whether a model pays, for one decision type or for all that were logged. Raises `UnknownDecisionType`."""
    settings = settings or PaysSettings()
    now, config = now or datetime.now(UTC), config or load_config(data)
    wanted = get_decision_type(decision_type, config).name if decision_type else None
    prices, idle = load_prices(), timedelta(minutes=settings.idle_minutes)
    workloads = read_workloads(
        data,
        now=now,
        days=settings.days,
        idle=idle,
        own_prices=prices.models,
        stated_usd_per_1000=prices.fallback_usd_per_1000,
        config=config,
    )

    def shared_hours(types: Sequence[str]) -> float:
        return shared_awake_hours(data, types, now=now, days=settings.days, idle=idle)

    return [
        judge(workload, price_ways(workload, workloads, prices.serving, shared_hours), settings)
        for name, workload in workloads.items()
        if wanted in (None, name)
    ]


def save_pays(data: Path, found: Sequence[TypePays], *, now: datetime | None = None) -> None:
    """Write `pays.json` into the data folder, for the gateway's dashboard. It is replaced whole."""
    kept = ("decision_type", "verdict", "why", "decisions_a_day", "fallback_usd_per_month", "now_usd_per_month")
    at = (now or datetime.now(UTC)).isoformat()
    types = [{name: to_jsonable(getattr(each, name)) for name in kept} for each in found]
    write_atomic(data / "pays.json", orjson.dumps({"at": at, "types": types}))


def judge(workload: Workload, ways: Sequence[Way], settings: PaysSettings) -> TypePays:
    """The verdict on one decision type."""
    cost = workload.fallback.usd_per_decision
    share = Decimal(workload.by_fallback) / workload.decisions
    needed = labels_needed(workload, settings.margin)
    labels = workload.demonstrated or workload.labelled
    verdict, why = _verdict(workload, ways, settings, missing=max(needed - labels, 0))
    quality = workload.fallback_quality
    return TypePays(
        decision_type=workload.kind.name,
        verdict=verdict,
        why=why,
        decisions=workload.decisions,
        decisions_a_day=workload.decisions / workload.hours * 24,
        peak_an_hour=workload.peak_an_hour,
        volume_by_hour=workload.volume_by_hour,
        fallback_usd_per_1000=None if cost is None else 1000 * cost,
        fallback_usd_per_month=None if cost is None else cost * workload.a_month,
        now_usd_per_month=None
        if cost is None
        else cost * workload.a_month * share + workload.charged_usd / workload.months,
        unknown_costs=workload.fallback.answers - workload.fallback.priced,
        price_sources=workload.fallback.sources,
        fallback_quality=quality,
        quality_needed=None if quality is None else max(quality - settings.margin, 0.0),
        labels=labels,
        labels_needed=needed,
        labels_missing=max(needed - labels, 0),
        ways=list(ways),
    )


def labels_needed(workload: Workload, margin: float) -> int:
    """How many labels show that a model is not worse than the fallback by more than `margin`, or that it is better.

    The holdout needs so many rows that the 95 % interval of the paired difference is as narrow as what is to be shown:
    the margin for a model that is as good, half of the fallback's errors for one that makes only half of them. Two
    answerers that err independently as often as the fallback disagree on 2e(1-e) of the questions.
    """
    errors = 1 - workload.fallback_quality if workload.fallback_quality is not None else 0.0
    disagreement = max(2 * errors * (1 - errors), _LEAST_DISAGREEMENT)
    rows = max(math.ceil(_Z**2 * disagreement / max(margin, errors / 2) ** 2), MIN_ROWS)
    return max(math.ceil(rows / ExportSettings().holdout_share), LIMITED_BELOW)


def _verdict(workload: Workload, ways: Sequence[Way], settings: PaysSettings, *, missing: int) -> tuple[Verdict, str]:
    """The verdict and one sentence. The first thing that decides it."""
    name, cost = workload.kind.name, workload.fallback.usd_per_decision
    known = workload.fallback.priced / workload.fallback.answers if workload.fallback.answers else 0.0
    if cost is None or known < KNOWN_SHARE:
        unknown = workload.fallback.answers - workload.fallback.priced
        return "not yet", (
            f"What the fallback of {name} costs is unknown for {unknown:,} of {workload.fallback.answers:,} answers: "
            f"return it in a Fallback, or set `{name}` in [prices.fallback] of reasoning.toml (0 if it is free)."
        )
    if cost <= 0:
        return _of_a_free_one(workload, ways, missing)
    if workload.decisions < LEAST_DECISIONS or workload.hours < LEAST_HOURS:
        return "not yet", (
            f"The log has {workload.decisions:,} decisions of {name} in {workload.hours:.0f} hours: log at least "
            f"{LEAST_DECISIONS} over {LEAST_HOURS} hours to know the volume."
        )
    monthly = cost * workload.a_month
    months, least = settings.horizon_months, Decimal(settings.min_saving_usd)
    best, hosted = _best(ways, trained=True, months=months), _best(ways, trained=False, months=months)
    saving = _net_saving(best, months) if best is not None else Decimal(0)
    if hosted is not None and _net_saving(hosted, months) >= max(saving, Decimal(0)) + least:
        return "do not train", (
            f"The fallback of {name} costs {_usd(monthly)} a month; a {hosted.title}, which needs no training, costs "
            f"{_usd(hosted.usd_per_month)}, less than any model of your own: try that first."
        )
    if best is None or saving < least:
        return "do not train", _nothing_saves(name, monthly, best, settings)
    if missing:
        return "not yet", (
            f"A model of {name} would save about {_usd(saving)} a month ({best.title}), but to show that it is as good "
            f"needs {missing:,} more labels."
        )
    return "train", (
        f"Train {name} and serve it by {best.title}: it costs {_usd(best.usd_per_month)} a month in place of "
        f"{_usd(monthly)}, and saves about {_usd(saving)} with training paid over {settings.horizon_months} months, "
        f"once it is shown to be no more than {settings.margin:g} worse than the fallback."
    )


def _of_a_free_one(workload: Workload, ways: Sequence[Way], missing: int) -> tuple[Verdict, str]:
    """A free fallback cannot be undercut; one that is often wrong may be bettered by what costs nothing either."""
    name, quality = workload.kind.name, workload.fallback_quality
    free = next((way for way in ways if way.open and way.trained and way.usd_per_month == 0), None)
    if quality is None or quality >= GOOD:
        right = f" and agrees with {quality:.0%} of the demonstrations" if quality is not None else ""
        return "do not train", f"The fallback of {name} is free{right}: no model can be cheaper."
    wrong = f"The fallback of {name} is free, but agrees with only {quality:.0%} of the demonstrations"
    if free is None:
        return "do not train", f"{wrong}; every way of serving a better model costs more than nothing."
    if missing:
        return "not yet", f"{wrong}; a {free.title} costs nothing either, but needs {missing:,} more labels."
    return "train", f"{wrong}: train a {free.title}, which costs nothing either, and promote it if it is better."


def _nothing_saves(name: str, monthly: Decimal, best: Way | None, settings: PaysSettings) -> str:
    if best is None:
        return f"The fallback of {name} costs {_usd(monthly)} a month, and no way of serving is open to it."
    even = f" It breaks even at {best.break_even_per_hour:,.0f} decisions an hour." if best.break_even_per_hour else ""
    return (
        f"The fallback of {name} costs {_usd(monthly)} a month; the cheapest model of your own ({best.title}) costs "
        f"{_usd(best.usd_per_month)}, and {_usd(best.training_usd)} a training: that saves less than "
        f"{_usd(Decimal(str(settings.min_saving_usd)))} a month.{even}"
    )


def _best(ways: Sequence[Way], *, trained: bool, months: int) -> Way | None:
    """The open way that saves most."""
    found = [way for way in ways if way.open and way.trained is trained and way.saved_usd_per_month is not None]
    return max(found, key=lambda way: _net_saving(way, months), default=None)


def _net_saving(way: Way, months: int) -> Decimal:
    """US dollars saved a month, one training paid over so many months."""
    return (way.saved_usd_per_month or Decimal(0)) - way.training_usd / months


def _usd(amount: Decimal | None) -> str:
    """Money in a sentence: cents, and for large sums dollars."""
    if amount is None:
        return "an unknown amount"
    sign, amount = ("-" if amount < 0 else ""), abs(amount)
    return f"{sign}${amount:,.0f}" if amount >= 100 else f"{sign}${amount:,.2f}"
