"""Who may come in: checks on the request line and the headers, before anything is read or sent.

They look at what the client wrote (the raw path, every header), never at a decoded or normalised form, so that there is
no second form to slip through. Browsers get no CORS headers and need a token that they do not have.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from gateway.errors import RequestRefused
from gateway.http.known_tokens import KnownTokens, mark_token
from gateway.protocols.port import Protocol
from gateway.settings import MIN_TOKEN_LENGTH, Key, Settings, hash_token

TOKEN_HEADER = b"x-reasoning-token"
PUBLIC_PATHS = frozenset({b"/healthz", b"/readyz", b"/docs", b"/openapi.json", b"/dashboard"})
PUBLIC_FILES = b"/pages/static/"
# What coding tools ask without a credential to see whether anyone is there. It is never passed on without one.
PROBES = frozenset({b"/", b"/api/hello"})
MAX_HEADERS = 128
MAX_HEADER_BYTES = 64 << 10
MAX_PATH_BYTES = 8 << 10

Headers = list[tuple[bytes, bytes]]

# Twice the same of these is how one party is made to see another value than the next.
_SINGLE = frozenset({TOKEN_HEADER, b"host", b"content-length", b"content-type", b"transfer-encoding"})
_HOST = re.compile(rb"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_DELIMITERS = re.compile(rb"[\s,;=&?/:<>()\[\]{}|@\"']+")
_OUTER_DELIMITERS = re.compile(rb"[\s,;&]+")
_CLEAN_VALUES = 10_000


class Admission(NamedTuple):
    """A request that may pass: whose it is, its headers as a mapping, and those that hold the gateway's own token.

    `client_credential`: it has a credential of the client's own, so the operator's key stays out."""

    key: Key | None
    headers: dict[bytes, bytes]
    own_credentials: frozenset[bytes]
    client_credential: bool = True


NOBODY = Admission(None, {}, frozenset())
"""Of a request that was not judged yet."""


class Guard:
    """Admits or refuses requests."""

    def __init__(self, settings: Settings) -> None:
        self._hosts = settings.allowed_hosts
        self._any_host = "*" in settings.allowed_hosts
        # Python's keyed hashes of values that hold no token: most headers come again, and none is kept in memory.
        self._clean: set[int] = set()
        self._keys = {key.token_sha256: key for key in settings.keys}
        self._key_headers = settings.protocols.key_headers
        self._credentials = (TOKEN_HEADER, *self._key_headers)
        self._single = _SINGLE | set(self._key_headers)
        upstreams = [upstream for pool in settings.upstreams.values() for upstream in pool]
        upstream_keys = [u.api_key for u in upstreams if u.api_key and len(u.api_key) >= MIN_TOKEN_LENGTH]
        self._known = KnownTokens(
            [key.mark for key in settings.keys if key.mark is not None] + [mark_token(key) for key in upstream_keys]
        )
        self._upstream_keys = {hash_token(key) for key in upstream_keys}
        self._unmarked = {key.token_sha256 for key in settings.keys if key.mark is None}

    def admit(self, scope: dict[str, Any]) -> Admission:
        """Raises `RequestRefused`. A public path has no key."""
        headers = check_headers(scope["headers"], self._single)
        self._check_host(headers.get(b"host"))
        path = scope["raw_path"]
        check_path(path)
        if scope["method"] in ("TRACE", "CONNECT"):  # an upstream's echo would show the gateway's own key
            raise RequestRefused(405, "invalid_request_error", f"{scope['method']} is not served here")
        reads = scope["method"] in ("GET", "HEAD")
        if (path in PUBLIC_PATHS or path.startswith(PUBLIC_FILES)) and reads:
            return Admission(None, headers, frozenset())
        key, own = self._find_key(headers)
        if key is None and path in PROBES and scope["method"] == "HEAD":
            return Admission(None, headers, frozenset())
        if key is None and scope["method"] == "GET" and _opens_page(path, headers):
            return Admission(None, headers, frozenset())  # a browser: it gets a page without data
        if key is None:
            raise RequestRefused(
                401,
                "authentication_error",
                "no valid gateway token; send it as `x-api-key`, `Authorization: Bearer` or `x-reasoning-token`. "
                "What is served here is described at /docs",
            )
        self._refuse_stray_tokens(scope, own)
        if _METHOD_PARAMETER.search(unquote_to_bytes(scope["query_string"])):
            raise RequestRefused(400, "invalid_request_error", "another method in the query: send the request with it")
        client_credential = any(name in headers and name not in own for name in self._key_headers)
        return Admission(key, headers, frozenset(own), client_credential)

    def _refuse_stray_tokens(self, scope: dict[str, Any], own: list[bytes]) -> None:
        """A token of this gateway that stands elsewhere than in a credential's place would go on upstream."""
        removed = {*own, TOKEN_HEADER}
        for name, value in scope["headers"]:  # the client's own credential may be the operator's upstream key
            if name in self._credentials and hash_token(_credential(value)) in self._upstream_keys:
                removed.add(name)
        places = [(name.decode("latin-1"), value) for name, value in scope["headers"] if name not in removed]
        places += [("the name of a header", name) for name, _ in scope["headers"] if len(name) >= MIN_TOKEN_LENGTH]
        for place, value in [*places, ("the query", scope["query_string"]), ("the path", scope["raw_path"])]:
            mark = hash(value)
            if mark in self._clean:
                continue
            if self._known.is_in(value) or any(
                hash_token(piece.decode("latin-1")) in self._keys for piece in _pieces(value)
            ):
                raise RequestRefused(
                    400,
                    "invalid_request_error",
                    f"a token of this gateway in {place}: nothing is sent on; send a gateway token in `x-api-key`, "
                    "`Authorization: Bearer` or `x-reasoning-token` only, and no key of the operator's",
                )
            if len(self._clean) >= _CLEAN_VALUES:
                self._clean.clear()
            self._clean.add(mark)

    def _check_host(self, host: bytes | None) -> None:
        """A name that is not ours is a page that had its own name resolve to this machine (DNS rebinding)."""
        match = _HOST.fullmatch(host or b"")
        if not match:
            raise RequestRefused(400, "invalid_request_error", "a valid Host header is needed")
        if not self._any_host and match["name"].strip(b"[]").lower().decode() not in self._hosts:
            raise RequestRefused(
                403, "permission_error", "this Host is not served here; add it to allowed_hosts in [gateway]"
            )

    def _find_key(self, headers: dict[bytes, bytes]) -> tuple[Key | None, list[bytes]]:
        found, own = None, []
        for name in self._credentials:
            if value := headers.get(name):
                if name == b"authorization":
                    scheme, _, value = value.partition(b" ")
                    if scheme.lower() != b"bearer":
                        continue
                token = value.strip().decode("latin-1")
                key = self._keys.get(hash_token(token))
                if key is not None:
                    found = found or key
                    own.append(name)
                    if key.token_sha256 in self._unmarked:
                        self._unmarked.discard(key.token_sha256)
                        self._known.add(token)
                        self._clean.clear()
        return found, own


def _opens_page(path: bytes, headers: dict[bytes, bytes]) -> bool:
    """Is it a browser that opens the page's address, and not the page that asks for its data?"""
    return (
        (path == b"/" or path.startswith(b"/pages/"))
        and b"text/html" in headers.get(b"accept", b"")
        and b"hx-request" not in headers
    )


def _credential(value: bytes) -> str:
    scheme, _, rest = value.strip().partition(b" ")
    return (rest.strip() if scheme.lower() == b"bearer" else value.strip()).decode("latin-1")


def _pieces(value: bytes, decodings: int = 2) -> set[bytes]:
    """Every part of a header's or query's value that could be a token: as written, percent-decoded, and of `Basic`."""
    if len(value) < MIN_TOKEN_LENGTH:
        return set()
    found = {value.strip(), *_DELIMITERS.split(value)}
    for part in _OUTER_DELIMITERS.split(value):  # a token may itself hold some of the delimiters
        found |= {part, part.partition(b"=")[2]}
    if b"%" in value and decodings:
        found |= _pieces(unquote_to_bytes(value.replace(b"+", b" ")), decodings - 1)
    scheme, _, rest = value.strip().partition(b" ")
    if rest:
        found.add(rest.strip())
    if scheme.lower() == b"basic":
        try:
            user, _, password = base64.b64decode(rest.strip(), validate=False).partition(b":")
            found |= {user, password}
        except binascii.Error:
            pass
    return {piece for piece in found if len(piece) >= MIN_TOKEN_LENGTH}


def check_headers(headers: Headers, single: Collection[bytes]) -> dict[bytes, bytes]:
    """Headers as a mapping (names in lower case). Raises `RequestRefused` for what no honest client sends, such as one
    of `single` twice."""
    found: dict[bytes, bytes] = {}
    size = 0
    for name, value in headers:
        size += len(name) + len(value)
        if name in found and name in single:
            raise RequestRefused(400, "invalid_request_error", f"the header {name.decode('latin-1')} is there twice")
        found[name] = value
    if len(headers) > MAX_HEADERS or size > MAX_HEADER_BYTES:
        raise RequestRefused(431, "invalid_request_error", "too many or too long headers")
    if b"content-length" in found and b"transfer-encoding" in found:
        raise RequestRefused(400, "invalid_request_error", "both Content-Length and Transfer-Encoding")
    return found


def check_path(path: bytes) -> None:
    """Raises `RequestRefused` for a path that could mean another one to whoever gets it next."""
    if len(path) > MAX_PATH_BYTES:
        raise RequestRefused(414, "invalid_request_error", "the path is too long")
    if path[:1] != b"/":  # `OPTIONS *`
        raise RequestRefused(400, "invalid_request_error", "the path does not begin with a slash")
    if b"%" in path or b"." in path or b"\\" in path or b"//" in path or b";" in path:
        decoded = path
        for _ in range(2):  # once for us, once for a server that decodes again
            again = unquote_to_bytes(decoded)
            if decoded.count(b"/") != again.count(b"/"):
                raise RequestRefused(400, "invalid_request_error", "an encoded slash in the path")
            decoded = again
        segments = [segment.partition(b";")[0] for segment in decoded.split(b"/")]
        if b"." in segments or b".." in segments or b"\\" in decoded or b"//" in decoded:
            raise RequestRefused(
                400, "invalid_request_error", "dot segments, backslashes or empty segments in the path"
            )
        if any(byte < 32 or byte == 127 for byte in decoded):
            raise RequestRefused(400, "invalid_request_error", "a control character in the path")


HOP_BY_HOP = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    }
)
# Method and path were judged as they stand in the request's line.
_OVERRIDES = frozenset(
    {
        *(b"x-http-method-override", b"x-http-method", b"x-method-override", b"x-original-method"),
        *(b"x-forwarded-method", b"x-original-url", b"x-original-uri", b"x-rewrite-url", b"x-rewrite-uri"),
        *(b"x-override-url", b"x-forwarded-uri", b"x-forwarded-url", b"x-forwarded-path", b"x-forwarded-prefix"),
        *(b"x-http-path-override", b"x-original-path", b"x-script-name", b"x-envoy-original-path"),
    }
)
_METHOD_PARAMETER = re.compile(rb"(?:^|[&;])(?:_method|x-http-method(?:-override)?|_?method-override)=", re.IGNORECASE)
_NOT_FORWARDED = HOP_BY_HOP | _OVERRIDES | {b"host", b"content-length", b"expect", TOKEN_HEADER}


def forwarded_headers(
    headers: Headers, admission: Admission, protocol: Protocol, api_key: str | None, *, identity: bool = False
) -> list[tuple[str, str]]:
    """What the upstream gets: all but hop-by-hop headers and the gateway's own credential, in their order.

    Where the gateway's token took the place of the client's credential, `api_key` stands there instead. `identity` asks
    for an answer that is not compressed. Raises `RequestRefused` for a header that is not UTF-8.
    """
    skip = _NOT_FORWARDED | admission.own_credentials
    if b"connection" in admission.headers:  # which may be there several times
        named = b",".join(value for name, value in headers if name == b"connection")
        skip |= {name.strip().lower() for name in named.split(b",")}
    if identity:
        skip |= {b"accept-encoding"}
    try:
        out = [
            (name.decode("ascii"), value.decode("utf-8"))
            for name, value in headers
            if name not in skip and not name.startswith(b"x-reasoning-")
        ]
    except UnicodeDecodeError:
        raise RequestRefused(400, "invalid_request_error", "a header that is not UTF-8") from None
    if identity:
        out.append(("accept-encoding", "identity"))
    if api_key and not admission.client_credential:
        name = protocol.key_header(admission.own_credentials)
        out.append((name.decode(), f"Bearer {api_key}" if name == b"authorization" else api_key))
    return out


def returned_headers(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """What the client gets of an upstream's headers: no hop-by-hop ones, and no leave for web pages (CORS)."""
    kept: Headers = []
    named: set[bytes] = set()
    for name, value in headers:
        lower = name.lower()
        if lower == b"connection":
            named.update(part.strip().lower() for part in value.split(b","))
        elif lower not in HOP_BY_HOP and not lower.startswith(b"access-control-"):
            kept.append((lower, value))
    return [header for header in kept if header[0] not in named] if named else kept
