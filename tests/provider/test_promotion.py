"""A promotion is decided in the ledger; the routes file follows, also after a crash in between."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import pipeline.life
from pipeline.models import take_down
from pipeline.parameters import PromoteSettings
from pipeline.promotion import promote_model
from provider.lifecycle.guard import guard_costs
from reasoning.errors import RoutesError
from reasoning.serving.routes import read_routes
from storage.ledger.lives import promotions
from storage.ledger.rows import Deployment, Model, ModelState
from tests.provider.world import World


@pytest.fixture(autouse=True)
def provider_url(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REASONING_PROVIDER_URL", world.emulator.url)


def deploy(world: World) -> Deployment:
    return world.deploy(world.train().model_id)


def _promote_and_die(world: World, row: Deployment) -> None:
    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    pipeline.life.publish_route = die
    promote_model(world.data, str(row.model_id), PromoteSettings(force=True), now=world.now())


def guard(world: World) -> list[str]:
    report = guard_costs(world.data, world.provider, ledger=world.ledger, now=world.now())
    assert report.errors == []
    return report.actions


def routed(world: World) -> dict[str, list[str | None]]:
    routes = read_routes(world.data / "routes.json").routes
    return {name: [arm.model for arm in route.arms if arm.source == "custom"] for name, route in routes.items()}


def test_a_process_killed_before_it_writes_the_routes_file_is_made_good_by_the_guard(world: World) -> None:
    row = deploy(world)
    process = multiprocessing.get_context("fork").Process(target=_promote_and_die, args=(world, row))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert world.ledger.get(Model, str(row.model_id)).state == ModelState.PROMOTED
    assert not (world.data / "routes.json").exists()
    assert any("from the ledger" in action for action in guard(world))
    assert routed(world) == {"should_respond": [row.served_name]}
    assert read_routes(world.data / "routes.json").in_force(world.now())
    assert promotions(world.ledger, only_unpublished=True) == []
    assert not any("from the ledger" in action for action in guard(world))


def test_a_routes_file_that_was_deleted_is_written_again_and_one_that_was_edited_is_followed(world: World) -> None:
    row, path = deploy(world), world.data / "routes.json"
    promote_model(world.data, str(row.model_id), PromoteSettings(force=True), now=world.now())
    edited = json.loads(path.read_bytes())
    edited["routes"] = {}
    path.write_text(json.dumps(edited))
    guard(world)
    assert routed(world) == {}
    path.unlink()
    guard(world)
    assert routed(world) == {"should_respond": [row.served_name]}


def test_what_was_taken_down_does_not_come_back(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = deploy(world)
    promote_model(world.data, str(row.model_id), PromoteSettings(force=True), now=world.now())
    monkeypatch.setattr("pipeline.models.open_provider_of", lambda *_: world.provider)
    take_down(world.data, str(row.model_id), why="test", now=world.now)
    (world.data / "routes.json").unlink()
    guard(world)
    assert promotions(world.ledger) == []
    assert not (world.data / "routes.json").exists()


def test_a_route_that_cannot_be_published_promotes_nothing(world: World) -> None:
    row, path = deploy(world), Path(world.data / "routes.json")
    path.write_text("not JSON")
    with pytest.raises(RoutesError):
        promote_model(world.data, str(row.model_id), PromoteSettings(force=True), now=world.now())
    assert world.ledger.get(Model, str(row.model_id)).state == ModelState.TRAINED
    assert promotions(world.ledger) == []


def test_a_promotion_that_cannot_be_published_leaves_the_one_before_in_the_ledger(world: World) -> None:
    row, path = deploy(world), Path(world.data / "routes.json")
    promote_model(world.data, str(row.model_id), PromoteSettings(force=True, weight=0.25), now=world.now())
    path.unlink()
    path.mkdir()
    with pytest.raises(RoutesError):
        promote_model(world.data, str(row.model_id), PromoteSettings(force=True, weight=0.5), now=world.now())
    path.rmdir()
    guard(world)
    assert read_routes(path).routes["should_respond"].arms[0].weight == 0.25


def test_a_routes_file_that_nobody_can_read_is_written_again_from_the_ledger(world: World) -> None:
    row, path = deploy(world), world.data / "routes.json"
    promote_model(world.data, str(row.model_id), PromoteSettings(force=True), now=world.now())
    path.write_text("{")
    guard(world)
    assert routed(world) == {"should_respond": [row.served_name]}
