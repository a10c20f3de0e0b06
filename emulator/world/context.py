"""What every route works with."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from emulator.billing.catalog import Catalog
from emulator.errors import ApiError
from emulator.origins import LOOPBACK
from emulator.world.clock import Clock
from emulator.world.faults import Faults
from emulator.world.state import State

if TYPE_CHECKING:
    from emulator.world.serving import ModelCache

ORGANIZATION = {"id": "org_local", "name": "Local organization"}
PROJECT = {"id": "proj_local", "name": "Local project", "slug": "local"}
CATALOG_PROJECT = "proj_together"
"""The project that owns the base models and their configs."""
USER_ID = "user_local"


@dataclass(frozen=True)
class Settings:
    """How the emulator behaves. Times are seconds on its clock."""

    trainer: str = "sklearn"
    workers: int = 1
    cold_start_seconds: float = 1.0
    stop_seconds: float = 0.0
    honour_inactive_timeout: bool = False
    forms: tuple[tuple[str, str], ...] = ()
    """Forms to set at the start; see `emulator.world.forms`."""
    allowed_hosts: tuple[str, ...] = LOOPBACK
    """Names in the header `Host` that are served; `*`: any."""


@dataclass
class Emulator:
    """What one emulator works with. Its running jobs are its `emulator.world.scheduler.Scheduler`'s."""

    settings: Settings
    state: State
    clock: Clock
    catalog: Catalog
    faults: Faults
    models: ModelCache
    disk: ThreadPoolExecutor
    """For what reads or writes whole files, so that the event loop never waits for a disk."""


def emulator_of(request: Request) -> Emulator:
    emulator: Emulator = request.app.state.emulator
    return emulator


async def read_json(request: Request) -> dict[str, Any]:
    """The body as a JSON object; an empty body is an empty object."""
    raw = await request.body()
    if not raw.strip():
        return {}
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, f"the body is a JSON {type(body).__name__}, not an object", code="invalid_json")
    return body


def read_project(request: Request, *, also_catalog: bool = False) -> str:
    """The project of the path, which has to be the local one (or, for reading, the catalog's)."""
    project = request.path_params["project"]
    if project == PROJECT["id"] or (also_catalog and project == CATALOG_PROJECT):
        return str(project)
    raise ApiError(404, f"Project {project} not found; GET /v3/whoami tells the project of this key")


def paginate(request: Request, items: list[dict[str, Any]], *, default: int = 100) -> dict[str, Any]:
    """One page `{object, data, next_cursor}`; `after` is the cursor, which is an item's position."""
    limit = read_int(request, "limit", default, least=1, most=1000)
    after = read_int(request, "after", 0, least=0)
    page = items[after : after + limit]
    more = after + limit < len(items)
    return {"object": "list", "data": page, "next_cursor": str(after + limit) if more else None}


def read_int(request: Request, name: str, default: int, *, least: int, most: int | None = None) -> int:
    text = request.query_params.get(name)
    if not text:
        return default
    if not text.isdigit() or int(text) < least or (most is not None and int(text) > most):
        raise ApiError(
            400, f"{name}={text} is not a whole number from {least}" + (f" to {most}" if most else ""), param=name
        )
    return int(text)


def empty_page() -> dict[str, Any]:
    return {"object": "list", "data": [], "next_cursor": None}
