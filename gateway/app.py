"""The HTTP door for decisions: what `AsyncDecisionClient` does, for agents that are not written in Python."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
from reasoning.client import AsyncDecisionClient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from reasoning.errors import (
    InvalidContext,
    ReasoningError,
    RecordError,
    UnknownDecisionType,
    UnparseableAnswer,
)

# What the caller did wrong. Any other of our errors is ours.
CALLER_ERRORS = (InvalidContext, RecordError, UnparseableAnswer)


class BadRequest(ReasoningError):
    """The body of a request is not what the route takes (names the key)."""


def create_app(data: Path | None = None) -> Starlette:
    """The application. Its client writes into the spool of `data` (default: the configured data folder)."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.client = client = AsyncDecisionClient(data, agent_id="gateway")
        try:
            yield
        finally:
            await client.close()

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/v1/decide/{decision_type}", decide, methods=["POST"]),
            Route("/v1/feedback", feedback, methods=["POST"]),
        ],
        exception_handlers={ReasoningError: on_error},
        lifespan=lifespan,
    )


async def healthz(request: Request) -> Response:
    """The process answers."""
    return reply({"status": "ok"})


async def readyz(request: Request) -> Response:
    """Decisions can be taken and recorded."""
    return reply({"status": "ready"})


async def decide(request: Request) -> Response:
    """Body: `context` (the decision type's), `original` (the caller's own decision: an object, or for `should_respond`
    the action as text), and optionally `episode_id`, `room_id`, `subject_ids`, `tags`. It answers as
    `reasoning.client.Answer` does."""
    body = await read_body(request)
    original = field(body, "original", (dict, str))
    answer = await request.app.state.client.decide(
        request.path_params["decision_type"].replace("-", "_"),
        field(body, "context", (dict,)),
        lambda context: original,
        episode_id=field(body, "episode_id", (str,), optional=True),
        room_id=field(body, "room_id", (str,), optional=True),
        subject_ids=field(body, "subject_ids", (list,), optional=True) or (),
        tags=field(body, "tags", (dict,), optional=True),
    )
    return reply(asdict(answer))


async def feedback(request: Request) -> Response:
    """Body: `metric`, `value`, `decision_id` or `episode_id`, and optionally `kind` and `author`."""
    body = await read_body(request)
    await request.app.state.client.feedback(
        field(body, "metric", (str,)),
        field(body, "value", (bool, int, float, str)),
        decision_id=field(body, "decision_id", (str,), optional=True),
        episode_id=field(body, "episode_id", (str,), optional=True),
        kind=field(body, "kind", (str,), optional=True) or "metric",
        author=field(body, "author", (str,), optional=True),
    )
    return reply({"status": "recorded"}, 202)


async def read_body(request: Request) -> dict[str, Any]:
    try:
        body = orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    return body


def field(body: dict[str, Any], name: str, types: tuple[type, ...], *, optional: bool = False) -> Any:
    value = body.get(name)
    if value is None and optional:
        return None
    if not isinstance(value, types):
        names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number"}
        wanted = " or ".join(names[kind] for kind in types if kind in names)
        raise BadRequest(f"{name}: {wanted} is needed" + ("" if value is None else f", not {type(value).__name__}"))
    return value


async def on_error(request: Request, error: Exception) -> Response:
    status = 404 if isinstance(error, UnknownDecisionType) else 400 if isinstance(error, CALLER_ERRORS) else 500
    status = 400 if isinstance(error, BadRequest) else status
    return reply({"error": {"type": type(error).__name__, "message": str(error)}}, status)


def reply(body: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(body, default=str), status, media_type="application/json")
