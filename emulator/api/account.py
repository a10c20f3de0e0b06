"""Who the caller is and what the caller owes: identity, projects, billing usage."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.billing.bill import bill_form, describe_report, describe_usage
from emulator.errors import ApiError
from emulator.world.context import ORGANIZATION, PROJECT, empty_page, emulator_of, paginate, read_project


async def whoami(request: Request) -> Response:
    return JSONResponse(
        {"type": "project_api_key", "api_key": {"id": "key_local"}, "organization": ORGANIZATION, "project": PROJECT}
    )


async def list_projects(request: Request) -> Response:
    project = PROJECT | {"organization_id": ORGANIZATION["id"], "organization_name": ORGANIZATION["name"]}
    return JSONResponse(paginate(request, [project]))


async def list_placement_profiles(request: Request) -> Response:
    """The emulator has one region and no profiles."""
    read_project(request)
    return JSONResponse(empty_page())


async def list_billing_usage(request: Request) -> Response:
    emulator = emulator_of(request)
    if not bill_form(emulator)["api"]:
        raise ApiError(404, "Billing usage is not enabled for this organization", code="not_found")
    granularity = request.query_params.get("granularity") or "day"
    if granularity not in ("day", "hour"):
        raise ApiError(400, f"granularity {granularity!r} is neither day nor hour", param="granularity")
    period, windows = describe_usage(emulator, request.query_params.get("month"), granularity)
    return JSONResponse(describe_report(emulator, period, paginate(request, windows)))
