"""Which requests come from here: no web page may use the emulator, whose own routes need no key.

The same rules as in front of Prefect's server (`cli/prefect_server.py`). The emulator imports nothing of ours, so they
stand here once more; `tests/test_same_origin.py` holds the two together.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from emulator.errors import ApiError

LOOPBACK = ("127.0.0.1", "localhost", "::1")

_HOST = re.compile(r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::[0-9]{1,5})?")


class SameOriginMiddleware:
    """Refuses a `Host` that is not in `hosts` (DNS rebinding; `*` allows any) and a foreign `Origin`, with 403.

    Programs send no `Origin`, so they pass.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app = app
        self.hosts = frozenset(host.strip("[]").lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (reason := self._reason(scope)):
            error = ApiError(403, reason, kind="invalid_request_error")
            await JSONResponse(error.body(scope["path"]), status_code=403)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _reason(self, scope: Scope) -> str | None:
        hosts, origins = _values(scope, b"host"), _values(scope, b"origin")
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None or not self.hosts & {"*", match["six"] or match["name"]}:
            return "this Host is not served here; start the emulator with --allow-host NAME to serve it"
        if any(origin not in (f"http://{hosts[0]}", f"https://{hosts[0]}") for origin in origins):
            return "a web page of another origin may not ask the emulator"
        return None


def _values(scope: Scope, wanted: bytes) -> list[str]:
    return [value.decode("latin-1").strip().lower() for name, value in scope["headers"] if name.lower() == wanted]
