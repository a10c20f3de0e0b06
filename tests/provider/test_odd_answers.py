"""Answers that are not as documented: the rest is judged, the odd one is named, nothing is held for what it is not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest

from provider.errors import CreationInDoubt, ProviderUnavailable, UnexpectedAnswer
from provider.lifecycle.deployments import deploy_model
from provider.lifecycle.fine_tunes import submit_fine_tune, sync_fine_tune
from provider.lifecycle.guard import guard_costs
from provider.lifecycle.reconcile import ABANDON_AFTER, ReconcileReport, reconcile_provider
from provider.lifecycle.shutdown import undeploy_model
from provider.lifecycle.uploads import upload_dataset
from provider.pace import Pace
from storage.errors import PriceUnknown
from storage.ledger.charges import ChargedTo
from storage.ledger.rows import Deployment, FineTuneJob
from storage.progress import Progress
from tests.provider.odd_answers import HTML, each, garble, instead, only
from tests.provider.test_reconcile import forget
from tests.provider.world import World


def reconcile(world: World) -> ReconcileReport:
    return reconcile_provider(world.data, world.provider, ledger=world.ledger, now=world.now())


def end(world: World, row: dict[str, Any]) -> None:
    undeploy_model(world.provider, world.ledger, row.id, pace=Pace(now=world.now, wait=world.wait))


@pytest.mark.parametrize("change", [lambda _: HTML, lambda _: {"error": {"message": "?"}}, lambda _: {"data": 7}])
def test_jobs_that_cannot_be_read_do_not_keep_orphaned_endpoints_alive(
    world: World, change: Callable[[Any], Any]
) -> None:
    world.deploy()
    forget(world)
    garble(world, "GET", "/v1/fine-tunes", change)
    report = reconcile(world)
    assert len(report.orphans) == 1
    assert world.ours() == []
    assert report.errors


def test_what_has_no_name_is_nobodys_and_proves_nobodys_absence(world: World) -> None:
    model_id = world.model()
    world.emulator.fault(500, "POST */endpoints", times=4)
    with pytest.raises(CreationInDoubt):
        world.deploy(model_id)
    dataset = world.upload()
    world.emulator.fault(500, "POST /v1/fine-tunes", times=4)
    with pytest.raises(CreationInDoubt):
        submit_fine_tune(world.provider, world.ledger, dataset.id, tier="small", pace=world.pace)
    world.emulator.advance(ABANDON_AFTER.total_seconds())
    before = [(endpoint.id, endpoint.etag) for endpoint in world.all_endpoints()]
    garble(world, "GET", "/v1/fine-tunes", each(suffix=["?"]))
    report = reconcile(world)
    assert world.ledger.find(FineTuneJob)[0].state == "intended"
    assert any("does not tell whose it is" in error for error in report.errors)
    assert [(endpoint.id, endpoint.etag) for endpoint in world.all_endpoints()] == before
    world.revive()
    assert reconcile(world).errors == []
    assert world.ledger.find(FineTuneJob)[0].state == "abandoned"


def test_endpoints_without_a_name_are_left_alone_and_told(world: World) -> None:
    row = world.deploy()
    forget(world)
    for name in (None, ..., 7):
        garble(world, "GET", "/endpoints", each(name=name))
        report = reconcile(world)
        assert report.orphans == []
        assert any(row.endpoint_id in error for error in report.errors)
        assert len(world.ours()) == 1
    world.revive()
    assert len(reconcile(world).orphans) == 1
    assert world.ours() == []


def test_one_odd_endpoint_of_ours_leaves_the_others_judged(world: World) -> None:
    odd, other = world.deploy(world.model()), world.deploy(world.model())
    forget(world)
    garble(world, "GET", "/endpoints", only(odd.name, id=None))
    report = reconcile(world)
    (error,) = report.errors
    assert error.startswith(odd.name)
    assert [other.name in orphan for orphan in report.orphans] == [True]
    assert [endpoint.name for endpoint in world.ours()] == [odd.served_name]
    world.revive()
    reconcile(world)
    assert world.ours() == []


@pytest.mark.parametrize("deployments", [None, [{"id": "dep_1"}], [{"readyReplicas": -1, "createdAt": "yesterday"}]])
def test_an_orphan_of_which_little_can_be_read_is_stopped_and_charged(world: World, deployments: Any) -> None:
    row = world.deploy()
    world.minutes(10)
    forget(world)
    garble(world, "GET", "/endpoints", only(row.name, deployments=deployments), times=1)
    assert len(reconcile(world).orphans) == 1
    assert world.ours() == []
    world.revive()
    (known,) = world.ledger.find(Deployment, name=row.name)
    assert known.remote_id in (row.remote_id, "dep_1", None)
    assert known.state == "deleted"


def test_an_orphan_is_stopped_without_the_list_of_prices(world: World) -> None:
    row = world.deploy()
    forget(world)
    garble(world, "GET", "/inference-instance-types", lambda _: HTML)
    assert len(reconcile(world).orphans) == 1
    assert world.ours() == []
    world.await_bill()
    reconcile(world)
    assert world.ledger.spent() == world.emulator.bill({row.remote_id})


def with_line(**fields: Any) -> Callable[[Any], Any]:
    def change(answer: Any) -> Any:
        for window in answer["data"]:
            window["line_items"] = [{**line, **fields} for line in window["line_items"]]
        return answer

    return change


def ends(at: Any) -> Callable[[Any], Any]:
    return lambda answer: {**answer, "data": [{**window, "end_time": at} for window in answer["data"]]}


BILLS = [
    lambda _: HTML,
    lambda _: {"data": None, "error": "?"},
    lambda _: {"data": None},
    lambda _: {},
    with_line(cost=None),
    with_line(cost="NaN"),
    with_line(cost="-5"),
    with_line(cost="free"),
    with_line(attributes=None),
    with_line(attributes=[]),
    ends(None),
    ends("soon"),
    lambda answer: {**answer, "data": [{**window, "line_items": None} for window in answer["data"]]},
]


def billed_hours(world: World, remote_id: str) -> list[dict[str, Any]]:
    windows = []
    for month in sorted({f"{world.now() - timedelta(hours=27):%Y-%m}", f"{world.now():%Y-%m}"}):
        url = f"{world.emulator.url}/v1/billing/usage?granularity=hour&month={month}&limit=1000"
        windows += httpx.get(url, headers={"Authorization": "Bearer local"}).json()["data"]
    return [window for window in windows if remote_id in str(window)]  # the whole of it is long


def test_a_bill_that_cannot_be_read_gives_no_money_back(world: World) -> None:
    row = world.deploy()
    world.minutes(7)
    end(world, row)
    world.ledger.charge(
        "endpoint",
        "3",
        key="too much",
        what="test",
        ts=world.now(),
        now=world.now(),
        of=ChargedTo(deployment_id=row.id),
    )
    world.await_bill()
    spent = world.ledger.spent()
    real = {"data": billed_hours(world, row.remote_id)}
    for change in BILLS:
        report = reconcile_provider(
            world.data,
            instead(world, "/v1/billing/usage", change(copy.deepcopy(real))),
            ledger=world.ledger,
            now=world.now(),
        )
        assert report.errors
        assert all("bill" in error for error in report.errors)
        assert (report.adjustments, world.ledger.spent()) == ([], spent)
    assert reconcile(world).errors == []
    assert world.ledger.spent() == world.emulator.bill({row.remote_id})


def test_a_line_of_a_stranger_that_cannot_be_read_matters_to_nobody(world: World) -> None:
    row = world.deploy()
    world.minutes(2)  # so that the bill names it
    end(world, row)
    world.await_bill()

    def change(answer: Any) -> Any:
        answer["data"][-1]["line_items"].append({"cost": "NaN", "attributes": {"deployment_id": "dep_a_strangers"}})
        return answer

    garble(world, "GET", "/v1/billing/usage", change)
    assert reconcile(world).errors == []
    assert world.ledger.spent() == world.emulator.bill({row.remote_id})


@pytest.mark.parametrize("price", [None, -5, "NaN"])
def test_a_job_whose_price_is_none_is_charged_its_estimate(world: World, price: Any) -> None:
    dataset = world.upload()
    job = submit_fine_tune(world.provider, world.ledger, dataset.id, tier="small", pace=world.pace)
    while world.client.fine_tuning.retrieve(job.remote_id).status != "completed":
        world.wait(1)
    garble(world, "GET", job.remote_id, lambda answer: {**answer, "total_price": price})
    job = sync_fine_tune(world.provider, world.ledger, job.id, now=world.now())
    assert (job.state, job.price_usd) == ("completed", job.estimate_usd)


def test_an_estimate_that_is_no_price_refuses(world: World) -> None:
    dataset = world.upload()
    price: Any
    for price in (None, -5, "NaN", "Infinity", "x", [4]):
        fields = {"estimated_total_price": price}
        garble(world, "POST", "/v1/fine-tunes/estimate-price", lambda answer, fields=fields: answer | fields)
        with pytest.raises(PriceUnknown, match="no price"):
            submit_fine_tune(world.provider, world.ledger, dataset.id, tier="small", pace=world.pace)
    assert world.our_jobs() == []
    assert world.ledger.budgets(world.now())[0].reserved_usd == 0


@pytest.mark.parametrize("path", ["/endpoints", "/deployments"])
def test_a_create_answered_with_html_is_not_sent_again(world: World, path: str) -> None:
    garble(world, "POST", path, lambda _: HTML, times=1)
    row = world.deploy()
    assert row.state == "ready"
    (endpoint,) = world.ours()
    assert [deployment.id for deployment in endpoint.deployments] == [row.remote_id]
    end(world, row)


def test_a_deploy_waits_odd_answers_out_and_the_guard_stops_what_it_cannot_read(world: World) -> None:
    model_id = world.model()
    world.emulator.fault("slow_cold_start", seconds=60)
    answers = iter([HTML, {"status": None}, {"status": {"state": 7}}])

    def change(answer: Any) -> Any:
        odd = next(answers, None)
        return odd if isinstance(odd, str) else {**answer, **(odd or {})}

    def told(event: Progress) -> None:
        if not any("/deployments/" in path for path in messages):
            path = world.ledger.find(Deployment)[-1].remote_id
            messages.append(f"/deployments/{path}")
            garble(world, "GET", path, change)
        messages.append(event.message)

    messages: list[str] = []
    row = deploy_model(
        world.provider,
        world.ledger,
        model_id,
        pace=Pace(poll_seconds=10, progress=told, now=world.now, wait=world.wait),
    )
    assert row.state == "ready"
    assert sum("not as documented" in message or "does not say" in message for message in messages) == 3
    garble(world, "GET", "/deployments", each(autoscaling=None, status={"state": "?", "readyReplicas": "two"}))
    world.ledger.set_budget("total", world.ledger.spent())
    guard_costs(world.data, world.provider, ledger=world.ledger, now=world.now())
    remote = world.observer.endpoints.deployments.retrieve(row.remote_id, endpoint_id=row.endpoint_id)
    assert remote.autoscaling.max_replicas == 0
    world.revive()
    world.minutes(1)
    guard_costs(world.data, world.provider, ledger=world.ledger, now=world.now())
    assert world.ours() == []


def test_a_provider_that_tells_neither_jobs_nor_endpoints_is_away(world: World) -> None:
    garble(world, "GET", "", lambda _: HTML)
    with pytest.raises(UnexpectedAnswer, match="all endpoints"):
        reconcile(world)
    world.emulator.fault(503, "GET /v1/fine-tunes", times=3)
    world.revive()
    assert "all fine-tunes" in reconcile(world).errors[0]  # endpoints can be asked
    world.emulator.fault(503, "GET *", times=7)  # what the time is, and both lists with the SDK's retries
    with pytest.raises(ProviderUnavailable):
        reconcile(world)


def test_a_list_whose_pages_come_round_again_is_no_list(world: World) -> None:
    round_and_round = instead(world, "/endpoints", {"data": [{"id": "e", "name": "x"}], "next_cursor": "again"})
    report = reconcile_provider(world.data, round_and_round, ledger=world.ledger, now=world.now())
    assert "its pages come round again" in report.errors[0]


@pytest.mark.parametrize("answer", [{}, {"data": None}])
def test_a_list_without_its_items_proves_nobodys_absence(world: World, answer: Any) -> None:
    model_id = world.model()
    world.emulator.fault("lost_response", "POST /v2/projects/*/endpoints")
    garble(world, "GET", "/endpoints", lambda _: answer)
    with pytest.raises(UnexpectedAnswer, match=r"looking for .*: it is no list"):
        deploy_model(world.provider, world.ledger, model_id, pace=Pace(now=world.now, wait=world.wait))
    assert world.ours() == []  # nothing is created after such a look
    world.revive()
    row = world.deploy(model_id)
    for path in ("/fine-tunes", "/endpoints"):
        garble(world, "GET", path, lambda _: answer)
        assert "it is no list" in reconcile(world).errors[0]
    garble(world, "GET", "/deployments", lambda _: answer)
    with pytest.raises(UnexpectedAnswer, match="it is no list"):
        undeploy_model(
            world.provider, world.ledger, row.id, pace=Pace(timeout=timedelta(0), now=world.now, wait=world.wait)
        )
    assert len(world.ours()) == 1  # what may run is not held for gone
    world.revive()
    end(world, row)


@pytest.mark.parametrize("price", [0, 4, 9_999_999])
def test_a_completed_job_that_was_for_nothing_is_charged_its_estimate(world: World, price: int) -> None:
    """Such as a field that is not filled in, or dollars for nano-dollars."""
    dataset = world.upload()
    job = submit_fine_tune(world.provider, world.ledger, dataset.id, tier="small", pace=world.pace)
    while world.client.fine_tuning.retrieve(job.remote_id).status != "completed":
        world.wait(1)
    garble(world, "GET", job.remote_id, lambda answer: {**answer, "total_price": price})
    job = sync_fine_tune(world.provider, world.ledger, job.id, now=world.now())
    assert (job.state, job.price_usd) == ("completed", job.estimate_usd)
    assert world.ledger.spent() == 4


@pytest.mark.parametrize("listed", [True, False])
def test_a_job_that_is_not_found_at_once_is_not_taken_for_gone(world: World, listed: bool) -> None:
    dataset = world.upload()
    world.emulator.fault("training_slow", seconds=20)
    job = submit_fine_tune(world.provider, world.ledger, dataset.id, tier="small", pace=world.pace)
    match = f"GET /v1/fine-tunes/{job.remote_id}"
    if listed:
        world.minutes(30)
    else:
        garble(world, "GET", "/v1/fine-tunes", lambda answer: {**answer, "data": []})
    world.emulator.fault(404, match)
    with pytest.raises(UnexpectedAnswer, match="looked at again"):
        sync_fine_tune(world.provider, world.ledger, job.id, now=world.now())
    assert world.ledger.get(FineTuneJob, job.id).state == "submitted"
    world.minutes(30)
    if not listed:  # now it is
        world.emulator.fault(404, match)
        assert sync_fine_tune(world.provider, world.ledger, job.id, now=world.now()).state == "failed"
    world.revive()
    world.client.fine_tuning.cancel(job.remote_id)


def test_why_a_job_failed_is_told_whatever_the_order_of_its_events(world: World) -> None:
    dataset = world.upload()
    world.emulator.fault("training_error", message="out of memory")
    job = submit_fine_tune(world.provider, world.ledger, dataset.id, tier="small", pace=world.pace)
    while world.client.fine_tuning.retrieve(job.remote_id).status != "error":
        world.wait(1)
    garble(world, "GET", "/events", lambda answer: {**answer, "data": answer["data"][::-1]})
    assert "out of memory" in sync_fine_tune(world.provider, world.ledger, job.id, now=world.now()).error


def test_a_file_of_the_older_form_is_taken(world: World) -> None:
    folder = world.write_dataset()
    lacks = ("processing_status", "validation_report")

    def hook(response: httpx.Response) -> None:
        if response.request.method == "GET" and "/v1/files/" in response.request.url.path:
            answer = {key: value for key, value in json.loads(response.read()).items() if key not in lacks}
            response._content = json.dumps(answer).encode()

    world.client._client.event_hooks = {"response": [hook]}
    assert upload_dataset(world.provider, world.ledger, folder, pace=world.pace).state == "ready"


def test_the_bill_is_asked_of_our_own_organization(world: World) -> None:
    """It will be required, and another's is refused (Together's reference)."""
    row = world.deploy()
    world.minutes(2)
    end(world, row)
    world.await_bill()
    asked: list[httpx.URL] = []
    world.client._client.event_hooks = {"request": [lambda request: asked.append(request.url)]}
    assert reconcile(world).errors == []
    bills = [dict(url.params) for url in asked if url.path == "/v1/billing/usage"]
    assert {(bill["organization_id"], bill["granularity"]) for bill in bills} == {("org_local", "hour")}
