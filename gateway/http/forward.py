"""Passing a request on, byte for byte in both directions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import aiohttp

from gateway.errors import UpstreamError, UpstreamTimeout
from gateway.http.exchange import Exchange
from gateway.http.security import forwarded_headers, returned_headers
from gateway.http.upstream import Pool, Upstream, ask

MAX_COPY_BYTES = 8 << 20


class Copy:
    """What goes back to the client, kept for the recorder up to `MAX_COPY_BYTES`.

    An answer that can be recorded gets `headers` besides its own. `keep` is awaited when it is whole and before its end
    goes out; of what has no end, the caller has to take care.
    """

    __slots__ = ("complete", "content_type", "encoded", "headers", "keep", "parts", "size", "status")

    def __init__(
        self, headers: Sequence[tuple[bytes, bytes]] = (), keep: Callable[[Copy], Awaitable[None]] | None = None
    ) -> None:
        self.headers = headers
        self.keep = keep
        self.parts: list[bytes] = []
        self.size = 0
        self.status = 0
        self.content_type = ""
        self.encoded = False
        self.complete = False

    def note(self, response: aiohttp.ClientResponse) -> None:
        """Keep what its head says."""
        self.status = response.status
        self.content_type = response.headers.get("content-type", "")
        self.encoded = response.headers.get("content-encoding", "identity") != "identity"

    def add(self, part: bytes) -> None:
        self.size += len(part)
        if self.size <= MAX_COPY_BYTES:
            self.parts.append(part)

    async def finish(self) -> None:
        """All of it is here."""
        self.complete = True
        if self.keep is not None and self.readable:
            await self.keep(self)

    @property
    def readable(self) -> bool:
        """Can its contents be told, as far as they came?"""
        return self.status == 200 and not self.encoded

    @property
    def usable(self) -> bool:
        """Is it here as a whole?"""
        return self.complete and self.readable and self.size <= MAX_COPY_BYTES

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)


async def forward(
    exchange: Exchange,
    session: aiohttp.ClientSession,
    pool: Pool,
    *,
    path: bytes,
    body: bytes | AsyncIterator[bytes] | None,
    copy: Copy | None = None,
) -> None:
    """Send the request to a server of `pool` and its answer to the client. Raises `UpstreamError` before the answer.

    When the upstream breaks off, so do we: the client sees the same cut connection. When the client goes away the
    connection to the upstream is closed at once.
    """
    exchange.served_by = pool.name
    if isinstance(body, bytes):
        with exchange.watch():
            await _forward(exchange, session, pool, path, body, copy)
    else:  # the body is still being read: that tells when the client goes
        await _forward(exchange, session, pool, path, body, copy)


async def fetch(exchange: Exchange, session: aiohttp.ClientSession, pool: Pool, *, path: bytes, body: bytes) -> Copy:
    """The answer to the client's request without sending it back, up to `MAX_COPY_BYTES`. Raises `UpstreamError`."""
    copy = Copy()
    upstream, response = await _ask(exchange, session, pool, path, body, identity=True)
    try:
        copy.note(response)
        while copy.size <= MAX_COPY_BYTES and (chunk := await response.content.readany()):
            copy.add(chunk)
        copy.complete = response.content.at_eof()
    except (aiohttp.ClientError, ConnectionError, TimeoutError):
        raise UpstreamError(f"{pool.name} broke off its answer") from None
    finally:
        upstream.active -= 1
        response.release() if copy.complete else response.close()
    return copy


def _ask(
    exchange: Exchange,
    session: aiohttp.ClientSession,
    pool: Pool,
    path: bytes,
    body: bytes | AsyncIterator[bytes] | None,
    *,
    identity: bool,
) -> Awaitable[tuple[Upstream, aiohttp.ClientResponse]]:
    """`ask` with what the client sent; `identity` for an answer that we can read. Plain, as `Exchange.start` is."""
    admission, protocol = exchange.admission, exchange.protocol
    assert protocol is not None
    return ask(
        session,
        pool,
        exchange.method,
        path,
        exchange.query,
        lambda chosen: forwarded_headers(
            exchange.headers, admission, protocol, chosen.settings.api_key, identity=identity
        ),
        body,
    )


async def _forward(
    exchange: Exchange,
    session: aiohttp.ClientSession,
    pool: Pool,
    path: bytes,
    body: bytes | AsyncIterator[bytes] | None,
    copy: Copy | None,
) -> None:
    upstream, response = await _ask(exchange, session, pool, path, body, identity=copy is not None)
    try:
        with exchange.watch():
            await _send_back(exchange, response, copy)
    finally:
        upstream.active -= 1
        response.close() if not response.content.at_eof() else response.release()


async def _send_back(exchange: Exchange, response: aiohttp.ClientResponse, copy: Copy | None) -> None:
    headers = returned_headers(response.raw_headers)
    if copy is not None:
        copy.note(response)
        if copy.readable:
            own = {name for name, _ in copy.headers}
            headers = [*(header for header in headers if header[0] not in own), *copy.headers]
    if response.status in (204, 304):
        headers = [header for header in headers if header[0] != b"content-length"]
    await exchange.start(response.status, headers)
    length = response.headers.get("content-length", "")
    left = int(length) if length.isdigit() else -1
    try:
        while chunk := await response.content.readany():
            if copy is not None:
                copy.add(chunk)
                if copy.size <= MAX_COPY_BYTES:
                    exchange.count_copy(len(chunk))
            left -= len(chunk)
            if left == 0 and copy is not None:
                await copy.finish()
            await exchange.write(chunk, more=left != 0)
    except (aiohttp.ClientError, ConnectionError, TimeoutError):
        exchange.reason = "upstream_cut"
        return  # without an end: the server cuts the connection
    if not exchange.finished:
        if copy is not None:
            await copy.finish()
        await exchange.write(b"", more=False)


def error_of(error: UpstreamError) -> tuple[int, str, str]:
    """Status, Anthropic's error type and message for a client whose upstream gave no answer."""
    if isinstance(error, UpstreamTimeout):
        return 504, "timeout_error", str(error)
    return 502, "api_error", str(error)
