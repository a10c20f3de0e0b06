"""The watch over the money, as verbs on a data folder."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from pathlib import Path

from pipeline.alerts import tell_guard, tell_reconciliation
from pipeline.live_proof import prove_models
from provider.errors import ProviderError, ProviderSettingsError
from provider.lifecycle.guard import UNREACHABLE, guard_costs, needs_provider, provider_in_use
from provider.lifecycle.guard_report import GuardPolicy, GuardReport
from provider.lifecycle.reconcile import ReconcileReport, reconcile_provider
from provider.port import Provider
from provider.providers import open_provider_of
from provider.serving import ServingSettings, load_serving
from storage.ledger.ledger import open_ledger

log = logging.getLogger(__name__)


def guard(
    data: Path, *, idle_minutes: int | None = None, lease_minutes: float = 3, now: datetime | None = None
) -> GuardReport:
    """One tick of the guard: the money first, then the live test of every model that has an arm (`live_proof`).

    Whatever the tests do, what was said of the money stays. With anything wrong no model gets more traffic.
    """
    report = _watch_money(data, idle_minutes=idle_minutes, lease_minutes=lease_minutes, now=now)
    if report.skipped:
        return report
    try:
        proofs = prove_models(data, now=report.now, only_new=True, may_promote=not report.errors)
    except Exception as error:  # a fault of the tests must not look like one of the money, nor hide it
        log.exception("the live tests of models")
        report.warnings.append(f"the live tests of models: {type(error).__name__}: {error}")
        return report
    for proof in proofs:
        if proof.moved_to is not None:
            report.actions.append(f"model {proof.model_id} is {proof.moved_to}: {proof.reason}")
        elif proof.action != "hold":
            report.warnings.append(f"model {proof.model_id} stays as it is ({proof.action}): {proof.reason}")
    return report


def _watch_money(
    data: Path, *, idle_minutes: int | None = None, lease_minutes: float = 3, now: datetime | None = None
) -> GuardReport:
    """One tick of the guard, also when the provider cannot be reached: then it meters the log and renews nothing.

    `idle_minutes` None: as reasoning.toml says for each type; 0: nothing is stopped for idling.
    """
    wrong = None
    try:
        serving = load_serving()
    except ProviderSettingsError as error:  # what runs is watched all the same
        serving, wrong = ServingSettings(), str(error)
    if idle_minutes is not None:
        serving = serving.with_idle(idle_minutes or None)
    policy = GuardPolicy(serving=serving, lease=timedelta(minutes=lease_minutes))
    try:
        provider = _open(data, timeout=15)  # seconds: the next tick comes within a minute
    except ProviderError as error:
        report = guard_costs(data, None, policy=policy, now=now)
        report.errors += [wrong] if wrong else []
        if UNREACHABLE in report.errors:  # where only registered models serve, nobody misses it
            report.errors.append(str(error))
        report.warnings += tell_guard(data, report)
        return report
    with provider:
        report = guard_costs(data, provider, policy=policy, now=now)
    report.errors += [wrong] if wrong else []
    report.warnings += tell_guard(data, report)  # last, when all is done that money needs
    return report


def _open(data: Path, *, timeout: float = 60.0) -> Provider:
    """The provider that has what may cost money, by the ledger; else the one of the settings.

    Raises ProviderSettingsError where the settings name this machine and something is at another provider: that would
    be held for gone, and cost on.
    """
    with open_ledger(data) as ledger:
        has = provider_in_use(ledger)
    return open_provider_of(data, has, timeout=timeout)


def reconcile(data: Path, *, now: datetime | None = None) -> ReconcileReport:
    """What runs at the provider against the ledger. Raises `ProviderError` where it cannot be asked, but must be."""
    try:
        provider = _open(data)
    except ProviderError:
        with open_ledger(data) as ledger:
            if needs_provider(ledger):
                raise
        return reconcile_provider(data, None, now=now)
    with provider:
        report = reconcile_provider(data, provider, now=now)
    report.warnings += tell_reconciliation(data, report)
    return report
