"""Sleep and wake: a promoted model that nobody asks costs nothing, and comes back when it is asked again.

To sleep is to be taken down, its route with it: agents are answered by their own logic at once. The promotion stays.
To wake is to be deployed again, within the budgets; when it answers, the guard writes its route again. All of it moves
by the guard's ticks, from the ledger and the decision log, so a dead guard wakes nothing. What wakes a model is a rate:
`wake_decisions` of its type within `wake_minutes`, counted since it fell asleep. What puts it to sleep is that nobody
asked it for `idle_minutes`, or that its hours are over (`provider.serving`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from provider.errors import ProviderError
from provider.lifecycle.sharing import attached_to
from provider.money.metering import hourly_usd
from provider.serving import ServingSettings
from reasoning.serving.routes import format_routes, parse_routes
from storage.errors import BudgetExceeded, LedgerError
from storage.ledger.lives import Promotion, decide_promotion, promotions
from storage.ledger.rows import Deployment, DeploymentRole, DeploymentState, Sleep, SleepReason
from storage.ledger.sleeps import end_sleeps, fall_asleep, note_sleep, read_sleeps

if TYPE_CHECKING:
    import duckdb

    from storage.layout import Layout
    from storage.ledger.ledger import Ledger

WAKE_AGAIN = timedelta(minutes=10)
"""After a start that failed, before the next one."""

_RUNNING = (DeploymentState.INTENDED, DeploymentState.PROVISIONING, DeploymentState.DEGRADED, DeploymentState.READY)


def reason_to_sleep(
    row: Deployment, settings: ServingSettings, promoted: Mapping[str, str], now: datetime
) -> tuple[SleepReason, str] | None:
    """Why a deployment is to be taken down for nobody needs it now, with the words for it; None where it is not.

    `promoted` are the promoted models' ids by decision type. Only they keep hours: a candidate is evaluated whenever.
    """
    of_type = settings.of(row.decision_type)
    if promoted.get(row.decision_type or "") == row.model_id and not of_type.is_open(now):
        return SleepReason.CALENDAR, f"its hours are over ({of_type.serve_between})"
    costs_nothing = not hourly_usd(row) and row.role != DeploymentRole.ATTACHED  # an attached one's replica may cost
    if of_type.idle_minutes is None or costs_nothing:
        return None
    busy_at = max(at for at in (row.ready_at, row.last_request_at, row.created_at) if at)
    minutes = (now - busy_at).total_seconds() / 60
    return (SleepReason.IDLE, f"idle for {int(minutes)} minutes") if minutes >= of_type.idle_minutes else None


def put_to_sleep(ledger: Ledger, row: Deployment, why: SleepReason, *, now: datetime) -> bool:
    """Remember that what is being taken down is only asleep, if it is a promoted model. Returns whether it is."""
    decision_type = row.decision_type or ""
    if row.model_id is None or promoted_models(ledger).get(decision_type) != row.model_id:
        return False
    fall_asleep(ledger, decision_type, row.model_id, why=why, saving_usd=_saving(ledger, row), now=now)
    return True


def _saving(ledger: Ledger, row: Deployment) -> Decimal:
    """What an hour costs less without it: nothing where its replica goes on for others."""
    if row.role != DeploymentRole.ATTACHED or row.replica_id is None:
        return hourly_usd(row)
    ending = (DeploymentState.DRAINING, DeploymentState.STOPPING, DeploymentState.STOPPED, DeploymentState.FAILED)
    others = [each for each in attached_to(ledger, row.replica_id) if each.id != row.id and each.state not in ending]
    return Decimal(0) if others else hourly_usd(ledger.get(Deployment, row.replica_id))


def promoted_models(ledger: Ledger) -> dict[str, str]:
    """Ids of the promoted models by decision type."""
    return {promotion.decision_type: promotion.model_id for promotion in promotions(ledger)}


def wake_sleepers(
    layout: Layout, ledger: Ledger, settings: ServingSettings, begin: Callable[[str], object], *, now: datetime
) -> tuple[list[str], list[str]]:
    """Start what is asked for again, and give what answers again its route; returns actions and warnings, in words.

    `begin` deploys a model by its id without waiting until it is ready. It may refuse: BudgetExceeded is a warning, and
    is tried again as long as it is asked for.
    """
    actions: list[str] = []
    warnings: list[str] = []
    asleep = [sleep for sleep in read_sleeps(ledger) if sleep.ready_at is None]
    known = {promotion.decision_type: promotion for promotion in promotions(ledger)}
    for sleep in asleep:
        promotion = known.get(sleep.decision_type)
        if promotion is None or promotion.model_id != sleep.model_id:
            end_sleeps(ledger, sleep.decision_type, now=now)
            continue
        rows = ledger.find(Deployment, model_id=sleep.model_id, state=_RUNNING)
        if rows:
            if rows[-1].state == DeploymentState.INTENDED and sleep.woken_at is not None:  # who began it has died
                warnings += _try(begin, ledger, sleep)
            actions += _follow(ledger, sleep, promotion, rows[-1], now)
        elif sleep.woken_at is not None:
            note_sleep(ledger, sleep.id, woken_at=None, refused="it was started and did not become ready")
        elif why := _reason_to_wake(layout, ledger, sleep, settings, now):
            note_sleep(ledger, sleep.id, woken_at=now, refused=None)  # before, so that a death in between is seen
            refused = _try(begin, ledger, sleep)
            warnings += refused
            if not refused:
                actions.append(f"waking the model of {sleep.decision_type}: {why}")
    return actions, warnings


def _try(begin: Callable[[str], object], ledger: Ledger, sleep: Sleep) -> list[str]:
    """Start a sleeping model; what refused it, in words."""
    try:
        begin(sleep.model_id)
    except (BudgetExceeded, LedgerError, ProviderError) as error:
        note_sleep(ledger, sleep.id, woken_at=None, refused=str(error))
        return [f"{sleep.decision_type} is asked for again and cannot be woken: {error}"]
    return []


def _follow(ledger: Ledger, sleep: Sleep, promotion: Promotion, row: Deployment, now: datetime) -> list[str]:
    """A sleeping model runs: by our order, or somebody's hand. When it is ready its route is to be written again."""
    if sleep.woken_at is None:
        note_sleep(ledger, sleep.id, woken_at=min(row.created_at, now), refused=None)
    if row.state != DeploymentState.READY or row.served_name is None:
        return []
    routes = parse_routes(promotion.routes.encode())
    route = routes.routes.get(sleep.decision_type)
    if route is None:  # its traffic was taken away meanwhile
        return []
    names = {each.served_name for each in ledger.find(Deployment, model_id=sleep.model_id)}
    arms = tuple(replace(arm, model=row.served_name) if arm.model in names else arm for arm in route.arms)
    again = replace(routes, routes={sleep.decision_type: replace(route, arms=arms)})
    with ledger.transaction():
        decide_promotion(ledger, replace(promotion, routes=format_routes(again).decode(), published_at=None))
        note_sleep(ledger, sleep.id, ready_at=now)
    return [f"the model of {sleep.decision_type} is awake"]


def _reason_to_wake(
    layout: Layout, ledger: Ledger, sleep: Sleep, settings: ServingSettings, now: datetime
) -> str | None:
    of_type = settings.of(sleep.decision_type)
    if not of_type.is_open(now):
        return None
    rows = ledger.find(Deployment, model_id=sleep.model_id)
    failed_at = max((row.updated_at for row in rows if row.created_at > sleep.slept_at), default=None)
    if failed_at is not None and now - failed_at < WAKE_AGAIN:
        return None
    if sleep.why == SleepReason.CALENDAR:
        return f"its hours begin ({of_type.serve_between})"
    since = max(now - timedelta(minutes=of_type.wake_minutes), sleep.slept_at)
    asked = count_decisions(layout, sleep.decision_type, since=since)
    if asked < of_type.wake_decisions:
        return None
    return f"{asked} decisions within {of_type.wake_minutes:g} minutes"


def count_decisions(layout: Layout, decision_type: str, *, since: datetime) -> int:
    """How many decisions of a type were asked for since, by the log, whoever answered them."""
    if next(layout.decisions.rglob("*.parquet"), None) is None:
        return 0
    import storage

    def rows_of(connection: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
        return connection.execute(
            "SELECT count(DISTINCT request_id) FROM decisions WHERE decision_type = ? AND date >= ? AND ts > ?",
            [decision_type, since.date(), since],
        ).fetchall()

    return int(storage.read(layout.data, rows_of)[0][0])
