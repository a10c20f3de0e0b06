"""OpenAI's API: chat completions and Responses may be decision prompts; all else is passed on."""

from __future__ import annotations

import re

import orjson

from gateway.protocols.openai_chat import CHAT
from gateway.protocols.openai_responses import RESPONSES
from gateway.protocols.port import MB, OpenApiPath, Protocol, TypedOperation, roots
from reasoning.serving.decision_wires import DECISIONS

_ERROR_TYPES = {
    "authentication_error": "invalid_request_error",
    "permission_error": "invalid_request_error",
    "not_found_error": "invalid_request_error",
    "request_too_large": "invalid_request_error",
    "overloaded_error": "server_error",
    "api_error": "server_error",
    "timeout_error": "server_error",
}
_QUESTIONS = (
    "chat/completions",
    "completions",
    "decisions",
    "embeddings",
    "moderations",
    "responses",
    "responses/input_tokens",
)


def _error(status: int, type: str, message: str, request_id: str | None) -> tuple[int, bytes]:
    error = {"message": message, "type": _ERROR_TYPES.get(type, type), "param": None, "code": type}
    return 503 if status == 529 else status, orjson.dumps({"error": error})


OPENAI = Protocol(
    name="openai",
    title="OpenAI",
    url="https://api.openai.com",
    roots=roots(
        *("chat", "responses", "embeddings", "completions", "uploads", "audio", "images", "moderations"),
        *("fine_tuning", "batches", "assistants", "threads", "vector_stores", "evals", "videos", "realtime"),
        *("conversations", "containers", "organization", "projects", "chatkit", "live", "webhook_endpoints"),
        *("webhook_event_types", "safety", "decisions", "content_provenance_checks", "usage", "dashboard", "edits"),
        *("engines", "fine-tunes", "agents", "files", "models", "skills", "vaults"),
    ),
    operations=(CHAT, RESPONSES),
    typed=(TypedOperation("decisions", re.compile(rb"/v1/decisions"), DECISIONS),),
    key_headers=(b"authorization",),
    secret=re.compile(rb"sk-(?:proj|svcacct|admin|None)-|T3BlbkFJ|\b(?:sess-|ek_)[A-Za-z0-9]{24}"),
    secret_hints=(b"sk-", b"t3blbkfj", b"sess-", b"ek_"),
    header_names=frozenset({b"chatgpt-account-id", b"openai-organization", b"openai-project", b"openai-beta"}),
    weak_key_prefix=b"sk-",
    agents=(b"openai", b"codex"),
    error=_error,
    model_paths=(
        *("GET /v1/models", "GET /v1/models/*"),
        *(f"POST /v1/{path}" for path in _QUESTIONS),
        "POST /v1/responses/compact",
    ),
    repeatable=re.compile(
        rb"/v1/(chat/completions|completions|decisions|embeddings|moderations|responses|responses/input_tokens)"
    ),
    aliases={b"/" + path: b"/v1/" + path for path in (b"chat/completions", b"responses", b"embeddings", b"models")},
    administration=frozenset({b"organization", b"projects", b"dashboard", b"usage"}),
    large_bodies=((b"/v1/files", 512 * MB), (b"/v1/uploads", 512 * MB)),
    described=(
        OpenApiPath(
            "/v1/chat/completions",
            "OpenAI chat completions; decision prompts are answered by our models",
            decided=True,
        ),
        OpenApiPath("/v1/responses", "OpenAI responses; decision prompts are answered by our models", decided=True),
        OpenApiPath("/v1/decisions", "typed questions as OpenAI asks them; our models may answer", decided=True),
        OpenApiPath("/v1/embeddings", "OpenAI embeddings, passed on"),
        OpenApiPath("/v1/models", "the upstream's models, passed on", method="get"),
    ),
)
