"""LoRA adapters attached to a deployment of their base model; served under the adapter's own model name."""

from __future__ import annotations

import sqlite3
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.api import deployments
from emulator.api.resources import check_etag
from emulator.errors import ApiError
from emulator.world.clock import format_time
from emulator.world.context import PROJECT, Emulator, emulator_of, paginate, read_json, read_project
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
    id = new_id("dad_")
    with emulator.state.transaction():
        emulator.state.insert(
            "adapters",
            id=id,
            deployment_id=deployment["id"],
            model_id=model["id"],
            revision_id=model["revision_id"],
            created_at=emulator.clock.timestamp(),
        )
    return JSONResponse(_describe(emulator, deployment, _find(emulator, deployment, id)))


async def list_adapters(request: Request) -> Response:
    read_project(request)
    emulator = emulator_of(request)
    deployment = deployments.find_deployment(emulator, request)
    rows = emulator.state.rows("SELECT * FROM adapters WHERE deployment_id = ? ORDER BY created_at", deployment["id"])
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
    check_etag(_with_name(row), body.get("etag"))
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
    check_etag(_with_name(row), request.query_params.get("etag"))
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
    status = read_status(emulator, deployment)
    path = f"projects/{PROJECT['id']}/models/{row['model_id']}"
    state = "ADAPTER_LOAD_STATE_READY" if status.ready else "ADAPTER_LOAD_STATE_PENDING"
    return {
        "id": row["id"],
        "adapterModel": path,
        "adapterModelId": row["model_id"],
        "desiredRevision": f"{path}/revisions/{row['revision_id']}",
        "desiredRevisionId": row["revision_id"],
        "etag": str(row["version"]),
        "perCluster": [
            {
                "adapterModelId": row["model_id"],
                "clusterId": "local",
                "state": state,
                "readyPodCount": status.ready,
                "failedPodCount": 0,
                "totalPodCount": status.scheduled,
                "updatedAt": format_time(row["created_at"]),
            }
        ],
    }
