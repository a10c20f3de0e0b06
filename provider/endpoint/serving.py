"""The ledger's side of a registered model: from when it may serve, and until when. Its server is never told."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from provider.endpoint.arms import served_name
from provider.endpoint.check import check_model
from provider.lifecycle.deployment_state import LIVE_STATES
from provider.money.metering import meter_minutes, runway_of
from reasoning.decision_types import get_decision_type
from storage.ledger.rows import Deployment, DeploymentState, Model, required

if TYPE_CHECKING:
    from reasoning.config import Config
    from storage.ledger.ledger import Ledger


def serve_model(config: Config, ledger: Ledger, model: Model, *, now: datetime) -> Deployment:
    """Let a registered model serve, if its server answers; returns its deployment. Raises what `check_model` does."""
    kind = get_decision_type(required(model.decision_type, f"the decision type of model {model.id}"), config)
    checked = check_model(config, ledger, model, kind, now=now)
    with ledger.transaction():
        model = ledger.update(Model, model.id, logprobs=checked.logprobs, now=now)
        return begin_serving(ledger, model, now=now)


def begin_serving(ledger: Ledger, model: Model, *, now: datetime) -> Deployment:
    """Write down that a registered model may serve from now on; returns its deployment, which is ready.

    Where it has one that serves, that is returned. What it costs an hour is reserved ahead. Raises BudgetExceeded.
    """
    name = required(model.name, f"the name of model {model.id}")
    with ledger.transaction():
        rows = ledger.find(Deployment, model_id=model.id)
        if ready := [row for row in rows if row.state == DeploymentState.READY]:
            return ready[-1]
        for row in rows:
            if row.state in LIVE_STATES:
                end_serving(ledger, row, why="it is deployed anew", now=now)
        hourly = model.hourly_usd or Decimal(0)
        reservation = None
        if hourly:
            reservation = ledger.reserve(
                runway_of(hourly),
                purpose=f"deployment {name}",
                decision_type=model.decision_type,
                model=model.id,
                hourly_usd=hourly,
                ttl=None,
                now=now,
            )
        return ledger.add(
            Deployment,
            state=DeploymentState.READY,
            provider=model.provider,
            decision_type=model.decision_type,
            name=f"{name}-{len(rows) + 1}" if rows else name,
            model_id=model.id,
            model_object_id=model.model_object_id,
            config=required(model.base_url, f"the URL of model {model.id}"),
            hardware=urlsplit(model.base_url or "").netloc,
            hourly_usd=hourly,
            max_replicas=1,
            replicas=1,
            served_name=served_name(name),
            reservation_id=reservation.id if reservation else None,
            metered_until=now,
            ready_at=now,
            now=now,
        )


def end_serving(ledger: Ledger, row: Deployment, *, why: str | None = None, now: datetime) -> Deployment:
    """Charge a deployment of a registered model to the end, give back what is reserved for it, and close it.

    Its route must be withdrawn before. Its server runs on, and may cost on: it is not ours to stop.
    """
    if row.state == DeploymentState.DELETED:
        return row
    with ledger.transaction():
        meter_minutes(ledger, row.id, 0, now=now)
        if row.reservation_id:
            ledger.release(row.reservation_id, now=now)
        return ledger.transition(
            Deployment,
            row.id,
            DeploymentState.DELETED,
            why=why,
            stopped_at=row.stopped_at or now,
            reason=why or row.reason,
            now=now,
        )
