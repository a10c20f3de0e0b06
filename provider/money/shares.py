"""Who used a shared deployment: of what it costs, each type's part by use, and the rest is idle.

A minute of the deployment belongs to the types whose models were asked in it, by their tokens; one in which nobody
asked, or in which it started, is idle. The minutes themselves are charged to nobody (`provider.money.metering`), and
here the used ones are moved, by pairs of `share` charges that sum to 0: what is charged to the types and what is left
idle is the bill, to the last digit that is kept. Decisions that land late move their part then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_DOWN, Decimal
from typing import TYPE_CHECKING, Any

from provider.money.metering import NOT_SENT
from storage.ledger.charges import ChargedTo, HourOfCharges
from storage.ledger.database import new_id
from storage.ledger.rows import Deployment, DeploymentRole

if TYPE_CHECKING:
    import duckdb

    from storage.layout import Layout
    from storage.ledger.ledger import Ledger

Owner = tuple[str | None, str]
"""A decision type, and the ledger id of its model."""

_SMALLEST = Decimal("0.000000001")


@dataclass(frozen=True, slots=True)
class Use:
    """A minute (UTC, its start) in which a model was asked, and the tokens of these requests, at least 1."""

    minute: datetime
    model: str
    tokens: int


def share_replicas(layout: Layout, ledger: Ledger, *, since: datetime, now: datetime) -> None:
    """Give the types their part of the hours of shared deployments from that of `since` on, by the decision log."""
    shared = ledger.find(Deployment, role=DeploymentRole.SHARED)
    since = since.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    recent = [row for row in shared if row.metered_until and row.metered_until >= since]
    if not recent:
        return
    used = read_use(layout, since=since)
    for row in recent:
        attached = ledger.find(Deployment, replica_id=row.id)
        with ledger.transaction():
            for hour in ledger.charged_by_hour(row.id, since=since):
                _share_hour(ledger, row, hour, used_minutes(used, attached, hour.start), now)


def read_use(layout: Layout, *, since: datetime) -> list[Use]:
    """The minutes in which models were asked, whole days from `since` on."""
    if next(layout.decisions.rglob("*.parquet"), None) is None:
        return []
    import storage

    def rows_of(connection: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
        return connection.execute(
            f"""SELECT epoch_us(date_trunc('minute', ts)) AS minute, model,
                       sum(coalesce(input_tokens, 0) + coalesce(output_tokens, 0))::BIGINT
                FROM decisions
                WHERE source = 'custom' AND model IS NOT NULL AND date >= ? AND ts >= ?
                  AND (fallback_reason IS NULL OR fallback_reason NOT IN {NOT_SENT})
                GROUP BY ALL""",  # noqa: S608 - only the constant above
            [since.date(), since],
        ).fetchall()

    return [
        Use(datetime.fromtimestamp(minute / 1e6, UTC), model, max(tokens, 1))
        for minute, model, tokens in storage.read(layout.data, rows_of)
    ]


def used_minutes(used: list[Use], attached: list[Deployment], hour: datetime) -> dict[Owner, Decimal]:
    """How many minutes of an hour belong to whom. `attached` is all that a deployment ever carried."""
    tokens: dict[datetime, dict[Owner, int]] = defaultdict(lambda: defaultdict(int))
    for use in used:
        if use.minute.replace(minute=0) != hour:
            continue
        for row in attached:
            if row.served_name == use.model and row.model_id is not None and _was_attached(row, use.minute):
                tokens[use.minute][row.decision_type, row.model_id] += use.tokens
                break
    minutes: dict[Owner, Decimal] = defaultdict(Decimal)
    for of_minute in tokens.values():
        whole = Decimal(sum(of_minute.values()))
        for owner, count in of_minute.items():
            minutes[owner] += count / whole
    return minutes


def _was_attached(row: Deployment, minute: datetime) -> bool:
    begun = row.created_at.replace(second=0, microsecond=0)
    return begun <= minute and (row.stopped_at is None or minute <= row.stopped_at)


def _share_hour(
    ledger: Ledger, row: Deployment, hour: HourOfCharges, minutes: Mapping[Owner, Decimal], now: datetime
) -> None:
    """Move each owner's part of an hour from idle, or the part of it that came since the last time."""
    whole = max(Decimal(hour.minutes), sum(minutes.values(), Decimal(0)), Decimal(1))
    back = Decimal(0)
    for owner in sorted({*minutes, *hour.shared_usd}, key=str):
        part = hour.charged_usd * minutes.get(owner, Decimal(0)) / whole
        moved = part.quantize(_SMALLEST, ROUND_DOWN) - hour.shared_usd.get(owner, Decimal(0))
        if moved:
            _charge(ledger, row, hour, moved, owner, now)
            back += moved
    if back:
        _charge(ledger, row, hour, -back, None, now)


def _charge(
    ledger: Ledger, row: Deployment, hour: HourOfCharges, amount: Decimal, owner: Owner | None, now: datetime
) -> None:
    decision_type, model_id = owner or (None, None)
    ledger.charge(
        "share",
        amount,
        key=f"share:{new_id(16)}",
        what=f"use of {row.name} from {hour.start:%Y-%m-%d %H:%M} UTC" if owner else f"{row.name}: used, not idle",
        of=ChargedTo(decision_type=decision_type, model_id=model_id, deployment_id=row.id),
        ts=hour.start,
        now=now,
    )
