"""Fixtures of the provider's tests: see `tests/provider/world.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from provider.lifecycle.shutdown import stop_replicas
from provider.together.adapter import TogetherProvider
from storage.ledger.rows import Model, required
from tests.provider.world import Emulator, World, run_emulator


@pytest.fixture(scope="session")
def emulator_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with run_emulator(tmp_path_factory.mktemp("emulator")) as url:
        yield url


@pytest.fixture(autouse=True)
def impatient_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK retries as ever, but does not wait for seconds in between."""
    monkeypatch.setattr("together._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("together._base_client.MAX_RETRY_DELAY", 0.002)


@pytest.fixture
def emulator(emulator_url: str) -> Iterator[Emulator]:
    emulator = Emulator(emulator_url)
    emulator.clear_faults()
    emulator.clear_forms()
    yield emulator
    emulator.clear_faults()
    emulator.clear_forms()
    emulator.bill_form(attributes="resource", api=True)


@pytest.fixture(scope="session")
def trained_object(emulator_url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    world = World(Emulator(emulator_url), tmp_path_factory.mktemp("trained") / "data")
    object_id = world.ledger.get(Model, required(world.train().model_id, "a model")).model_object_id
    world.close()
    return str(object_id)


@pytest.fixture
def world(emulator: Emulator, trained_object: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.delenv("REASONING_LEDGER_URL", raising=False)
    world = World(emulator, tmp_path / "data").by_daylight()
    world.trained_object = trained_object
    yield world
    emulator.clear_faults()
    emulator.clear_forms()
    for endpoint in world.ours():  # else it is on the bill of every test that comes after
        stop_replicas(TogetherProvider(world.observer), endpoint.id)
    world.close()


@pytest.fixture(scope="session")
def adapters(emulator_url: str, tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    """Three trained models with an adapter each, of an installation that is gone."""
    world = World(Emulator(emulator_url), tmp_path_factory.mktemp("adapters") / "data")
    jobs = [world.train(f"dataset-{number}") for number in range(3)]
    models = [world.ledger.get(Model, required(job.model_id, "a model")) for job in jobs]
    world.close()
    return models
