"""TypeSafe's API, and that of all who speak it: typed questions at `/v1/systemone`."""

from __future__ import annotations

import re

import orjson

from gateway.protocols.port import OpenApiPath, Protocol, TypedOperation, roots
from reasoning.serving.decision_wires import SYSTEM_ONE


def _error(status: int, type: str, message: str, request_id: str | None) -> tuple[int, bytes]:
    return status, orjson.dumps({"detail": {"error_type": type, "message": message}})


TYPESAFE = Protocol(
    name="typesafe",
    title="TypeSafe",
    url="https://api.typesafe.ai",
    roots=roots("systemone"),
    typed=(TypedOperation("systemone", re.compile(rb"/v1/systemone"), SYSTEM_ONE),),
    key_headers=(b"authorization",),
    secret=re.compile(rb"(?!)"),
    secret_hints=(),
    header_prefixes=(b"typesafe-",),
    agents=(b"typesafe",),
    any_key_roots=roots("systemone"),
    error=_error,
    model_paths=("POST /v1/systemone",),
    repeatable=re.compile(rb"/v1/systemone"),
    described=(
        OpenApiPath("/v1/systemone", "typed questions as TypeSafe asks them; our models may answer", decided=True),
    ),
)
