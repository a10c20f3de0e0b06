"""Where the money goes at this rate: when the guard stops what a budget covers, and what will have been spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from storage.ledger.ledger import Budget

HORIZON = timedelta(days=366)
"""What lies further away than this is not foretold."""

_HOUR = timedelta(hours=1)


def forecast_spend(
    budgets: Sequence[Budget],
    hourly_usd: Mapping[str | None, Decimal],
    owed_usd: Mapping[str | None, Decimal],
    *,
    now: datetime,
    until: datetime | None,
    drain_share: float = 1.0,
) -> tuple[Decimal, list[datetime | None]]:
    """(US dollars that are spent from `now` to `until`, when each budget is exhausted; None: not within `HORIZON`).

    `hourly_usd` is what runs now, `owed_usd` what jobs under way will cost, both by decision type. A budget is
    exhausted once `drain_share` of it is spent: then the guard stops what it covers, and that does not start again by
    itself. A budget of a day or a month begins anew with the next one (UTC). `hour`, which limits a rate, never is.
    """
    rates = {decision_type: rate for decision_type, rate in hourly_usd.items() if rate > 0}
    room = [Decimal(str(drain_share)) * budget.limit_usd for budget in budgets]
    left = [limit - budget.spent_usd - _within(budget, owed_usd) for budget, limit in zip(budgets, room, strict=True)]
    exhausted: list[datetime | None] = [None] * len(budgets)
    spent, moment, end = sum(owed_usd.values(), Decimal(0)), now.astimezone(UTC), now + HORIZON
    while moment < end:
        for index, budget in enumerate(budgets):
            if left[index] <= 0 and budget.period != "hour":
                exhausted[index] = exhausted[index] or moment
                rates = {kind: rate for kind, rate in rates.items() if budget.decision_type not in (None, kind)}
        if not rates:
            break
        midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        burning = [Decimal(0) if budget.period == "hour" else _within(budget, rates) for budget in budgets]
        lasts = [
            _HOUR * float(usd / burn) for usd, burn in zip(left, burning, strict=True) if burn and usd < burn * 9999
        ]
        after = min([midnight, *(moment + max(each, timedelta(microseconds=1)) for each in lasts)])
        hours = Decimal((after - moment) / _HOUR)
        if until is not None and moment < until:
            spent += sum(rates.values()) * Decimal((min(after, until) - moment) / _HOUR)
        for index, budget in enumerate(budgets):
            begins_anew = after == midnight and (
                budget.period == "day" or (budget.period == "month" and midnight.day == 1)
            )
            left[index] = room[index] if begins_anew else left[index] - burning[index] * hours
        moment = after
    return spent, exhausted


def _within(budget: Budget, usd: Mapping[str | None, Decimal]) -> Decimal:
    """How much of it counts in this budget."""
    return sum((part for kind, part in usd.items() if budget.decision_type in (None, kind)), Decimal(0))
