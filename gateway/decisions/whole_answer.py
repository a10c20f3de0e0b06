"""An upstream's answer to a client's request, read whole before any of it goes back: a decision is small."""

from __future__ import annotations

from typing import NamedTuple

from gateway.errors import UpstreamError
from gateway.http.exchange import Exchange
from gateway.http.security import Headers, forwarded_headers, returned_headers
from gateway.http.upstream import Pool, ask
from gateway.state import State
from reasoning.io.bounded import MAX_BYTES


class WholeAnswer(NamedTuple):
    """Its status, the headers for the client, and its body."""

    status: int
    headers: Headers
    body: bytes


async def fetch_whole(state: State, exchange: Exchange, pool: Pool, path: bytes, body: bytes) -> WholeAnswer:
    """Send a client's request to a server of `pool`. Raises `UpstreamError`."""
    protocol = exchange.protocol
    assert protocol is not None
    upstream, response = await ask(
        state.http,
        pool,
        exchange.method,
        path,
        exchange.query,
        lambda chosen: forwarded_headers(
            exchange.headers, exchange.admission, protocol, chosen.settings.api_key, identity=True
        ),
        body,
    )
    try:
        parts, size = [], 0
        while chunk := await response.content.readany():
            size += len(chunk)
            if size > MAX_BYTES:  # not asked again: it would cost the same once more
                raise UpstreamError(f"{pool.name} answered a decision with more than {MAX_BYTES} bytes")
            parts.append(chunk)
    finally:
        upstream.active -= 1
        response.release() if response.content.at_eof() else response.close()
    headers = [header for header in returned_headers(response.raw_headers) if header[0] != b"content-length"]
    headers.append((b"content-length", b"%d" % size))
    return WholeAnswer(response.status, headers, b"".join(parts))
