"""What people see: the status of every model and the cost report, for the CLI, the gateway and Prefect artifacts."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from provider.routes import routed_models
from reasoning.errors import RoutesError
from storage import ledger_reports
from storage.layout import Layout
from storage.ledger import Period, open_ledger


def model_status(data: Path | str, *, now: datetime | None = None) -> list[dict[str, Any]]:
    """Every model that is not retired; keys as in `storage.ledger_reports.model_status`.

    `enabled` says that at `now` the model is promoted, has traffic by a lease that has not expired, and is ready.
    """
    now = now or datetime.now(UTC)
    try:
        routed = routed_models(Layout(data).routes, now=now)
    except RoutesError:
        routed = frozenset()  # a lease that cannot be read gives no traffic
    with open_ledger(data) as ledger:
        return ledger_reports.model_status(ledger, now=now, routed=routed)


def cost_report(data: Path | str, *, period: Period = "month", now: datetime | None = None) -> dict[str, Any]:
    """What was spent on what; keys as in `storage.ledger_reports.cost_report`."""
    with open_ledger(data) as ledger:
        return ledger.cost_report(now, period)
