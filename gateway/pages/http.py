"""Requests for the page: the shell and its files, which are public and hold no data, and the data itself.

Nothing is ambient: there is no cookie. The browser keeps the token of this tab (`sessionStorage`) and sends it as a
header that no other site's page can send, so a request from elsewhere has no rights at all. `Origin` and
`Sec-Fetch-Site` are checked as well.
"""

from __future__ import annotations

import functools
import hashlib
from importlib.resources import files
from typing import Any, Protocol
from urllib.parse import parse_qsl

from gateway.errors import RequestRefused
from gateway.http.exchange import Exchange
from gateway.http.security import Headers
from gateway.pages.worker import PageWorker
from gateway.settings import Key

PREFIX = b"/pages/"
STATIC = b"/pages/static/"
ACTIONS = b"/pages/act/"
_TYPES = {"js": b"text/javascript; charset=utf-8", "css": b"text/css; charset=utf-8", "svg": b"image/svg+xml"}
_FILES = ("htmx.min.js", "app.js", "pico.min.css", "app.css", "icon.svg")
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    b"form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
_SAFE: Headers = [
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_FORM = b"application/x-www-form-urlencoded"
MAX_FORM_BYTES = 256 << 10
MAX_FIELDS = 100
READ_S, ACT_S = 30.0, 300.0
"""How long a page and an action may take, in seconds."""


class Pages(Protocol):
    """What is asked of `gateway.app.Gateway`."""

    worker: PageWorker
    actor: PageWorker
    """For what spends, moves traffic or stops: that waits for no search, and no page waits for it."""


async def shell(exchange: Exchange) -> None:
    """The page without data: it loads what its address names with the token that one types in."""
    await _send(exchange, 200, b"text/html; charset=utf-8", _shell(), [(b"cache-control", b"no-cache")])


async def serve(pages: Pages, exchange: Exchange, live: dict[str, Any]) -> None:
    """Answer a request below `/pages/`. `live` is what the gateway counts. Raises `RequestRefused`."""
    path, key = exchange.path, exchange.admission.key
    if path.startswith(STATIC):
        await _static(exchange, path.removeprefix(STATIC).decode("latin-1"))
        return
    if key is None:
        await shell(exchange)
        return
    if not (key.operator or key.pages):
        raise RequestRefused(403, "permission_error", _needs(key))
    if exchange.method not in ("GET", "POST"):
        raise RequestRefused(405, "invalid_request_error", "GET and POST are what the page takes")
    form: dict[str, str] = {}
    if exchange.method == "POST":
        check_origin(exchange)
        form = _fields(await exchange.read(MAX_FORM_BYTES))
    elif exchange.has_body:
        raise RequestRefused(400, "invalid_request_error", "a GET of the page has no body")
    question = {
        "method": exchange.method,
        "path": path.removeprefix(PREFIX).decode("latin-1"),
        "query": _fields(exchange.query),
        "form": form,
        "key": {"name": key.name, "operator": key.operator, "label": key.label},
        "live": live,
    }
    acts = path.startswith(ACTIONS)
    answer = await (pages.actor if acts else pages.worker).ask(question, seconds=ACT_S if acts else READ_S)
    headers: Headers = [(b"cache-control", b"no-store"), (b"vary", b"hx-request")]
    headers += [(name.encode(), value.encode()) for name, value in answer["headers"].items()]
    await _send(exchange, answer["status"], b"text/html; charset=utf-8", answer["html"].encode(), headers)


def check_origin(exchange: Exchange) -> None:
    """Raises `RequestRefused` (403) for a change that a page of another site, port or scheme asks for."""
    headers = exchange.admission.headers
    origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
    host = headers.get(b"host", b"")
    if (origin is not None and origin not in (b"http://" + host, b"https://" + host)) or site not in (
        None,
        b"same-origin",
    ):
        raise RequestRefused(403, "permission_error", "this change was asked for by a page of another site")
    if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != _FORM:
        raise RequestRefused(400, "invalid_request_error", f"a form ({_FORM.decode()}) is what is taken here")


def _needs(key: Key) -> str:
    return f"this key is not for the page; [gateway.keys.{key.name}] needs `pages = true`"


def _fields(encoded: bytes) -> dict[str, str]:
    """The fields of a query or form; of several of one name the last. Raises `RequestRefused` (400)."""
    try:
        return dict(parse_qsl(encoded.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError:
        raise RequestRefused(400, "invalid_request_error", "not a form, or one of too many fields") from None


async def _static(exchange: Exchange, name: str) -> None:
    if name not in _FILES or exchange.method not in ("GET", "HEAD"):
        raise RequestRefused(404, "not_found_error", "there is no such file")
    headers = [(b"cache-control", b"public, max-age=86400")]
    await _send(exchange, 200, _TYPES[name.rpartition(".")[2]], _file(name), headers)


@functools.cache
def _file(name: str) -> bytes:
    return (files("gateway.pages") / "static" / name).read_bytes()


@functools.cache
def _shell() -> bytes:
    """The shell, its files named with a digest, so that a browser takes the new ones after an upgrade."""
    digest = hashlib.sha256(b"".join(_file(name) for name in _FILES)).hexdigest()[:12]
    return (files("gateway.pages") / "shell.html").read_bytes().replace(b"{{version}}", digest.encode())


async def _send(exchange: Exchange, status: int, content_type: bytes, body: bytes, headers: Headers) -> None:
    base = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    await exchange.start(status, base + headers + _SAFE)
    await exchange.write(body, more=False)
