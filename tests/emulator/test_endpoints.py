"""Endpoints and deployments: what is refused, and what an update may touch."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.emulator.conftest import CONFIG, Server

ENDPOINTS = "/v2/projects/proj_local/endpoints"
BASE = "projects/proj_together/models/ml_qwen35_9b"
ONE = {"minReplicas": 1, "maxReplicas": 1}


@pytest.fixture
def endpoint(server: Server) -> str:
    return str(server.post(ENDPOINTS, {"name": f"endpoint-{uuid.uuid4()}"})["id"])


def test_name_is_unique_and_found_in_both_its_forms(server: Server) -> None:
    server.post(ENDPOINTS, {"name": "twin"})
    for name in ("twin", "local/twin"):
        again = server.http.post(ENDPOINTS, json={"name": name})
        assert again.status_code == 409
        assert again.json()["code"] == 10
        assert [entry["name"] for entry in server.get(ENDPOINTS, filter=f'name="{name}"')["data"]] == ["local/twin"]
    assert server.http.get(ENDPOINTS, params={"filter": "age > 5"}).status_code == 400


@pytest.mark.parametrize("name", ["", None, "-x", "a b", "other/x", "x" * 101])
def test_bad_names_are_refused(server: Server, name: Any) -> None:
    assert server.http.post(ENDPOINTS, json={"name": name}).status_code == 400


def test_pages_lead_through_everything_once(server: Server) -> None:
    created = {server.post(ENDPOINTS, {"name": f"page-{number}"})["id"] for number in range(5)}
    seen: list[str] = []
    after = None
    while True:
        page = server.get(ENDPOINTS, limit=2, **({"after": after} if after else {}))
        assert len(page["data"]) <= 2
        seen += [entry["id"] for entry in page["data"]]
        after = page["next_cursor"]
        if after is None:
            break
    assert len(seen) == len(set(seen))
    assert created <= set(seen)


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ({"model": None}, 400, "model is required"),
        ({"model": "ml_qwen35_9b"}, 400, "is not projects/"),
        ({"model": "projects/proj_local/models/ml_none"}, 404, "ml_none not found"),
        ({"model": BASE + "/revisions/mr_none"}, 404, "no revision mr_none"),
        ({"config": None}, 400, "config is required"),
        ({"config": "projects/proj_together/configs/cr_none"}, 404, "cr_none not found"),
        ({"config": "projects/proj_together/configs/cr_qwen35_2b_h100"}, 400, "not certified"),
        ({"autoscaling": None}, 400, "autoscaling is required"),
        ({"autoscaling": {"minReplicas": 0, "maxReplicas": 1}}, 400, "scaling from zero"),
        ({"autoscaling": {"minReplicas": 2, "maxReplicas": 1}}, 400, "above maxReplicas"),
        ({"autoscaling": {"minReplicas": -1, "maxReplicas": 1}}, 400, "-1"),
        ({"inactiveTimeout": 29}, 400, "30 to 1440"),
        ({"inactiveTimeout": 1441}, 400, "30 to 1440"),
        ({"name": "a/b"}, 400, "name"),
    ],
)
def test_what_cannot_be_deployed_is_refused(
    server: Server, endpoint: str, change: dict[str, Any], status: int, reason: str
) -> None:
    order = {"name": "one", "model": BASE, "config": CONFIG, "autoscaling": ONE} | change
    for query in ("", "?validateOnly=true"):
        refused = server.http.post(f"{ENDPOINTS}/{endpoint}/deployments{query}", json=order)
        assert refused.status_code == status
        assert reason in refused.json()["message"]
    assert server.get(f"{ENDPOINTS}/{endpoint}/deployments")["data"] == []


def test_validate_only_answers_and_creates_nothing(server: Server, endpoint: str) -> None:
    order = {"name": "one", "model": BASE, "config": CONFIG, "autoscaling": ONE}
    answer = server.post(f"{ENDPOINTS}/{endpoint}/deployments?validateOnly=true", order)
    assert answer["hardware"] == "1xnvidia-h100-80gb"
    assert server.get(f"{ENDPOINTS}/{endpoint}/deployments")["data"] == []


def test_outdated_etag_is_refused_and_changes_nothing(server: Server) -> None:
    endpoint, deployment = server.deploy("etags")
    path = f"{ENDPOINTS}/{endpoint}/deployments/{deployment}"
    etag = server.get(path)["etag"]
    server.patch(path, {"inactiveTimeout": 30, "etag": etag})
    refused = server.http.patch(path, json={"inactiveTimeout": 60, "etag": etag})
    assert refused.status_code == 409
    assert server.get(path)["inactiveTimeout"] == 30
    assert server.http.delete(f"{ENDPOINTS}/{endpoint}?etag=1").status_code == 409


def test_update_touches_only_what_the_mask_names(server: Server) -> None:
    endpoint, deployment = server.deploy("masked")
    path = f"{ENDPOINTS}/{endpoint}/deployments/{deployment}"
    body = {"inactiveTimeout": 60, "autoscaling": {"minReplicas": 0, "maxReplicas": 0}}
    changed = server.patch(path + "?updateMask=inactiveTimeout", body)
    assert (changed["inactiveTimeout"], changed["autoscaling"]["minReplicas"]) == (60, 1)
    assert server.http.patch(path + "?updateMask=hardware", json=body).status_code == 400


def test_running_or_routed_deployment_is_not_deleted(server: Server) -> None:
    endpoint, deployment = server.deploy("kept")
    path = f"{ENDPOINTS}/{endpoint}/deployments/{deployment}"
    assert "is not stopped" in server.http.delete(path).json()["message"]
    server.scale(endpoint, deployment, 0)
    assert "in the traffic split" in server.http.delete(path).json()["message"]
    assert "still has deployments" in server.http.delete(f"{ENDPOINTS}/{endpoint}").json()["message"]
    server.patch(f"{ENDPOINTS}/{endpoint}?updateMask=trafficSplit", {"trafficSplit": []})
    assert server.http.delete(path).status_code == 200
    assert server.http.delete(f"{ENDPOINTS}/{endpoint}").status_code == 200


@pytest.mark.parametrize(
    "split",
    [
        [{"deploymentId": "dep_none", "weight": 1}],
        [{"deploymentId": "own", "weight": -1}],
        [{"deploymentId": "own", "weight": 1}, {"deploymentId": "own", "weight": 1}],
        ["own"],
    ],
)
def test_bad_traffic_splits_are_refused(server: Server, endpoint: str, split: list[Any]) -> None:
    order = {"name": "one", "model": BASE, "config": CONFIG, "autoscaling": {"minReplicas": 0}}
    deployment = server.post(f"{ENDPOINTS}/{endpoint}/deployments", order)["id"]
    named = [
        entry | {"deploymentId": deployment} if isinstance(entry, dict) and entry["deploymentId"] == "own" else entry
        for entry in split
    ]
    assert server.http.patch(f"{ENDPOINTS}/{endpoint}", json={"trafficSplit": named}).status_code == 400
    assert server.get(f"{ENDPOINTS}/{endpoint}")["trafficSplit"] == []


def test_states_on_the_way_up_and_down(frozen: Server) -> None:
    endpoint, deployment = frozen.deploy("states")
    assert frozen.state(endpoint, deployment) == "PROVISIONING"
    frozen.advance(60)
    assert frozen.scale(endpoint, deployment, 3)["status"] == {
        "state": "DEPLOYMENT_STATE_SCALING",
        "message": "1 of 3 replicas are ready",
        "readyReplicas": 1,
        "scheduledReplicas": 3,
        "details": {"region": [{"region": "us-central-4", "readyReplicas": 1, "scheduledReplicas": 3}]},
    }
    assert frozen.chat("local/states").status_code == 200
    frozen.advance(60)
    assert frozen.state(endpoint, deployment) == "READY"
    assert frozen.scale(endpoint, deployment, 0)["status"]["state"] == "DEPLOYMENT_STATE_STOPPED"


def test_other_projects_and_the_old_api_are_refused(server: Server) -> None:
    assert server.http.get("/v2/projects/proj_other/endpoints").status_code == 404
    refused = server.http.post("/v1/endpoints", json={"model": "x"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "endpoints_v1_create_access_disabled")


def test_one_row_says_what_can_be_trained_and_served(server: Server) -> None:
    rows = {row["name"]: row for row in server.get("/v2/supported-models")["data"]}
    servable = {
        name for name, row in rows.items() if "PRODUCT_DEDICATED" in row["products"] and row["deploymentProfiles"]
    }
    trainable = {name for name, row in rows.items() if "PRODUCT_FINE_TUNING" in row["products"]}
    assert trainable - servable == {"Qwen/Qwen3.5-4B"}
    names = [row["name"] for row in server.get("/v2/supported-models", search="Qwen/Qwen3.5-9B")["data"]]
    assert names == ["Qwen/Qwen3.5-9B"]
