"""What people see: the status of every model and the cost report, for the CLI, the gateway and Prefect artifacts."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from provider.lifecycle.fine_tunes import waiting_jobs
from provider.lifecycle.guard_report import DRAIN_SHARE
from provider.lifecycle.routes import routed_models
from provider.lifecycle.sharing import attached_to
from provider.money.bill import bill_notes
from provider.money.metering import hourly_usd
from provider.providers import providers_where
from reasoning.errors import RoutesError
from storage.layout import Layout
from storage.ledger import reports as ledger_reports
from storage.ledger.ledger import Period, open_ledger
from storage.ledger.money import format_usd
from storage.ledger.rows import Deployment, DeploymentRole, DeploymentState, FineTuneJob


def model_status(data: Path | str, *, now: datetime | None = None) -> list[dict[str, Any]]:
    """Every model that is not retired; keys as in `storage.ledger.reports.model_status`.

    `enabled` says that at `now` the model serves by its state, has traffic by a lease in force, and is ready.
    """
    now = now or datetime.now(UTC)
    try:
        routed = routed_models(Layout(data).routes, now=now)
    except RoutesError:
        routed = frozenset()  # a lease that cannot be read gives no traffic
    with open_ledger(data) as ledger:
        return ledger_reports.model_status(ledger, now=now, routed=routed)


def cost_report(data: Path | str, *, period: Period = "month", now: datetime | None = None) -> dict[str, Any]:
    """What was spent on what, and where it is heading; keys as in `storage.ledger.reports.cost_report`.

    A budget counts as exhausted where the guard drains: at 95 % of it.
    """
    with open_ledger(data) as ledger:
        return ledger_reports.cost_report(ledger, now=now, period=period, drain_share=DRAIN_SHARE)


def alerts(data: Path | str, *, now: datetime | None = None) -> list[str]:
    """What is wrong with the money and that nobody was asked for: a line each, with the remedy. Mostly none."""
    with open_ledger(data) as ledger:
        return [*waiting_jobs(ledger, now=now or datetime.now(UTC)), *bill_notes(ledger)]


def running(data: Path | str) -> list[dict[str, str]]:
    """What may cost something at the provider, by the ledger: `what` it is, and the command that ends it (`mend`)."""
    found = []
    with open_ledger(data) as ledger:
        for job in ledger.find(FineTuneJob, state=ledger_reports.ACTIVE_STATES):
            price = format_usd(job.estimate_usd)
            what = f"fine-tune {job.id} ({job.state}, {price}), which the same command follows again"
            found.append({"what": what, "mend": f"reasoning models cancel {job.id}"})
        costly = providers_where(lambda offered: offered.costs_while_unwatched)
        for row in ledger.find(
            Deployment, provider=costly, state=(DeploymentState.INTENDED, *ledger_reports.BILLABLE_STATES)
        ):
            if row.role == DeploymentRole.ATTACHED:
                continue  # its replica has the price, and ends with the last of them
            what = f"deployment {row.name} ({row.state}, {format_usd(hourly_usd(row))} an hour)"
            models = [row.model_id, *(each.model_id for each in attached_to(ledger, row.id))]
            mend = "; ".join(f"reasoning undeploy {id}" for id in models if id) or "reasoning reconcile"
            found.append({"what": what, "mend": mend})
    return found
