"""Pools of upstream servers: weights, health, and the choice of the least busy one.

A server is taken out only when it could not be reached or answered nothing, for a time that doubles. No status counts
against it: a 401 or a 429 is its answer to one client, and must not turn away the others.

An idle connection may be closed by the server at the moment when we use it again. That request was not processed, but
the client cannot know for certain, so RFC 9110, 9.2.2 lets it repeat by itself only what is idempotent (aiohttp
does). A request to a model changes nothing at the server; done twice, it costs its price twice. So a POST to one of its
protocol's `repeatable` paths is repeated as well, once and on a new connection, where all of these hold: its connection
had been used before, not a byte of an answer came, and the connection ended within `LOST_WITHIN_S` of the request,
sooner than a model answers. What makes or changes something (batches, files, jobs) is never repeated.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp.connector import Connection
from yarl import URL

from gateway.errors import UpstreamError, UpstreamTimeout, UpstreamUnreachable
from gateway.settings import Settings, UpstreamSettings

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
KEEPALIVE_S = 4.0
"""How long an idle connection is kept: Node's servers and uvicorn close theirs after 5 seconds."""
LOST_WITHIN_S = 1.0


_NONE = re.compile(rb"(?!)")


@dataclass(slots=True)
class Upstream:
    """One server, what it is doing and how it does."""

    settings: UpstreamSettings
    active: int = 0
    failures: int = 0
    retry_at: float = 0.0
    base: str = field(init=False)

    def __post_init__(self) -> None:
        self.base = self.settings.url

    def url(self, path: bytes, query: bytes) -> URL:
        """The base joined with a path and a query, as they came: nothing is decoded or encoded again."""
        text = self.base + path.decode("ascii") + ("?" + query.decode("ascii") if query else "")
        return URL(text, encoded=True)


class Pool:
    """Servers that give the same answers. `repeatable` matches the paths of which a lost POST is sent again."""

    def __init__(
        self,
        name: str,
        upstreams: Collection[UpstreamSettings],
        clock: Callable[[], float] = time.monotonic,
        repeatable: re.Pattern[bytes] = _NONE,
    ) -> None:
        self.name = name
        self.repeatable = repeatable
        self.upstreams = [Upstream(settings) for settings in upstreams]
        self._clock = clock

    @property
    def url(self) -> str:
        """Of its servers, where that is one. Empty: there are several, and nobody knows whose prices hold."""
        urls = {upstream.base for upstream in self.upstreams}
        return urls.pop() if len(urls) == 1 else ""

    def choose(self, tried: Collection[Upstream] = ()) -> Upstream | None:
        """The least busy healthy server in proportion to its weight, not among `tried`; ties by a draw on weights.

        When none is healthy the one whose pause ends first: an answer of it is better than none.
        """
        left = [upstream for upstream in self.upstreams if upstream not in tried]
        if len(left) < 2:
            return left[0] if left else None
        now = self._clock()
        healthy = [upstream for upstream in left if upstream.retry_at <= now]
        if not healthy:
            return min(left, key=lambda upstream: upstream.retry_at)
        load = min(upstream.active / upstream.settings.weight for upstream in healthy)
        idle = [upstream for upstream in healthy if upstream.active / upstream.settings.weight == load]
        return random.choices(idle, [upstream.settings.weight for upstream in idle])[0]

    def succeeded(self, upstream: Upstream) -> None:
        upstream.failures, upstream.retry_at = 0, 0.0

    def failed(self, upstream: Upstream) -> None:
        pause = min(FIRST_PAUSE_S * 2**upstream.failures, LONGEST_PAUSE_S)
        upstream.failures += 1
        upstream.retry_at = self._clock() + pause

    def is_healthy(self) -> bool:
        now = self._clock()
        return any(upstream.retry_at <= now for upstream in self.upstreams)


@dataclass(slots=True)
class _Dial:
    """What one request knows of its connection. `fresh`: no connection that was used before will do."""

    fresh: bool = False
    reused: bool = False


_dial: ContextVar[_Dial | None] = ContextVar("gateway_dial", default=None)


class _Connector(aiohttp.TCPConnector):
    """Tells a request whether its connection had been used before, and gives it a new one where it wants that."""

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Connection:  # noqa: ASYNC109 - as in aiohttp
        while True:
            connection = await super().connect(req, traces, timeout)
            dial = _dial.get()
            if dial is None:
                return connection
            protocol = connection.protocol
            dial.reused = getattr(protocol, "gateway_used", False)
            if not (dial.fresh and dial.reused):
                protocol.gateway_used = True  # type: ignore[union-attr]
                return connection
            connection.close()


def open_session(settings: Settings) -> aiohttp.ClientSession:
    """The one HTTP client: it follows no redirect, keeps no cookie, decompresses nothing and adds no header."""
    return aiohttp.ClientSession(
        connector=_Connector(limit=0, keepalive_timeout=KEEPALIVE_S, ttl_dns_cache=60),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        max_line_size=64 << 10,
        max_field_size=64 << 10,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        timeout=aiohttp.ClientTimeout(
            total=None, connect=None, sock_connect=settings.connect_timeout_s, sock_read=settings.read_timeout_s
        ),
        trust_env=False,
    )


async def send(
    session: aiohttp.ClientSession, method: str, url: URL, *, headers: Any, body: Any, repeatable: bool
) -> aiohttp.ClientResponse:
    """Send a request, and once more where its connection turned out to be closed (see above). No redirect is followed.

    Raises what `aiohttp` does.
    """
    dial = _Dial()
    token = _dial.set(dial)
    started = time.monotonic()
    try:
        return await session.request(method, url, headers=headers, data=body, allow_redirects=False)
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
        begun = getattr(error, "message", None)  # of a disconnected server: the head as far as it came
        began = isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(begun, str | None)
        late = time.monotonic() - started > LOST_WITHIN_S
        if not (repeatable and dial.reused) or began or late or isinstance(error, aiohttp.ClientConnectorError):
            raise
        dial.fresh = True
        return await session.request(method, url, headers=headers, data=body, allow_redirects=False)
    finally:
        _dial.reset(token)


async def ask(
    session: aiohttp.ClientSession,
    pool: Pool,
    method: str,
    path: bytes,
    query: bytes,
    headers_for: Callable[[Upstream], list[tuple[str, str]]],
    body: bytes | AsyncIterator[bytes] | None,
) -> tuple[Upstream, aiohttp.ClientResponse]:
    """Send a request and return with the response's head; `upstream.active` counts it until the caller takes it off.

    Another server is tried only when there was no connection. Nothing is sent twice, but for what `send` repeats.
    Raises `UpstreamUnreachable`, `UpstreamTimeout` or `UpstreamError`.
    """
    tried: list[Upstream] = []
    while True:
        upstream = pool.choose(tried)
        if upstream is None:
            raise UpstreamUnreachable(f"no server of {pool.name} can be reached")
        upstream.active += 1
        try:
            response = await send(
                session,
                method,
                upstream.url(path, query),
                headers=headers_for(upstream),
                body=body,
                repeatable=method == "POST" and pool.repeatable.fullmatch(path) is not None and isinstance(body, bytes),
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            upstream.active -= 1
            pool.failed(upstream)
            tried.append(upstream)
        except (TimeoutError, aiohttp.ServerTimeoutError):
            upstream.active -= 1
            raise UpstreamTimeout(f"{pool.name} was silent for too long") from None
        except (aiohttp.ClientError, ConnectionError) as error:
            upstream.active -= 1
            raise UpstreamError(f"{pool.name} gave no answer: {type(error).__name__}") from None
        except (asyncio.CancelledError, Exception):
            upstream.active -= 1
            raise
        else:
            pool.succeeded(upstream)
            return upstream, response
