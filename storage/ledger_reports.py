"""What the ledger tells people: the cost report and the status of every model, as plain data.

Amounts are Decimal US dollars, times aware UTC datetimes; the CLI, JSON and Prefect artifacts only format them.
"""

from __future__ import annotations

import calendar
from collections import defaultdict
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from storage import ledger_schema as schema
from storage.ledger import PERIODS, Ledger, Period
from storage.money import from_nano

STALE = timedelta(minutes=10)
"""What nobody has looked at for so long may be in any state."""

# A deployment in one of these states may cost money.
BILLABLE_STATES = ("provisioning", "degraded", "ready", "draining", "stopping", "failed")


def period_bounds(period: Period, now: datetime) -> tuple[datetime | None, datetime | None]:
    """Start and end of the calendar period (UTC) that holds `now`; (None, None) for `total`."""
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "hour":
        start = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        return start, start + timedelta(hours=1)
    if period == "day":
        return midnight, midnight + timedelta(days=1)
    if period == "month":
        start = midnight.replace(day=1)
        return start, start + timedelta(days=calendar.monthrange(start.year, start.month)[1])
    return None, None


def cost_report(ledger: Ledger, *, now: datetime | None = None, period: Period = "month") -> dict[str, Any]:
    """What was spent in the period that holds `now`, by kind and by model, against every budget.

    `forecast_usd` is what the period will have cost at its end if what runs now goes on at its hourly rate (None for
    `total`). A model's `average_usd_per_request` is None without requests.
    """
    if period not in PERIODS:
        raise ValueError(f"no period {period!r}: use one of {', '.join(PERIODS)}")
    now = now or datetime.now(UTC)
    start, end = period_bounds(period, now)
    charges = schema.charges
    query = sa.select(
        charges.c.kind,
        charges.c.model_id,
        charges.c.job_id,
        charges.c.decision_type,
        sa.func.sum(charges.c.amount_nano).label("amount"),
        sa.func.sum(charges.c.quantity).label("quantity"),
    ).group_by(charges.c.kind, charges.c.model_id, charges.c.job_id, charges.c.decision_type)
    if start is not None:
        query = query.where(charges.c.ts >= start, charges.c.ts < end)
    with ledger.read() as connection:
        rows = connection.execute(query).mappings().all()
        usage = _usage(connection, start, end)
        models = {row["id"]: row for row in connection.execute(sa.select(schema.models)).mappings()}
        rate = _hourly_rate(connection)
        budgets = ledger.budgets(now)

    by_kind: dict[str, int] = defaultdict(int)
    by_model: dict[str | None, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        amount = int(row["amount"])
        by_kind[row["kind"]] += amount
        # A job that came to nothing has no model: its cost is told under the job's own id.
        owner = by_model[row["model_id"] or row["job_id"]]
        owner["total"] += amount
        owner[row["kind"]] += amount
        if row["kind"] == "endpoint":
            owner["minutes"] += int(row["quantity"] or 0)
    total = sum(by_kind.values())

    lines = []
    for model_id in by_model.keys() | {model_id for model_id in usage if model_id in models}:
        spent, used, model = by_model[model_id], usage.get(model_id or "", _no_usage()), models.get(model_id or "")
        lines.append(
            {
                "model_id": model_id,
                "decision_type": model["decision_type"] if model else None,
                "base_model": model["base_model"] if model else None,
                "state": model["state"] if model else None,
                "hours": spent["minutes"] / 60,
                "requests": used["requests"],
                "input_tokens": used["input_tokens"],
                "output_tokens": used["output_tokens"],
                "training_usd": from_nano(spent["training"]),
                "endpoint_usd": from_nano(spent["endpoint"]),
                "tokens_usd": from_nano(spent["tokens"]),
                "adjustment_usd": from_nano(spent["adjustment"]),
                "total_usd": from_nano(spent["total"]),
                "average_usd_per_request": from_nano(spent["total"] // used["requests"]) if used["requests"] else None,
            }
        )
    forecast = None
    if end is not None:
        hours_left = Decimal((end - now).total_seconds()) / 3600
        forecast = (from_nano(total) + rate * max(hours_left, Decimal(0))).quantize(Decimal("0.01"))
    return {
        "period": period,
        "start": start,
        "end": end,
        "now": now,
        "total_usd": from_nano(total),
        "by_kind_usd": {kind: from_nano(amount) for kind, amount in sorted(by_kind.items())},
        "models": sorted(lines, key=lambda line: (-line["total_usd"], str(line["model_id"]))),
        "budgets": [
            {
                "period": budget.period,
                "decision_type": budget.decision_type,
                "limit_usd": budget.limit_usd,
                "spent_usd": budget.spent_usd,
                "reserved_usd": budget.reserved_usd,
                "left_usd": budget.left_usd,
                "used_fraction": budget.fraction,
            }
            for budget in budgets
        ],
        "hourly_rate_usd": rate,
        "forecast_usd": forecast,
    }


def model_status(ledger: Ledger, *, now: datetime | None = None, routed: Collection[str] = ()) -> list[dict[str, Any]]:
    """Every model that is not retired: what it is, whether it runs, how much it was used and what it cost.

    `routed` names the models (`<project slug>/<name>`) that an unexpired lease gives traffic to. `enabled` is true
    only for a model that is promoted, routed and served by a deployment seen ready. `deployment_state` is `unknown`
    when a create was never answered, or nobody has looked for `STALE`: then `replicas` and `hourly_usd` are the worst.
    """
    now = now or datetime.now(UTC)
    with ledger.read() as connection:
        models = connection.execute(
            sa.select(schema.models).where(schema.models.c.state != "retired").order_by(schema.models.c.created_at)
        ).mappings()
        usage = _usage(connection, None, None)
        charges = schema.charges
        cost = dict(
            connection.execute(
                sa.select(charges.c.model_id, sa.func.sum(charges.c.amount_nano)).group_by(charges.c.model_id)
            )
            .tuples()
            .all()
        )
        newest = {}
        for row in connection.execute(
            sa.select(schema.deployments).order_by(schema.deployments.c.created_at)
        ).mappings():
            newest[row["model_id"]] = row
        status = []
        for model in models:
            deployment = newest.get(model["id"])
            used = usage.get(model["id"], _no_usage())
            status.append(
                {
                    "model_id": model["id"],
                    "decision_type": model["decision_type"],
                    "tier": model["tier"],
                    "base_model": model["base_model"],
                    "state": model["state"],
                    "dataset_id": model["dataset_id"],
                    "job_id": model["job_id"],
                    "requests": used["requests"],
                    "input_tokens": used["input_tokens"],
                    "output_tokens": used["output_tokens"],
                    "cost_usd": from_nano(int(cost.get(model["id"], 0))),
                    **_deployment_status(deployment, model["state"], now, routed),
                }
            )
    return status


def _deployment_status(
    deployment: sa.RowMapping | None, model_state: str, now: datetime, routed: Collection[str]
) -> dict[str, Any]:
    row: dict[str, Any] = dict(deployment) if deployment else {}
    in_doubt = row.get("state") == "intended" and row["attempted_at"] is not None
    active = row.get("state") in BILLABLE_STATES or in_doubt
    seen_at = row["metered_until"] or row["attempted_at"] or row["created_at"] if active else None
    unknown = in_doubt or (seen_at is not None and now - seen_at >= STALE)
    replicas = row["max_replicas"] if in_doubt else row["replicas"] if active else 0
    ready = row.get("state") == "ready" and replicas > 0 and not unknown
    busy_at = max((at for at in (row.get("last_request_at"), row.get("ready_at")) if at), default=None)
    doubt = "its creation was sent and never answered: `reasoning reconcile` finds out" if in_doubt else None
    return {
        "enabled": model_state == "promoted" and ready and row["served_name"] in routed,
        "deployment_id": row.get("id"),
        "deployment_state": "unknown" if unknown else row.get("state"),
        "seen_at": seen_at,
        "served_name": row.get("served_name"),
        "reason": row.get("reason") or doubt,
        "replicas": replicas,
        "idle_seconds": max((now - busy_at).total_seconds(), 0.0) if active and busy_at else None,
        "last_request_at": row.get("last_request_at"),
        "hourly_usd": from_nano(row["hourly_nano"] * replicas) if active else Decimal(0),
    }


def _no_usage() -> dict[str, int]:
    return {"requests": 0, "input_tokens": 0, "output_tokens": 0}


def _hourly_rate(connection: sa.Connection) -> Decimal:
    table = schema.deployments
    query = sa.select(sa.func.sum(table.c.hourly_nano * table.c.replicas)).where(table.c.state.in_(BILLABLE_STATES))
    return from_nano(int(connection.execute(query).scalar() or 0))


def _usage(connection: sa.Connection, start: datetime | None, end: datetime | None) -> dict[str, dict[str, int]]:
    """Requests and tokens by model id, from the meters (whole days)."""
    names = {
        row.served_name: row.model_id
        for row in connection.execute(sa.select(schema.deployments.c.served_name, schema.deployments.c.model_id))
        if row.served_name
    }
    meters = schema.meters
    query = sa.select(meters)
    if start is not None and end is not None:
        query = query.where(
            meters.c.day >= f"{start:%Y-%m-%d}", meters.c.day <= f"{end - timedelta(microseconds=1):%Y-%m-%d}"
        )
    usage: dict[str, dict[str, int]] = defaultdict(_no_usage)
    for row in connection.execute(query).mappings():
        used = usage[names.get(row["model"]) or row["model"]]
        for column in used:
            used[column] += row[column]
    return usage
