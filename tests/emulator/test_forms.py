"""The switches by which the emulator answers in each documented form."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from emulator.world.forms import FORMS
from tests.emulator.conftest import Server, start

PROJECT = "/v2/projects/proj_local"


def set_forms(server: Server, **forms: str) -> None:
    assert server.http.post("/emulator/forms", json=forms).status_code == 200


def create(server: Server, name: str, config: str = "cr_qwen35_2b_h100") -> tuple[str, str]:
    """Paths of an endpoint and of a deployment of a base model under it."""
    endpoint = server.http.post(f"{PROJECT}/endpoints", json={"name": name}).json()
    body = {
        "name": name,
        "model": "projects/proj_together/models/ml_qwen35_2b",
        "config": f"projects/proj_together/configs/{config}",
        "autoscaling": {"minReplicas": 1, "maxReplicas": 1},
    }
    path = f"{PROJECT}/endpoints/{endpoint['id']}"
    answer = server.http.post(f"{path}/deployments", json=body)
    assert answer.status_code == 200, answer.text
    return path, f"{path}/deployments/{answer.json()['id']}"


def test_forms_are_told_chosen_and_reset(server: Server) -> None:
    defaults = {name: values[0] for name, values in FORMS.items()}
    assert server.http.get("/emulator/forms").json() == defaults
    assert server.http.post("/emulator/forms", json={"gpu_type": "vendor"}).json()["gpu_type"] == "vendor"
    for wrong in ({"gpu": "vendor"}, {"gpu_type": "x"}, {"gpu_type": ["vendor"]}):
        assert server.http.post("/emulator/forms", json=wrong).status_code == 400
    assert server.http.get("/emulator/forms").json()["gpu_type"] == "vendor"
    assert server.http.delete("/emulator/forms").json() == defaults


@pytest.mark.parametrize(("form", "gpu_type"), [("short", "H100"), ("vendor", "nvidia-h100")])
def test_the_gpu_type(server: Server, form: str, gpu_type: str) -> None:
    set_forms(server, gpu_type=form)
    kinds = server.http.get("/v2/public/inference-instance-types").json()["data"]
    assert kinds[0]["gpuType"] == gpu_type
    assert {kind["gpuMemoryGib"] for kind in kinds} == {80, 180}  # of each GPU
    profiles = server.http.get("/v2/supported-models").json()["data"][0]["deploymentProfiles"]
    assert [profile["gpuType"] for profile in profiles] == [gpu_type]


def test_an_empty_split_and_a_zero_need_the_mask(server: Server) -> None:
    path, deployment = create(server, "masked")
    split = [{"deploymentId": deployment.rsplit("/", 1)[-1], "weight": 1}]
    assert server.http.patch(path, json={"trafficSplit": split}).status_code == 200
    answer = server.http.patch(path, json={"trafficSplit": []})
    assert (answer.status_code, answer.json()["message"]) == (400, "no fields to update")
    assert server.http.patch(deployment, json={"inactiveTimeout": 0}).status_code == 400
    assert server.http.patch(path + "?updateMask=trafficSplit", json={}).json()["trafficSplit"] == []
    server.http.patch(path, json={"trafficSplit": split})
    set_forms(server, update_mask="optional")
    assert server.http.patch(path, json={"trafficSplit": []}).json()["trafficSplit"] == []


@pytest.mark.parametrize(
    ("forms", "stopped"), [({}, "FAILED"), ({"failed": "stops"}, "STOPPED"), ({"failed_update": "refused"}, None)]
)
def test_failed_is_final_and_may_be_deleted(server: Server, forms: dict[str, str], stopped: str | None) -> None:
    set_forms(server, **forms)
    server.http.post("/emulator/clock", json={"frozen": True})
    server.http.post("/emulator/faults", json={"kind": "no_capacity"})
    path, deployment = create(server, "waits")
    server.http.post("/emulator/clock", json={"advance_seconds": 7 * 3600})
    assert server.http.get(deployment).json()["status"]["state"] == "DEPLOYMENT_STATE_FAILED"
    answer = server.http.patch(deployment, json={"autoscaling": {"minReplicas": 0, "maxReplicas": 0}})
    assert answer.status_code == (200 if stopped else 400)
    if stopped:
        assert answer.json()["status"]["state"] == f"DEPLOYMENT_STATE_{stopped}"
    assert server.http.delete(deployment).status_code == 200
    assert server.http.delete(path).status_code == 200


def test_several_profiles_of_which_not_all_serve_what_is_trained(server: Server) -> None:
    set_forms(server, profiles="several", profile_config="omitted")
    profiles: list[dict[str, Any]] = server.http.get("/v2/supported-models").json()["data"][0]["deploymentProfiles"]
    kinds = [(p["quantization"], p["adapterMode"].removeprefix("ADAPTER_MODE_")) for p in profiles]
    assert kinds == [("FP8", "FIXED"), ("FP8", "DYNAMIC"), ("BF16", "FIXED"), ("BF16", "DISABLED"), ("BF16", "DYNAMIC")]
    assert {profile["config"] for profile in profiles} == {""}
    configs = server.http.get(f"{PROJECT}/configs?referenceModelId=ml_qwen35_2b").json()["data"]
    assert [config["id"] for config in configs] == [profile["certifiedConfigRevisionId"] for profile in profiles]


def test_a_model_that_thinks_by_default_is_switched_off_in_both_documented_ways(server: Server) -> None:
    set_forms(server, thinking="by_default")
    _, deployment = create(server, "thinks")
    server.http.post("/emulator/clock", json={"advance_seconds": 60})
    name = server.http.get(deployment).json()["name"]
    ask = {"model": name, "messages": [{"role": "user", "content": "hi"}]}

    def answer(**more: Any) -> str:
        got = server.http.post("/v1/chat/completions", json=ask | more)
        return str(got.json()["choices"][0]["message"]["content"])

    assert answer().startswith("<think>")
    assert answer(reasoning={"enabled": True}).startswith("<think>")
    assert not answer(reasoning={"enabled": False}).startswith("<think>")
    assert not answer(chat_template_kwargs={"enable_thinking": False}).startswith("<think>")
    assert answer(max_tokens=3) == "<think>\nLet"


def test_forms_may_be_chosen_at_the_start(tmp_path: Path) -> None:
    for server in start(tmp_path / "data", "--trainer", "majority", "--form", "gpu_type=vendor"):
        assert server.http.get("/emulator/forms").json()["gpu_type"] == "vendor"
    wrong = [sys.executable, "-m", "emulator", "--data", str(tmp_path / "other"), "--port", "0", "--form", "gpu_type=x"]
    ended = subprocess.run(wrong, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (1, "emulator: form gpu_type: 'x' is none of short, vendor\n")
