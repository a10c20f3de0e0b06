"""Who the caller is, what may be used, and what it costs: identity, catalog, models, configs, billing."""

from __future__ import annotations

import sqlite3
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.bill import describe_report, describe_usage
from emulator.catalog import BaseModel, Config, InstanceType
from emulator.clock import format_time
from emulator.context import (
    CATALOG_PROJECT,
    ORGANIZATION,
    PROJECT,
    Emulator,
    empty_page,
    emulator_of,
    paginate,
    read_json,
    read_project,
)
from emulator.errors import ApiError

# The catalog does not say when its models appeared.
_CATALOG_TIME = "2026-01-01T00:00:00.000000Z"


async def whoami(request: Request) -> Response:
    return JSONResponse(
        {"type": "project_api_key", "api_key": {"id": "key_local"}, "organization": ORGANIZATION, "project": PROJECT}
    )


async def list_projects(request: Request) -> Response:
    project = PROJECT | {"organization_id": ORGANIZATION["id"], "organization_name": ORGANIZATION["name"]}
    return JSONResponse(paginate(request, [project]))


async def list_supported_models(request: Request) -> Response:
    """`search` is part of a name, and an exact name finds only itself; `product` and `modality` filter."""
    models = list(emulator_of(request).catalog.models)
    if search := request.query_params.get("search", "").lower():
        exact = [model for model in models if search in (model.name.lower(), model.id)]
        models = exact or [model for model in models if search in model.name.lower()]
    if product := request.query_params.get("product"):
        models = [model for model in models if product in model.products]
    if modality := request.query_params.get("modality"):
        models = models if modality == "MODALITY_TEXT" else []
    if mode := request.query_params.get("adapterMode"):
        models = [model for model in models if model.configs] if mode == "ADAPTER_MODE_DYNAMIC" else []
    return JSONResponse(paginate(request, [_describe_supported(emulator_of(request), model) for model in models]))


async def retrieve_supported_model(request: Request) -> Response:
    emulator = emulator_of(request)
    model = emulator.catalog.model(request.path_params["model"])
    if model is None:
        raise ApiError(404, f"Supported model {request.path_params['model']} not found", code="not_found")
    return JSONResponse(_describe_supported(emulator, model))


async def list_instance_types(request: Request) -> Response:
    kinds = emulator_of(request).catalog.instance_types
    return JSONResponse(paginate(request, [_describe_instance_type(kind) for kind in kinds]))


async def retrieve_instance_type(request: Request) -> Response:
    kind = emulator_of(request).catalog.instance_type(request.path_params["instance_type"])
    if kind is None:
        raise ApiError(404, f"Instance type {request.path_params['instance_type']} not found", code="not_found")
    return JSONResponse(_describe_instance_type(kind))


async def list_models(request: Request) -> Response:
    emulator = emulator_of(request)
    if "project" in request.path_params and read_project(request, also_catalog=True) == CATALOG_PROJECT:
        return JSONResponse(paginate(request, [describe_base_model(model) for model in emulator.catalog.models]))
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
        return JSONResponse(describe_base_model(base))
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


async def list_configs(request: Request) -> Response:
    read_project(request, also_catalog=True)
    emulator = emulator_of(request)
    wanted = request.query_params.get("referenceModelId") or request.query_params.get("referenceModel")
    configs = [config for model in emulator.catalog.models for config in model.configs]
    if wanted:
        id = wanted.split("/revisions/")[0].rsplit("/", 1)[-1]
        row = emulator.state.row("SELECT base_model FROM models WHERE id = ?", id)
        base = emulator.catalog.model(row["base_model"] if row else id)
        configs = list(base.configs) if base else []
    return JSONResponse(paginate(request, [_describe_config(emulator, config) for config in configs]))


async def retrieve_config(request: Request) -> Response:
    read_project(request, also_catalog=True)
    emulator = emulator_of(request)
    config = emulator.catalog.config(request.path_params["config"])
    if config is None:
        raise ApiError(404, f"Config {request.path_params['config']} not found", code="not_found")
    return JSONResponse(_describe_config(emulator, config))


async def list_placement_profiles(request: Request) -> Response:
    """The emulator has one region and no profiles."""
    read_project(request)
    return JSONResponse(empty_page())


async def list_billing_usage(request: Request) -> Response:
    emulator = emulator_of(request)
    granularity = request.query_params.get("granularity") or "day"
    if granularity not in ("day", "hour"):
        raise ApiError(400, f"granularity {granularity!r} is neither day nor hour", param="granularity")
    period, windows = describe_usage(emulator, request.query_params.get("month"), granularity)
    return JSONResponse(describe_report(emulator, period, paginate(request, windows)))


async def list_serverless_models(request: Request) -> Response:
    """`GET /v1/models`: a bare list of what may be asked without a deployment."""
    models = [model for model in emulator_of(request).catalog.models if "PRODUCT_SERVERLESS" in model.products]
    return JSONResponse(
        [
            {
                "id": model.name,
                "object": "model",
                "created": 1767225600,
                "type": "chat",
                "display_name": model.display_name,
                "organization": model.name.split("/")[0],
                "context_length": model.context_length,
                "pricing": {
                    "hourly": 0,
                    "input": float(model.pricing["input"]) if model.pricing else 0,
                    "output": float(model.pricing["output"]) if model.pricing else 0,
                    "base": 0,
                    "finetune": 0,
                },
            }
            for model in models
        ]
    )


def _find_model(emulator: Emulator, id: str) -> sqlite3.Row:
    row = emulator.state.row("SELECT * FROM models WHERE id = ?", id)
    if row is None:
        raise ApiError(404, f"Model {id} not found", code="not_found")
    return row


def _describe_model(emulator: Emulator, row: sqlite3.Row) -> dict[str, Any]:
    base = emulator.catalog.model(row["base_model"])
    assert base is not None, "a trained model's base is in the catalog"
    return describe_base_model(base) | {
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


def describe_base_model(model: BaseModel) -> dict[str, Any]:
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


def _describe_config(emulator: Emulator, config: Config) -> dict[str, Any]:
    instance, model = emulator.catalog.instance_type(config.hardware), emulator.catalog.model(config.model_id)
    assert instance is not None
    assert model is not None
    accelerator = config.hardware.split("x", 1)[1]
    path = f"projects/{CATALOG_PROJECT}/models/{model.id}"
    return {
        "id": config.id,
        "projectId": CATALOG_PROJECT,
        "referenceModel": path,
        "referenceModelId": model.id,
        "selectors": [
            {"key": "accelerator_type", "value": accelerator},
            {"key": "accelerator_count", "value": str(instance.gpu_count)},
            {"key": "adapter_mode", "value": "dynamic"},
        ],
        "certifications": [
            {
                "certificationType": "CERTIFICATION_TYPE_CERTIFIED",
                "certifiedAt": _CATALOG_TIME,
                "certifiedBy": "emulator",
                "model": path,
                "modelRevisionId": model.revision_id,
                "target": "CERTIFICATION_TARGET_MRE",
            }
        ],
    }


def _describe_supported(emulator: Emulator, model: BaseModel) -> dict[str, Any]:
    path = f"projects/{CATALOG_PROJECT}/models/{model.id}"
    description: dict[str, Any] = {
        "id": model.id,
        "name": model.name,
        "displayName": model.display_name,
        "displayType": "chat",
        "publisher": model.name.split("/")[0],
        "baseModel": path,
        "baseModelId": model.id,
        "architecture": model.architecture,
        "contextLength": str(model.context_length),
        "capabilities": ["CAPABILITY_CHAT"],
        "inputModalities": ["MODALITY_TEXT"],
        "outputModalities": ["MODALITY_TEXT"],
        "products": list(model.products),
        "status": "SUPPORTED_MODEL_STATUS_SUPPORTED",
        "createdAt": _CATALOG_TIME,
        "updatedAt": _CATALOG_TIME,
        "deploymentProfiles": [_describe_profile(emulator, model, config) for config in model.configs],
    }
    if model.pricing:
        description["pricing"] = {name: float(price) for name, price in model.pricing.items()}
        description["serverlessEndpoint"] = model.name
    return description


def _describe_profile(emulator: Emulator, model: BaseModel, config: Config) -> dict[str, Any]:
    instance = emulator.catalog.instance_type(config.hardware)
    assert instance is not None
    return {
        "profileId": config.id.replace("cr_", "pf_", 1),
        "config": f"projects/{CATALOG_PROJECT}/configs/{config.id}",
        "certifiedConfigRevisionId": config.id,
        "model": f"projects/{CATALOG_PROJECT}/models/{model.id}/revisions/{model.revision_id}",
        "modelName": model.name,
        "certifiedModelRevisionId": model.revision_id,
        "gpuType": instance.gpu_type,
        "gpuCount": instance.gpu_count,
        "parallelism": f"TP{instance.gpu_count}",
        "quantization": "BF16",
        "adapterMode": "ADAPTER_MODE_DYNAMIC",
        "performanceBenchmarks": {"maxContextLength": str(model.context_length)},
    }


def _describe_instance_type(kind: InstanceType) -> dict[str, Any]:
    return {
        "id": kind.id,
        "name": kind.name,
        "description": f"{kind.gpu_count} x {kind.gpu_type} ({kind.gpu_memory_gib} GiB)",
        "gpuType": kind.gpu_type,
        "gpuCount": kind.gpu_count,
        "gpuMemoryGib": kind.gpu_memory_gib,
        "priceCentsPerHour": kind.price_cents_per_hour,
        "regions": [{"name": kind.region, "headroom": {"relation": "RELATION_GTE", "value": kind.headroom}}],
    }
