"""What we send and read, against the public types of the SDK: a second reading, which knows nothing of the emulator.

Each table was written from the SDK's descriptions (together 3.1.1) by hand. A new SDK that documents another state,
or no longer has a field that we read, fails here.
"""

from __future__ import annotations

import json
from typing import Any, get_args

import httpx
import pytest
from together.types import EndpointDeployment, EndpointDeploymentSummary, Model, SupportedModel
from together.types.chat import ChatCompletion, completion_create_params
from together.types.deployment_status import DeploymentStatus
from together.types.endpoint import Endpoint
from together.types.endpoints import InferenceInstanceType
from together.types.finetune_model_limits import LoraTraining
from together.types.models import Config
from together.types.supported_model_deployment_profile import SupportedModelDeploymentProfile

from provider.lifecycle.guard import guard_costs
from provider.lifecycle.shutdown import undeploy_model
from provider.pace import Pace
from provider.together.tiers import resolve_tier
from tests.provider.world import World

# method and path -> query parameters and body fields that the SDK documents for it
PATHS: dict[tuple[str, str], tuple[set[str], set[str]]] = {
    ("GET", "supported-models"): (set(), set()),
    ("GET", "inference-instance-types"): (set(), set()),
    ("GET", "models"): (set(), set()),
    ("GET", "limits"): ({"model_name"}, set()),
    ("GET", "configs"): ({"referenceModelId"}, set()),
    ("GET", "endpoints"): ({"filter"}, set()),
    ("POST", "endpoints"): (set(), {"name"}),
    ("PATCH", "endpoints"): ({"updateMask"}, {"trafficSplit", "etag"}),
    ("DELETE", "endpoints"): ({"etag"}, set()),
    ("GET", "deployments"): (set(), set()),
    ("POST", "deployments"): (set(), {"name", "model", "config", "autoscaling", "inactiveTimeout"}),
    ("PATCH", "deployments"): ({"updateMask"}, {"autoscaling"}),
    ("DELETE", "deployments"): ({"etag"}, set()),
}

READ: list[tuple[Any, set[str]]] = [
    (Endpoint, {"id", "name", "etag", "traffic_split", "deployments", "created_at"}),
    (EndpointDeploymentSummary, {"id", "name", "model", "api_model_id", "hardware", "ready_replicas", "created_at"}),
    (EndpointDeployment, {"id", "name", "etag", "status", "autoscaling", "hardware", "model", "api_model_id"}),
    (DeploymentStatus, {"state", "message", "ready_replicas"}),
    (SupportedModel, {"id", "name", "products", "status", "base_model_id", "deployment_profiles"}),
    (
        SupportedModelDeploymentProfile,
        {"config", "certified_config_revision_id", "model", "gpu_type", "gpu_count", "quantization", "adapter_mode"},
    ),
    (Config, {"id", "project_id", "selectors", "certifications"}),
    (InferenceInstanceType, {"id", "name", "gpu_type", "gpu_count", "price_cents_per_hour"}),
    (Model, {"id", "base_model", "base_model_id"}),
    (LoraTraining, {"default_rank", "max_rank"}),
    (ChatCompletion, {"choices", "usage"}),
]


@pytest.mark.parametrize(("kind", "fields"), READ, ids=lambda value: getattr(value, "__name__", ""))
def test_every_field_that_is_read_is_documented(kind: Any, fields: set[str]) -> None:
    assert fields <= set(kind.model_fields)


def test_every_documented_state_is_known() -> None:
    states = {state.removeprefix("DEPLOYMENT_STATE_") for state in _values(DeploymentStatus, "state")}
    assert states == {"PROVISIONING", "READY", "SCALING", "DEGRADED", "FAILED", "STOPPED", "STOPPING"}
    modes = {mode.removeprefix("ADAPTER_MODE_") for mode in _values(SupportedModelDeploymentProfile, "adapter_mode")}
    assert modes == {"FIXED", "DYNAMIC", "DISABLED"}
    assert {"PRODUCT_DEDICATED", "PRODUCT_FINE_TUNING"} <= _values(SupportedModel, "products")
    assert "SUPPORTED_MODEL_STATUS_HIDDEN" in _values(SupportedModel, "status")


def _values(kind: Any, field: str) -> set[str]:
    """The literal values of a field, however they are nested."""

    def walk(annotation: Any) -> set[str]:
        parts = get_args(annotation)
        return {annotation} if isinstance(annotation, str) else set().union(*(walk(part) for part in parts))

    return walk(kind.model_fields[field].annotation)


def test_what_switches_thinking_off_is_documented() -> None:
    fields = completion_create_params.CompletionCreateParamsBase.__annotations__
    assert {"reasoning", "chat_template_kwargs", "stop", "logprobs", "max_tokens", "temperature"} <= set(fields)
    assert "enabled" in completion_create_params.Reasoning.__annotations__


def test_every_request_of_a_deployments_life_is_documented(world: World) -> None:
    seen: set[tuple[str, str]] = set()

    def check(request: httpx.Request) -> None:
        parts = [part for part in request.url.path.split("/") if part]
        kind = next(part for part in reversed(parts) if part in {path for _, path in PATHS})
        query, fields = PATHS[request.method, kind]
        assert set(request.url.params) <= query, request.url
        body = json.loads(request.read() or b"{}")
        assert set(body) <= fields, f"{request.method} {request.url}: {body}"
        if request.method == "PATCH":
            (mask,) = request.url.params.get_list("updateMask")
            assert mask in body, "the mask names what the body has"
        seen.add((request.method, kind))

    world.client._client.event_hooks = {"request": [check]}
    resolve_tier(world.client, "small")
    row = world.deploy()
    guard_costs(world.data, world.provider, ledger=world.ledger, now=world.now())
    undeploy_model(world.provider, world.ledger, row.id, pace=Pace(now=world.now, wait=world.wait))
    assert seen == set(PATHS)
