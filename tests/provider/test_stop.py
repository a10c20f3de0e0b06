"""`reasoning stop` against a real emulator: the money ends whatever state the ledger is in."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.lifecycle.fine_tunes import submit_fine_tune
from provider.lifecycle.routes import publish_route
from provider.lifecycle.stop import _is_ours, stop_everything
from provider.together.adapter import TogetherProvider
from provider.together.client import connect
from reasoning.serving.routes import Arm, Route, read_routes
from storage.installation import FILE, remembered_installations
from storage.layout import Layout
from storage.ledger.rows import Deployment, FineTuneJob
from tests.provider.world import World


def _no_wait(seconds: float) -> None:
    pass


def _lose_ledger(world: World) -> None:
    (world.data / "ledger.sqlite").write_bytes(b"not a database" * 100)
    for name in ("ledger.sqlite-wal", "ledger.sqlite-shm"):
        (world.data / name).unlink(missing_ok=True)


def test_a_dry_run_lists_and_changes_nothing(world: World) -> None:
    row = world.deploy()
    report = stop_everything(world.provider, world.data, dry_run=True)
    assert [(each.name, each.remote_id) for each in report.remaining] == [(row.name, row.remote_id)]
    assert report.remaining[0].daily_usd == report.remaining[0].hourly_usd * 24  # type: ignore[operator]
    assert not report.is_clear
    assert world.observer.endpoints.deployments.retrieve(row.remote_id, endpoint_id=row.endpoint_id).autoscaling


def test_a_dead_ledger_does_not_keep_it_from_stopping(world: World) -> None:
    row = world.deploy()
    double = world.double(row)
    assert (world.data / FILE).stat().st_mode & 0o777 == 0o600
    _lose_ledger(world)
    report = stop_everything(world.provider, world.data, wait=_no_wait)
    assert report.is_clear, report
    assert {each.remote_id for each in report.found} == {row.remote_id, double.id}
    states = world.observer.endpoints.deployments.list(row.endpoint_id).data or []
    assert {each.status.state for each in states if each.status} == {"DEPLOYMENT_STATE_STOPPED"}
    assert report.notes, "it says that the ledger is dead"


def test_what_a_list_leaves_out_is_stopped_and_until_then_never_called_clear(world: World) -> None:
    row = world.deploy()
    empty = {"body": '{"data": [], "object": "list", "next_cursor": null}', "content_type": "application/json"}
    world.emulator.fault("body", f"GET */endpoints/{row.endpoint_id}/deployments", 1000, **empty)
    assert not stop_everything(world.provider, world.data, dry_run=True).is_clear
    assert stop_everything(world.provider, world.data, wait=_no_wait).is_clear
    remote = world.observer.endpoints.deployments.retrieve(row.remote_id, endpoint_id=row.endpoint_id)
    assert remote.autoscaling.max_replicas == 0


def test_a_fine_tune_that_the_list_leaves_out_is_cancelled(world: World) -> None:
    world.emulator.fault("training_slow", seconds=20)
    job = submit_fine_tune(world.provider, world.ledger, world.upload().id, tier="small", pace=world.pace)
    empty = {"body": '{"data": []}', "content_type": "application/json"}
    world.emulator.fault("body", "GET /v1/fine-tunes", 1000, **empty)
    assert not stop_everything(world.provider, world.data, dry_run=True).is_clear
    stop_everything(world.provider, world.data, wait_seconds=5)
    world.emulator.clear_faults()
    assert world.observer.fine_tuning.retrieve(job.remote_id).status in ("cancelled", "cancel_requested")


def test_a_stop_names_the_version_where_the_provider_wants_it(world: World) -> None:
    world.deploy()
    world.emulator.forms(etag="required")
    assert stop_everything(world.provider, world.data, wait=_no_wait).is_clear


def test_what_the_provider_does_not_answer_is_unknown_and_never_called_stopped(world: World) -> None:
    world.deploy()
    world.emulator.fault("500", match="GET /v2/projects/*", times=1000)
    report = stop_everything(world.provider, world.data, wait_seconds=0, wait=_no_wait)
    assert not report.is_clear
    assert any("500" in error for error in report.errors)
    world.emulator.clear_faults()
    assert stop_everything(world.provider, world.data, wait=_no_wait).is_clear


@pytest.mark.parametrize("number", [0, 1])  # one of them is the first of those that are stopped
def test_a_deployment_that_the_provider_does_not_answer_for_delays_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    rows = [world.deploy(), world.deploy()]
    hung, other = rows[number], rows[1 - number]
    monkeypatch.setattr("provider.lifecycle.stop._REQUEST_TIMEOUT", 1.5)
    asked: dict[str, float] = {}
    answered: dict[str, float] = {}

    def note(request: httpx.Request, times: dict[str, float]) -> None:
        if request.method == "PATCH":
            times.setdefault(request.url.path.rsplit("/", 1)[-1], time.monotonic())

    world.client._client.event_hooks = {
        "request": [lambda request: note(request, asked)],
        "response": [lambda response: note(response.request, answered)],
    }
    world.emulator.fault("hang", f"PATCH */deployments/{hung.remote_id}", times=1000)
    report = stop_everything(
        TogetherProvider(world.client.with_options(max_retries=0)), world.data, wait_seconds=0, wait=_no_wait
    )
    assert not report.is_clear
    assert answered[str(other.remote_id)] < asked[str(hung.remote_id)] + 1.5, "it waited for the one that hangs"
    world.emulator.clear_faults()
    world.revive()
    assert stop_everything(world.provider, world.data, wait=_no_wait).is_clear


def test_without_any_id_nothing_is_touched_and_the_names_are_told(world: World) -> None:
    row = world.deploy()
    _lose_ledger(world)
    (world.data / FILE).unlink()
    report = stop_everything(world.provider, world.data, wait_seconds=0, wait=_no_wait)
    assert not report.is_clear and f"endpoint {row.name}" in report.others
    lost = world.ledger.installation_id
    assert stop_everything(world.provider, world.data, installations=[lost], wait=_no_wait).is_clear


def test_the_ledger_learns_of_the_stop(world: World) -> None:
    row = world.deploy()
    assert stop_everything(TogetherProvider(connect(base_url=world.emulator.url)), world.data, wait=_no_wait).is_clear
    assert world.ledger.get(Deployment, row.id).state in ("stopping", "stopped", "deleted")


@given(st.text(alphabet="abrsn-01", max_size=20))
def test_only_whole_ids_are_ours(name: str) -> None:
    assert _is_ours(name, ["ab01"]) == (name[:9] == "rsn-ab01-")


def test_an_id_is_remembered_with_those_before_it(world: World) -> None:
    file = world.data / FILE
    file.write_text("old111\n" + file.read_text())
    assert remembered_installations(world.data) == ["old111", world.ledger.installation_id]


def _submit(world: World) -> dict[str, Any]:
    dataset = world.upload()
    world.emulator.fault("training_slow", seconds=30)  # it must still run when it is stopped
    return submit_fine_tune(world.provider, world.ledger, dataset.id, tier="small", pace=world.pace)


@pytest.mark.parametrize("dead", [False, True])
def test_a_fine_tune_is_cancelled_and_a_strangers_is_not(world: World, dead: bool) -> None:
    job = _submit(world)
    theirs = world.client.fine_tuning.create(
        model="Qwen/Qwen3.5-2B",
        training_file=world.client.fine_tuning.retrieve(job.remote_id).training_file,
        suffix="rsn-strang-1",
    )
    if dead:
        _lose_ledger(world)
    report = stop_everything(world.provider, world.data, wait=lambda seconds: world.wait(seconds))
    assert report.is_clear, report
    (found,) = report.found
    assert (found.kind, found.remote_id) == ("fine-tune", job.remote_id) and (found.job_usd or dead)
    assert world.observer.fine_tuning.retrieve(job.remote_id).status == "cancelled"
    assert world.observer.fine_tuning.retrieve(theirs.id or "").status not in ("cancelled", "cancel_requested")
    if not dead:
        assert world.ledger.get(FineTuneJob, job.id).state == "cancelled"


@pytest.mark.parametrize("dead", [False, True])
def test_routes_of_ours_are_withdrawn_and_others_stay(world: World, dead: bool) -> None:
    row = world.deploy()
    path = Layout(world.data).routes
    for decision_type, model in (("should_respond", row.served_name), ("planning", "acme/somebody-elses")):
        arm = Arm(name="custom", source="custom", model=model, base_url=world.emulator.url, weight=1.0)
        publish_route(path, decision_type, Route(arms=(arm,)))
    if dead:
        _lose_ledger(world)
    assert stop_everything(world.provider, world.data, wait=_no_wait).is_clear
    assert [arm.model for arm in read_routes(path).routes["planning"].arms] == ["acme/somebody-elses"]
    assert "should_respond" not in read_routes(path).routes


def test_a_stop_releases_what_is_held_for_cycles(world: World) -> None:
    world.ledger.hold("3", "planning", now=world.now())
    assert stop_everything(world.provider, world.data, wait=_no_wait).is_clear
    assert world.ledger.held("planning", now=world.now())[0] == 0
