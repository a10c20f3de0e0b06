"""What the decision log shows of each decision type: its volume, what its fallback costs and how good that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

import storage
from prices.models import Price, find_price
from reasoning.config import Config, load_config
from reasoning.decision_types import DecisionType
from reasoning.errors import UnparseableAnswer
from storage.log.schema import check_decision_type

if TYPE_CHECKING:
    import duckdb

HOURS_A_MONTH = 730
"""365 days of 24 hours, divided by 12."""
HOURS_A_WEEK = 168
_COMPARED = 5_000
"""Demonstrations that the fallback is compared with, the latest."""
_CHARACTERS_A_TOKEN = 4

_IN_WINDOW = "date >= $since_date::DATE AND ts >= $since AND ts <= $now"

_VOLUME = f"""
SELECT decision_type, count(*) AS decisions, count(*) FILTER (source = 'original') AS by_fallback,
       count(*) FILTER (valid AND decision IS NOT NULL) AS labelled,
       min(ts) AS first, max(ts) AS last,
       avg(input_tokens) AS input_tokens, avg(output_tokens) AS output_tokens,
       avg(list_sum(list_transform(messages, lambda m: length(m.content)))) AS input_characters,
       avg(length(completion)) AS output_characters
FROM decisions WHERE served AND {_IN_WINDOW} GROUP BY decision_type
"""  # noqa: S608 - constants only
# Hour 0 of the week is Monday, 00:00-01:00 UTC.
_HOURS = f"""
SELECT decision_type, (isodow(ts) - 1) * 24 + hour(ts) AS hour_of_week, count(*) AS decisions
FROM decisions WHERE served AND {_IN_WINDOW} GROUP BY ALL
"""  # noqa: S608
_PEAKS = f"""
SELECT decision_type, max(decisions) FROM (
    SELECT decision_type, date_trunc('hour', ts) AS hour, count(*) AS decisions
    FROM decisions WHERE served AND {_IN_WINDOW} GROUP BY ALL
) GROUP BY decision_type
"""  # noqa: S608
# What a machine runs that is stopped after $idle without a decision, and started by the next one.
_AWAKE = f"""
SELECT sum(least(epoch(coalesce(next, $now) - ts), $idle)) / 3600 FROM (
    SELECT ts, lead(ts) OVER (ORDER BY ts) AS next FROM decisions
    WHERE served AND {_IN_WINDOW} AND list_contains($types, decision_type)
)
"""  # noqa: S608
# Answers of the fallback by what their cost depends on, as `fallback_cost` reads them.
FALLBACK_ANSWERS = """
SELECT decision_type, fallback_model, date, price_source, cost_usd IS NULL AS unpriced, count(*) AS answers,
       fsum(cost_usd) AS cost_usd, avg(input_tokens) AS input_tokens, avg(output_tokens) AS output_tokens,
       avg(coalesce(cache_read_tokens, 0)) AS cache_read, avg(coalesce(cache_write_tokens, 0)) AS cache_write,
       count(*) FILTER (input_tokens IS NOT NULL AND output_tokens IS NOT NULL) AS counted
FROM decisions WHERE source = 'original' AND date >= $since_date::DATE AND ts >= $since AND ts <= $now GROUP BY ALL
"""
_CHARGED = """
SELECT decision_type, sum(amount_usd) FROM costs
WHERE decision_type IS NOT NULL AND kind IN ('endpoint', 'tokens', 'share', 'adjustment')
  AND ts >= $since AND ts <= $now
GROUP BY decision_type
"""
# The view `labelled_decisions` is slow: it is asked only where there are demonstrations.
_ANY_DEMONSTRATION = "SELECT count(*) FROM feedback_log WHERE kind = 'demonstration' AND date >= $since_date::DATE"
_DEMONSTRATIONS = f"""
SELECT decision_type, demonstration, original_decision FROM labelled_decisions
WHERE demonstration IS NOT NULL AND {_IN_WINDOW} ORDER BY ts DESC
"""  # noqa: S608


@dataclass(slots=True)
class FallbackCost:
    """What the answers of a fallback cost. `answers` are all, `priced` those whose cost is known, `usd` theirs.

    `sources` says where the figures are from: answers by the source of their price.
    """

    answers: int = 0
    priced: int = 0
    usd: Decimal = Decimal(0)
    sources: dict[str, int] = field(default_factory=dict)

    @property
    def usd_per_decision(self) -> Decimal | None:
        """The mean of those whose cost is known. None where it is known of none."""
        return self.usd / self.priced if self.priced else None

    def add(self, answers: int, usd: Decimal, source: str) -> None:
        """Count answers whose cost is known."""
        self.priced += answers
        self.usd += usd
        self.sources[source] = self.sources.get(source, 0) + answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One decision type in the window. Tokens are means a decision; they are `estimated` where no answer told them.

    `volume_by_hour` are the mean decisions of each hour of the week, from Monday 00:00 UTC. `awake_hours` is how long
    a machine of its own would run in the window. `charged_usd` is what the ledger charged for serving its models.
    `fallback_quality` is the share of the demonstrations with which the fallback agreed, `compared` their number.
    """

    kind: DecisionType
    decisions: int
    by_fallback: int
    hours: float
    peak_an_hour: int
    volume_by_hour: tuple[float, ...]
    awake_hours: float
    input_tokens: float
    output_tokens: float
    estimated: bool
    fallback: FallbackCost
    charged_usd: Decimal
    labelled: int
    demonstrated: int
    fallback_quality: float | None
    compared: int

    @property
    def a_month(self) -> Decimal:
        """Decisions a month at the volume of the window."""
        return Decimal(self.decisions) * HOURS_A_MONTH / Decimal(self.hours)

    @property
    def months(self) -> Decimal:
        """The length of the window in months."""
        return Decimal(self.hours) / HOURS_A_MONTH


def read_workloads(
    data: Path | str,
    *,
    now: datetime,
    days: int,
    idle: timedelta,
    own_prices: Sequence[Price] = (),
    stated_usd_per_1000: Mapping[str, Decimal] | None = None,
    config: Config | None = None,
) -> dict[str, Workload]:
    """Every declared decision type with decisions in the last `days`, by name.

    A cost that the log lacks is computed from the tokens by list price, else taken from `stated_usd_per_1000`, else
    unknown. `idle` is after how much time without a decision a machine is stopped.
    """
    config = config or load_config(data)
    since = now - timedelta(days=days)
    window = {"since": since, "since_date": since.date(), "now": now}

    def fetch(log: duckdb.DuckDBPyConnection) -> dict[str, Any]:
        volume = {row["decision_type"]: row for row in rows(log, _VOLUME, window)}
        row = log.execute(_ANY_DEMONSTRATION, {"since_date": since.date()}).fetchone()
        return {
            "volume": volume,
            "hours": rows(log, _HOURS, window),
            "peaks": dict(log.execute(_PEAKS, window).fetchall()),
            "fallback": rows(log, FALLBACK_ANSWERS, window),
            "demonstrations": rows(log, _DEMONSTRATIONS, window) if row and row[0] else [],
            "charged": dict(log.execute(_CHARGED, {"since": since, "now": now}).fetchall()),
            "awake": {name: awake_hours(log, [name], idle, window) for name in volume},
        }

    found = storage.read(data, fetch)
    stated = stated_usd_per_1000 or {}
    return {
        name: _workload(config.decision_types[name], found, now=now, own_prices=own_prices, stated=stated.get(name))
        for name in sorted(found["volume"])
        if name in config.decision_types
    }


def shared_awake_hours(data: Path | str, types: Sequence[str], *, now: datetime, days: int, idle: timedelta) -> float:
    """Hours that one machine for all of these types would run in the window."""
    for name in types:
        check_decision_type(name)
    since = now - timedelta(days=days)
    window = {"since": since, "since_date": since.date(), "now": now}
    return storage.read(data, lambda log: awake_hours(log, types, idle, window))


def awake_hours(
    log: duckdb.DuckDBPyConnection, types: Sequence[str], idle: timedelta, window: Mapping[str, Any]
) -> float:
    """Hours in the window within `idle` after a decision of one of these types."""
    parameters = {**window, "types": list(types), "idle": idle.total_seconds()}
    row = log.execute(_AWAKE, parameters).fetchone()
    return float(row[0] or 0) if row else 0.0


def rows(log: duckdb.DuckDBPyConnection, query: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a query as objects."""
    cursor = log.execute(query, dict(parameters))
    names = [column[0] for column in cursor.description or []]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _workload(
    kind: DecisionType, found: dict[str, Any], *, now: datetime, own_prices: Sequence[Price], stated: Decimal | None
) -> Workload:
    volume = found["volume"][kind.name]
    hours = max((now - volume["first"]) / timedelta(hours=1), 1.0)
    weeks = max(hours / HOURS_A_WEEK, 1.0)
    by_hour = [0.0] * HOURS_A_WEEK
    for row in found["hours"]:
        if row["decision_type"] == kind.name:
            by_hour[row["hour_of_week"]] = row["decisions"] / weeks
    told = volume["input_tokens"] is not None and volume["output_tokens"] is not None
    estimate = [(volume[f"{side}_characters"] or 0) / _CHARACTERS_A_TOKEN for side in ("input", "output")]
    demonstrations = [row for row in found["demonstrations"] if row["decision_type"] == kind.name]
    quality, compared = _agreement(kind, demonstrations[:_COMPARED])
    return Workload(
        kind=kind,
        decisions=volume["decisions"],
        by_fallback=volume["by_fallback"],
        hours=hours,
        peak_an_hour=found["peaks"][kind.name],
        volume_by_hour=tuple(by_hour),
        awake_hours=found["awake"][kind.name],
        input_tokens=volume["input_tokens"] if told else estimate[0],
        output_tokens=volume["output_tokens"] if told else estimate[1],
        estimated=not told,
        fallback=fallback_cost(
            (row for row in found["fallback"] if row["decision_type"] == kind.name), own_prices, stated
        ),
        charged_usd=Decimal(str(found["charged"].get(kind.name) or 0)),
        labelled=volume["labelled"],
        demonstrated=len(demonstrations),
        fallback_quality=quality,
        compared=compared,
    )


def fallback_cost(
    answers: Iterable[Mapping[str, Any]], own_prices: Sequence[Price], stated_usd_per_1000: Decimal | None
) -> FallbackCost:
    """What the answers of a fallback cost, from rows by model, day and price. Unknown is unknown, never zero.

    Answers without a cost are priced by the mean of their tokens, at the prices of their day.
    """
    total = FallbackCost()
    for row in answers:
        total.answers += row["answers"]
        if not row["unpriced"]:
            total.add(row["answers"], Decimal(str(row["cost_usd"])), row["price_source"] or "the log")
            continue
        ts = datetime.fromisoformat(f"{row['date']}T12:00:00+00:00")
        price = find_price(own_prices, row["fallback_model"], ts=ts) if row["counted"] == row["answers"] else None
        if price is not None:
            read, write = round(row["cache_read"]), round(row["cache_write"])
            fresh = max(round(row["input_tokens"]) - read - write, 0)
            usd = price.cost_usd(input=fresh, output=round(row["output_tokens"]), cache_read=read, cache_write=write)
            total.add(row["answers"], Decimal(str(usd)) * row["answers"], price.source)
        elif stated_usd_per_1000 is not None:
            total.add(row["answers"], stated_usd_per_1000 * row["answers"] / 1000, "reasoning.toml")
    return total


def _agreement(kind: DecisionType, labelled: Sequence[Mapping[str, Any]]) -> tuple[float | None, int]:
    """With how many of the demonstrations the fallback agreed, as a share, and of how many."""
    agreed = compared = 0
    for row in labelled:
        if row["original_decision"] is None:
            continue
        try:
            right, given = (
                kind.normalize(orjson.loads(row[which])) for which in ("demonstration", "original_decision")
            )
        except (UnparseableAnswer, orjson.JSONDecodeError):
            continue
        compared += 1
        agreed += kind.form.agrees(right, given)
    return (agreed / compared if compared else None), compared
