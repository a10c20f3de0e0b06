"""Deployments (v2): replicas of one model on one hardware, under an endpoint."""

from __future__ import annotations

import json
import math
import re
import sqlite3
import zlib
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.api.resources import (
    check_etag,
    filter_by_name,
    find_endpoint,
    masked_fields,
    qualify_name,
    traffic_shares,
)
from emulator.billing.bill import require_funds
from emulator.billing.catalog import Config
from emulator.errors import ApiError
from emulator.world.clock import format_time
from emulator.world.context import CATALOG_PROJECT, PROJECT, Emulator, emulator_of, paginate, read_json, read_project
from emulator.world.forms import form
from emulator.world.replicas import Status, read_status, scale, stop_inactive
from emulator.world.state import new_id

_MODEL_PATH = re.compile(r"projects/([^/]+)/models/([^/]+)(?:/revisions/([^/]+))?")
_CONFIG_PATH = re.compile(r"(?:projects/([^/]+)/configs/)?([^/]+)")
_MAX_REPLICAS = 64


async def create_deployment(request: Request) -> Response:
    read_project(request)
    emulator = emulator_of(request)
    endpoint = find_endpoint(emulator, request.path_params["endpoint"])
    body = await read_json(request)
    name = qualify_name(body.get("name"), endpoint["name"])
    project, model_id, revision_id = _resolve_model(emulator, body)
    config = _resolve_config(emulator, body, model_id)
    instance = emulator.catalog.instance_type(config.hardware)
    assert instance is not None, "the catalog names hardware that it lists"
    autoscaling = _read_autoscaling(body.get("autoscaling"), {})
    if emulator.state.row("SELECT 1 FROM deployments WHERE name = ?", name):
        raise ApiError(409, f"A deployment named {name} already exists", code="already_exists")
    now = emulator.clock.timestamp()
    columns = {
        "id": new_id("dep_"),
        "endpoint_id": endpoint["id"],
        "name": name,
        "created_at": now,
        "updated_at": now,
        "model_project": project,
        "model_id": model_id,
        "revision_id": revision_id,
        "config_id": config.id,
        "hardware": instance.name,
        "price_cents_per_hour": instance.price_cents_per_hour,
        "autoscaling": json.dumps(autoscaling),
        "replicas": autoscaling["minReplicas"],
        "inactive_timeout": _read_inactive_timeout(body.get("inactiveTimeout")),
        "max_concurrent": str(body.get("maxConcurrentRequestsPerReplica") or "31"),
        "placement": json.dumps(body["placement"]) if body.get("placement") else None,
    }
    if columns["replicas"]:
        require_funds(emulator)
    if request.query_params.get("validateOnly") == "true":
        return JSONResponse(_describe(emulator, columns | {"version": 1, "last_request_at": None}, _stopped()))
    with emulator.state.transaction():
        emulator.state.insert("deployments", **columns)
        _apply_replicas(emulator, request, columns, autoscaling["minReplicas"])
    return JSONResponse(describe_deployment(emulator, find_deployment(emulator, request, columns["id"])))


async def list_deployments(request: Request) -> Response:
    read_project(request)
    emulator = emulator_of(request)
    endpoint = find_endpoint(emulator, request.path_params["endpoint"])
    rows = emulator.state.rows(
        "SELECT * FROM deployments WHERE endpoint_id = ? ORDER BY created_at, rowid", endpoint["id"]
    )
    rows = filter_by_name(request, rows)
    return JSONResponse(paginate(request, [describe_deployment(emulator, row) for row in rows]))


async def retrieve_deployment(request: Request) -> Response:
    read_project(request)
    emulator = emulator_of(request)
    return JSONResponse(describe_deployment(emulator, find_deployment(emulator, request)))


async def update_deployment(request: Request) -> Response:
    read_project(request)
    emulator = emulator_of(request)
    body = await read_json(request)
    row = find_deployment(emulator, request)
    check_etag(row, body.get("etag"), required=form(emulator, "etag") == "required")
    if read_status(emulator, row).failed and form(emulator, "failed_update") == "refused":
        raise ApiError(400, f"Deployment {row['name']} has failed; delete it", code="failed_precondition")
    changes: dict[str, Any] = {}
    fields = ("autoscaling", "inactiveTimeout", "maxConcurrentRequestsPerReplica", "name")
    touched = masked_fields(request, body, fields)
    for field in touched:
        if field == "autoscaling":
            autoscaling = _read_autoscaling(body.get(field), json.loads(row["autoscaling"]))
            changes |= {"autoscaling": json.dumps(autoscaling), "replicas": autoscaling["minReplicas"]}
        elif field == "inactiveTimeout":
            changes["inactive_timeout"] = _read_inactive_timeout(body.get(field))
        elif field == "maxConcurrentRequestsPerReplica":
            changes["max_concurrent"] = str(body.get(field) or "31")
        else:
            endpoint_name = row["name"].rsplit("/", 1)[0]
            if qualify_name(body.get(field), endpoint_name) != row["name"]:
                raise ApiError(400, "A deployment's name cannot be changed", param="name")
    if changes.get("replicas", 0) > row["replicas"]:
        require_funds(emulator)
    with emulator.state.transaction():
        emulator.state.update(
            "deployments", row["id"], version=row["version"] + 1, updated_at=emulator.clock.timestamp(), **changes
        )
        if "replicas" in changes:
            _apply_replicas(emulator, request, row, changes["replicas"])
    return JSONResponse(describe_deployment(emulator, find_deployment(emulator, request)))


async def delete_deployment(request: Request) -> Response:
    read_project(request)
    emulator = emulator_of(request)
    row = find_deployment(emulator, request)
    check_etag(row, request.query_params.get("etag"), required=form(emulator, "etag") == "required")
    status = read_status(emulator, row)
    if not status.stopped and not status.failed:
        raise ApiError(
            400,
            f"Deployment {row['name']} is not stopped, which STOPPED and FAILED are: set min and max replicas to 0",
            code="failed_precondition",
        )
    split = json.loads(find_endpoint(emulator, row["endpoint_id"])["traffic_split"])
    routed = any(entry["deploymentId"] == row["id"] and entry["weight"] > 0 for entry in split)
    if routed and form(emulator, "traffic") == "accepted":
        raise ApiError(
            400, f"Deployment {row['name']} is in the traffic split; take it out first", code="failed_precondition"
        )
    with emulator.state.transaction():
        emulator.state.execute("DELETE FROM adapters WHERE deployment_id = ?", row["id"])
        emulator.state.execute("DELETE FROM deployments WHERE id = ?", row["id"])
    return JSONResponse({})


def find_deployment(emulator: Emulator, request: Request, id: str | None = None) -> sqlite3.Row:
    stop_inactive(emulator)
    endpoint = find_endpoint(emulator, request.path_params["endpoint"])
    wanted = id or request.path_params["deployment"]
    row = emulator.state.row("SELECT * FROM deployments WHERE id = ? AND endpoint_id = ?", wanted, endpoint["id"])
    if row is None:
        raise ApiError(404, f"Deployment {wanted} not found in endpoint {endpoint['name']}", code="not_found")
    return row


def describe_deployment(emulator: Emulator, row: sqlite3.Row) -> dict[str, Any]:
    split = json.loads(find_endpoint(emulator, row["endpoint_id"])["traffic_split"])
    share = traffic_shares(split).get(row["id"], 0.0)
    return _describe(emulator, dict(row), read_status(emulator, row)) | {"estimatedEffectiveTrafficShare": share}


def describe_summary(emulator: Emulator, row: sqlite3.Row, status: Status, share: float) -> dict[str, Any]:
    """The short form that an endpoint carries."""
    return {
        "id": row["id"],
        "name": row["name"],
        "model": _model_path(row),
        "modelId": row["model_id"],
        "autoscaling": json.loads(row["autoscaling"]),
        "state": status.state,
        "trafficMode": "TRAFFIC_MODE_LIVE",
        "desiredReplicas": row["replicas"],
        "readyReplicas": status.ready,
        "hardware": _say_hardware(emulator, row["hardware"]),
        "estimatedEffectiveTrafficShare": share,
        "createdAt": format_time(row["created_at"]),
    }


def _describe(emulator: Emulator, row: dict[str, Any], status: Status) -> dict[str, Any]:
    instance = emulator.catalog.instance_type(row["hardware"])
    region = instance.region if instance else "us-central-4"
    details = [{"region": region, "readyReplicas": status.ready, "scheduledReplicas": status.scheduled}]
    description = {
        "id": row["id"],
        "name": row["name"],
        "projectId": PROJECT["id"],
        "endpointId": row["endpoint_id"],
        "model": _model_path(row),
        "modelId": row["model_id"],
        "modelRevisionId": row["revision_id"],
        "config": f"projects/{CATALOG_PROJECT}/configs/{row['config_id']}",
        "configId": row["config_id"],
        "hardware": _say_hardware(emulator, row["hardware"]),
        "autoscaling": json.loads(row["autoscaling"]),
        "desiredReplicas": row["replicas"],
        "inactiveTimeout": row["inactive_timeout"],
        "maxConcurrentRequestsPerReplica": row["max_concurrent"],
        "trafficMode": "TRAFFIC_MODE_LIVE",
        "status": {
            "state": status.state,
            "message": status.message,
            "readyReplicas": status.ready,
            "scheduledReplicas": status.scheduled,
            "details": {"region": details if status.scheduled else []},
        },
        "runtimeInfo": {"engineType": "emulator", "engineVersion": "1"},
        "etag": str(row["version"]),
        "createdAt": format_time(row["created_at"]),
        "updatedAt": format_time(row["updated_at"]),
    }
    if row["placement"]:
        description["placement"] = json.loads(row["placement"])
    return description


def _stopped() -> Status:
    return Status("DEPLOYMENT_STATE_STOPPED", "validated, not created", 0, 0)


def _say_hardware(emulator: Emulator, name: str) -> str:
    """An instance type in the form that is set: its name, `1x H100 80GB`, or a name that says nothing of it."""
    how = form(emulator, "hardware")
    if how == "label":
        count, _, rest = name.partition("x")
        return f"{count}x {rest.removeprefix('nvidia-').replace('-', ' ').upper()}"
    return name if how == "name" else f"pool-{zlib.crc32(name.encode()) % 1000}"


def _model_path(row: Any) -> str:
    return f"projects/{row['model_project']}/models/{row['model_id']}/revisions/{row['revision_id']}"


def _apply_replicas(emulator: Emulator, request: Request, deployment: Any, replicas: int) -> None:
    cold_start = emulator.settings.cold_start_seconds
    capacity = True
    if replicas:
        _warm(emulator, deployment["model_id"])
        fault = emulator.faults.strike(request.method, request.url.path, kinds=("slow_cold_start", "no_capacity"))
        if fault is not None and fault.kind == "slow_cold_start":
            cold_start = fault.seconds(1200.0) or 0.0
        elif fault is not None:
            capacity, cold_start = False, fault.seconds(math.inf) or 0.0
    scale(emulator, deployment, replicas, capacity=capacity, cold_start=cold_start)


def warm_deployed(emulator: Emulator) -> None:
    """Begin to load the models that are deployed, as after a restart."""
    for row in emulator.state.rows("SELECT DISTINCT model_id FROM deployments WHERE replicas > 0"):
        _warm(emulator, row["model_id"])


def _warm(emulator: Emulator, model_id: str) -> None:
    row = emulator.state.row("SELECT directory FROM models WHERE id = ?", model_id)
    if row is not None:
        emulator.models.warm(row["directory"])


def _resolve_model(emulator: Emulator, body: dict[str, Any]) -> tuple[str, str, str]:
    """(project, model id, revision id) that a deployment's create names, by resource path or deprecated id."""
    path = body.get("model")
    if path:
        match = _MODEL_PATH.fullmatch(str(path))
        if match is None:
            raise ApiError(
                400, f"model {path!r} is not projects/<project>/models/<model>[/revisions/<revision>]", param="model"
            )
        model_id, revision_id = match[2], match[3]
    else:
        model_id, revision_id = body.get("modelId"), body.get("modelRevisionId")
        if not model_id:
            raise ApiError(400, "model is required", param="model")
    base = emulator.catalog.model(str(model_id))
    if base is not None and base.id == model_id:
        found = (CATALOG_PROJECT, base.id, base.revision_id)
    else:
        row = emulator.state.row("SELECT * FROM models WHERE id = ?", model_id)
        if row is None:
            raise ApiError(404, f"Model {model_id} not found", code="not_found", param="model")
        found = (PROJECT["id"], row["id"], row["revision_id"])
        if form(emulator, "served") == "base" and (base := emulator.catalog.model(row["base_model"])) is not None:
            found = (CATALOG_PROJECT, base.id, base.revision_id)
    if revision_id and revision_id != found[2]:
        raise ApiError(404, f"Model {model_id} has no revision {revision_id}", code="not_found", param="model")
    return found


def _resolve_config(emulator: Emulator, body: dict[str, Any], model_id: str) -> Config:
    match = _CONFIG_PATH.fullmatch(str(body.get("config") or body.get("configId") or ""))
    if match is None:
        raise ApiError(400, "config is required: projects/<project>/configs/<config>", param="config")
    config = emulator.catalog.config(match[2])
    if config is None:
        raise ApiError(404, f"Config {match[2]} not found", code="not_found", param="config")
    row = emulator.state.row("SELECT base_model FROM models WHERE id = ?", model_id)
    base = emulator.catalog.model(row["base_model"] if row else model_id)
    if base is None or config.model_id != base.id:
        raise ApiError(400, f"Config {config.id} is not certified for model {model_id}", param="config")
    if row and not config.serves_trained:
        why = f"it is {config.quantization} with adapter mode {config.adapter_mode}"
        raise ApiError(400, f"Config {config.id} is not compatible with model {model_id}: {why}", param="config")
    return config


def _read_autoscaling(value: Any, current: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ApiError(400, "autoscaling is required: {minReplicas, maxReplicas}", param="autoscaling")
    merged = current | value
    least = merged.get("minReplicas", 1)
    most = value.get("maxReplicas", current.get("maxReplicas", least))
    for name, number in (("minReplicas", least), ("maxReplicas", most)):
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= _MAX_REPLICAS:
            raise ApiError(
                400,
                f"autoscaling.{name} {number!r} is not a whole number from 0 to {_MAX_REPLICAS}",
                param="autoscaling",
            )
    if least > most:
        raise ApiError(400, f"autoscaling: minReplicas {least} is above maxReplicas {most}", param="autoscaling")
    if least == 0 < most:
        raise ApiError(
            400,
            "autoscaling: minReplicas 0 needs maxReplicas 0; scaling from zero is not supported",
            param="autoscaling",
        )
    return merged | {"minReplicas": least, "maxReplicas": most}


def _read_inactive_timeout(value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not (value == 0 or 30 <= value <= 1440):
        raise ApiError(400, f"inactiveTimeout {value!r} is not 0 or 30 to 1440 minutes", param="inactiveTimeout")
    return value
