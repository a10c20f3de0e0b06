"""Which company a request is meant for, by its protocol marks: a credential must never reach the other one.

Strong marks: the shape of a credential (`sk-ant-…` is Anthropic's; `sk-proj-…` and its like are OpenAI's), the headers
of a protocol (`anthropic-*`, `openai-*`), and a path that only one company has. Where these disagree the request is
refused. Weak marks: `x-api-key` (Anthropic's way), a credential that begins with `sk-` (mostly OpenAI's), user agent.
What is still in doubt is refused, unless the only credential is the gateway's own token.
"""

from __future__ import annotations

import base64
import re
from urllib.parse import unquote_to_bytes

from gateway.errors import RequestRefused
from gateway.paths import Company, is_shared, owner_of, root_of
from gateway.security import TOKEN_HEADER, Admission

_OPENAI_SECRET = re.compile(rb"sk-(?:proj|svcacct|admin|None)-|T3BlbkFJ|\b(?:sess-|ek_)[A-Za-z0-9]{24}")
_ANTHROPIC_SECRET = b"sk-ant-"
_OPENAI_HEADERS = frozenset({b"chatgpt-account-id", b"openai-organization", b"openai-project", b"openai-beta"})
_AGENTS: tuple[tuple[bytes, Company], ...] = (
    *((b"anthropic", "anthropic"), (b"claude", "anthropic")),
    *((b"openai", "openai"), (b"codex", "openai")),
)
_NAMES = {"anthropic": "Anthropic", "openai": "OpenAI"}
_REMEDY = (
    "send `anthropic-version` and an Anthropic key for Anthropic, or `Authorization: Bearer` with an OpenAI key and a "
    "path of OpenAI's for OpenAI"
)


def choose_company(path: bytes, query: bytes, admission: Admission) -> Company:
    """The company that a request is meant for. Raises `RequestRefused` (400, or 404 for a path that nobody has)."""
    headers, own = admission.headers, admission.own_credentials
    secret, by_header = _credential_marks(headers, query, own), _header_marks(headers)
    root = owner_of(path)
    strong = secret | by_header | ({root} if root else set())
    if len(strong) > 1:
        raise _doubt(secret or by_header, root)
    # Other servers that speak Anthropic's protocol have keys that begin with `sk-`; what they ask has these roots.
    soft = _soft_marks(headers, own, by_secret=root_of(path) not in (b"messages", b"complete"))
    theirs = any(name in headers and name not in own for name in (b"authorization", b"x-api-key"))
    if strong:
        company = next(iter(strong))
        # Only the path says so, and the credential, or who sends it, says otherwise.
        if theirs and not secret and not by_header and soft and company not in soft:
            raise _doubt(soft, company)
        return company
    if len(soft) == 1:
        return next(iter(soft))
    if soft or theirs:
        raise RequestRefused(
            400, "invalid_request_error", f"Anthropic's or OpenAI's request? It is not clear; {_REMEDY}"
        )
    if is_shared(path):
        return "openai"  # with `Authorization: Bearer` and nothing else, as its clients ask
    raise RequestRefused(404, "not_found_error", f"no API is known to have this path; {_REMEDY}")


def looks_like(path: bytes, admission: Admission) -> Company:
    """In whose form an error is told: a guess that never fails."""
    marks = _header_marks(admission.headers)
    if len(marks) == 1:
        return next(iter(marks))
    if root := owner_of(path):
        return root
    soft = _soft_marks(admission.headers, admission.own_credentials)
    if len(soft) == 1:
        return next(iter(soft))
    return "openai" if is_shared(path) else "anthropic"


def _credential_marks(headers: dict[bytes, bytes], query: bytes, own: frozenset[bytes]) -> set[Company]:
    """Whose credentials are in the request, by their shape, wherever they stand."""
    values = [value for name, value in headers.items() if name not in own and name != TOKEN_HEADER]
    told = b"\n".join([query, unquote_to_bytes(unquote_to_bytes(query)), *values, *map(_basic, values)])
    found: set[Company] = set()
    if not any(mark in told.lower() for mark in (b"sk-", b"t3blbkfj", b"sess-", b"ek_")):
        return found
    if _ANTHROPIC_SECRET in told.lower():
        found.add("anthropic")
    if _OPENAI_SECRET.search(told):
        found.add("openai")
    return found


def _basic(value: bytes) -> bytes:
    """What an `Authorization: Basic` holds; nothing for any other header."""
    scheme, _, encoded = value.partition(b" ")
    if scheme.lower() != b"basic":
        return b""
    try:
        return base64.b64decode(encoded.strip(), validate=True)
    except ValueError:
        return b""


def _header_marks(headers: dict[bytes, bytes]) -> set[Company]:
    found: set[Company] = set()
    for name in headers:
        if name.startswith(b"anthropic-"):
            found.add("anthropic")
        elif name in _OPENAI_HEADERS:
            found.add("openai")
    return found


def _soft_marks(headers: dict[bytes, bytes], own: frozenset[bytes], *, by_secret: bool = True) -> set[Company]:
    found: set[Company] = set()
    if b"x-api-key" in headers:
        found.add("anthropic")
    bearer = headers.get(b"authorization", b"").partition(b" ")[2].strip()
    if by_secret and bearer.startswith(b"sk-") and b"authorization" not in own:
        found.add("openai")
    agent = headers.get(b"user-agent", b"").lower()
    for mark, company in _AGENTS:
        if mark in agent:
            found.add(company)
    return found


def _doubt(marks: set[Company], path_of: Company | None) -> RequestRefused:
    said = " and ".join(sorted(_NAMES[mark] for mark in marks))
    about = f", the path is {_NAMES[path_of]}'s" if path_of else ""
    return RequestRefused(
        400,
        "invalid_request_error",
        f"headers or credentials say {said}{about}: refused, so that no key reaches the other company; {_REMEDY}",
    )
