"""What is used, charged: minutes of running replicas as they pass, tokens as the decision log tells.

Together bills every started minute of every running replica. We see a deployment only now and then, so what may have
run between two looks is taken to have run: the charge is never too small, and `reconcile_provider` corrects it to the
provider's own bill.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from provider.money.token_prices import MESSAGE_TOKENS, tokens_usd
from provider.providers import capabilities_of
from reasoning.config import load_config
from storage.errors import LedgerError, PriceUnknown
from storage.ledger.charges import ChargedTo
from storage.ledger.money import LARGEST_USD, minutes_usd, round_up
from storage.ledger.reports import BILLABLE_STATES
from storage.ledger.rows import Deployment, Model, ReservationState

if TYPE_CHECKING:
    import duckdb

    from storage.layout import Layout
    from storage.ledger.ledger import Ledger

RUNWAY = timedelta(minutes=5)
"""What a deployment holds reserved ahead: long enough to notice that the money ends, and to stop it."""

_IS_COST = f"cost_usd BETWEEN 0 AND {LARGEST_USD - 1}"
# What was never sent to a model: such rows cost nothing and do not keep a deployment awake.
NOT_SENT = ("disabled", "no_route", "lease_expired", "circuit_open")
_DAY = "strftime(ts, '%Y-%m-%d')"
_ASKED = f"""source = 'custom' AND model IS NOT NULL AND date >= ?
         AND (fallback_reason IS NULL OR fallback_reason NOT IN {NOT_SENT})"""
_NO_INPUT, _NO_OUTPUT = "coalesce(input_tokens, -1) < 0", "coalesce(output_tokens, -1) < 0"
_MOST_TOKENS = 4096
"""Tokens of an answer of a decision type that is not declared any more."""


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
        begun = math.ceil((now - since).total_seconds() / 60) if running and row.hourly_usd and now > since else 0
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
            metered_until=since if running and replicas and row.hourly_usd else now,
            now=now,
        )
        if charged and (held := row.reservation_id):
            reservation = ledger.reservation(held)
            if reservation.state == ReservationState.OPEN:
                ledger.resize(held, max(reservation.amount_usd - charged, Decimal(0)), now=now)
    return charged


def meter_decisions(layout: Layout, ledger: Ledger, *, since: datetime, now: datetime) -> None:
    """Take requests, tokens and their cost from the decision log into the ledger, whole days from `since` on.

    The tokens of a registered model are charged at its prices (`tokens_usd`); where its server did not count them, at
    most what they can have been (`_uncounted`). What runs on another deployment is paid by the minute, whatever price a
    route names. All else costs what the log says.

    Raises LedgerError when all is taken but rows whose cost is no amount of money: below zero, beyond any price, or of
    a model without one.
    """
    if next(layout.decisions.rglob("*.parquet"), None) is None:
        return
    deployments = {row.served_name: row for row in ledger.find(Deployment) if row.served_name}
    registered = {
        name: ledger.get(Model, row.model_id)
        for name, row in deployments.items()
        if row.model_id and capabilities_of(row.provider).per_token
    }
    odd, unpriced = [], []
    by_tokens = [name for name, model in registered.items() if model.input_million_usd is not None]
    for used in _read_usage(layout, since, by_tokens=by_tokens):
        deployment = deployments.get(used.model)
        cost = Decimal(0) if deployment else used.cost_usd
        if (model := registered.get(used.model)) is not None:
            try:
                tokens = used.input_tokens + used.most_input_tokens, used.output_tokens + used.most_output_tokens
                cost = tokens_usd(model, *tokens)
                round_up(cost)  # raises where it is more than the ledger can keep
            except (ValueError, PriceUnknown) as error:
                unpriced.append(f"{used.model} as {used.decision_type} on {used.day}: {error}")
                cost = Decimal(0)
        elif used.not_costs and not deployment:
            odd.append(f"{used.not_costs} of {used.model} as {used.decision_type} on {used.day}")
        _meter(ledger, used, cost, deployment, now)
    if odd:
        raise LedgerError(
            f"decisions whose cost_usd is no amount of money are not charged: {', '.join(odd)}. "
            "Correct the prices of who logs them; expire or erase these rows"
        )
    if unpriced:
        raise LedgerError(f"tokens of registered models are not charged: {'; '.join(unpriced)}")


class _Usage(NamedTuple):
    """What the log has of a model, a decision type and a day. `not_costs` are rows whose cost is no amount of money.

    `most_...` are the tokens at most of rows without a count; read only where tokens are charged.
    """

    model: str
    decision_type: str
    day: str
    requests: int
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal
    not_costs: int
    last_at: datetime
    most_input_tokens: int = 0
    most_output_tokens: int = 0


def _meter(ledger: Ledger, used: _Usage, cost_usd: Decimal, deployment: Deployment | None, now: datetime) -> None:
    """Charge what is new, and note when the deployment was asked last."""
    of = ChargedTo(decision_type=used.decision_type)
    if deployment is not None:
        of = replace(of, model_id=deployment.model_id, deployment_id=deployment.id)
    with ledger.transaction():
        new, _ = ledger.meter(
            used.model,
            of,
            used.day,
            requests=used.requests,
            input_tokens=used.input_tokens,
            output_tokens=used.output_tokens,
            cost_usd=cost_usd,
            now=now,
        )
        last_at = used.last_at
        if last_at > now:  # an agent's clock is ahead: such a request was made when it was first seen, once
            last_at = now if new else datetime.min.replace(tzinfo=UTC)
        if deployment is None:
            return
        before = ledger.get(Deployment, deployment.id).last_request_at
        if last_at > (before or datetime.min.replace(tzinfo=UTC)):
            ledger.update(Deployment, deployment.id, last_request_at=last_at, now=now)


def _read_usage(layout: Layout, since: datetime, *, by_tokens: Collection[str]) -> list[_Usage]:
    """What the decision log has of every model by type and day. `by_tokens` are models that are paid by the token."""
    import storage

    def read(connection: duckdb.DuckDBPyConnection) -> list[_Usage]:
        most = _read_uncounted(connection, layout, since, by_tokens) if by_tokens else {}
        query = f"""SELECT model, decision_type, {_DAY} AS day, count(*),
                           coalesce(sum(greatest(input_tokens, 0)), 0)::BIGINT,
                           coalesce(sum(greatest(output_tokens, 0)), 0)::BIGINT,
                           coalesce(sum(TRY_CAST(cost_usd AS DECIMAL(38, 12))) FILTER ({_IS_COST}), 0)::VARCHAR,
                           count(cost_usd) FILTER (NOT {_IS_COST}), epoch_us(max(ts))
                    FROM decisions WHERE {_ASKED} GROUP BY ALL"""  # noqa: S608 - only the constants above
        found = []
        for model, kind, day, *sums in connection.execute(query, [since.date()]).fetchall():
            requests, tokens_in, tokens_out, cost, odd, last = sums
            last_at = datetime.fromtimestamp(last / 1e6, UTC)
            most_in, most_out = most.get((model, kind, day), (0, 0))
            used = _Usage(
                model, kind, day, requests, tokens_in, tokens_out, Decimal(cost), odd, last_at, most_in, most_out
            )
            found.append(used)
        return found

    return storage.read(layout.data, read)


def _read_uncounted(
    connection: duckdb.DuckDBPyConnection, layout: Layout, since: datetime, models: Collection[str]
) -> dict[tuple[str, ...], tuple[int, int]]:
    """The most tokens that requests can have cost whose server did not count them, by model, decision type and day.

    A token has at least one byte, and a message a few tokens besides. An answer has at most the tokens that were asked
    for. A call that failed or was given up may be charged by its server as well.
    """
    types = load_config(layout.data).decision_types
    query = f"""SELECT model, decision_type, {_DAY} AS day,
                       coalesce(sum(list_sum([strlen(m.content) + {MESSAGE_TOKENS} FOR m IN messages]) +
                                    coalesce(strlen(tools), 0)) FILTER ({_NO_INPUT}), 0)::BIGINT,
                       count(*) FILTER ({_NO_OUTPUT}),
                       coalesce(sum(strlen(completion)) FILTER ({_NO_OUTPUT}), 0)::BIGINT
                FROM decisions
                WHERE {_ASKED} AND list_contains(?, model) AND ({_NO_INPUT} OR {_NO_OUTPUT})
                GROUP BY ALL"""  # noqa: S608 - only the constants above
    found = {}
    for *key, prompt_bytes, answers, answer_bytes in connection.execute(query, [since.date(), list(models)]).fetchall():
        kind = types.get(key[1])
        most = max(answers * (kind.max_tokens if kind else _MOST_TOKENS), answer_bytes)
        found[tuple(key)] = prompt_bytes, most
    return found
