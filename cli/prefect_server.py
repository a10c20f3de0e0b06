"""Prefect's server behind a check of who asks (`python -m cli.prefect_server`).

Prefect has no setting for allowed hosts, and its CORS setting only tells a browser what to hide: the request itself is
carried out. So requests are checked here before Prefect sees them. Host, port and password come from Prefect's own
environment variables (`cli.serve.environment`); `REASONING_PREFECT_HOSTS` adds names, separated by commas, under which
the server may be asked, such as that of its container.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Names under which a server of this machine may be asked."""

_HOST = re.compile(r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::[0-9]{1,5})?")


class SameOriginOnly:
    """Refuses a foreign `Host` (DNS rebinding) and a foreign `Origin` (another web page): HTTP and WebSocket.

    `origins` may ask besides the page's own, such as `http://localhost:4200` of a server asked as 127.0.0.1.
    Programs send no `Origin`, so they pass. Refused is 403 (a WebSocket's handshake too).
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str] = LOOPBACK, origins: Collection[str] = ()) -> None:
        self.app = app
        self.hosts = frozenset(hosts)
        self.origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or (reason := self._reason(scope)) is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()  # the handshake, which is refused with 403 by closing before accepting
            await send({"type": "websocket.close", "code": 1008, "reason": reason})
        else:
            body = json.dumps({"exception_message": reason}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    def _reason(self, scope: Scope) -> str | None:
        hosts, origins = _values(scope, b"host"), _values(scope, b"origin")
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None or (match["six"] or match["name"]) not in self.hosts:
            return "this Host is not served here: use http://127.0.0.1 with the port that `reasoning serve` printed"
        own = {f"http://{hosts[0]}", f"https://{hosts[0]}"}
        if any(origin not in own and origin not in self.origins for origin in origins):
            return "a web page of another origin may not ask this server"
        return None


def _values(scope: Scope, wanted: bytes) -> list[str]:
    return [value.decode("latin-1").strip().lower() for name, value in scope["headers"] if name.lower() == wanted]


def own_origins(port: int) -> list[str]:
    """Origins of a page of the server at `port` of this machine, by each of its names."""
    return [f"http://{f'[{name}]' if ':' in name else name}:{port}" for name in LOOPBACK]


def main() -> None:
    """Serve until a signal comes, with the settings of `prefect server start`."""
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    from cli.environment import prefect_hosts

    settings: Any = get_current_settings().server
    if not settings.api.auth_string:
        raise SystemExit(
            "PREFECT_SERVER_API_AUTH_STRING is not set: without a password anybody here could run commands"
        )
    hosts = (*LOOPBACK, *prefect_hosts())
    uvicorn.run(
        SameOriginOnly(create_app(final=True), hosts=hosts, origins=own_origins(settings.api.port)),
        host=settings.api.host,
        port=settings.api.port,
        timeout_keep_alive=settings.api.keepalive_timeout,
        ws_ping_interval=settings.api.websocket_ping_interval,
        ws_ping_timeout=settings.api.websocket_ping_timeout,
        log_level=settings.logging_level.lower(),
    )


if __name__ == "__main__":
    main()
