"""Rows of the ledger: typed, with known states, and the same after a round trip through either database."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.errors import LedgerError
from storage.ledger import schema
from storage.ledger.ledger import Ledger, open_ledger
from storage.ledger.money import from_nano
from storage.ledger.rows import (
    Charge,
    Deployment,
    DeploymentState,
    FineTuneJob,
    JobState,
    Model,
    ModelState,
    Transition,
    UploadedDataset,
)
from tests.postgres import fresh_database, run_postgres

ROOT = Path(__file__).parents[2]
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)
dollars = st.integers(0, 10**15).map(from_nano)
times = st.none() | st.integers(0, 10**15).map(lambda us: datetime(2020, 1, 1, tzinfo=UTC) + timedelta(microseconds=us))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    if request.param == "sqlite":
        with open_ledger(f"sqlite:///{tmp_path_factory.mktemp('rows') / 'ledger.sqlite'}") as ledger:
            yield ledger
        return
    with run_postgres() as server, fresh_database(server) as url, open_ledger(url) as ledger:
        yield ledger


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    state=st.sampled_from(DeploymentState),
    hourly=dollars,
    replicas=st.integers(0, 99),
    reason=st.none() | texts,
    at=times,
)
def test_a_deployment_comes_back_as_it_was_written(
    ledger: Ledger, state: DeploymentState, hourly: Decimal, replicas: int, reason: str | None, at: datetime | None
) -> None:
    given = {"config": "c", "hardware": "h", "model_object_id": "ml_1", "hourly_usd": hourly, "max_replicas": replicas}
    name = f"d{sum(1 for _ in ledger.find(Deployment))}"
    written = ledger.add(Deployment, state=state, name=name, reason=reason, ready_at=at, now=NOON, **given)
    assert isinstance(written.state, DeploymentState)
    assert (written.state, written.hourly_usd, written.max_replicas, written.reason, written.ready_at) == (
        state,
        hourly,
        replicas,
        reason,
        at,
    )
    assert ledger.get(Deployment, written.id) == written
    assert written in ledger.find(Deployment, state=[state], hourly_usd=hourly)
    raised = ledger.update(Deployment, written.id, hourly_usd=hourly + 1, now=NOON)
    assert (raised.hourly_usd, raised.state) == (hourly + 1, state)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(estimate=dollars, price=st.none() | dollars, state=st.sampled_from(JobState), error=st.none() | texts)
def test_a_job_comes_back_as_it_was_written(
    ledger: Ledger, estimate: Decimal, price: Decimal | None, state: JobState, error: str | None
) -> None:
    suffix = f"s{sum(1 for _ in ledger.find(FineTuneJob))}"
    written = ledger.add(
        FineTuneJob,
        state=state,
        suffix=suffix,
        base_model="b",
        parameters="{}",
        estimate_usd=estimate,
        price_usd=price,
        error=error,
    )
    assert (written.estimate_usd, written.price_usd, written.state, written.error) == (estimate, price, state, error)
    assert ledger.get(FineTuneJob, written.id) == written


def test_an_unknown_state_names_its_row(ledger: Ledger) -> None:
    row = ledger.add(Model, state=ModelState.TRAINED, base_model="b", model_object_id="ml_1")
    with ledger.transaction() as connection:
        connection.execute(sa.update(schema.models).where(schema.models.c.id == row.id).values(state="sleeping"))
    try:
        with pytest.raises(
            LedgerError, match=f"unknown state in the ledger: 'sleeping' of models {row.id}; known: trained"
        ):
            ledger.find(Model)
    finally:
        with ledger.transaction() as connection:
            connection.execute(sa.update(schema.models).where(schema.models.c.id == row.id).values(state="trained"))


def test_a_misspelt_state_is_refused_instead_of_found_nowhere(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="'reddy' is not a valid DeploymentState"):
        ledger.find(Deployment, state=("ready", "reddy"))
    with pytest.raises(ValueError, match="'reddy' is not a valid ModelState"):
        ledger.add(Model, state="reddy", base_model="b", model_object_id="ml_1")


@pytest.mark.parametrize("kind", [UploadedDataset, FineTuneJob, Model, Deployment, Charge, Transition])
def test_a_row_has_a_field_for_every_column_of_its_table(kind: Any) -> None:
    columns = {re.sub("_nano$", "_usd", column.name) for column in schema.metadata.tables[kind.TABLE].columns}
    renamed = {"upload_id": "dataset_id"}  # the column keeps its old name; the dataset's own id is another thing
    assert {renamed.get(name, name) for name in get_type_hints(kind) if name != "TABLE"} == columns


def test_a_state_machine_draws_exactly_the_known_states() -> None:
    for kind in (UploadedDataset, FineTuneJob, Model, Deployment):
        assert set(schema.TRANSITIONS[kind.TABLE]) == set(get_type_hints(kind)["state"]), kind


def test_money_outside_storage_is_in_dollars() -> None:
    """Nano-dollars are how `storage` keeps money. The emulator has a bill of its own, in Together's unit."""
    rooms = ("provider", "tasks", "flows", "cli", "demo", "gateway", "quality", "reasoning", "learners")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for room in rooms
        for path in (ROOT / room).rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"(?<![a-z])nano(?!second|id)|_nano\b", line)
    ]
    assert found == []
