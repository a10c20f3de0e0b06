"""What is used, charged: minutes of running replicas as they pass, tokens as the decision log tells.

Together bills every started minute of every running replica. We see a deployment only now and then, so what may have
run between two looks is taken to have run: the charge is never too small, and `reconcile_provider` corrects it to the
provider's own bill.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from storage.errors import LedgerError
from storage.ledger.charges import ChargedTo
from storage.ledger.money import LARGEST_USD, minutes_usd
from storage.ledger.reports import BILLABLE_STATES
from storage.ledger.rows import Deployment

if TYPE_CHECKING:
    import duckdb

    from storage.layout import Layout
    from storage.ledger.ledger import Ledger

RUNWAY = timedelta(minutes=5)
"""What a deployment holds reserved ahead: long enough to notice that the money ends, and to stop it."""

_IS_COST = f"cost_usd BETWEEN 0 AND {LARGEST_USD - 1}"
# What was never sent to a model: such rows cost nothing and do not keep a deployment awake.
_NOT_SENT = ("disabled", "no_route", "lease_expired", "circuit_open")


def hourly_usd(deployment: Deployment) -> Decimal:
    """What a deployment may cost an hour with all its replicas: those it was given, or were last seen running."""
    return deployment.hourly_usd * max(deployment.max_replicas, deployment.replicas)


def runway_usd(deployment: Deployment) -> Decimal:
    """US dollars for `RUNWAY` of all the replicas that a deployment may have."""
    return runway_of(hourly_usd(deployment))


def runway_of(hourly_usd: Decimal) -> Decimal:
    """US dollars for `RUNWAY` at this price an hour."""
    return minutes_usd(hourly_usd, RUNWAY // timedelta(minutes=1))


def last_metered(ledger: Ledger) -> datetime | None:
    """Until when anything that may still run was metered last; None where nothing runs."""
    return max(
        (row.metered_until for row in ledger.find(Deployment, state=BILLABLE_STATES) if row.metered_until), default=None
    )


def meter_minutes(ledger: Ledger, deployment_id: str, replicas: int, *, now: datetime) -> Decimal:
    """Charge the minutes since the last look, given `replicas` running now. Returns the US dollars charged.

    Two callers at once charge each minute once: the last look is read and moved in the transaction of the charge.
    """
    charged = Decimal(0)
    with ledger.transaction():
        row = ledger.get(Deployment, deployment_id)
        running = max(replicas, row.replicas)  # at this look and at the last one
        since, billed = row.metered_until or row.created_at, row.billed_minutes
        begun = math.ceil((now - since).total_seconds() / 60) if running and now > since else 0
        while begun > 0:
            # A charge lies within one hour, as the lines of the provider's bill do.
            left_in_hour = math.ceil((3600 - (since.minute * 60 + since.second + since.microsecond / 1e6)) / 60)
            minutes = min(begun, left_in_hour)
            quantity, hourly = minutes * running, row.hourly_usd
            # Differences of rounded sums: a third of a cent an hour is not lost, nor gained, over a month.
            amount = minutes_usd(hourly, billed + quantity) - minutes_usd(hourly, billed)
            ledger.charge(
                "endpoint",
                amount,
                key=f"endpoint:{deployment_id}:{billed}-{billed + quantity}",
                what=f"{quantity} replica minute{'' if quantity == 1 else 's'} of {row.name} on {row.hardware}",
                of=ChargedTo(decision_type=row.decision_type, model_id=row.model_id, deployment_id=deployment_id),
                quantity=quantity,
                ts=since,
                now=now,
            )
            charged, billed, begun = charged + amount, billed + quantity, begun - minutes
            since += timedelta(minutes=minutes)
        ledger.update(
            Deployment,
            deployment_id,
            replicas=replicas,
            billed_minutes=billed,
            metered_until=since if running and replicas else now,
            now=now,
        )
        if charged and (held := row.reservation_id):
            reservation = ledger.reservation(held)
            if reservation.state == "open":
                ledger.resize(held, max(reservation.amount_usd - charged, Decimal(0)), now=now)
    return charged


def meter_decisions(layout: Layout, ledger: Ledger, *, since: datetime, now: datetime) -> None:
    """Take requests, tokens and their cost from the decision log into the ledger, whole days from `since` on.

    Raises LedgerError when all is taken but rows whose cost is no amount of money: below zero, or beyond any price.
    """
    if next(layout.decisions.rglob("*.parquet"), None) is None:
        return
    import storage

    def rows_of(connection: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
        return connection.execute(
            f"""SELECT model, decision_type, strftime(ts, '%Y-%m-%d') AS day, count(*),
                       coalesce(sum(input_tokens), 0)::BIGINT, coalesce(sum(output_tokens), 0)::BIGINT,
                       coalesce(sum(TRY_CAST(cost_usd AS DECIMAL(38, 12))) FILTER ({_IS_COST}), 0)::VARCHAR,
                       count(cost_usd) FILTER (NOT {_IS_COST}), epoch_us(max(ts))
                FROM decisions
                WHERE source = 'custom' AND model IS NOT NULL AND date >= ?
                  AND (fallback_reason IS NULL OR fallback_reason NOT IN {_NOT_SENT})
                GROUP BY ALL""",  # noqa: S608 - only the constants above
            [since.date()],
        ).fetchall()

    deployments = {row.served_name: row for row in ledger.find(Deployment) if row.served_name}
    odd = []
    for model, decision_type, day, requests, input_tokens, output_tokens, cost, not_costs, last in storage.read(
        layout.data, rows_of
    ):
        deployment = deployments.get(model)
        last_at = datetime.fromtimestamp(last / 1e6, UTC)
        if not_costs and not deployment:
            odd.append(f"{not_costs} of {model} as {decision_type} on {day}")
        with ledger.transaction():
            new, _ = ledger.meter(
                model,
                decision_type,
                day,
                requests=requests,
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                # What runs on a deployment is paid by the minute, whatever price a route names.
                cost_usd=Decimal(0) if deployment else Decimal(cost),
                now=now,
            )
            if last_at > now:  # an agent's clock is ahead: such a request was made when it was first seen, once
                last_at = now if new else datetime.min.replace(tzinfo=UTC)
            if deployment and last_at > (deployment.last_request_at or datetime.min.replace(tzinfo=UTC)):
                deployments[model] = ledger.update(Deployment, deployment.id, last_request_at=last_at, now=now)
    if odd:
        raise LedgerError(
            f"decisions whose cost_usd is no amount of money are not charged: {', '.join(odd)}. "
            "Correct the prices of who logs them; expire or erase these rows"
        )
