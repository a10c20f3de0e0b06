"""HTTP for the arms, sync and async, over httpcore2: keep-alive, and one deadline from connect to the last byte.

httpcore2's own timeouts are per operation, so a server that sends one byte at a time would never time out. What is
passed down as a timeout here is the *moment* of the deadline, and the network backend below gives every operation of a
socket what is left until then; the async side is cancelled at it. Redirects are not followed: a key goes to the server
that was named and nowhere else. `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`, `SSL_CERT_FILE` and
`SSL_CERT_DIR` count.

Idle connections are kept here, for the bookkeeping of httpcore2's own pool takes a quarter of a call on loopback. A
connection belongs to one call at a time; the latest used goes first.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import queue
import socket
import ssl
import threading
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Generic, TypeVar
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

import httpcore2

from reasoning.config import is_loopback
from reasoning.errors import CallFailed
from reasoning.io.transport_port import Headers
from reasoning.serving.model_calls import check_size, failed_io

_MAX_CALLS = 256
"""Calls at once, each of which takes a file descriptor of the agent's; more wait, within their deadlines."""
_MAX_IDLE, _IDLE_SECONDS = 32, 30.0
_MAX_BYTES = 32 << 20
"""A longer answer is none: what a server sends must not fill the agent's memory."""


class Transport:
    """Connections that threads share. `seconds` is the deadline of all of a call. Raises only `CallFailed`."""

    def __init__(self) -> None:
        self._targets: dict[str, _Target[httpcore2.HTTPConnection]] = {}
        self._turns: queue.SimpleQueue[None] = queue.SimpleQueue()  # a semaphore in C, which threading has not
        for _ in range(_MAX_CALLS):
            self._turns.put(None)

    def post(self, url: str, headers: Headers, body: bytes, seconds: float) -> tuple[int, bytes]:
        """Status and body of the answer."""
        at = time.monotonic() + seconds
        try:
            self._turns.get(timeout=seconds)
            try:
                target = self._targets.get(url) or self._target(url)
                connection = _take(target)
                try:
                    response = connection.handle_request(target.request(headers, body, at))
                    content = b"".join(_bounded(response.iter_stream()))
                    response.close()
                finally:
                    _give_back(target, connection)
            finally:
                self._turns.put(None)
        except Exception as error:  # whatever a network does, the agent goes on
            raise _failed(error, seconds) from None
        return response.status, content

    @contextmanager
    def stream(self, url: str, headers: Headers, body: bytes, seconds: float) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Status, and the body as it comes: reading on may raise `CallFailed` as well."""
        at = time.monotonic() + seconds
        with contextlib.ExitStack() as stack:
            try:
                self._turns.get(timeout=seconds)
                stack.callback(self._turns.put, None)
                target = self._targets.get(url) or self._target(url)
                connection = _take(target)
                stack.callback(_give_back, target, connection)
                response = connection.handle_request(target.request(headers, body, at))
                stack.callback(response.close)
            except Exception as error:
                raise _failed(error, seconds) from None
            yield response.status, _chunks(response, seconds)

    def close(self) -> None:
        """Close the idle connections."""
        for target in list(self._targets.values()):
            with contextlib.suppress(IndexError):
                while True:
                    target.idle.pop().close()

    def _target(self, url: str) -> _Target[httpcore2.HTTPConnection]:
        for other in list(self._targets.values()):  # routes have changed: what they left must not stay open
            for connection in other.pop_expired():
                connection.close()
        context, proxy = _environment(url)
        pool = httpcore2.ConnectionPool(context, proxy, keepalive_expiry=_IDLE_SECONDS, network_backend=_Backend())
        return self._targets.setdefault(url, _Target(url, pool.create_connection))


class AsyncTransport:
    """The same for tasks. Every event loop has connections of its own, so a loop may close and another one come."""

    def __init__(self) -> None:
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = weakref.WeakKeyDictionary()

    async def apost(self, url: str, headers: Headers, body: bytes, seconds: float) -> tuple[int, bytes]:
        """Status and body of the answer."""
        at = time.monotonic() + seconds
        try:
            async with asyncio.timeout(seconds):
                loop = self._loop()
                async with loop.turns:
                    target = loop.targets.get(url) or await loop.target(url)
                    connection = await _atake(target)
                    try:
                        response = await connection.handle_async_request(target.request(headers, body, at))
                        async with contextlib.aclosing(_abounded(response)) as chunks:
                            content = b"".join([chunk async for chunk in chunks])
                        await response.aclose()
                    finally:
                        await _agive_back(target, connection)
        except Exception as error:
            raise _failed(error, seconds) from None
        return response.status, content

    @asynccontextmanager
    async def astream(
        self, url: str, headers: Headers, body: bytes, seconds: float
    ) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """Status, and the body as it comes: reading on may raise `CallFailed` as well."""
        loop, at = self._loop(), time.monotonic() + seconds
        ends = asyncio.get_running_loop().time() + seconds
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout_at(ends):
                    await stack.enter_async_context(loop.turns)
                    target = loop.targets.get(url) or await loop.target(url)
                    connection = await _atake(target)
                    stack.push_async_callback(_agive_back, target, connection)
                    response = await connection.handle_async_request(target.request(headers, body, at))
                    stack.push_async_callback(response.aclose)
            except Exception as error:
                raise _failed(error, seconds) from None
            chunks = _achunks(response, ends, seconds)
            stack.push_async_callback(chunks.aclose)
            yield response.status, chunks

    async def aclose(self) -> None:
        """Close this loop's idle connections."""
        loop = self._loops.pop(asyncio.get_running_loop(), None)
        for target in loop.targets.values() if loop else ():
            while target.idle:
                await target.idle.pop().aclose()

    def _loop(self) -> _Loop:
        running = asyncio.get_running_loop()
        return self._loops.get(running) or self._loops.setdefault(running, _Loop())


C = TypeVar("C", httpcore2.HTTPConnection, httpcore2.AsyncHTTPConnection)


class _Target(Generic[C]):
    """One URL: the idle connections to it, and what all requests to it have in common."""

    def __init__(self, url: str, connect: Callable[[httpcore2.Origin], Any]) -> None:
        self._url = httpcore2.URL(url)
        self._connect = connect
        host = b"[%b]" % self._url.host if b":" in self._url.host else self._url.host
        default_port = {b"http": 80, b"https": 443}.get(self._url.scheme)
        port = b"" if self._url.port in (None, default_port) else b":%d" % self._url.port
        self._headers = [
            (b"Host", host + port),
            (b"User-Agent", b"custom-reasoning"),
            (b"Content-Type", b"application/json"),
        ]
        self.idle: list[C] = []

    def connect(self) -> C:
        """A new connection; it opens at its first request."""
        connection: C = self._connect(self._url.origin)
        return connection

    def request(self, headers: Headers, body: bytes, at: float) -> httpcore2.Request:
        """`at` is the deadline by the monotonic clock; see `_DeadlineStream`."""
        timeouts = {"connect": at, "read": at, "write": at}
        sent = [*self._headers, (b"Content-Length", b"%d" % len(body)), *headers]
        return httpcore2.Request("POST", self._url, headers=sent, content=body, extensions={"timeout": timeouts})

    def may_keep(self, connection: C) -> bool:
        """Is a connection good for another call, and wanted?"""
        return connection.is_idle() and not connection.is_closed() and len(self.idle) < _MAX_IDLE

    def pop_expired(self) -> list[C]:
        """The connections that have been idle for too long, or that their server has closed."""
        expired = [connection for connection in list(self.idle) if connection.has_expired()]
        found = []
        for connection in expired:
            with contextlib.suppress(ValueError):  # a thread was quicker and has it now
                self.idle.remove(connection)
                found.append(connection)
        return found


class _Loop:
    """What belongs to one event loop."""

    def __init__(self) -> None:
        self.targets: dict[str, _Target[httpcore2.AsyncHTTPConnection]] = {}
        self.turns = asyncio.Semaphore(_MAX_CALLS)

    async def target(self, url: str) -> _Target[httpcore2.AsyncHTTPConnection]:
        """Make the target of a URL."""
        for other in self.targets.values():
            for connection in other.pop_expired():
                await connection.aclose()
        context, proxy = _environment(url)
        backend = _AsyncBackend()
        pool = httpcore2.AsyncConnectionPool(context, proxy, keepalive_expiry=_IDLE_SECONDS, network_backend=backend)
        return self.targets.setdefault(url, _Target(url, pool.create_connection))


def _take(target: _Target[httpcore2.HTTPConnection]) -> httpcore2.HTTPConnection:
    while target.idle:
        try:
            connection = target.idle.pop()
        except IndexError:  # another thread took the last one
            break
        if not connection.has_expired():
            return connection
        connection.close()
    return target.connect()


def _give_back(target: _Target[httpcore2.HTTPConnection], connection: httpcore2.HTTPConnection) -> None:
    if target.may_keep(connection):
        target.idle.append(connection)
    else:
        connection.close()


async def _atake(target: _Target[httpcore2.AsyncHTTPConnection]) -> httpcore2.AsyncHTTPConnection:
    while target.idle:
        connection = target.idle.pop()
        if not connection.has_expired():
            return connection
        await connection.aclose()
    return target.connect()


async def _agive_back(
    target: _Target[httpcore2.AsyncHTTPConnection], connection: httpcore2.AsyncHTTPConnection
) -> None:
    if target.may_keep(connection):
        target.idle.append(connection)
    else:
        await connection.aclose()


def _environment(url: str) -> tuple[ssl.SSLContext | None, httpcore2.Proxy | None]:
    """How to reach `url` by the environment: whom to trust, and through which proxy."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = getproxies_environment()
    named = proxies.get(parts.scheme) or proxies.get("all")
    if not named or is_loopback(host) or proxy_bypass_environment(host, proxies):
        return _trust() if parts.scheme == "https" else None, None
    proxy = urlsplit(named if "://" in named else f"http://{named}")
    context = _trust() if "https" in (parts.scheme, proxy.scheme) else None
    auth = (unquote(proxy.username), unquote(proxy.password or "")) if proxy.username else None
    bare = f"{proxy.scheme}://{proxy.netloc.rpartition('@')[2]}"
    own_context = context if proxy.scheme == "https" else None
    return context, httpcore2.Proxy(bare, (auth[0].encode(), auth[1].encode()) if auth else None, None, own_context)


def _trust() -> ssl.SSLContext:
    """Made once a target: httpcore2 would read the authorities' certificates for every connection."""
    try:
        return httpcore2.default_ssl_context()
    except OSError as error:  # ssl.SSLError is one
        raise CallFailed("provider_error", f"SSL_CERT_FILE, SSL_CERT_DIR: cannot be used: {error}") from None


def _bounded(chunks: Iterable[bytes]) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        check_size(size := size + len(chunk), _MAX_BYTES)
        yield chunk


async def _abounded(response: httpcore2.Response) -> AsyncGenerator[bytes, None]:
    size = 0
    async with contextlib.aclosing(response.aiter_stream()) as chunks:  # else a loop that ends finds it half-read
        async for chunk in chunks:
            check_size(size := size + len(chunk), _MAX_BYTES)
            yield chunk


def _failed(error: Exception, seconds: float) -> CallFailed:
    """What an error of the network means for a decision."""
    if isinstance(error, httpcore2.TimeoutException | TimeoutError | queue.Empty):
        return failed_io(TimeoutError(), f"no complete answer within {seconds * 1000:g} ms")
    return failed_io(error, f"{type(error).__name__}: {error}")


def _chunks(response: httpcore2.Response, seconds: float) -> Iterator[bytes]:
    try:
        yield from _bounded(response.iter_stream())
    except Exception as error:
        raise _failed(error, seconds) from None


async def _achunks(response: httpcore2.Response, ends: float, seconds: float) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(_abounded(response)) as body:
        while True:
            try:
                async with asyncio.timeout_at(ends):
                    chunk = await anext(body, None)
            except Exception as error:
                raise _failed(error, seconds) from None
            if chunk is None:
                return
            yield chunk


def _seconds_until(at: float | None) -> float:
    left = (at or 0.0) - time.monotonic()
    if left <= 0:
        raise httpcore2.TimeoutException
    return left


class _DeadlineStream(httpcore2.NetworkStream):
    """A stream whose `timeout` is a moment by the monotonic clock: an operation may take what is left until then.

    httpcore2 writes a request's head and body apart; here they leave together, before the answer is read: one system
    call, and on the other side one wake-up, less.
    """

    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self._stream = stream
        self._unsent = b""

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._unsent:
            unsent, self._unsent = self._unsent, b""
            with contextlib.suppress(httpcore2.WriteError):  # a server may hang up early, and yet have answered
                self._stream.write(unsent, _seconds_until(timeout))
        return self._stream.read(max_bytes, _seconds_until(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._unsent += buffer

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, _seconds_until(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Backend(httpcore2.NetworkBackend):
    """Connects until the deadline, the look-up of the name included."""

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
        for address in _look_up(host, port, timeout):
            try:
                return _DeadlineStream(
                    self._backend.connect_tcp(address, port, _seconds_until(timeout), local_address, socket_options)
                )
            except httpcore2.ConnectError as error:
                failure = error
        raise failure


class _JoiningStream(httpcore2.AsyncNetworkStream):
    """The async `_DeadlineStream`. It needs no timeouts of its own: at the deadline the call is cancelled."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream
        self._unsent = b""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - its interface
        if self._unsent:
            unsent, self._unsent = self._unsent, b""
            with contextlib.suppress(httpcore2.WriteError):
                await self._stream.write(unsent)
        return await self._stream.read(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        self._unsent += buffer

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore2.AsyncNetworkStream:
        return _JoiningStream(await self._stream.start_tls(ssl_context, server_hostname))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _AsyncBackend(httpcore2.AsyncNetworkBackend):
    def __init__(self) -> None:
        self._backend = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        return _JoiningStream(await self._backend.connect_tcp(host, port, None, local_address, socket_options))


def _look_up(host: str, port: int, at: float | None) -> list[str]:
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
        answer = answers.get(timeout=_seconds_until(at))
    except queue.Empty:
        raise httpcore2.ConnectTimeout from None
    if isinstance(answer, OSError):
        raise httpcore2.ConnectError(str(answer))
    return answer
