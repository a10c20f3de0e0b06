"""Which protocol a request is meant for, by its marks: a credential must never reach another company.

Strong marks: the shape of a credential (`sk-ant-…` is Anthropic's; `sk-proj-…` and its like are OpenAI's), the headers
of a protocol (`anthropic-*`, `openai-*`), and a path that only one protocol has. Where these disagree the request is
refused. Weak marks: a header such as `x-api-key` (Anthropic's way), a credential that begins with `sk-` (mostly
OpenAI's), user agent. What is still in doubt is refused, unless the only credential is the gateway's own token.
The marks are those of each `gateway.protocols.port.Protocol`.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

from gateway.errors import RequestRefused
from gateway.http.security import TOKEN_HEADER, Admission
from gateway.protocols.port import Protocol
from gateway.protocols.table import ProtocolTable

Found = list[Protocol]
_REMEDY = (
    "send `anthropic-version` and an Anthropic key for Anthropic, or `Authorization: Bearer` with an OpenAI key and a "
    "path of OpenAI's for OpenAI"
)


def choose_protocol(table: ProtocolTable, path: bytes, query: bytes, admission: Admission) -> Protocol:
    """The protocol that a request is meant for. Raises `RequestRefused` (400, or 404 for a path that nobody has)."""
    headers, own = admission.headers, admission.own_credentials
    secret = _by_secret(table, headers, query, own)
    by_header = _by_header(table, headers)
    owner = table.owner(path)
    strong = [p for p in table.protocols if p is owner or p in secret or p in by_header]
    if len(strong) > 1:
        raise _doubt(secret or by_header, owner)
    soft = _by_weak_marks(table, headers, own, by_secret=not _takes_any_key(table, path))
    theirs = any(name in headers and name not in own for name in table.key_headers)
    if strong:
        # Only the path says so, and the credential, or who sends it, says otherwise.
        if theirs and not secret and not by_header and soft and strong[0] not in soft:
            raise _doubt(soft, strong[0])
        return strong[0]
    if len(soft) == 1:
        return soft[0]
    if soft or theirs:
        names = " or ".join(f"{protocol.title}'s" for protocol in table.protocols)
        raise RequestRefused(400, "invalid_request_error", f"{names} request? It is not clear; {_REMEDY}")
    if sharing := table.owners(path):
        return _default_of(sharing)
    raise RequestRefused(404, "not_found_error", f"no API is known to have this path; {_REMEDY}")


def guess_protocol(table: ProtocolTable, path: bytes, admission: Admission) -> Protocol:
    """In whose form an error is written: a guess that never fails."""
    marks = _by_header(table, admission.headers)
    if len(marks) == 1:
        return marks[0]
    if owner := table.owner(path):
        return owner
    soft = _by_weak_marks(table, admission.headers, admission.own_credentials, by_secret=True)
    if len(soft) == 1:
        return soft[0]
    sharing = table.owners(path)
    return _default_of(sharing) if sharing else table.protocols[0]


def _default_of(sharing: Sequence[Protocol]) -> Protocol:
    """Of the protocols of a shared path, the one whose clients send `Authorization: Bearer` and nothing else."""
    return next((protocol for protocol in sharing if protocol.key_headers[0] == b"authorization"), sharing[0])


def _takes_any_key(table: ProtocolTable, path: bytes) -> bool:
    """Servers that speak a protocol of others have keys of their own shape; what they are asked has these roots."""
    return b"/".join(path.split(b"/", 3)[:3]) in table.any_key_roots


def _by_secret(table: ProtocolTable, headers: dict[bytes, bytes], query: bytes, own: frozenset[bytes]) -> Found:
    """Whose credentials are in the request, by their shape, wherever they stand."""
    values = [value for name, value in headers.items() if name not in own and name != TOKEN_HEADER]
    text = b"\n".join([query, unquote_to_bytes(unquote_to_bytes(query)), *values, *map(_basic, values)])
    lower = text.lower()
    if not any(hint in lower for hint in table.secret_hints):
        return []
    return [protocol for protocol in table.protocols if protocol.secret.search(text)]


def _basic(value: bytes) -> bytes:
    """What an `Authorization: Basic` holds; nothing for any other header."""
    scheme, _, encoded = value.partition(b" ")
    if scheme.lower() != b"basic":
        return b""
    try:
        return base64.b64decode(encoded.strip(), validate=True)
    except ValueError:
        return b""


def _by_header(table: ProtocolTable, headers: dict[bytes, bytes]) -> Found:
    prefixes, names = table.header_prefixes, table.header_names
    marks = [name for name in headers if name in names or name.startswith(prefixes)]
    if not marks:
        return []
    return [
        protocol
        for protocol in table.protocols
        if any(name in protocol.header_names or name.startswith(protocol.header_prefixes) for name in marks)
    ]


def _by_weak_marks(
    table: ProtocolTable, headers: dict[bytes, bytes], own: frozenset[bytes], *, by_secret: bool
) -> Found:
    bearer = headers.get(b"authorization", b"").partition(b" ")[2].strip() if b"authorization" not in own else b""
    agent = headers.get(b"user-agent", b"").lower()
    found = []
    for protocol in table.protocols:  # a plain loop: this is done for every request
        if not protocol.weak_headers.isdisjoint(headers) or (
            by_secret and protocol.weak_key_prefix is not None and bearer.startswith(protocol.weak_key_prefix)
        ):
            found.append(protocol)
            continue
        for mark in protocol.agents:
            if mark in agent:
                found.append(protocol)
                break
    return found


def _doubt(marks: Sequence[Protocol], path_of: Protocol | None) -> RequestRefused:
    said = " and ".join(sorted(protocol.title for protocol in marks))
    about = f", the path is {path_of.title}'s" if path_of else ""
    return RequestRefused(
        400,
        "invalid_request_error",
        f"headers or credentials say {said}{about}: refused, so that no key reaches the other company; {_REMEDY}",
    )
