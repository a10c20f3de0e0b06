"""Trained models (v2), and the base models as the catalog's project shows them."""

from __future__ import annotations

import sqlite3
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.billing.catalog import BaseModel
from emulator.errors import ApiError
from emulator.world.clock import format_time
from emulator.world.context import (
    CATALOG_PROJECT,
    ORGANIZATION,
    PROJECT,
    Emulator,
    emulator_of,
    paginate,
    read_json,
    read_project,
)


async def list_models(request: Request) -> Response:
    emulator = emulator_of(request)
    if "project" in request.path_params and read_project(request, also_catalog=True) == CATALOG_PROJECT:
        return JSONResponse(paginate(request, [_describe_base_model(model) for model in emulator.catalog.models]))
    rows = emulator.state.rows("SELECT * FROM models ORDER BY created_at DESC, rowid DESC")
    return JSONResponse(paginate(request, [_describe_model(emulator, row) for row in rows]))


async def retrieve_model(request: Request) -> Response:
    project = read_project(request, also_catalog=True)
    emulator = emulator_of(request)
    id = request.path_params["model"]
    if project == CATALOG_PROJECT:
        base = emulator.catalog.model(id)
        if base is None:
            raise ApiError(404, f"Model {id} not found", code="not_found")
        return JSONResponse(_describe_base_model(base))
    return JSONResponse(_describe_model(emulator, _find_model(emulator, id)))


async def update_model(request: Request) -> Response:
    """Only a description could change, and the emulator keeps none, so it refuses everything else."""
    read_project(request)
    emulator = emulator_of(request)
    row = _find_model(emulator, request.path_params["model"])
    body = await read_json(request)
    if unknown := sorted(set(body) - {"etag"}):
        raise ApiError(400, f"the emulator cannot change {', '.join(unknown)} of a model")
    return JSONResponse(_describe_model(emulator, row))


async def delete_model(request: Request) -> Response:
    read_project(request)
    emulator = emulator_of(request)
    row = _find_model(emulator, request.path_params["model"])
    used = emulator.state.row("SELECT name FROM deployments WHERE model_id = ?", row["id"]) or emulator.state.row(
        "SELECT d.name FROM adapters a JOIN deployments d ON d.id = a.deployment_id WHERE a.model_id = ?", row["id"]
    )
    if used:
        raise ApiError(
            400, f"Model {row['name']} is deployed as {used['name']}; delete that first", code="failed_precondition"
        )
    with emulator.state.transaction():
        emulator.state.execute("DELETE FROM models WHERE id = ?", row["id"])
    if not emulator.state.row("SELECT 1 FROM models WHERE directory = ?", row["directory"]):
        emulator.models.remove(row["directory"])
    return JSONResponse({})


async def list_model_revisions(request: Request) -> Response:
    read_project(request)
    row = _find_model(emulator_of(request), request.path_params["model"])
    revision = {"revisionId": row["revision_id"], "createdAt": format_time(row["created_at"])}
    return JSONResponse(paginate(request, [revision | {"validationStatus": "REVISION_VALIDATION_STATUS_SUCCESS"}]))


async def list_model_files(request: Request) -> Response:
    read_project(request)
    emulator = emulator_of(request)
    row = _find_model(emulator, request.path_params["model"])
    paths = sorted(path for path in (emulator.state.models / row["directory"]).rglob("*") if path.is_file())
    files = [{"path": path.name, "sizeBytes": str(path.stat().st_size)} for path in paths]
    total = sum(path.stat().st_size for path in paths)
    return JSONResponse(paginate(request, files) | {"revisionId": row["revision_id"], "totalSizeBytes": str(total)})


def _find_model(emulator: Emulator, id: str) -> sqlite3.Row:
    row = emulator.state.row("SELECT * FROM models WHERE id = ?", id)
    if row is None:
        raise ApiError(404, f"Model {id} not found", code="not_found")
    return row


def _describe_model(emulator: Emulator, row: sqlite3.Row) -> dict[str, Any]:
    base = emulator.catalog.model(row["base_model"])
    assert base is not None, "a trained model's base is in the catalog"
    return _describe_base_model(base) | {
        "id": row["id"],
        "name": row["name"],
        "projectId": PROJECT["id"],
        "organizationId": ORGANIZATION["id"],
        "visibility": "VISIBILITY_PRIVATE",
        "baseModel": f"projects/{CATALOG_PROJECT}/models/{base.id}",
        "baseModelId": base.id,
        "weights": _describe_weights(base, row["weights_type"]),
        "description": f"Trained by the local emulator in fine-tune {row['fine_tune_id']}",
    }


def _describe_base_model(model: BaseModel) -> dict[str, Any]:
    return {
        "id": model.id,
        "name": model.name,
        "projectId": CATALOG_PROJECT,
        "organizationId": "org_together",
        "visibility": "VISIBILITY_INTERNAL",
        "weights": _describe_weights(model, "WEIGHTS_TYPE_DEFAULT"),
    }


def _describe_weights(model: BaseModel, weights_type: str) -> dict[str, Any]:
    total = str(model.parameters)
    return {
        "type": weights_type,
        "architecture": model.architecture,
        "contextLength": str(model.context_length),
        "parameters": {"total": total, "byDtype": [{"dtype": "BF16", "count": total}]},
    }
