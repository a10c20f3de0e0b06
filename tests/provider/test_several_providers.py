"""One ledger with objects at several providers: each is asked about its own, and what applies follows from its data."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from provider import providers
from provider.capabilities import Capabilities
from provider.errors import ProviderSettingsError
from provider.lifecycle.deployment_state import SHOWS_WITHIN
from provider.lifecycle.guard import guard_costs, needs_provider, provider_in_use
from provider.lifecycle.reconcile import ABANDON_AFTER, reconcile_provider
from provider.money.bill import reconcile_bill
from provider.providers import capabilities_of
from storage.ledger.ledger import open_ledger
from storage.ledger.rows import LOCAL, Deployment, DeploymentState, FineTuneJob, JobState
from tests.provider.world import World

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def add_local_job(world: World, state: JobState) -> FineTuneJob:
    return world.ledger.add(
        FineTuneJob,
        state=state,
        provider=LOCAL,
        suffix=f"{world.ledger.prefix}{state}",
        base_model="local/linear",
        parameters="{}",
        estimate_usd=Decimal(3),
        remote_id=None if state == JobState.INTENDED else f"job-{state}",
        now=world.now(),
    )


def test_a_job_on_this_machine_is_not_taken_for_gone_where_together_does_not_have_it(world: World) -> None:
    jobs = [add_local_job(world, state) for state in (JobState.RUNNING, JobState.SUBMITTED, JobState.INTENDED)]
    spent = world.ledger.spent()
    world.minutes((SHOWS_WITHIN + ABANDON_AFTER).total_seconds() / 60 + 1)
    report = guard_costs(world.data, world.provider, ledger=world.ledger, now=world.now())
    reconciled = reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now())
    assert (report.errors, reconciled.errors) == ([], [])
    assert [world.ledger.get(FineTuneJob, job.id) for job in jobs] == jobs
    assert world.ledger.spent() == spent


def test_a_job_on_this_machine_is_not_compared_with_the_bill_of_together(world: World) -> None:
    job = add_local_job(world, JobState.COMPLETED)
    assert reconcile_bill(world.provider, world.ledger, now=world.now(), errors=[]).state != "unattributed"
    assert world.ledger.get(FineTuneJob, job.id).reconciled_at is None


def test_only_a_provider_that_may_cost_money_is_in_use(tmp_path: Path) -> None:
    with open_ledger(tmp_path, now=NOON) as ledger:
        values = {"suffix": "a", "base_model": "b", "parameters": "{}", "estimate_usd": Decimal(0), "now": NOON}
        ledger.add(FineTuneJob, state="running", provider=LOCAL, **values)
        assert provider_in_use(ledger) is None
        ledger.add(FineTuneJob, state="running", provider="together", **{**values, "suffix": "c"})
        assert provider_in_use(ledger) == "together"


def test_another_provider_of_registered_models_is_metered_and_needs_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name stands in the registry alone: all else follows from its capabilities."""
    offered = {**providers.CAPABILITIES, "hosted": Capabilities(hourly=True, per_token=True)}
    monkeypatch.setattr(providers, "CAPABILITIES", offered)
    with open_ledger(tmp_path, now=NOON) as ledger:
        row = ledger.add(
            Deployment,
            state=DeploymentState.READY,
            provider="hosted",
            name="theirs",
            model_object_id="org/small",
            config="https://models.example",
            hardware="models.example",
            hourly_usd=Decimal(6),
            max_replicas=1,
            replicas=1,
            metered_until=NOON,
            now=NOON,
        )
        assert not needs_provider(ledger)
        assert provider_in_use(ledger) is None
        report = guard_costs(tmp_path, None, ledger=ledger, now=NOON + timedelta(minutes=2))
        assert (report.errors, report.charged_usd) == ([], Decimal("0.2"))
        ledger.transition(Deployment, row.id, DeploymentState.DRAINING, now=NOON)
        guard_costs(tmp_path, None, ledger=ledger, now=NOON + timedelta(minutes=3))
        assert ledger.get(Deployment, row.id).state == DeploymentState.DELETED


def test_a_provider_that_is_not_in_the_registry_is_an_error() -> None:
    with pytest.raises(ProviderSettingsError, match="unknown provider in the ledger: 'nobody'"):
        capabilities_of("nobody")
