"""Adapters that share a deployment, asked through the real SDK over HTTP: limit, states, versions, bill and faults."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import together

from tests.emulator.conformance import write_dataset
from tests.emulator.conftest import Server

BASE = "projects/proj_together/models/ml_qwen35_9b"


@pytest.fixture
def sdk(server: Server) -> Iterator[together.Together]:
    with together.Together(api_key="key", base_url=server.url, project_id="proj_local", max_retries=0) as client:
        yield client
    server.http.delete("/emulator/faults")
    server.http.delete("/emulator/forms")


@pytest.fixture(scope="module")
def trained(server: Server, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Six finished fine-tunes of one base model."""
    path = tmp_path_factory.mktemp("adapters") / "train.jsonl"
    write_dataset(path)
    file_id = server.upload(path)
    begun = [server.train(file_id, suffix=f"adapter-{number}")["id"] for number in range(6)]
    return [server.finish(job_id) for job_id in begun]


@pytest.fixture
def where(server: Server, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """A ready deployment of the base model, for the SDK's arguments."""
    endpoint, deployment = server.deploy(f"shared-{abs(hash(request.node.name))}")
    yield {"endpoint_id": endpoint, "deployment_id": deployment}
    with contextlib.suppress(Exception):
        server.scale(endpoint, deployment, 0)


def attach(sdk: together.Together, where: dict[str, str], job: dict[str, Any], **options: Any) -> Any:
    return sdk.endpoints.adapters.create(**where, adapter_model_id=job["adapter_object_id"], **options)


@pytest.mark.parametrize(("form", "status"), [("precondition", 400), ("exhausted", 429)])
def test_a_deployment_carries_as_many_adapters_as_its_config_tells(
    server: Server, sdk: together.Together, trained: list[dict[str, Any]], where: dict[str, str], form: str, status: int
) -> None:
    server.post("/emulator/forms", {"adapter_full": form})
    config = sdk.models.configs.retrieve("cr_qwen35_9b_h100", project_id="proj_together")
    told = {selector.key: selector.value for selector in config.selectors or ()}
    assert told["max_adapters"] == "5"
    first = attach(sdk, where, trained[0])
    for job in trained[1:5]:
        attach(sdk, where, job)
    with pytest.raises(together.APIStatusError, match="at adapter capacity") as refused:
        attach(sdk, where, trained[5])
    assert refused.value.status_code == status
    attach(sdk, where, trained[5], force=True)  # in the place of the oldest
    ids = [adapter.id for adapter in sdk.endpoints.adapters.list(where["endpoint_id"], where["deployment_id"])]
    assert len(ids) == 5
    assert first.id not in ids
    assert server.chat(trained[5]["adapter_output_name"]).status_code == 200
    assert server.chat(trained[0]["adapter_output_name"]).status_code != 200


def test_the_limit_may_be_untold(server: Server, sdk: together.Together) -> None:
    server.post("/emulator/forms", {"adapter_limit": "untold"})
    config = sdk.models.configs.retrieve("cr_qwen35_9b_h100", project_id="proj_together")
    assert "max_adapters" not in {selector.key for selector in config.selectors or ()}


def test_a_detachment_names_the_version_and_an_id_is_never_used_again(
    sdk: together.Together, trained: list[dict[str, Any]], where: dict[str, str]
) -> None:
    adapter = attach(sdk, where, trained[0])
    with pytest.raises(together.BadRequestError):
        sdk.endpoints.adapters.delete(adapter.id, **where, etag="")
    with pytest.raises(together.ConflictError):
        sdk.endpoints.adapters.delete(adapter.id, **where, etag="7")
    sdk.endpoints.adapters.delete(adapter.id, **where, etag=adapter.etag)
    with pytest.raises(together.NotFoundError):
        sdk.endpoints.adapters.retrieve(adapter.id, **where)
    assert attach(sdk, where, trained[0]).id != adapter.id


def test_an_adapter_answers_when_it_is_loaded_and_its_replica_is_ready(
    server: Server, sdk: together.Together, trained: list[dict[str, Any]], where: dict[str, str]
) -> None:
    def state(adapter: Any) -> str:
        return str(sdk.endpoints.adapters.retrieve(adapter.id, **where).per_cluster[0].state)

    server.fault("slow_adapter", seconds=90)
    slow = attach(sdk, where, trained[1])
    server.fault("adapter_error")
    broken = attach(sdk, where, trained[2])
    assert state(slow) == "ADAPTER_LOAD_STATE_LOADING"
    assert server.chat(trained[1]["adapter_output_name"]).status_code == 503
    server.advance(91)
    assert state(slow) == "ADAPTER_LOAD_STATE_READY"
    assert state(broken) == "ADAPTER_LOAD_STATE_FAILED"
    assert server.chat(trained[1]["adapter_output_name"]).status_code == 200
    server.scale(where["endpoint_id"], where["deployment_id"], 0)
    assert state(slow) == "ADAPTER_LOAD_STATE_PENDING"
    assert server.chat(trained[1]["adapter_output_name"]).status_code == 503


@pytest.mark.parametrize("fault", ["429", "500", "lost_response"])
def test_faults_strike_the_adapters_routes(
    server: Server, sdk: together.Together, trained: list[dict[str, Any]], where: dict[str, str], fault: str
) -> None:
    server.fault(fault, match="POST */adapters")
    with pytest.raises(together.APIError):
        attach(sdk, where, trained[3])
    attached = list(sdk.endpoints.adapters.list(where["endpoint_id"], where["deployment_id"]))
    assert len(attached) == (1 if fault == "lost_response" else 0)


def test_adapters_are_for_their_own_base_and_for_configs_that_carry_them(
    server: Server, sdk: together.Together, trained: list[dict[str, Any]]
) -> None:
    for number, (model, config) in enumerate((("ml_qwen35_2b", "cr_qwen35_2b_h100"), ("ml_deepseek_v31", None))):
        endpoint = sdk.endpoints.create(name=f"other-base-{number}")
        deployment = sdk.endpoints.deployments.create(
            endpoint_id=endpoint.id,
            name="one",
            model=f"projects/proj_together/models/{model}",
            config=f"projects/proj_together/configs/{config or 'cr_deepseek_v31_h100x8'}",
            autoscaling={"min_replicas": 0, "max_replicas": 0},
        )
        with pytest.raises(together.BadRequestError):
            attach(sdk, {"endpoint_id": endpoint.id, "deployment_id": deployment.id}, trained[0])


def test_the_bill_has_the_replica_once_however_many_adapters_it_carries(
    server: Server, sdk: together.Together, trained: list[dict[str, Any]], where: dict[str, str]
) -> None:
    for job in trained[:3]:
        attach(sdk, where, job)
    server.advance(1800)
    lines = [item for item in server.get("/emulator/bill")["items"] if item["kind"] == "deployment"]
    ours = [line for line in lines if line["resource_id"] == where["deployment_id"]]
    assert len(ours) == 1
    assert 30 <= ours[0]["quantity"] <= 31
