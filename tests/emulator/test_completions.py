"""Chat: who answers, in which shape, and how many at once."""

from __future__ import annotations

import json
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.emulator.conformance import write_dataset
from tests.emulator.conftest import CONFIG, Server

IGNORE = "<response><action>IGNORE</action></response>"
ENDPOINTS = "/v2/projects/proj_local/endpoints"


@pytest.fixture(scope="module")
def trained(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The resource path of a trained model."""
    file_id = server.upload(write_dataset(tmp_path_factory.mktemp("dataset") / "dataset.jsonl"))
    job = server.finish(server.train(file_id)["id"])
    return f"projects/proj_local/models/{job['model_object_id']}"


@pytest.fixture(scope="module")
def model(server: Server, trained: str) -> str:
    server.deploy("chat", model=trained)
    return "local/chat"


def test_answer_carries_its_probability(server: Server, model: str) -> None:
    choice = server.chat(model, logprobs=1).json()["choices"][0]
    assert choice["message"]["content"] == IGNORE
    assert math.exp(sum(choice["logprobs"]["token_logprobs"])) == pytest.approx(0.75)
    assert choice["finish_reason"] == "stop"
    assert server.chat(model).json()["choices"][0]["logprobs"] is None


def test_stop_and_max_tokens_cut_the_answer(server: Server, trained: str) -> None:
    from emulator.api.completions import _cut
    from learners.completion import fixed_completion

    whole = fixed_completion("one two three", -1.0, [], max_tokens=10)
    assert whole.tokens == ["one", " two", " three"]
    cut = _cut(whole, ["wo th", "three"])
    assert (cut.text, cut.tokens, cut.token_logprobs) == ("one t", ["one", " t"], [-1.0, 0.0])
    short = fixed_completion("one two three", -1.0, [], max_tokens=2)
    assert (short.text, short.finish_reason) == ("one two", "length")


def test_stop_works_over_the_wire(server: Server, model: str) -> None:
    answer = server.chat(model, stop=["</action>"]).json()["choices"][0]
    assert answer["message"]["content"] == "<response><action>IGNORE"


def test_stream_is_events_and_ends_with_done(server: Server, model: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": True, "logprobs": 1}
    with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == IGNORE
    assert isinstance(chunks[0]["choices"][0]["logprobs"], float)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] == len(chunks) - 1


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ({"model": None}, 400, "model is required"),
        ({"model": "nobody/nothing"}, 404, "there is none of this name"),
        ({"model": "Qwen/Qwen3.5-4B"}, 400, "non-serverless"),
        ({"messages": []}, 400, "messages is required"),
        ({"messages": ["hi"]}, 400, "message 1"),
        ({"messages": [{"role": "user", "content": 5}]}, 400, "message 1 has no text"),
        ({"max_tokens": 0}, 400, "max_tokens 0"),
        ({"temperature": 9}, 400, "temperature 9"),
        ({"stop": 5}, 400, "stop"),
        ({"n": 2}, 400, "n must be 1"),
    ],
)
def test_bad_questions_are_refused(server: Server, change: dict[str, Any], status: int, reason: str) -> None:
    body = {"model": "Qwen/Qwen3.5-9B", "messages": [{"role": "user", "content": "x"}]} | change
    refused = server.http.post("/v1/chat/completions", json=body)
    assert refused.status_code == status
    assert reason in refused.json()["error"]["message"]


def test_ready_deployment_without_a_traffic_split_has_no_route(server: Server, trained: str) -> None:
    endpoint = server.post(ENDPOINTS, {"name": "unrouted"})["id"]
    order = {"name": "only", "model": trained, "config": CONFIG, "autoscaling": {"minReplicas": 1}}
    deployment = server.post(f"{ENDPOINTS}/{endpoint}/deployments", order)["id"]
    assert server.state(endpoint, deployment) == "READY"
    refused = server.chat("local/unrouted")
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "routing_error")
    # By its own name a deployment answers without any traffic: so it is evaluated before it is promoted.
    assert server.chat("local/unrouted/only").json()["choices"][0]["message"]["content"] == IGNORE
    server.scale(endpoint, deployment, 0)
    assert server.chat("local/unrouted/only").status_code == 503


def test_traffic_follows_the_weights_and_leaves_out_the_stopped(server: Server, trained: str) -> None:
    endpoint, first = server.deploy("split", model=trained)
    order = {"name": "two", "config": CONFIG, "autoscaling": {"minReplicas": 1}}
    base = "projects/proj_together/models/ml_qwen35_9b"
    second = server.post(f"{ENDPOINTS}/{endpoint}/deployments", order | {"model": base})["id"]
    split = [{"deploymentId": first, "weight": 3}, {"deploymentId": second, "weight": 1}]
    described = server.patch(f"{ENDPOINTS}/{endpoint}", {"trafficSplit": split})
    assert [entry["estimatedEffectiveTrafficShare"] for entry in described["deployments"]] == [0.75, 0.25]
    answers = Counter(server.chat("local/split").json()["choices"][0]["message"]["content"] for _ in range(200))
    # 150 of 200 are expected; outside 110..190 a fair draw comes less than once in a billion times.
    assert 110 < answers[IGNORE] < 190
    server.scale(endpoint, first, 0)
    assert all("untuned" in server.chat("local/split").json()["choices"][0]["message"]["content"] for _ in range(10))


def test_attached_adapter_answers_under_its_own_name(server: Server, dataset: Path) -> None:
    job = server.finish(server.train(server.upload(dataset), suffix="adapted")["id"])
    endpoint, deployment = server.deploy("base-of-adapter")
    assert server.chat(job["adapter_output_name"]).status_code == 400
    path = f"{ENDPOINTS}/{endpoint}/deployments/{deployment}/adapters"
    server.post(path, {"adapterModelId": job["adapter_object_id"]})
    assert server.http.post(path, json={"adapterModelId": job["adapter_object_id"]}).status_code == 409
    assert server.chat(job["adapter_output_name"]).json()["choices"][0]["message"]["content"] == IGNORE
    assert "untuned" in server.chat("local/base-of-adapter").json()["choices"][0]["message"]["content"]


def test_thirty_two_at_once_all_get_answers(server: Server, model: str) -> None:
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: server.chat(model).json(), range(320)))
    assert {answer["choices"][0]["message"]["content"] for answer in answers} == {IGNORE}
    assert len({answer["id"] for answer in answers}) == 320


def test_questions_are_answered_while_a_training_runs(server: Server, model: str, dataset: Path) -> None:
    file_id = server.upload(dataset)
    server.fault("training_slow", seconds=20)
    job = server.train(file_id)
    assert server.chat(model).status_code == 200
    assert server.get(f"/v1/fine-tunes/{job['id']}")["status"] == "running"
    server.post(f"/v1/fine-tunes/{job['id']}/cancel")
    assert server.finish(job["id"])["status"] == "cancelled"
