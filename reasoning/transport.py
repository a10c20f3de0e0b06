"""HTTP for the arms, sync and async, over httpcore2: keep-alive, and one deadline from connect to the last byte.

httpcore2's own timeouts are per operation, so a server that sends one byte at a time would never time out. Here the
sync side gives every socket operation what is left of the deadline, and the async side is cancelled at it. Redirects
are not followed: a key goes to the server that was named and nowhere else. `HTTP(S)_PROXY` and `NO_PROXY` count.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import queue
import socket
import ssl
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

import httpcore2

from reasoning.config import is_loopback
from reasoning.errors import CallFailed

Headers = dict[bytes | str, bytes | str]
_MAX_CONNECTIONS, _MAX_IDLE, _IDLE_SECONDS = 256, 32, 30.0


class Transport:
    """Connections that threads share. `seconds` is the deadline of all of a call. Raises only `CallFailed`."""

    def __init__(self) -> None:
        self._pools: dict[str | None, httpcore2.ConnectionPool] = {}
        self._lock = threading.Lock()

    def post(self, url: str, headers: Headers, body: bytes, seconds: float) -> tuple[int, bytes]:
        """Status and body of the answer."""
        with _deadline(time.monotonic() + seconds):
            response = self._send(url, headers, body, seconds)
            with _mapped(seconds), contextlib.closing(response):
                return response.status, response.read()

    @contextmanager
    def stream(self, url: str, headers: Headers, body: bytes, seconds: float) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Status, and the body as it comes: reading on may raise `CallFailed` as well."""
        at = time.monotonic() + seconds
        with _deadline(at):
            response = self._send(url, headers, body, seconds)
        with contextlib.closing(response):
            yield response.status, _chunks(response, at, seconds)

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.close()

    def _send(self, url: str, headers: Headers, body: bytes, seconds: float) -> httpcore2.Response:
        with _mapped(seconds):
            target, proxy = _target(url)
            pool = self._pools.get(proxy)
            if pool is None:
                with self._lock:
                    pool = self._pools.setdefault(proxy, _make_pool(proxy))
            return pool.handle_request(_request(target, headers, body, pool_seconds=seconds))


class AsyncTransport:
    """The same for tasks. Every event loop has connections of its own, so a loop may close and another one come."""

    def __init__(self) -> None:
        self._pools: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, dict[str | None, httpcore2.AsyncConnectionPool]
        ] = weakref.WeakKeyDictionary()

    async def post(self, url: str, headers: Headers, body: bytes, seconds: float) -> tuple[int, bytes]:
        """Status and body of the answer."""
        with _mapped(seconds):
            async with asyncio.timeout(seconds):
                response = await self._send(url, headers, body)
                try:
                    return response.status, await response.aread()
                finally:
                    await response.aclose()

    @asynccontextmanager
    async def stream(
        self, url: str, headers: Headers, body: bytes, seconds: float
    ) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """Status, and the body as it comes: reading on may raise `CallFailed` as well."""
        at = asyncio.get_running_loop().time() + seconds
        with _mapped(seconds):
            async with asyncio.timeout_at(at):
                response = await self._send(url, headers, body)
        try:
            yield response.status, _achunks(response, at, seconds)
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Close this loop's idle connections."""
        for pool in self._pools.pop(asyncio.get_running_loop(), {}).values():
            await pool.aclose()

    async def _send(self, url: str, headers: Headers, body: bytes) -> httpcore2.Response:
        target, proxy = _target(url)
        pools = self._pools.setdefault(asyncio.get_running_loop(), {})
        if proxy not in pools:
            pools[proxy] = httpcore2.AsyncConnectionPool(
                proxy=httpcore2.Proxy(proxy) if proxy else None,
                max_connections=_MAX_CONNECTIONS,
                max_keepalive_connections=_MAX_IDLE,
                keepalive_expiry=_IDLE_SECONDS,
            )
        return await pools[proxy].handle_async_request(_request(target, headers, body))


def _make_pool(proxy: str | None) -> httpcore2.ConnectionPool:
    return httpcore2.ConnectionPool(
        proxy=httpcore2.Proxy(proxy) if proxy else None,
        max_connections=_MAX_CONNECTIONS,
        max_keepalive_connections=_MAX_IDLE,
        keepalive_expiry=_IDLE_SECONDS,
        network_backend=_DeadlineBackend(),
    )


@functools.lru_cache(maxsize=1024)
def _target(url: str) -> tuple[httpcore2.URL, str | None]:
    """The parsed URL, and the proxy that the environment names for it."""
    target = httpcore2.URL(url)
    host = target.host.decode().strip("[]")
    proxies = getproxies_environment()
    if is_loopback(host) or proxy_bypass_environment(host, proxies):
        return target, None
    return target, proxies.get(target.scheme.decode()) or proxies.get("all")


def _request(
    target: httpcore2.URL, headers: Headers, body: bytes, pool_seconds: float | None = None
) -> httpcore2.Request:
    default_port = {b"http": 80, b"https": 443}.get(target.scheme)
    port = b"" if target.port in (None, default_port) else b":%d" % target.port
    sent: Headers = {
        "Host": target.host + port,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **headers,
    }
    return httpcore2.Request("POST", target, headers=sent, content=body, extensions={"timeout": {"pool": pool_seconds}})


@contextmanager
def _mapped(seconds: float) -> Iterator[None]:
    try:
        yield
    except (httpcore2.TimeoutException, TimeoutError):
        raise CallFailed("timeout", f"no complete answer within {seconds * 1000:g} ms") from None
    except Exception as error:  # whatever a network does, the agent goes on
        raise CallFailed("provider_error", f"{type(error).__name__}: {error}") from None


def _chunks(response: httpcore2.Response, at: float, seconds: float) -> Iterator[bytes]:
    body = response.iter_stream()
    while True:
        with _mapped(seconds), _deadline(at):
            chunk = next(body, None)
        if chunk is None:
            return
        yield chunk


async def _achunks(response: httpcore2.Response, at: float, seconds: float) -> AsyncIterator[bytes]:
    body = aiter(response.aiter_stream())
    while True:
        with _mapped(seconds):
            async with asyncio.timeout_at(at):
                chunk = await anext(body, None)
        if chunk is None:
            return
        yield chunk


class _Deadline(threading.local):
    at: float = float("inf")


_current = _Deadline()


@contextmanager
def _deadline(at: float) -> Iterator[None]:
    """Until when, by the monotonic clock, this thread's socket operations may take."""
    outer, _current.at = _current.at, at
    try:
        yield
    finally:
        _current.at = outer


def _seconds_left() -> float | None:
    left = _current.at - time.monotonic()
    if left <= 0:
        raise httpcore2.TimeoutException
    return None if left == float("inf") else left


class _DeadlineStream(httpcore2.NetworkStream):
    """A stream each of whose operations may take what is left of the thread's deadline."""

    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _seconds_left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _seconds_left())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, _seconds_left()))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _DeadlineBackend(httpcore2.NetworkBackend):
    """Connects within the thread's deadline, the look-up of the name included."""

    def __init__(self) -> None:
        self._backend = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        failure: Exception = httpcore2.ConnectError(f"{host} has no address")
        for address in _look_up(host, port):
            try:
                return _DeadlineStream(
                    self._backend.connect_tcp(address, port, _seconds_left(), local_address, socket_options)
                )
            except httpcore2.ConnectError as error:
                failure = error
        raise failure


def _look_up(host: str, port: int) -> list[str]:
    """The addresses of `host`, asked for in a thread, since getaddrinfo knows no timeout."""
    with contextlib.suppress(ValueError):
        return [str(ipaddress.ip_address(host))]
    answers: queue.SimpleQueue[list[str] | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put(list(dict.fromkeys(str(info[4][0]) for info in found)))
        except OSError as error:
            answers.put(error)

    threading.Thread(target=ask, name="reasoning-look-up", daemon=True).start()
    try:
        answer = answers.get(timeout=_seconds_left())
    except queue.Empty:
        raise httpcore2.ConnectTimeout from None
    if isinstance(answer, OSError):
        raise httpcore2.ConnectError(str(answer))
    return answer
