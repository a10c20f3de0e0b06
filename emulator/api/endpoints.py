"""Dedicated endpoints (v2): the name that requests go to, and the traffic split over its deployments."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.api.deployments import describe_summary
from emulator.api.resources import (
    check_etag,
    filter_by_name,
    find_endpoint,
    masked_fields,
    qualify_name,
    traffic_shares,
)
from emulator.errors import ApiError
from emulator.world.clock import format_time
from emulator.world.context import PROJECT, Emulator, empty_page, emulator_of, paginate, read_json, read_project
from emulator.world.forms import form
from emulator.world.replicas import read_status, stop_inactive
from emulator.world.state import new_id

_VISIBILITIES = ("VISIBILITY_PRIVATE", "VISIBILITY_INTERNAL")


async def create_endpoint(request: Request) -> Response:
    read_project(request)
    emulator = emulator_of(request)
    body = await read_json(request)
    name = qualify_name(body.get("name"), PROJECT["slug"])
    visibility = _read_visibility(body.get("visibility", "VISIBILITY_PRIVATE"))
    if emulator.state.row("SELECT 1 FROM endpoints WHERE name = ?", name):
        raise ApiError(409, f"An endpoint named {name} already exists", code="already_exists")
    now = emulator.clock.timestamp()
    id = new_id("ep_")
    with emulator.state.transaction():
        emulator.state.insert("endpoints", id=id, name=name, visibility=visibility, created_at=now, updated_at=now)
    return JSONResponse(describe_endpoint(emulator, find_endpoint(emulator, id)))


async def list_endpoints(request: Request) -> Response:
    if "project" in request.path_params:
        read_project(request)
    emulator = emulator_of(request)
    rows = filter_by_name(request, emulator.state.rows("SELECT * FROM endpoints ORDER BY created_at DESC, rowid DESC"))
    return JSONResponse(paginate(request, [describe_endpoint(emulator, row) for row in rows]))


async def retrieve_endpoint(request: Request) -> Response:
    read_project(request)
    emulator = emulator_of(request)
    return JSONResponse(describe_endpoint(emulator, find_endpoint(emulator, request.path_params["endpoint"])))


async def update_endpoint(request: Request) -> Response:
    read_project(request)
    emulator = emulator_of(request)
    body = await read_json(request)
    row = find_endpoint(emulator, request.path_params["endpoint"])
    check_etag(row, body.get("etag"), required=form(emulator, "etag") == "required")
    changes: dict[str, Any] = {}
    for field in masked_fields(request, body, ("name", "trafficSplit", "visibility")):
        if field == "trafficSplit":
            if form(emulator, "traffic") == "refused":
                raise ApiError(400, "the traffic split cannot be changed now", code="failed_precondition")
            changes["traffic_split"] = json.dumps(_read_traffic_split(emulator, row, body.get(field) or []))
        elif field == "visibility":
            changes["visibility"] = _read_visibility(body.get(field))
        elif qualify_name(body.get(field), PROJECT["slug"]) != row["name"]:
            raise ApiError(400, "An endpoint's name cannot be changed", param="name")
    with emulator.state.transaction():
        emulator.state.update(
            "endpoints", row["id"], version=row["version"] + 1, updated_at=emulator.clock.timestamp(), **changes
        )
    return JSONResponse(describe_endpoint(emulator, find_endpoint(emulator, row["id"])))


async def delete_endpoint(request: Request) -> Response:
    read_project(request)
    emulator = emulator_of(request)
    row = find_endpoint(emulator, request.path_params["endpoint"])
    check_etag(row, request.query_params.get("etag"), required=form(emulator, "etag") == "required")
    if emulator.state.row("SELECT 1 FROM deployments WHERE endpoint_id = ?", row["id"]):
        raise ApiError(
            400, f"Endpoint {row['name']} still has deployments; delete them first", code="failed_precondition"
        )
    with emulator.state.transaction():
        emulator.state.execute("DELETE FROM endpoints WHERE id = ?", row["id"])
    return JSONResponse({})


async def list_nothing(request: Request) -> Response:
    """A/B experiments, shadow experiments, rollouts and events: this emulator has none, whatever the endpoint."""
    read_project(request)
    find_endpoint(emulator_of(request), request.path_params["endpoint"])
    return JSONResponse(empty_page())


async def retrieve_analytics(request: Request) -> Response:
    read_project(request)
    emulator = emulator_of(request)
    row = find_endpoint(emulator, request.path_params["endpoint"])
    usage = emulator.state.row(
        """SELECT coalesce(sum(requests), 0) AS requests, coalesce(sum(input_tokens), 0) AS input_tokens,
           coalesce(sum(output_tokens), 0) AS output_tokens FROM token_usage WHERE model = ?""",
        row["name"],
    )
    assert usage is not None
    metrics = {
        "endpointId": row["id"],
        "requestMetrics": {"totalRequests": str(usage["requests"])},
        "tokenMetrics": {
            "totalInputTokens": str(usage["input_tokens"]),
            "totalOutputTokens": str(usage["output_tokens"]),
        },
    }
    return JSONResponse({"endpointId": row["id"], "metrics": metrics})


def describe_endpoint(emulator: Emulator, row: sqlite3.Row) -> dict[str, Any]:
    stop_inactive(emulator)
    split = json.loads(row["traffic_split"])
    deployments = emulator.state.rows(
        "SELECT * FROM deployments WHERE endpoint_id = ? ORDER BY created_at, rowid", row["id"]
    )
    shares = traffic_shares(split)
    return {
        "id": row["id"],
        "name": row["name"],
        "projectId": PROJECT["id"],
        "endpointType": "ENDPOINT_TYPE_DEDICATED",
        "visibility": row["visibility"],
        "trafficSplit": split,
        "deployments": [
            describe_summary(emulator, deployment, read_status(emulator, deployment), shares.get(deployment["id"], 0.0))
            for deployment in deployments
        ],
        "etag": str(row["version"]),
        "createdAt": format_time(row["created_at"]),
        "updatedAt": format_time(row["updated_at"]),
    }


async def refuse_v1_endpoint(request: Request) -> Response:
    """The API before v2: the real service refuses it in these words."""
    raise ApiError(403, "Creating v1 endpoints is disabled; use /v2", code="endpoints_v1_create_access_disabled")


def _read_visibility(value: Any) -> str:
    if value not in _VISIBILITIES:
        raise ApiError(400, f"visibility {value!r} is none of {', '.join(_VISIBILITIES)}", param="visibility")
    return str(value)


def _read_traffic_split(emulator: Emulator, endpoint: sqlite3.Row, split: Any) -> list[dict[str, Any]]:
    known = {
        row["id"] for row in emulator.state.rows("SELECT id FROM deployments WHERE endpoint_id = ?", endpoint["id"])
    }
    entries = []
    for entry in split if isinstance(split, list) else [split]:
        deployment = entry.get("deploymentId") if isinstance(entry, dict) else None
        weight = entry.get("weight") if isinstance(entry, dict) else None
        if deployment not in known:
            raise ApiError(
                400, f"trafficSplit: {deployment!r} is no deployment of {endpoint['name']}", param="trafficSplit"
            )
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise ApiError(400, f"trafficSplit: weight {weight!r} is not a number from 0", param="trafficSplit")
        entries.append({"deploymentId": deployment, "weight": weight})
    if len({entry["deploymentId"] for entry in entries}) < len(entries):
        raise ApiError(400, "trafficSplit names a deployment twice", param="trafficSplit")
    return entries
