"""What endpoints and deployments have in common: names, filters, etags, update masks."""

from __future__ import annotations

import re
import sqlite3
from typing import Any

from starlette.requests import Request

from emulator.errors import ApiError
from emulator.world.context import Emulator, emulator_of
from emulator.world.forms import form

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FILTER = re.compile(r'\s*name\s*=\s*"([^"]*)"\s*')


def find_endpoint(emulator: Emulator, id: str) -> sqlite3.Row:
    row = emulator.state.row("SELECT * FROM endpoints WHERE id = ?", id)
    if row is None:
        raise ApiError(404, f"Endpoint {id} not found", code="not_found")
    return row


def traffic_shares(split: list[dict[str, Any]]) -> dict[str, float]:
    """Each deployment's part of the traffic, as the weights say."""
    total = sum(entry["weight"] for entry in split)
    return {entry["deploymentId"]: entry["weight"] / total for entry in split} if total else {}


def qualify_name(name: Any, prefix: str) -> str:
    """`prefix/name` from a bare or an already qualified name."""
    text = name.removeprefix(prefix + "/") if isinstance(name, str) else ""
    if not _NAME.fullmatch(text):
        raise ApiError(
            400, f"name {name!r} is not 1 to 100 letters, digits and . _ - behind a letter or digit", param="name"
        )
    return f"{prefix}/{text}"


def filter_by_name(request: Request, rows: list[sqlite3.Row]) -> list[sqlite3.Row]:
    """The rows that `filter=name="x"` lets through; x is the bare or the qualified name."""
    text = request.query_params.get("filter")
    if not text:
        return rows
    match = _FILTER.fullmatch(text)
    if match is None:
        raise ApiError(400, f'filter {text!r} is not understood; only name="x" is', param="filter")
    wanted = match[1]
    return [row for row in rows if wanted in (row["name"], row["name"].rsplit("/", 1)[-1])]


def check_etag(row: sqlite3.Row | dict[str, Any], etag: Any, *, required: bool = False) -> None:
    """Raise ApiError where a request names another version of an object than there is, or none and it is required."""
    if required and not etag:
        raise ApiError(400, "etag is required", param="etag")
    if etag and str(etag) != str(row["version"]):
        raise ApiError(
            409,
            f"etag {etag} is outdated: {row['name']} has changed, it has etag {row['version']}; read it again",
            code="aborted",
            headers={"x-should-retry": "false"},
        )


def masked_fields(request: Request, body: dict[str, Any], allowed: tuple[str, ...]) -> list[str]:
    """The fields an update touches: those of `updateMask`, without one those that are populated.

    Not populated is what protobuf takes for absent: an empty list or text, zero, false.
    """
    mask = request.query_params.get("updateMask") or body.get("updateMask")
    if not mask and form(emulator_of(request), "update_mask") == "optional":
        return [field for field in allowed if field in body]
    if not mask:
        if populated := [field for field in allowed if body.get(field)]:
            return populated
        raise ApiError(400, "no fields to update", code="invalid_argument")
    fields = [field.strip().split(".", 1)[0] for field in str(mask).split(",") if field.strip()]
    if unknown := sorted(set(fields) - set(allowed)):
        raise ApiError(400, f"updateMask names what cannot be updated: {', '.join(unknown)}", param="updateMask")
    return list(dict.fromkeys(fields))
