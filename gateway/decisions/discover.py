"""Which forced decisions recorded requests hold: a dry run of `gateway.decisions.forced`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from gateway.decisions.forced import UNREADABLE, ForcedTypes, Template
from gateway.decisions.schema_fields import read_schema
from gateway.errors import BadRequest
from gateway.protocols import PROTOCOLS
from gateway.protocols.forced import ForcedForm
from gateway.protocols.port import Operation

OPERATIONS: tuple[Operation, ...] = tuple(operation for protocol in PROTOCOLS for operation in protocol.operations)


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A body as a client sent it. `path` is empty where it was not recorded."""

    body: Mapping[str, Any]
    path: str = ""


@dataclass(frozen=True, slots=True)
class DiscoveredType:
    """A form that requests force. `decision_type` is None where it cannot be one; `status` says why, or what to do."""

    decision_type: str | None
    form: str
    door: str
    requests: int
    decides: str
    free: str
    status: str


def read_requests(path: Path) -> Iterator[RecordedRequest]:
    """Requests of a file of JSON lines: bodies, or objects with `path` and `body`. Raises `BadRequest`, `OSError`."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = orjson.loads(line)
            except orjson.JSONDecodeError:
                raise BadRequest(f"{path}: line {number} is not JSON; write one request body a line") from None
            body = value.get("body", value) if isinstance(value, dict) else None
            if not isinstance(body, dict):
                raise BadRequest(f"{path}: line {number} is not a request; write its body as a JSON object")
            yield RecordedRequest(body, str(value.get("path", "")) if body is not value else "")


def discover_types(requests: Iterable[RecordedRequest], templates: Sequence[Template] = ()) -> list[DiscoveredType]:
    """The forms that requests force, the most frequent first."""
    found: dict[tuple[str | None, str, str], DiscoveredType] = {}
    types = ForcedTypes(templates)
    for request in requests:
        for operation in OPERATIONS:
            if request.path and not operation.path.fullmatch(request.path.partition("?")[0].encode()):
                continue
            try:
                forced = operation.forced(request.body) if operation.forced is not None else None
            except UNREADABLE:
                continue
            if forced is None:
                continue
            each = _describe(operation, request.body, forced, types, templates)
            key = each.decision_type, each.form, each.door
            found[key] = replace(each, requests=found[key].requests + 1 if key in found else 1)
            break
    return sorted(found.values(), key=lambda each: -each.requests)


def _describe(
    operation: Operation,
    body: Mapping[str, Any],
    forced: ForcedForm,
    types: ForcedTypes,
    templates: Sequence[Template],
) -> DiscoveredType:
    name = forced.forms[0].name
    fields = read_schema(forced.forms[0].schema) if len(forced.forms) == 1 else None
    decides = ", ".join(f"{f.name}: {f.question.describe()}" for f in fields.deciding) if fields else ""
    free = ", ".join(".".join(path) for path in fields.free) if fields else ""
    decision = types.find(operation, body)
    status = "recognised"
    if decision is None and fields is not None and free:
        decision = ForcedTypes([*templates, Template(name, {}, None)]).find(operation, body)
        status = "name it in [[gateway.forced]]: it requires free fields"
    elif decision is not None and free and not any(each.tool == name and each.fields for each in templates):
        status = "logged only: [[gateway.forced]] fills no free fields"
    elif (
        decision is not None
        and fields is not None
        and fields.optional
        and not any(each.tool == name and each.fields is not None for each in templates)
    ):
        status = "logged only: name it in [[gateway.forced]], `fields = {}` leaves optional fields out"
    if decision is None:
        status = "passes: nothing in it decides" if fields is None else "passes: more than text, or nothing, is asked"
    elif decision.type.fields is None:
        name, decides = "choice of tool", ", ".join(form.name for form in forced.forms)
    kind = decision.type.kind.name if decision else None
    return DiscoveredType(kind, name, operation.name, 1, decides, free, status)
