"""Pools of upstream servers: weights, health, and the choice of the least busy one.

A server is taken out only when it could not be reached or answered nothing, for a time that doubles. No status counts
against it: a 401 or a 429 is its answer to one client, and must not turn away the others.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from gateway.errors import UpstreamError, UpstreamTimeout, UpstreamUnreachable
from gateway.settings import Settings, UpstreamSettings

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


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
    """Servers that give the same answers."""

    def __init__(
        self, name: str, upstreams: Collection[UpstreamSettings], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self.upstreams = [Upstream(settings) for settings in upstreams]
        self._clock = clock

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


def open_session(settings: Settings) -> aiohttp.ClientSession:
    """The one HTTP client: it follows no redirect, keeps no cookie, decompresses nothing and adds no header."""
    return aiohttp.ClientSession(
        # Shorter than what servers allow an idle connection: a request on one that was just closed is lost.
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=15, ttl_dns_cache=60),
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

    Another server is tried only when there was no connection, so that nothing is ever sent twice.
    Raises `UpstreamUnreachable`, `UpstreamTimeout` or `UpstreamError`.
    """
    tried: list[Upstream] = []
    while True:
        upstream = pool.choose(tried)
        if upstream is None:
            raise UpstreamUnreachable(f"no server of {pool.name} can be reached")
        upstream.active += 1
        try:
            response = await session.request(
                method,
                upstream.url(path, query),
                headers=headers_for(upstream),
                data=body,
                allow_redirects=False,
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
