"""The description of the gateway's HTTP API, OpenAPI 3.1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from gateway.protocols.port import Protocol
from reasoning.decision_types import DecisionType

_TEXT = {"type": "string"}
_OBJECT = {"type": "object"}

_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "object", "properties": {"type": _TEXT, "message": _TEXT}}},
}


def describe_api(types: Mapping[str, DecisionType], protocols: Sequence[Protocol]) -> dict[str, Any]:
    """The document, with one path for every decision type that is declared."""
    paths: dict[str, Any] = {f"/v1/decide/{name}": {"post": _decide(type)} for name, type in types.items()}
    paths["/v1/feedback"] = {"post": _feedback()}
    for listed in (path for protocol in protocols for path in protocol.described):
        paths[listed.path] = {listed.method: _passed(listed.summary, decided=listed.decided)}
    paths |= {
        "/healthz": {"get": _page("The process answers", public=True)},
        "/readyz": {"get": _page("Requests may be sent here; 503 while it drains", public=True)},
        "/dashboard": {"get": _page("The page for people, which is at / as well", "text/html", public=True)},
        "/stats": {"get": _page("Statistics since the start")},
        "/metrics": {"get": _page("The same for Prometheus", "text/plain")},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "The gateway",
            "version": version("custom-reasoning"),
            "description": "One address for agents and coding tools. Every other path is passed on, byte for byte.",
        },
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "token": {"type": "apiKey", "in": "header", "name": "x-reasoning-token"},
            }
        },
        "security": [{"bearer": []}, {"apiKey": []}, {"token": []}],
        "paths": paths,
    }


_HEADERS = {
    "x-reasoning-decision-id": {
        "description": "Of an answer that is on record, whoever gave it: what /v1/feedback takes as decision_id",
        "schema": {"type": "string", "format": "uuid"},
    },
    "x-reasoning-source": {"description": "Of an answer of our models", "schema": {"const": "custom"}},
}


def _decide(type: DecisionType) -> dict[str, Any]:
    body = {
        "type": "object",
        "required": ["context", "original"],
        "properties": {
            "context": type.form.context_schema(type),
            "original": {"description": "The caller's own decision: the fallback, and the first teacher"}
            | type.form.decision_schema(type),
            "episode_id": {"type": "string", "description": "The conversation or task"},
            "room_id": _TEXT,
            "subject_ids": {"type": "array", "items": _TEXT, "description": "People in the context, for erasure"},
            "tags": {"type": "object", "additionalProperties": _TEXT},
            "usage": {"type": "object", "description": "What the caller's own model used, such as model, input_tokens"},
        },
    }
    answer = {
        "type": "object",
        "properties": {
            "decision": _OBJECT,
            "decision_id": {"type": "string", "format": "uuid"},
            "request_id": {"type": "string", "format": "uuid"},
            "source": {"enum": ["original", "custom"]},
            "model": {"type": ["string", "null"]},
            "confidence": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
            "fallback_reason": {"type": ["string", "null"]},
            "latency_ms": {"type": "number", "description": "Milliseconds"},
            "input_tokens": {"type": ["integer", "null"], "description": "Of the model that answered"},
            "output_tokens": {"type": ["integer", "null"]},
        },
    }
    return {
        "summary": f"Decide {type.name}",
        "tags": ["decisions"],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": _responses({"200": ("The decision, and who took it", answer)}),
    }


def _feedback() -> dict[str, Any]:
    body = {
        "type": "object",
        "required": ["metric", "value"],
        "properties": {
            "metric": _TEXT,
            "value": {
                "type": ["number", "boolean", "string", "object"],
                "description": "Of a demonstration: the right decision, an object of its type's form",
            },
            "decision_id": {"type": "string", "format": "uuid", "description": "This or episode_id"},
            "episode_id": _TEXT,
            "kind": {"enum": ["metric", "demonstration", "comment"], "default": "metric"},
            "author": _TEXT,
        },
    }
    return {
        "summary": "Say how a decision or an episode went",
        "tags": ["decisions"],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": _responses({"202": ("Recorded", _OBJECT)}),
    }


def _passed(summary: str, *, decided: bool = False) -> dict[str, Any]:
    answer = {"description": "As of the API"} | ({"headers": _HEADERS} if decided else {})
    return {"summary": summary, "tags": ["APIs"], "responses": {"default": answer}}


def _page(summary: str, content_type: str = "application/json", *, public: bool = False) -> dict[str, Any]:
    page: dict[str, Any] = {
        "summary": summary,
        "tags": ["operation"],
        "responses": {"200": {"description": summary, "content": {content_type: {}}}},
    }
    return page | {"security": []} if public else page


def _responses(good: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    errors = {"400": "The body is wrong; the message names the key", "401": "No valid token", "404": "No such type"}
    return {
        **{s: {"description": d, "content": {"application/json": {"schema": x}}} for s, (d, x) in good.items()},
        **{s: {"description": d, "content": {"application/json": {"schema": _ERROR}}} for s, d in errors.items()},
    }
