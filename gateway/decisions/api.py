"""Endpoints for agents that ask for decisions outright: what `AsyncDecisionClient` does, over HTTP."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any
from uuid import UUID

import orjson

from gateway.errors import BadRequest, RequestRefused
from gateway.http.bodies import decode_body
from gateway.http.exchange import Exchange
from gateway.http.inference import OURS, FeedbackEvent, Inference
from gateway.settings import Key
from gateway.state import State
from reasoning.core import Answer
from reasoning.decision_types import get_decision_type
from reasoning.errors import InvalidContext, ReasoningError, RecordError, UnknownDecisionType, UnparseableAnswer
from reasoning.fallback import Fallback, Usage
from reasoning.io.bounded import MAX_BYTES, TooLarge, load_bounded

# What the caller did wrong. Any other of our errors is ours.
CALLER_ERRORS = (InvalidContext, RecordError, UnparseableAnswer)
USAGE_FIELDS = frozenset(each.name for each in fields(Usage)) - {"price_source"}
_NOT_AN_OBJECT = (
    "value: the right decision is an object in the form of its decision type, not JSON text; "
    'send it as it is, such as "value": {"action": "IGNORE"}'
)


async def decide(state: State, exchange: Exchange, decision_type: str) -> None:
    """`POST /v1/decide/{type}`. Body: `context` (the decision type's), `original` (the caller's own decision: an
    object, or for a type of labels the action as text), and optionally `episode_id`, `room_id`, `subject_ids`, `tags`
    and `usage` (what the caller's own model used: fields of `reasoning.fallback.Usage`).
    It answers as `reasoning.client.Answer` does."""
    exchange.route = "decide"
    body = await read_object(exchange)
    context, original = field(body, "context", (dict,)), field(body, "original", (dict, str))
    # Beside an agent a wrong context only costs the model's answer. Over HTTP the caller is told what is wrong with it.
    kind = get_decision_type(decision_type.replace("-", "_"), state.config)
    kind.render(context)
    kind.normalize(original, context)
    usage = _usage(body)
    key = exchange.admission.key
    assert key is not None
    told = field(body, "episode_id", (str,), optional=True)
    told = _told_in(context) if told is None else told
    tags = field(body, "tags", (dict,), optional=True) or {}
    with exchange.watch():
        answer = await state.client.decide(
            kind.name,
            context,
            lambda context: Fallback(original, **usage),
            episode_id=None if told is None else key.episode(told),
            room_id=field(body, "room_id", (str,), optional=True),
            subject_ids=field(body, "subject_ids", (list,), optional=True) or (),
            tags={**tags, "door": "decide", "key": key.name},
        )
        exchange.kind = kind.name
        exchange.served_by = "custom" if answer.source == "custom" else "original"
        exchange.reason = answer.fallback_reason
        if exchange.reason:
            state.metrics.fallbacks.labels(kind.name, exchange.reason).inc()
        count_answer(state, kind.name, answer)
        exchange.inference = Inference(
            "chat",
            OURS if answer.source == "custom" else "client",
            response_model=answer.model,
            decision_type=kind.name,
            decision_id=str(answer.decision_id),
            input_tokens=answer.input_tokens,
            output_tokens=answer.output_tokens,
        )
        headers = [(b"x-reasoning-decision-id", str(answer.decision_id).encode())]
        await exchange.reply(200, orjson.dumps(asdict(answer), default=str), headers)


def _usage(body: dict[str, Any]) -> dict[str, Any]:
    usage: dict[str, Any] = field(body, "usage", (dict,), optional=True) or {}
    if unknown := usage.keys() - USAGE_FIELDS:
        raise BadRequest(f"usage: {min(unknown)!r:.60} is not known; known are {', '.join(sorted(USAGE_FIELDS))}")
    return usage


def count_answer(state: State, decision_type: str, answer: Answer) -> None:
    """Count the tokens of a model's answer, and what they cost."""
    if answer.source != "custom":
        return
    tokens = answer.input_tokens or 0, answer.output_tokens or 0
    state.metrics.count_tokens("custom", *tokens)
    route = state.coding.route(decision_type)
    arms = (arm for arm in route.arms if arm.model == answer.model) if route else ()
    state.metrics.spend.inc(next((arm.cost_usd(*tokens) for arm in arms), 0.0))


def _told_in(context: dict[str, Any]) -> str | None:
    """The episode that a context names, as the client reads it: where a key's name has to stand before it as well."""
    value = context.get("episode_id")
    return None if value is None else str(value)


async def feedback(state: State, exchange: Exchange) -> None:
    """`POST /v1/feedback`. Body: `metric`, `value`, `decision_id` or `episode_id`, and optionally `kind`, `author`.

    The value of the kind `demonstration` is the right decision, an object.
    Without `label` a key speaks of its own decisions and episodes only, and under its own name.
    """
    exchange.route = "feedback"
    body = await read_object(exchange)
    key = exchange.admission.key
    assert key is not None
    decision_id = field(body, "decision_id", (str,), optional=True)
    episode_id = field(body, "episode_id", (str,), optional=True)
    author = field(body, "author", (str,), optional=True)
    kind = field(body, "kind", (str,), optional=True) or "metric"
    if kind == "demonstration" and not isinstance(body.get("value"), dict):
        raise BadRequest(_NOT_AN_OBJECT)
    if not key.label:
        _refuse_foreign(state, key, decision_id)
        episode_id = None if episode_id is None else key.episode(episode_id)
        author = key.name
    recorded = await state.client.feedback(
        field(body, "metric", (str,)),
        field(body, "value", (bool, int, float, str, dict)),
        decision_id=decision_id,
        episode_id=episode_id,
        kind=kind,
        author=author or key.name,
    )
    if not recorded:
        raise RequestRefused(503, "api_error", "the feedback could not be written; send it again")
    value = body["value"]
    told = value if isinstance(value, int | float) or (state.settings.trace_content and kind == "metric") else None
    exchange.feedback = FeedbackEvent(body["metric"], told, decision_id, episode_id)
    await exchange.reply(202, b'{"status":"recorded"}')


def _refuse_foreign(state: State, key: Key, decision_id: str | None) -> None:
    """Raises `RequestRefused` (403) for a decision that was not made for `key`."""
    if decision_id is None:
        return
    try:
        own = state.owners.is_owner(UUID(decision_id), key.name)
    except ValueError:
        return  # the client says what is wrong with it
    if not own:
        raise RequestRefused(
            403,
            "permission_error",
            f"{decision_id} is not a decision of the key {key.name!r}; feedback on others' needs `label = true` in "
            f"[gateway.keys.{key.name}]",
        )


async def read_object(exchange: Exchange) -> dict[str, Any]:
    """Raises `BadRequest`."""
    body = await decode_body(exchange, await exchange.read(MAX_BYTES))
    if body is None:
        raise BadRequest("the body cannot be decompressed: gzip, deflate, br and zstd are known")
    try:
        value = load_bounded(body)
    except TooLarge as error:
        raise RequestRefused(413, "request_too_large", f"the body is too large: {error}") from None
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object")
    return value


def field(body: dict[str, Any], name: str, types: tuple[type, ...], *, optional: bool = False) -> Any:
    """A key of the body. Raises `BadRequest` when it is missing or of another type."""
    value = body.get(name)
    if value is None and optional:
        return None
    if not isinstance(value, types):
        names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number"}
        wanted = " or ".join(names[kind] for kind in types if kind in names)
        raise BadRequest(f"{name}: {wanted} is needed" + ("" if value is None else f", not {type(value).__name__}"))
    return value


def error_status(error: ReasoningError) -> int:
    """The HTTP status of one of our errors."""
    if isinstance(error, UnknownDecisionType):
        return 404
    return 400 if isinstance(error, (BadRequest, *CALLER_ERRORS)) else 500


def error_body(error: ReasoningError) -> bytes:
    """The JSON body of an error."""
    return orjson.dumps({"error": {"type": type(error).__name__, "message": str(error)}})
