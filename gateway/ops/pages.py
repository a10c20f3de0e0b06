"""The gateway's own endpoints: health, metrics, statistics, and the documentation of its API, which works offline.

What people see of everything else is the page (`gateway.pages`).
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import re
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import orjson
from prometheus_client import CONTENT_TYPE_LATEST

from gateway.http.exchange import Exchange
from gateway.http.security import Headers
from gateway.ops.openapi import describe_api
from gateway.settings import Settings, without_credentials
from gateway.state import State
from reasoning.config import Config
from reasoning.errors import RoutesError
from reasoning.io.bounded import load_bounded
from reasoning.serving.routes import read_routes


class Gateway(Protocol):
    """What the pages show of `gateway.app.Gateway`."""

    config: Config
    settings: Settings
    state: State
    active: int
    draining: bool


async def healthz(gateway: Gateway, exchange: Exchange) -> None:
    """The process answers."""
    await exchange.reply(200, b'{"status":"ok"}')


async def readyz(gateway: Gateway, exchange: Exchange) -> None:
    """Requests may be sent here: not while it drains, nor when no upstream can be reached or has a credential."""
    state = gateway.state
    if gateway.draining:
        await exchange.reply(503, b'{"status":"draining"}')
        return
    missing = without_credentials(gateway.settings.upstreams)
    # Of an upstream that nobody can ask nothing is known, so it says nothing about the others.
    usable = [name for name in gateway.settings.upstreams if name not in missing] or list(gateway.settings.upstreams)
    if not any(state.pools[name].is_healthy() for name in usable):
        await exchange.reply(503, b'{"status":"no upstream can be reached"}')
        return
    if missing and len(missing) == len(gateway.settings.upstreams) and not gateway.settings.client_credentials:
        variables = " or ".join(f"{name.upper()}_API_KEY" for name in missing)
        remedy = f"set {variables}, or client_credentials = true in [gateway] where clients bring their own"
        found = {"status": "no upstream has a credential", "remedy": remedy}
        await exchange.reply(503, orjson.dumps(found))
    else:
        await exchange.reply(200, b'{"status":"ready"}')


async def metrics(gateway: Gateway, exchange: Exchange) -> None:
    """For Prometheus. Scrape it with the gateway's token (`authorization: credentials_file`)."""
    gateway.state.metrics.active.set(gateway.active)
    await _page(exchange, CONTENT_TYPE_LATEST.encode(), gateway.state.metrics.exposition())


async def stats(gateway: Gateway, exchange: Exchange) -> None:
    """The same totals as JSON, and how the upstreams and models do."""
    await exchange.reply(200, orjson.dumps(await collect_stats(gateway)))


async def collect_stats(gateway: Gateway) -> dict[str, Any]:
    """What `/stats` answers."""
    state = gateway.state
    found = state.metrics.statistics()
    found["active"] = gateway.active
    found["breakers"] = state.coding.breaker_states()
    found["upstreams"] = {
        pool.name: [
            {"url": upstream.base, "active": upstream.active, "failures": upstream.failures}
            for upstream in pool.upstreams
        ]
        for pool in state.pools.values()
    }
    found["sessions"] = state.sessions.count()
    found["lease"] = _lease(gateway)
    found["pays"] = await asyncio.to_thread(_pays, gateway.config.data / "pays.json")
    return found


def _pays(file: Path) -> dict[str, Any] | None:
    """Whether a model pays, as `reasoning pays` or its flow judged it last. None: it never did."""
    try:
        found = load_bounded(file.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _lease(gateway: Gateway) -> dict[str, Any]:
    """What `routes.json` says, and whether it still holds."""
    try:
        routes = read_routes(gateway.config.routes)
    except (OSError, RoutesError):
        return {"in_force": False, "expires_at": None, "arms": []}
    arms = [
        {"decision_type": name, "name": arm.name, "model": arm.model, "weight": arm.weight, "mode": arm.mode}
        for name, route in routes.routes.items()
        for arm in route.arms
    ]
    return {"in_force": routes.in_force(datetime.now(UTC)), "expires_at": routes.expires_at, "arms": arms}


async def openapi(gateway: Gateway, exchange: Exchange) -> None:
    """The API's description (OpenAPI 3.1)."""
    await exchange.reply(
        200, orjson.dumps(describe_api(gateway.config.decision_types, gateway.settings.protocols.protocols))
    )


async def docs(gateway: Gateway, exchange: Exchange) -> None:
    """The description as a page."""
    await _html(exchange, "docs.html")


async def _html(exchange: Exchange, name: str) -> None:
    page, policy = _load(name)
    headers = [
        (b"content-security-policy", policy),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
    ]
    await _page(exchange, b"text/html; charset=utf-8", page, headers)


@functools.cache
def _load(name: str) -> tuple[bytes, bytes]:
    """A page, and the policy that lets its own script and style run and nothing else (CSP Level 3, hashes)."""
    page = (files("gateway") / name).read_bytes()

    def hashes(tag: bytes) -> bytes:
        found = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), page, re.S)
        return b" ".join(b"'sha256-%b'" % base64.b64encode(hashlib.sha256(text).digest()) for text in found)

    policy = b"default-src 'none'; script-src %b; style-src %b; connect-src 'self'; form-action 'none'; "
    return page, (policy + b"frame-ancestors 'none'; base-uri 'none'") % (hashes(b"script"), hashes(b"style"))


async def _page(exchange: Exchange, content_type: bytes, body: bytes, headers: Headers | None = None) -> None:
    base = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    await exchange.start(200, base + (headers or []))
    await exchange.write(body, more=False)
