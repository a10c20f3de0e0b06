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
