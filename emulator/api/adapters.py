"""LoRA adapters attached to a deployment of their base model; served under the adapter's own model name.

How many a deployment carries, its config says. One adapter may be attached to several deployments, once to each. They
cost nothing beside the deployment's replicas. `force` puts one more in the place of the oldest.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.api import deployments
from emulator.api.resources import check_etag
from emulator.billing.catalog import Config
from emulator.errors import ApiError
from emulator.world.clock import format_time
from emulator.world.context import PROJECT, Emulator, emulator_of, paginate, read_json, read_project
from emulator.world.forms import form
from emulator.world.replicas import read_status
from emulator.world.state import new_id


async def create_adapter(request: Request) -> Response:
    read_project(request)
    emulator = emulator_of(request)
    deployment = deployments.find_deployment(emulator, request)
    body = await read_json(request)
    model = emulator.state.row(
        "SELECT * FROM models WHERE id = ? AND weights_type = 'WEIGHTS_TYPE_ADAPTER'", body.get("adapterModelId")
    )
    if model is None:
        raise ApiError(404, f"Adapter model {body.get('adapterModelId')} not found", code="not_found")
    base = emulator.catalog.model(model["base_model"])
    if base is None or deployment["model_id"] != base.id:
        raise ApiError(
            400,
            f"Adapter {model['name']} is trained on {model['base_model']}, which {deployment['name']} does not serve",
        )
    if emulator.state.row(
        "SELECT 1 FROM adapters WHERE deployment_id = ? AND model_id = ?", deployment["id"], model["id"]
    ):
        raise ApiError(409, f"Adapter {model['name']} is attached already", code="already_exists")
    id, load_seconds = new_id("dad_"), _strike_load(emulator, request)
    with emulator.state.transaction():
        _make_room(emulator, deployment, evict=body.get("force") is True)
        emulator.state.insert(
            "adapters",
            id=id,
            deployment_id=deployment["id"],
            model_id=model["id"],
            revision_id=model["revision_id"],
            created_at=emulator.clock.timestamp(),
            load_seconds=load_seconds,
        )
    emulator.models.warm(model["directory"])
    return JSONResponse(_describe(emulator, deployment, _find(emulator, deployment, id)))


def adapter_limit(emulator: Emulator, config: Config) -> int:
    """How many adapters a deployment with a config carries."""
    if config.adapter_mode != "dynamic":
        return 0
    return min(config.max_adapters, 2) if form(emulator, "adapter_room") == "two" else config.max_adapters


def _make_room(emulator: Emulator, deployment: sqlite3.Row, *, evict: bool) -> None:
    """Raise ApiError where a deployment carries no further adapter, or evict its oldest one."""
    config = emulator.catalog.config(deployment["config_id"])
    assert config is not None, "a deployment's config is in the catalog"
    limit = adapter_limit(emulator, config)
    if not limit:
        why = f"config {config.id} has adapter mode {config.adapter_mode}"
        raise ApiError(400, f"Deployment {deployment['name']} carries no adapters: {why}", code="failed_precondition")
    attached = emulator.state.rows(
        "SELECT id FROM adapters WHERE deployment_id = ? ORDER BY created_at, rowid", deployment["id"]
    )
    if len(attached) < limit:
        return
    if evict:
        emulator.state.execute("DELETE FROM adapters WHERE id = ?", attached[0]["id"])
        return
    said = f"Deployment {deployment['name']} is at adapter capacity ({limit}); detach one, or force"
    if form(emulator, "adapter_full") == "exhausted":
        raise ApiError(429, said, code="resource_exhausted", headers={"x-should-retry": "false"})
    raise ApiError(400, said, code="failed_precondition")


def _strike_load(emulator: Emulator, request: Request) -> float | None:
    """Seconds that an adapter takes to load, None: it never does. By what was ordered."""
    fault = emulator.faults.strike(request.method, request.url.path, kinds=("slow_adapter", "adapter_error"))
    if fault is None:
        return 0.0
    return None if fault.kind == "adapter_error" else fault.seconds(600.0)


def load_state(emulator: Emulator, deployment: sqlite3.Row, row: sqlite3.Row) -> str:
    """`PENDING`, `LOADING`, `READY` or `FAILED`: how an adapter (its row) is on its deployment now."""
    if not read_status(emulator, deployment).ready:
        return "PENDING"
    if row["load_seconds"] is None:
        return "FAILED"
    return "READY" if emulator.clock.timestamp() >= row["created_at"] + row["load_seconds"] else "LOADING"


async def list_adapters(request: Request) -> Response:
    read_project(request)
    emulator = emulator_of(request)
    deployment = deployments.find_deployment(emulator, request)
    rows = emulator.state.rows(
        "SELECT * FROM adapters WHERE deployment_id = ? ORDER BY created_at, rowid", deployment["id"]
    )
    return JSONResponse(paginate(request, [_describe(emulator, deployment, row) for row in rows]))


async def retrieve_adapter(request: Request) -> Response:
    read_project(request)
    emulator = emulator_of(request)
    deployment = deployments.find_deployment(emulator, request)
    return JSONResponse(_describe(emulator, deployment, _find(emulator, deployment, request.path_params["adapter"])))


async def update_adapter(request: Request) -> Response:
    """Pin another revision. Each adapter has one, so this only checks what it is given."""
    read_project(request)
    emulator = emulator_of(request)
    deployment = deployments.find_deployment(emulator, request)
    row = _find(emulator, deployment, request.path_params["adapter"])
    body = await read_json(request)
    check_etag(_with_name(row), body.get("etag"), required=True)
    if body.get("adapterRevisionId") != row["revision_id"]:
        raise ApiError(
            404, f"Adapter {row['model_id']} has no revision {body.get('adapterRevisionId')}", code="not_found"
        )
    with emulator.state.transaction():
        emulator.state.update("adapters", row["id"], version=row["version"] + 1)
    return JSONResponse(_describe(emulator, deployment, _find(emulator, deployment, row["id"])))


async def delete_adapter(request: Request) -> Response:
    read_project(request)
    emulator = emulator_of(request)
    deployment = deployments.find_deployment(emulator, request)
    row = _find(emulator, deployment, request.path_params["adapter"])
    check_etag(_with_name(row), request.query_params.get("etag"), required=True)
    with emulator.state.transaction():
        emulator.state.execute("DELETE FROM adapters WHERE id = ?", row["id"])
    return JSONResponse({})


def _find(emulator: Emulator, deployment: sqlite3.Row, id: str) -> sqlite3.Row:
    row = emulator.state.row("SELECT * FROM adapters WHERE id = ? AND deployment_id = ?", id, deployment["id"])
    if row is None:
        raise ApiError(404, f"Adapter {id} not found on {deployment['name']}", code="not_found")
    return row


def _with_name(row: sqlite3.Row) -> dict[str, Any]:
    return dict(row) | {"name": row["id"]}


def _describe(emulator: Emulator, deployment: sqlite3.Row, row: sqlite3.Row) -> dict[str, Any]:
    status, state = read_status(emulator, deployment), load_state(emulator, deployment, row)
    path = f"projects/{PROJECT['id']}/models/{row['model_id']}"
    loaded = state == "READY"
    cluster = {
        "adapterModelId": row["model_id"],
        "clusterId": "local",
        "state": f"ADAPTER_LOAD_STATE_{state}",
        "readyPodCount": status.ready if loaded else 0,
        "failedPodCount": status.ready if state == "FAILED" else 0,
        "totalPodCount": status.scheduled,
        "updatedAt": format_time(row["created_at"]),
    }
    if loaded:
        cluster |= {
            "adapterValid": True,
            "realizedEtag": str(row["version"]),
            "realizedRevision": f"{path}/revisions/{row['revision_id']}",
            "realizedRevisionId": row["revision_id"],
        }
    if state == "FAILED":
        cluster |= {"reason": "LOAD_ERROR", "message": "the adapter could not be loaded"}
    return {
        "id": row["id"],
        "adapterModel": path,
        "adapterModelId": row["model_id"],
        "desiredRevision": f"{path}/revisions/{row['revision_id']}",
        "desiredRevisionId": row["revision_id"],
        "etag": str(row["version"]),
        "perCluster": [cluster],
    }
