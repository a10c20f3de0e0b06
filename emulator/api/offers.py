"""What may be used: supported models, their serving configs, hardware."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.api.adapters import adapter_limit
from emulator.billing.catalog import BaseModel, Config, InstanceType
from emulator.errors import ApiError
from emulator.world.context import CATALOG_PROJECT, Emulator, emulator_of, paginate, read_project
from emulator.world.forms import form

# The catalog does not say when its models appeared.
_CATALOG_TIME = "2026-01-01T00:00:00.000000Z"


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
        emulator, wanted = emulator_of(request), mode.removeprefix("ADAPTER_MODE_").lower()
        models = [m for m in models if any(c.adapter_mode == wanted for c in configs_of(emulator, m))]
    return JSONResponse(paginate(request, [_describe_supported(emulator_of(request), model) for model in models]))


async def retrieve_supported_model(request: Request) -> Response:
    emulator = emulator_of(request)
    model = emulator.catalog.model(request.path_params["model"])
    if model is None:
        raise ApiError(404, f"Supported model {request.path_params['model']} not found", code="not_found")
    return JSONResponse(_describe_supported(emulator, model))


def configs_of(emulator: Emulator, model: BaseModel) -> tuple[Config, ...]:
    """The certified configs of a base model, in the order in which they are listed."""
    return (*model.variants, *model.configs) if form(emulator, "profiles") == "several" else model.configs


async def list_instance_types(request: Request) -> Response:
    emulator = emulator_of(request)
    kinds = emulator.catalog.instance_types
    return JSONResponse(paginate(request, [_describe_instance_type(emulator, kind) for kind in kinds]))


async def retrieve_instance_type(request: Request) -> Response:
    emulator = emulator_of(request)
    kind = emulator.catalog.instance_type(request.path_params["instance_type"])
    if kind is None:
        raise ApiError(404, f"Instance type {request.path_params['instance_type']} not found", code="not_found")
    return JSONResponse(_describe_instance_type(emulator, kind))


async def list_configs(request: Request) -> Response:
    read_project(request, also_catalog=True)
    emulator = emulator_of(request)
    wanted = request.query_params.get("referenceModelId") or request.query_params.get("referenceModel")
    configs = [config for model in emulator.catalog.models for config in configs_of(emulator, model)]
    if wanted:
        id = wanted.split("/revisions/")[0].rsplit("/", 1)[-1]
        row = emulator.state.row("SELECT base_model FROM models WHERE id = ?", id)
        base = emulator.catalog.model(row["base_model"] if row else id)
        configs = list(configs_of(emulator, base)) if base else []
    return JSONResponse(paginate(request, [_describe_config(emulator, config) for config in configs]))


async def retrieve_config(request: Request) -> Response:
    read_project(request, also_catalog=True)
    emulator = emulator_of(request)
    config = emulator.catalog.config(request.path_params["config"])
    if config is None:
        raise ApiError(404, f"Config {request.path_params['config']} not found", code="not_found")
    return JSONResponse(_describe_config(emulator, config))


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
            {"key": "adapter_mode", "value": config.adapter_mode},
            *_adapter_limit(emulator, config),
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


def _adapter_limit(emulator: Emulator, config: Config) -> list[dict[str, str]]:
    """The selector that tells how many adapters a config carries, where it carries any and the form tells it."""
    limit = adapter_limit(emulator, config)
    if not limit or form(emulator, "adapter_limit") == "untold":
        return []
    return [{"key": "max_adapters", "value": str(limit)}]


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
        "deploymentProfiles": [_describe_profile(emulator, model, config) for config in configs_of(emulator, model)],
    }
    if model.pricing:
        description["pricing"] = {name: float(price) for name, price in model.pricing.items()}
        description["serverlessEndpoint"] = model.name
    return description


def _describe_profile(emulator: Emulator, model: BaseModel, config: Config) -> dict[str, Any]:
    instance = emulator.catalog.instance_type(config.hardware)
    assert instance is not None
    profile = {
        "profileId": config.id.replace("cr_", "pf_", 1),
        "config": f"projects/{CATALOG_PROJECT}/configs/{config.id}",
        "certifiedConfigRevisionId": config.id,
        "model": f"projects/{CATALOG_PROJECT}/models/{model.id}/revisions/{model.revision_id}",
        "modelName": model.name,
        "certifiedModelRevisionId": model.revision_id,
        "gpuType": _gpu_type(emulator, instance),
        "gpuCount": instance.gpu_count,
        "parallelism": f"TP{instance.gpu_count}",
        "quantization": config.quantization,
        "adapterMode": f"ADAPTER_MODE_{config.adapter_mode.upper()}",
        "performanceBenchmarks": {"maxContextLength": str(model.context_length)},
    }
    if form(emulator, "profile_config") == "omitted":
        profile["config"] = ""
    return profile


def _gpu_type(emulator: Emulator, kind: InstanceType) -> str:
    return kind.gpu_type if form(emulator, "gpu_type") == "short" else f"nvidia-{kind.gpu_type.lower()}"


def _describe_instance_type(emulator: Emulator, kind: InstanceType) -> dict[str, Any]:
    return {
        "id": kind.id,
        "name": kind.name,
        "description": f"{kind.gpu_count} x {kind.gpu_type} ({kind.gpu_memory_gib} GiB)",
        "gpuType": _gpu_type(emulator, kind),
        "gpuCount": kind.gpu_count,
        "gpuMemoryGib": kind.gpu_memory_gib,
        "priceCentsPerHour": kind.price_cents_per_hour,
        "regions": [{"name": kind.region, "headroom": {"relation": "RELATION_GTE", "value": kind.headroom}}],
    }
