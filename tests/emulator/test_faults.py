"""Faults that were ordered happen, as often as ordered, to what they were ordered for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.emulator.conftest import Server


@pytest.fixture(autouse=True)
def no_faults(server: Server) -> None:
    server.http.delete("/emulator/faults")


def test_lost_response_was_done_and_never_answered(server: Server, dataset: Path) -> None:
    from together import APIConnectionError, Together

    file_id = server.upload(dataset)
    server.fault("lost_response", match="POST /v1/fine-tunes")
    client = Together(api_key="key", base_url=server.url, max_retries=0)
    with pytest.raises(APIConnectionError):
        client.fine_tuning.create(training_file=file_id, model="Qwen/Qwen3.5-9B", suffix="lost")
    (job,) = [job for job in server.get("/v1/fine-tunes")["data"] if job["suffix"] == "lost"]
    assert server.finish(job["id"])["status"] == "completed"


def test_client_that_retries_a_lost_response_makes_two_jobs(server: Server, dataset: Path) -> None:
    from together import Together

    file_id = server.upload(dataset)
    server.fault("lost_response", match="POST /v1/fine-tunes")
    client = Together(api_key="key", base_url=server.url, max_retries=1)
    client.fine_tuning.create(training_file=file_id, model="Qwen/Qwen3.5-9B", suffix="twice")
    jobs = [job for job in server.get("/v1/fine-tunes")["data"] if job["suffix"] == "twice"]
    assert len(jobs) == 2
    for job in jobs:
        server.finish(job["id"])


def test_hang_does_nothing_until_the_client_gives_up(server: Server) -> None:
    server.fault("hang", match="POST /v2/*/endpoints")
    with pytest.raises(httpx.ReadTimeout):
        server.http.post("/v2/projects/proj_local/endpoints", json={"name": "hung"}, timeout=0.2)
    assert server.get("/v2/projects/proj_local/endpoints", filter='name="hung"')["data"] == []


def test_status_comes_as_often_as_ordered_in_the_shape_of_its_api(server: Server) -> None:
    server.post(
        "/emulator/faults",
        [
            {"match": "GET /v1/files", "kind": "429", "times": 2, "retry_after": 3, "should_retry": False},
            {"match": "GET /v2/*", "kind": 503, "message": "try later"},
        ],
    )
    assert server.get("/emulator/faults")["faults"][0]["times"] == 2
    for _ in range(2):
        refused = server.http.get("/v1/files")
        assert refused.status_code == 429
        assert (refused.headers["retry-after"], refused.headers["x-should-retry"]) == ("3", "false")
        assert refused.json()["error"]["type"] == "rate_limit_error"
    assert server.http.get("/v1/files").status_code == 200
    assert server.http.get("/v2/supported-models").json() == {
        "code": 14,
        "message": "try later",
        "details": [{"detail": "emulator_fault"}],
    }
    assert server.http.get("/v2/supported-models").status_code == 200


def test_sdk_raises_and_obeys_what_was_ordered(server: Server) -> None:
    from together import ConflictError, RateLimitError, Together

    once, patient = (Together(api_key="key", base_url=server.url, max_retries=retries) for retries in (0, 1))
    server.fault("409", match="GET /v1/files")
    with pytest.raises(ConflictError):
        once.files.list()
    server.fault("429", match="GET /v1/files", retry_after=0.01)
    patient.files.list()
    server.fault("429", match="GET /v1/files", should_retry=False)
    with pytest.raises(RateLimitError):
        patient.files.list()


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ({"kind": "flood"}, "unknown fault kind 'flood'"),
        ({"kind": "503"}, "needs"),
        ({"kind": "503", "match": "GET"}, "needs"),
        ({"kind": "503", "match": "GET /x", "times": 0}, "whole number"),
        ({"kind": "503", "match": "GET /x", "after": 1}, "unknown keys in a fault order: after"),
        ("503", "is an object"),
    ],
)
def test_bad_orders_are_refused_whole(server: Server, order: Any, reason: str) -> None:
    good = {"kind": "503", "match": "GET /v1/files"}
    refused = server.http.post("/emulator/faults", json=[good, order])
    assert refused.status_code == 400
    assert reason in refused.json()["error"]["message"]
    assert server.get("/emulator/faults") == {"faults": []}


def test_slow_cold_start_takes_its_time_by_the_clock(frozen: Server) -> None:
    frozen.fault("slow_cold_start", seconds=1200)
    endpoint, deployment = frozen.deploy("slow")
    frozen.advance(1199)
    assert frozen.state(endpoint, deployment) == "PROVISIONING"
    refused = frozen.chat("local/slow")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "routing_error")
    frozen.advance(1)
    assert frozen.state(endpoint, deployment) == "READY"
    assert frozen.chat("local/slow").status_code == 200


def test_no_capacity_is_degraded_and_fails_after_six_hours(frozen: Server) -> None:
    frozen.fault("no_capacity")
    endpoint, deployment = frozen.deploy("nowhere")
    path = f"/v2/projects/proj_local/endpoints/{endpoint}/deployments/{deployment}"
    status = frozen.get(path)["status"]
    assert (status["state"], status["message"]) == ("DEPLOYMENT_STATE_DEGRADED", "insufficient GPU capacity")
    frozen.advance(6 * 3600)
    assert frozen.state(endpoint, deployment) == "FAILED"
    assert frozen.get("/emulator/bill")["items"] == []
    # Documented as final: the other form is in test_forms.
    assert frozen.scale(endpoint, deployment, 0)["status"]["state"] == "DEPLOYMENT_STATE_FAILED"


def test_capacity_that_comes_back_makes_it_ready(frozen: Server) -> None:
    frozen.fault("no_capacity", seconds=300)
    endpoint, deployment = frozen.deploy("patient")
    assert frozen.state(endpoint, deployment) == "DEGRADED"
    frozen.advance(300)
    assert frozen.state(endpoint, deployment) == "READY"


def names(server: Server, name: str) -> list[str]:
    found = server.get("/v2/projects/proj_local/endpoints", filter=f'name="{name}"')["data"]
    return [endpoint["id"] for endpoint in found]


def create(server: Server, name: str, **options: Any) -> httpx.Response:
    return server.http.post("/v2/projects/proj_local/endpoints", json={"name": name}, **options)


def test_twice_does_the_work_twice_and_answers_the_second(server: Server, dataset: Path) -> None:
    file_id = server.upload(dataset)
    server.fault("twice", match="POST /v1/fine-tunes")
    answered = server.train(file_id, suffix="doubled")
    jobs = [job["id"] for job in server.get("/v1/fine-tunes")["data"] if job["suffix"] == "doubled"]
    assert len(jobs) == 2 and answered["id"] == jobs[0]  # the newest is listed first
    server.fault("twice", match="POST *endpoints")
    assert create(server, "only-once").status_code == 409
    assert len(names(server, "only-once")) == 1
    for job in jobs:
        server.finish(job)


@pytest.mark.parametrize("status", ["201", "202", "204", "207", "299"])
def test_another_success_is_done_and_says_so(server: Server, status: str) -> None:
    server.fault(status, match="POST *endpoints")
    answer = create(server, f"success-{status}")
    assert answer.status_code == int(status)
    assert (answer.content == b"") is (status == "204")
    assert len(names(server, f"success-{status}")) == 1


@pytest.mark.parametrize("status", ["301", "302", "303", "307", "308"])
def test_a_redirection_does_nothing_and_names_an_address(server: Server, status: str) -> None:
    server.fault(status, match="POST *endpoints")
    answer = create(server, f"moved-{status}", params={"a": "b"})
    assert (answer.status_code, answer.headers["location"]) == (
        int(status),
        "/v2/projects/proj_local/endpoints?a=b",
    )
    assert names(server, f"moved-{status}") == []
    server.fault(status, match="GET /v1/files", location="https://elsewhere.invalid/")
    assert server.http.get("/v1/files").headers["location"] == "https://elsewhere.invalid/"


def test_a_raw_body_is_what_was_ordered(server: Server) -> None:
    server.fault("body", match="POST *endpoints")
    answer = create(server, "a-page")
    assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, "text/html")
    assert answer.text.startswith("<!doctype html>")
    assert names(server, "a-page") == []
    server.fault("body", match="GET /v1/files", status=503, body="{", content_type="application/json")
    answer = server.http.get("/v1/files")
    assert (answer.status_code, answer.headers["content-type"], answer.text) == (503, "application/json", "{")


def test_a_truncated_answer_is_done_and_is_no_json(server: Server) -> None:
    server.fault("truncated", match="POST *endpoints")
    answer = create(server, "half")
    assert answer.status_code == 200
    with pytest.raises(ValueError, match=r"Unterminated|Expecting|delimiter"):
        answer.json()
    assert len(names(server, "half")) == 1
    server.fault("truncated", match="POST *endpoints", bytes=3)
    assert len(create(server, "three-bytes").content) == 3


def test_an_answer_that_is_cut_off_is_done(server: Server) -> None:
    server.fault("cut", match="POST *endpoints")
    with pytest.raises(httpx.RemoteProtocolError):
        create(server, "cut-off")
    assert len(names(server, "cut-off")) == 1
