"""The paths of both companies' APIs: whose a root is, and which paths a key may use.

The roots are those of the SDKs `openai` 3.54 and `anthropic` 2.12 and of the public API references. `tests/gateway/
test_gateway_companies.py` compares them with the installed SDKs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal
from urllib.parse import unquote_to_bytes

Company = Literal["anthropic", "openai"]

# Clients whose base URL holds the /v1 already, or that leave it out: elizaOS's Anthropic plugin posts to /messages.
ALIASES = {
    b"/messages": b"/v1/messages",
    b"/messages/count_tokens": b"/v1/messages/count_tokens",
    b"/chat/completions": b"/v1/chat/completions",
    b"/responses": b"/v1/responses",
    b"/embeddings": b"/v1/embeddings",
    b"/models": b"/v1/models",
}

_SHARED = frozenset({b"agents", b"files", b"models", b"skills", b"vaults"})
_ROOTS: dict[bytes, Company] = {
    **dict.fromkeys(
        (
            *(b"chat", b"responses", b"embeddings", b"completions", b"uploads", b"audio", b"images", b"moderations"),
            *(b"fine_tuning", b"batches", b"assistants", b"threads", b"vector_stores", b"evals", b"videos"),
            *(b"realtime", b"conversations", b"containers", b"organization", b"projects", b"chatkit", b"live"),
            *(b"webhook_endpoints", b"webhook_event_types", b"safety", b"decisions", b"content_provenance_checks"),
            *(b"usage", b"dashboard", b"edits", b"engines", b"fine-tunes"),
        ),
        "openai",
    ),
    **dict.fromkeys(
        (
            *(b"messages", b"complete", b"organizations", b"environments", b"sessions", b"deployments"),
            *(b"deployment_runs", b"dreams", b"memory_stores", b"tunnels", b"user_profiles"),
        ),
        "anthropic",
    ),
}

MODEL_PATHS = (
    *("POST /v1/messages", "POST /v1/messages/count_tokens", "POST /v1/complete"),
    *("GET /v1/models", "GET /v1/models/*"),
    *("POST /v1/chat/completions", "POST /v1/completions", "POST /v1/embeddings", "POST /v1/moderations"),
    *("POST /v1/responses", "POST /v1/responses/input_tokens", "POST /v1/responses/compact"),
)
"""What a key may use where its settings name nothing: asking models. Nothing that others stored can be read with it."""
EVERYTHING = ("*", "DELETE *")
"""All but administration, which only a pattern that names it allows."""

_ADMINISTRATION = frozenset({b"organization", b"organizations", b"projects", b"dashboard", b"usage"})
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def root_of(path: bytes) -> bytes:
    """The segment after `/v1/`, as it is written; empty where there is none."""
    parts = path.split(b"/", 3)
    return parts[2] if len(parts) > 2 and parts[1] == b"v1" else b""


def owner_of(path: bytes) -> Company | None:
    """The company that alone has this path. None for what both have and for what neither is known to have."""
    if path == b"/" or path.startswith(b"/api/"):  # what Claude Code asks besides the API
        return "anthropic"
    return _ROOTS.get(root_of(path))


def is_shared(path: bytes) -> bool:
    """Do both companies have this path?"""
    return root_of(path) in _SHARED


def is_administration(path: bytes) -> bool:
    """Could any server take this path for administration of the account? In doubt it could."""
    decoded = (unquote_to_bytes(unquote_to_bytes(path)) if b"%" in path else path).lower()
    return any(segment.partition(b";")[0].strip() in _ADMINISTRATION for segment in decoded.split(b"/")[1:4])


def check_pattern(pattern: str) -> str | None:
    """What is wrong with a pattern of `paths`, if anything is."""
    method, space, path = pattern.rpartition(" ")
    if space and method not in METHODS:
        return f"{method!r} is not one of {', '.join(METHODS)}"
    if path != "*" and (not path.startswith("/") or "*" in path[:-1]):
        return "write a path such as /v1/files/*, with * at its end only, or * for all but administration"
    if not path.isascii() or not path.isprintable() or "%" in path:
        return "a path of printable ASCII is needed"
    return None


def is_allowed(patterns: Sequence[str], method: str, path: bytes) -> bool:
    """Does one of `patterns` allow the request?

    A pattern is `[METHOD ]PATH`; `*` at its end stands for any rest. Without a method it stands for all but DELETE.
    Administration needs a pattern that names its root.
    """
    written = path.decode("latin-1")
    administration = is_administration(path)
    for pattern in patterns:
        wanted, _, allowed = pattern.rpartition(" ")
        if wanted and wanted != ("GET" if method == "HEAD" else method) and wanted != method:
            continue
        if not wanted and (method == "DELETE" or method not in METHODS):
            continue
        if allowed == "*":
            if not administration:
                return True
        elif administration and not is_administration(allowed.rstrip("*").encode()):
            continue
        elif allowed == written or (allowed.endswith("*") and written.startswith(allowed[:-1])):
            return True
    return False
