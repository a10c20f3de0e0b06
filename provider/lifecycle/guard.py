"""The guard: charges what ran, enforces the budgets, stops what nobody uses, and renews the lease if all is well.

`guard_costs` is meant to run every minute and needs no memory of its own: it works from the ledger, the decision log
and what the provider says, so a missed tick is made up by the next one, two at once are harmless (the second one
leaves), and a dead guard costs nothing more than its lease: past that, every decision is the agents' own.

======  ======================================================================================================
80 %    of a budget spent: warn
95 %    drain: routes withdrawn at once, deployments stopped at the next tick, when their last requests have ended
100 %   emergency stop: routes withdrawn and deployments scaled to zero in this tick, jobs that wait are cancelled
======  ======================================================================================================

A job that already trains is left to finish: its price was reserved when it began, and most of it is owed anyway.
`guard_limits` says which deployments are to stop, `guard_traffic` changes the routes file.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from provider.clock import correct_time
from provider.endpoint.serving import end_serving
from provider.errors import collect_errors
from provider.lifecycle.deployment_state import LIVE_STATES, raise_price, sync_deployment
from provider.lifecycle.deployments import begin_serving
from provider.lifecycle.fine_tunes import cancel_fine_tune, sync_fine_tune, waiting_jobs
from provider.lifecycle.guard_limits import reasons_to_stop
from provider.lifecycle.guard_report import RUNNING_STATES, GuardPolicy, GuardReport, level_of, spending_budgets
from provider.lifecycle.guard_traffic import renew_routes, withdraw_routes
from provider.lifecycle.routes import keep_models
from provider.lifecycle.shutdown import advance_shutdown, begin_shutdown, end_unused, stop_replicas
from provider.lifecycle.sleep import put_to_sleep, wake_sleepers
from provider.money.metering import last_metered, meter_decisions, meter_minutes
from provider.money.shares import share_replicas
from provider.port import Provider
from provider.providers import capabilities_of, providers_where
from reasoning.errors import ReasoningError
from storage.errors import LedgerError, LedgerUnavailable
from storage.layout import Layout
from storage.ledger.ledger import Ledger, open_ledger
from storage.ledger.money import format_usd
from storage.ledger.reports import ACTIVE_STATES, ENDED_STATES
from storage.ledger.rows import (
    Deployment,
    DeploymentState,
    FineTuneJob,
    JobState,
    Model,
    SleepReason,
)

UNREACHABLE = "the provider cannot be reached"

BLIND = timedelta(minutes=10)
"""How long a deployment may run while the ledger cannot be written."""

STOP_MINUTES = 10
"""What was told to stop and has not for so long is told to people: it may cost on."""

PUT_BACK = timedelta(hours=1)
"""What was charged so far ahead of the clock, one of the two clocks was wrong: nothing is metered until it agrees."""

_SHARED = timedelta(hours=3)  # so far back each tick gives the types their part; the rest too is reconcile_provider's
_METERED_DAYS = 3  # the rest is seen to by reconcile_provider


def guard_costs(
    data: Path | str,
    provider: Provider | None,
    *,
    policy: GuardPolicy | None = None,
    ledger: Ledger | None = None,
    now: datetime | None = None,
) -> GuardReport:
    """One tick. `provider` None means that the provider could not be reached: nothing is renewed then.

    Never raises for what the provider or the decision log does: that is in `errors`, and the lease is not renewed.
    A ledger that cannot be written is an error as well, and what it has not metered for `BLIND` loses its routes and is
    stopped. Raises
    LedgerError when the ledger cannot even be opened.
    """
    report = GuardReport(now=now or datetime.now(UTC))
    opened = ledger or open_ledger(data, now=report.now)
    try:
        with opened.exclusive("guard") as alone:
            if alone:
                _tick(Layout(data), opened, provider, policy or GuardPolicy(), report)
            else:
                report.skipped = True
        return report
    except LedgerUnavailable as error:
        report.errors.append(str(error))
        if report.lease != "renewed":  # else it was lost at the very end
            report.lease = "left"
        if provider is not None:
            _stop_unmetered(Layout(data), opened, provider, report)
        return report
    finally:
        if ledger is None:
            opened.close()


def _tick(layout: Layout, ledger: Ledger, provider: Provider | None, policy: GuardPolicy, report: GuardReport) -> None:
    if provider is not None:
        report.now, _ = correct_time(provider, report.now, report.warnings, seen=last_metered(ledger))
    now = report.now
    before = ledger.spent()
    draining = {row.id for row in ledger.find(Deployment, state=DeploymentState.DRAINING)}
    if provider is not None:
        _look(ledger, provider, report)
    elif needs_provider(ledger):
        report.errors.append(UNREACHABLE)
    _look_at_registered(ledger, report)
    report.warnings += waiting_jobs(ledger, now=now)
    _meter_decisions(layout, ledger, report)
    report.budgets = ledger.budgets(now)

    asleep: dict[str, SleepReason] = {}
    to_stop = reasons_to_stop(ledger, asleep, policy, report)
    for deployment_id, (reason, immediately) in to_stop.items():
        row = ledger.get(Deployment, deployment_id)
        in_doubt = row.state == DeploymentState.INTENDED and row.attempted_at is not None
        if row.state in RUNNING_STATES or in_doubt or (immediately and row.state == DeploymentState.DRAINING):
            begin_shutdown(ledger, deployment_id, why=reason, immediately=immediately, now=now)
            report.actions.append(f"{'stopping' if immediately else 'draining'} {row.name}: {reason}")
            if deployment_id in asleep and put_to_sleep(ledger, row, asleep[deployment_id], now=now):
                report.actions.append(f"the model of {row.decision_type} sleeps until it is asked for again")

    if provider is not None:
        report.actions += [f"stopping {row.name}: {row.reason}" for row in end_unused(ledger, now=now)]
        _wake(layout, ledger, provider, policy, report)
    withdraw_routes(layout, ledger, policy, report)  # before anything is scaled down: clients use their fallback
    _close_registered(ledger, draining, report)
    if provider is not None:
        _take_down(ledger, provider, draining, report)
        _cancel_waiting_jobs(ledger, provider, policy, report)
    report.charged_usd = ledger.spent() - before
    report.budgets = ledger.budgets(now)  # with what this tick reserved, and what it charged at the end of something
    renew_routes(layout, policy, report)


def _stop_unmetered(layout: Layout, ledger: Ledger, provider: Provider, report: GuardReport) -> None:
    """No charge can be written, so no budget can hold: stop what the ledger, as far as it can be read, says runs.

    Nothing of it is recorded; the first tick with a ledger sees what happened, and charges it.
    """
    try:
        rows = ledger.find(Deployment, state=(*RUNNING_STATES, DeploymentState.DRAINING, DeploymentState.STOPPING))
    except LedgerUnavailable:
        return  # said already
    blind = [row for row in rows if report.now - (row.metered_until or row.created_at) >= BLIND]
    names = {row.served_name for row in blind}
    try:
        keep_models(layout.routes, lambda _, model: model not in names, now=report.now)
    except (ReasoningError, OSError) as error:
        report.errors.append(f"the routes cannot be changed, and end with their lease: {error}")
    for row in blind:
        if row.endpoint_id:
            with collect_errors(report.errors, row.name):
                stop_replicas(provider, row.endpoint_id, known=[row.remote_id] if row.remote_id else [])
                report.actions.append(f"stopped {row.name}, whose minutes the ledger cannot take down")


def needs_provider(ledger: Ledger) -> bool:
    """Must the provider be reached for all to be well? Not where only registered models serve."""
    serving = {row.provider for row in ledger.find(Deployment, state=LIVE_STATES)}
    only_registered = bool(serving) and not any(capabilities_of(name).starts_servers for name in serving)
    return not only_registered or bool(ledger.find(FineTuneJob, state=ACTIVE_STATES))


def provider_in_use(ledger: Ledger) -> str | None:
    """The provider that has something of ours which may cost money; None where nothing does.

    Of this machine's own models and of registered ones nothing is asked of anybody.
    """
    costly = providers_where(lambda offered: offered.costs_while_unwatched)
    rows: list[Deployment | FineTuneJob] = [
        *ledger.find(Deployment, state=LIVE_STATES, provider=costly),
        *ledger.find(FineTuneJob, state=ACTIVE_STATES, provider=costly),
    ]
    return min((row.provider for row in rows), default=None)


def _look_at_registered(ledger: Ledger, report: GuardReport) -> None:
    """Charge what registered models cost by the hour. Their servers are not asked: they are not ours."""
    registered = providers_where(lambda offered: not offered.starts_servers)
    for row in ledger.find(Deployment, provider=registered, state=(*RUNNING_STATES, DeploymentState.DRAINING)):
        meter_minutes(ledger, row.id, row.replicas, now=report.now)


def _close_registered(ledger: Ledger, draining: set[str], report: GuardReport) -> None:
    """End the registered models that are to end, those that began to drain in an earlier tick."""
    for row in ledger.find(
        Deployment,
        provider=providers_where(lambda offered: not offered.starts_servers),
        state=(DeploymentState.DRAINING, DeploymentState.STOPPING, DeploymentState.STOPPED, DeploymentState.FAILED),
    ):
        if row.state == DeploymentState.DRAINING and row.id not in draining:
            continue
        end_serving(ledger, row, why=row.reason, now=report.now)
        report.actions.append(f"{row.name} is withdrawn")
        if row.hourly_usd:
            report.warnings.append(
                f"{row.name} is withdrawn and not charged any more, but its server at {row.hardware} is not ours to "
                f"stop: at {format_usd(row.hourly_usd)} an hour it may cost on until whoever runs it stops it"
            )


def _look(ledger: Ledger, provider: Provider, report: GuardReport) -> None:
    """See how everything of ours is, and charge what it cost since the last look."""
    _see_prices(ledger, provider, report)
    for row in ledger.find(Deployment, provider=provider.name, state=LIVE_STATES):
        with collect_errors(report.errors, row.name):
            after, message = sync_deployment(provider, ledger, row.id, now=report.now)
            if after.state != row.state:
                report.actions.append(f"{row.name} is {after.state}{f': {message}' if message else ''}")
            if after.metered_until and after.metered_until - report.now >= PUT_BACK:
                report.errors.append(
                    f"{row.name} was charged until {after.metered_until:%Y-%m-%d %H:%M} UTC, and it is only "
                    f"{report.now:%Y-%m-%d %H:%M} by the clock: it counts no minutes, so its lease is left to run out"
                )
    under_way = (JobState.SUBMITTED, JobState.RUNNING, JobState.CANCELLING)
    for job in ledger.find(FineTuneJob, provider=provider.name, state=under_way):
        with collect_errors(report.errors, job.suffix):
            ended = sync_fine_tune(provider, ledger, job.id, now=report.now)
            if ended.state in ENDED_STATES:
                report.actions.append(f"{job.suffix} is {ended.state} for {format_usd(ended.price_usd or Decimal(0))}")


def _see_prices(ledger: Ledger, provider: Provider, report: GuardReport) -> None:
    """What runs may have become dearer: from now on it is charged and limited by the price of today."""
    running = ledger.find(Deployment, provider=provider.name, state=RUNNING_STATES)
    if not running:
        return
    # No price is no reason to let the lease run out: that of yesterday was known, and the bill corrects it.
    with collect_errors(report.warnings, "today's prices"):
        prices = provider.hourly_prices()
        report.warnings.extend(filter(None, (raise_price(ledger, row, prices, now=report.now) for row in running)))


def _meter_decisions(layout: Layout, ledger: Ledger, report: GuardReport) -> None:
    with collect_errors(
        report.errors, "the decision log cannot be read"
    ):  # the guard goes on, and fails closed: no lease
        meter_decisions(layout, ledger, since=report.now - timedelta(days=_METERED_DAYS), now=report.now)
        share_replicas(layout, ledger, since=report.now - _SHARED, now=report.now)


def _wake(layout: Layout, ledger: Ledger, provider: Provider, policy: GuardPolicy, report: GuardReport) -> None:
    """Start models that sleep and are asked for again, unless money is short."""
    if report.level in ("drain", "stop"):
        return
    settings = policy.of_types

    def begin(model_id: str) -> None:
        model = ledger.get(Model, model_id)
        if model.provider != provider.name:
            raise LedgerError(f"model {model_id} is of the provider {model.provider}, and {provider.name} is in use")
        share = settings.of(model.decision_type).share
        begin_serving(provider, ledger, model_id, share=share, now=report.now)

    with collect_errors(report.warnings, "what sleeps could not be woken"):
        actions, warnings = wake_sleepers(layout, ledger, settings, begin, now=report.now)
        report.actions += actions
        report.warnings += warnings


def _take_down(ledger: Ledger, provider: Provider, draining: set[str], report: GuardReport) -> None:
    """Go on with what is to end. What began to drain in this tick still answers its last requests."""
    for row in ledger.find(
        Deployment,
        provider=provider.name,
        state=(DeploymentState.DRAINING, DeploymentState.STOPPING, DeploymentState.STOPPED, DeploymentState.FAILED),
    ):
        if row.state == DeploymentState.DRAINING and row.id not in draining:
            continue
        with collect_errors(report.errors, row.name):
            after = advance_shutdown(provider, ledger, row.id, now=report.now)
            if after.state != row.state:
                report.actions.append(f"{row.name} is {after.state}")
            if after.state == DeploymentState.STOPPING:
                _say_if_it_runs_on(ledger, after, report)
            if after.state == DeploymentState.STOPPED and after.reason:  # it costs nothing, so no lease runs out for it
                report.warnings.append(f"{row.name}: {after.reason}; it is tried again every minute")


def _say_if_it_runs_on(ledger: Ledger, row: Deployment, report: GuardReport) -> None:
    """The provider took the order to stop, and does not carry it out: it may cost on."""
    told = [step.ts for step in ledger.history(Deployment, row.id) if step.to_state == DeploymentState.STOPPING]
    minutes = int((report.now - told[-1]).total_seconds() // 60) if told else 0
    if minutes >= STOP_MINUTES:
        report.warnings.append(
            f"{row.name} was told to stop {minutes} minutes ago and has not yet: {row.replicas} replicas at "
            f"{format_usd(row.hourly_usd)} an hour. It is told every minute; see the provider's console"
        )


def _cancel_waiting_jobs(ledger: Ledger, provider: Provider, policy: GuardPolicy, report: GuardReport) -> None:
    over = {budget.decision_type for budget in spending_budgets(report.budgets) if level_of(budget, policy) == "stop"}
    for job in ledger.find(FineTuneJob, provider=provider.name, state=JobState.SUBMITTED):
        if None in over or job.decision_type in over:
            with collect_errors(report.errors, job.suffix):
                cancel_fine_tune(provider, ledger, job.id, why="the budget is spent", now=report.now)
                report.actions.append(f"cancelled {job.suffix}, which had not begun to train: the budget is spent")
