"""What the ledger tells people: the cost report and the status of every model, as plain data.

Amounts are Decimal US dollars, times aware UTC datetimes; the CLI, JSON and Prefect artifacts only format them.
"""

from __future__ import annotations

import calendar
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import orjson
import sqlalchemy as sa

from storage.ledger import schema
from storage.ledger.forecast import forecast_spend
from storage.ledger.ledger import PERIODS, Ledger, Period
from storage.ledger.lives import past_cycles
from storage.ledger.money import from_nano
from storage.ledger.rows import Deployment, DeploymentState, JobState, Model, Transition

STALE = timedelta(minutes=10)
"""What nobody has looked at for so long may be in any state."""

# A deployment in one of these states may cost money.
BILLABLE_STATES = (
    DeploymentState.PROVISIONING,
    DeploymentState.DEGRADED,
    DeploymentState.READY,
    DeploymentState.DRAINING,
    DeploymentState.STOPPING,
    DeploymentState.FAILED,
)


# A fine-tune in one of these will cost what was estimated.
ACTIVE_STATES = (JobState.INTENDED, JobState.SUBMITTED, JobState.RUNNING, JobState.CANCELLING)

# A fine-tune in one of these is over, and cost its price.
ENDED_STATES = (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)


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


def cost_report(
    ledger: Ledger, *, now: datetime | None = None, period: Period = "month", drain_share: float = 1.0
) -> dict[str, Any]:
    """What was spent in the period that holds `now`, by kind and by model, against every budget.

    `forecast_usd` is what the period will have cost at its end (None for `total`) if the jobs under way cost what was
    estimated, and what runs now goes on at its hourly rate until a budget is exhausted. A budget's `exhausted_at` is
    when that is, at this rate: once `drain_share` of it is spent and the guard stops what it covers. None: not within a
    year. Requests and tokens are those of whole days (UTC), so for `hour` a model has no `average_usd_per_request`, nor
    without requests. `model_id` is that of a job that has no model, or None for all models that are not ours.
    """
    if period not in PERIODS:
        raise ValueError(f"no period {period!r}: use one of {', '.join(PERIODS)}")
    now = now or datetime.now(UTC)
    start, end = period_bounds(period, now)
    with ledger.read() as connection:
        charged = _charged(connection, start, end)
        usage = _usage(connection, start, end)
        models = {row["id"]: row for row in connection.execute(sa.select(schema.models)).mappings()}
        hourly, owed = _hourly_usd(connection, now), _owed_usd(connection)
        budgets = ledger.budgets(now)

    by_kind, lines = _model_lines(charged, usage, models, of_whole_days=period != "hour")
    total = from_nano(by_kind.total())
    added, exhausted = forecast_spend(budgets, hourly, owed, now=now, until=end, drain_share=drain_share)
    return {
        "period": period,
        "start": start,
        "end": end,
        "now": now,
        "total_usd": total,
        "by_kind_usd": {kind: from_nano(amount) for kind, amount in sorted(by_kind.items())},
        "models": sorted(
            lines, key=lambda line: (-line["total_usd"], str(line["model_id"]), str(line["decision_type"]))
        ),
        "budgets": [
            {
                "period": budget.period,
                "decision_type": budget.decision_type,
                "limit_usd": budget.limit_usd,
                "spent_usd": budget.spent_usd,
                "reserved_usd": budget.reserved_usd,
                "left_usd": budget.left_usd,
                "used_fraction": budget.fraction,
                "exhausted_at": exhausted_at,
            }
            for budget, exhausted_at in zip(budgets, exhausted, strict=True)
        ],
        "hourly_rate_usd": sum(hourly.values(), Decimal(0)),
        "forecast_usd": None if end is None else (total + added).quantize(Decimal("0.01")),
    }


_Owner = tuple[str | None, str | None]  # id of a model, or of a job without one, or None; and a decision type


def _model_lines(
    charged: Sequence[sa.RowMapping],
    usage: dict[tuple[str | None, str | None], dict[str, int]],
    models: dict[str, sa.RowMapping],
    *,
    of_whole_days: bool,
) -> tuple[Counter[str], list[dict[str, Any]]]:
    """Nano-dollars by the kind of charge, and a line a model, or a job without one, or a type's models of others."""
    by_kind: Counter[str] = Counter()
    by_model: dict[_Owner, Counter[str]] = defaultdict(Counter)
    minutes: Counter[_Owner] = Counter()  # of endpoints
    for row in charged:
        # A job that came to nothing has no model: its cost is told under the job's own id.
        owner = row["model_id"] or row["job_id"]
        decision_type = models[owner]["decision_type"] if owner in models else row["decision_type"]
        kind = "endpoint" if row["kind"] == "share" else row["kind"]  # what an endpoint costs, given to its users
        by_kind[kind] += int(row["amount"])
        by_model[owner, decision_type][kind] += int(row["amount"])
        if row["kind"] == "endpoint":
            minutes[owner, decision_type] += int(row["quantity"] or 0)
    for model_id, _ in usage:
        if model_id in models:  # used, and nothing charged
            by_model.setdefault((model_id, models[model_id]["decision_type"]), Counter())
    lines = []
    for (model_id, decision_type), spent in by_model.items():
        used = usage.get((model_id, None) if model_id else (None, decision_type), _no_usage())
        model, ran = models.get(model_id or ""), minutes[model_id, decision_type]
        line = _model_line(model, spent, ran, used, of_whole_days=of_whole_days)
        lines.append({"model_id": model_id, "decision_type": decision_type, **line})
    return by_kind, lines


def _charged(connection: sa.Connection, start: datetime | None, end: datetime | None) -> Sequence[sa.RowMapping]:
    """Sums of the charges of a period, by kind and by what they were for."""
    charges = schema.charges
    of = (charges.c.kind, charges.c.model_id, charges.c.job_id, charges.c.decision_type)
    query = sa.select(
        *of, sa.func.sum(charges.c.amount_nano).label("amount"), sa.func.sum(charges.c.quantity).label("quantity")
    ).group_by(*of)
    if start is not None:
        query = query.where(charges.c.ts >= start, charges.c.ts < end)
    return connection.execute(query).mappings().all()


def _model_line(
    model: sa.RowMapping | None, spent: Counter[str], minutes: int, used: dict[str, int], *, of_whole_days: bool
) -> dict[str, Any]:
    """What there is to tell of a model. `spent` has nano-dollars by the kind of charge."""
    total, requests = spent.total(), used["requests"]
    return {
        "base_model": model["base_model"] if model else None,
        "state": model["state"] if model else None,
        "total_usd": from_nano(total),
        "average_usd_per_request": from_nano(total // requests) if requests and of_whole_days else None,
        "hours": minutes / 60,
        "requests": requests,
        "input_tokens": used["input_tokens"],
        "output_tokens": used["output_tokens"],
        "training_usd": from_nano(spent["training"]),
        "endpoint_usd": from_nano(spent["endpoint"]),
        "tokens_usd": from_nano(spent["tokens"]),
        "adjustment_usd": from_nano(spent["adjustment"]),
    }


def model_status(ledger: Ledger, *, now: datetime | None = None, routed: Collection[str] = ()) -> list[dict[str, Any]]:
    """Every model that is not retired: what it is, whether it runs, how much it was used and what it cost.

    `routed` names the models (`<project slug>/<name>`) that an unexpired lease gives traffic to. `enabled` is true
    only for a model that is canary, promoted or degraded, routed, and served by a deployment seen ready.
    `deployment_state` is `unknown` when a create was never answered, or nobody has looked for `STALE`: then `replicas`
    and `hourly_usd` are the worst. `why` and `numbers` are those of the last change of its state, at `changed_at`;
    `live_test` is what its live test said last (None: it has no arm, or was not looked at yet).
    """
    now = now or datetime.now(UTC)
    with ledger.read() as connection:
        models = connection.execute(
            sa.select(schema.models, schema.datasets.c.dataset)
            .outerjoin(schema.datasets, schema.datasets.c.id == schema.models.c.dataset_id)
            .where(schema.models.c.state != "retired")
            .order_by(schema.models.c.created_at)
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
        deployments: dict[str | None, list[dict[str, Any]]] = defaultdict(list)
        for row in connection.execute(
            sa.select(schema.deployments).order_by(schema.deployments.c.created_at)
        ).mappings():
            deployments[row["model_id"]].append(dict(row))
        changes, tests = _last_changes(connection), _live_tests(connection)
        status = []
        for model in models:
            used = usage.get((model["id"], None), _no_usage())
            status.append(
                {
                    "model_id": model["id"],
                    "name": model["name"],
                    "provider": model["provider"],
                    "decision_type": model["decision_type"],
                    "tier": model["tier"],
                    "base_model": model["base_model"],
                    "state": model["state"],
                    "dataset_id": model["dataset"],  # as people see it: the name of its folder
                    "upload_id": model["dataset_id"],
                    "job_id": model["job_id"],
                    "requests": used["requests"],
                    "input_tokens": used["input_tokens"],
                    "output_tokens": used["output_tokens"],
                    "cost_usd": from_nano(int(cost.get(model["id"], 0))),
                    **_deployment_status(deployments[model["id"]], model["state"], now, routed),
                    **changes.get(model["id"], {"changed_at": model["created_at"], "why": None, "numbers": None}),
                    "live_test": tests.get(model["id"]),
                }
            )
    return status


def _last_changes(connection: sa.Connection) -> dict[str, dict[str, Any]]:
    """When each model came into its state, why, and the figures behind that."""
    table = schema.transitions
    newest = sa.select(sa.func.max(table.c.id)).where(table.c.object == Model.TABLE).group_by(table.c.object_id)
    return {
        row.object_id: {"changed_at": row.ts, "why": row.why, "numbers": _figures(row.numbers)}
        for row in connection.execute(sa.select(table).where(table.c.id.in_(newest)))
    }


def _live_tests(connection: sa.Connection) -> dict[str, dict[str, Any]]:
    """What the live test of each model that has an arm said last."""
    table = schema.model_routes
    rows = connection.execute(sa.select(table.c.model_id, table.c.checked).where(table.c.checked.is_not(None)))
    shown = ("at", "action", "reason", "numbers")
    return {row.model_id: {name: orjson.loads(row.checked).get(name) for name in shown} for row in rows}


def _figures(text: str | None) -> dict[str, Any] | None:
    found: dict[str, Any] | None = orjson.loads(text) if text else None
    return found


def model_history(ledger: Ledger, model_id: str) -> list[dict[str, Any]]:
    """What happened to a model, its fine-tune and its deployments, and why, oldest first. Raises NoSuchObject."""
    return _history_rows(_steps_of(ledger, ledger.get(Model, model_id)))


def type_history(ledger: Ledger, decision_type: str) -> list[dict[str, Any]]:
    """What became of every model and every cycle of a decision type, and why, oldest first."""
    models = ledger.find(Model, decision_type=decision_type)
    rows = _history_rows([step for model in models for step in _steps_of(ledger, model)])
    rows += [
        {
            "ts": datetime.fromisoformat(cycle.finished_at),
            "object": "cycles",
            "object_id": cycle.model_id or cycle.dataset_id or "",
            "from_state": None,
            "to_state": cycle.outcome,
            "why": cycle.why,
            "numbers": {"due": cycle.due, "dataset_id": cycle.dataset_id, "evaluation_id": cycle.evaluation_id},
        }
        for cycle in past_cycles(ledger, decision_type)
        if cycle.finished_at is not None
    ]
    return sorted(rows, key=lambda row: row["ts"])


def _steps_of(ledger: Ledger, model: Model) -> list[Transition]:
    deployments = [row.id for row in ledger.find(Deployment, model_id=model.id)]
    return [
        step
        for object_type, ids in (
            ("fine_tune_jobs", [model.job_id]),
            ("models", [model.id]),
            ("deployments", deployments),
        )
        for object_id in ids
        if object_id is not None
        for step in ledger.history(object_type, object_id)
    ]


def _history_rows(steps: Sequence[Transition]) -> list[dict[str, Any]]:
    columns = ("ts", "object", "object_id", "from_state", "to_state", "why")
    return [
        {name: getattr(step, name) for name in columns} | {"numbers": _figures(step.numbers)}
        for step in sorted(steps, key=lambda step: step.id)
    ]


def _deployment_status(
    rows: list[dict[str, Any]], model_state: str, now: datetime, routed: Collection[str]
) -> dict[str, Any]:
    """Of the newest deployment that may cost something, else of the newest: a double is newer than what it doubles."""
    worst = {row["id"]: _worst_replicas(row, now) for row in rows}
    row: dict[str, Any] = max(rows, key=lambda row: (worst[row["id"]] is not None, row["created_at"]), default={})
    in_doubt = bool(row) and _is_in_doubt(row)
    replicas = worst.get(row.get("id")) or 0
    active = worst.get(row.get("id")) is not None
    seen_at = _seen_at(row) if active else None
    unknown = in_doubt or (seen_at is not None and now - seen_at >= STALE)
    ready = row.get("state") == "ready" and replicas > 0 and not unknown
    busy_at = max((at for at in (row.get("last_request_at"), row.get("ready_at")) if at), default=None)
    doubt = "its creation was sent and never answered: `reasoning reconcile` finds out" if in_doubt else None
    return {
        "enabled": model_state in ("canary", "promoted", "degraded") and ready and row["served_name"] in routed,
        "deployment_id": row.get("id"),
        "deployment_state": "unknown" if unknown else row.get("state"),
        "seen_at": seen_at,
        "served_name": row.get("served_name"),
        "reason": _reason(row) or doubt,
        "replicas": replicas,
        "idle_seconds": max((now - busy_at).total_seconds(), 0.0) if active and busy_at else None,
        "last_request_at": row.get("last_request_at"),
        "hourly_usd": from_nano(sum(row["hourly_nano"] * (worst[row["id"]] or 0) for row in rows)),
    }


def _reason(deployment: dict[str, Any]) -> str | None:
    """Why it is not well, and for what has failed how it is cleared away."""
    reason: str | None = deployment.get("reason")
    if deployment.get("state") != "failed":
        return reason
    model = deployment["model_id"] or deployment["name"]
    return f"{reason or 'it failed'}. The guard deletes it, or `reasoning undeploy {model}` does"


def _is_in_doubt(deployment: dict[str, Any]) -> bool:
    """A create was sent and never answered."""
    return deployment["state"] == "intended" and deployment["attempted_at"] is not None


def _seen_at(deployment: dict[str, Any]) -> datetime:
    """When somebody looked at it last."""
    seen_at: datetime = deployment["metered_until"] or deployment["attempted_at"] or deployment["created_at"]
    return seen_at


def _worst_replicas(deployment: dict[str, Any], now: datetime) -> int | None:
    """How many replicas may run at `now`. None: it cannot cost anything."""
    seen, most = int(deployment["replicas"]), int(deployment["max_replicas"])
    if _is_in_doubt(deployment):
        return most
    if deployment["state"] not in BILLABLE_STATES:
        return None
    return max(seen, most) if now - _seen_at(deployment) >= STALE else seen


def _no_usage() -> dict[str, int]:
    return {"requests": 0, "input_tokens": 0, "output_tokens": 0}


def _hourly_usd(connection: sa.Connection, now: datetime) -> dict[str | None, Decimal]:
    """What may run now costs an hour, by decision type."""
    table, nano = schema.deployments, defaultdict[str | None, int](int)
    for row in connection.execute(
        sa.select(table).where(
            table.c.state.in_([state.value for state in (DeploymentState.INTENDED, *BILLABLE_STATES)])
        )
    ).mappings():
        nano[row["decision_type"]] += row["hourly_nano"] * (_worst_replicas(dict(row), now) or 0)
    return {decision_type: from_nano(amount) for decision_type, amount in nano.items()}


def _owed_usd(connection: sa.Connection) -> dict[str | None, Decimal]:
    """What the jobs under way are estimated to cost, by decision type."""
    table = schema.fine_tune_jobs
    query = sa.select(table.c.decision_type, sa.func.sum(table.c.estimate_nano)).where(
        table.c.state.in_([state.value for state in ACTIVE_STATES])
    )
    rows = connection.execute(query.group_by(table.c.decision_type)).tuples()
    return {decision_type: from_nano(int(amount)) for decision_type, amount in rows}


def _usage(
    connection: sa.Connection, start: datetime | None, end: datetime | None
) -> dict[tuple[str | None, str | None], dict[str, int]]:
    """Requests and tokens from the meters (whole days): of (model id, None), and of (None, decision type) for all
    models that are not ours.
    """
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
    usage: dict[tuple[str | None, str | None], dict[str, int]] = defaultdict(_no_usage)
    for row in connection.execute(query).mappings():
        model_id = names.get(row["model"])
        used = usage[(model_id, None) if model_id else (None, row["decision_type"])]
        for column in used:
            used[column] += row[column]
    return usage
