"""The gateway's own pages: health, metrics, statistics, and its documentation, which works offline."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

import orjson
from prometheus_client import CONTENT_TYPE_LATEST

from gateway.exchange import Exchange
from gateway.openapi import describe_api
from gateway.security import Headers

if TYPE_CHECKING:
    from gateway.app import Gateway


async def healthz(gateway: Gateway, exchange: Exchange) -> None:
    """The process answers."""
    await exchange.reply(200, b'{"status":"ok"}')


async def readyz(gateway: Gateway, exchange: Exchange) -> None:
    """Requests may be sent here: not while it drains, nor when no upstream can be reached."""
    state = gateway.state
    if gateway.draining:
        await exchange.reply(503, b'{"status":"draining"}')
    elif not (state.anthropic.is_healthy() or state.openai.is_healthy()):
        await exchange.reply(503, b'{"status":"no upstream can be reached"}')
    else:
        await exchange.reply(200, b'{"status":"ready"}')


async def metrics(gateway: Gateway, exchange: Exchange) -> None:
    """For Prometheus. Scrape it with the gateway's token (`authorization: credentials_file`)."""
    gateway.state.metrics.active.set(gateway.active)
    await _page(exchange, CONTENT_TYPE_LATEST.encode(), gateway.state.metrics.exposition())


async def stats(gateway: Gateway, exchange: Exchange) -> None:
    """The same totals as JSON, and how the upstreams and models do."""
    state = gateway.state
    found = state.metrics.statistics()
    found["active"] = gateway.active
    found["breakers"] = state.coding.breaker_states()
    found["upstreams"] = {
        pool.name: [
            {"url": upstream.base, "active": upstream.active, "failures": upstream.failures}
            for upstream in pool.upstreams
        ]
        for pool in (state.anthropic, state.openai)
    }
    await exchange.reply(200, orjson.dumps(found))


async def openapi(gateway: Gateway, exchange: Exchange) -> None:
    """The API's description (OpenAPI 3.1)."""
    await exchange.reply(200, orjson.dumps(describe_api(gateway.config.decision_types)))


async def docs(gateway: Gateway, exchange: Exchange) -> None:
    """The description as a page. It loads nothing from anywhere else."""
    page = (files("gateway") / "docs.html").read_bytes()
    policy = b"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
    headers = [
        (b"content-security-policy", policy + b"; frame-ancestors 'none'; base-uri 'none'"),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
    ]
    await _page(exchange, b"text/html; charset=utf-8", page, headers)


async def _page(exchange: Exchange, content_type: bytes, body: bytes, headers: Headers | None = None) -> None:
    base = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    await exchange.start(200, base + (headers or []))
    await exchange.write(body, more=False)
