"""Reading what a request asks, also where its body is compressed (RFC 9110, 8.4): gzip, deflate, br and zstd.

What is passed on is the body as it came; this is a copy to look at. It never holds more than a request may, and what is
not small is made in a thread, a few at a time: a body that swells costs memory for itself and nobody's time.
"""

from __future__ import annotations

import asyncio
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import brotli
import orjson

from gateway.exchange import MAX_BODY_BYTES, Exchange

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

INLINE_BYTES = 256 << 10
"""So much is decompressed in the event loop: about 1 ms."""

_MEMBERS = 8
_WINDOW_LOG = 23  # the memory that a zstd frame may ask for: 8 MB, as RFC 9659 has it for HTTP
_threads = ThreadPoolExecutor(4, thread_name_prefix="gateway-body")


class _TooLarge(Exception):
    pass


class _Undecodable(Exception):
    pass


def parse_object(plain: bytes | None) -> dict[str, Any] | None:
    """The object that a body holds; None where only the upstream can tell what is wrong with it."""
    if plain is None:
        return None
    try:
        request = orjson.loads(plain)
    except orjson.JSONDecodeError:
        return None
    return request if isinstance(request, dict) else None


async def decode_body(exchange: Exchange, body: bytes) -> bytes | None:
    """The body without its content coding; None for what is damaged, larger than a request may be, or coded otherwise
    or twice."""
    if b"content-encoding" not in exchange.admission.headers:
        return body
    told = b",".join(value for name, value in exchange.headers if name == b"content-encoding")
    codings = [coding for part in told.split(b",") if (coding := part.strip().lower()) not in (b"", b"identity")]
    if not codings:
        return body
    with suppress(_Undecodable):
        if len(codings) > 1:
            raise _Undecodable
        if len(body) <= INLINE_BYTES and codings[0] != b"br":  # whose window alone takes 10 ms
            with suppress(_TooLarge):
                return _decode(body, codings[0], INLINE_BYTES)
        with suppress(_TooLarge):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(_threads, _decode, body, codings[0], MAX_BODY_BYTES)
    exchange.reason = "undecodable_body"
    return None


def _decode(body: bytes, coding: bytes, limit: int) -> bytes:
    """Raises `_TooLarge` beyond `limit` bytes, and `_Undecodable`."""
    try:
        match coding:
            case b"gzip" | b"x-gzip":
                return _members(lambda: zlib.decompressobj(zlib.MAX_WBITS | 16), body, limit)
            case b"deflate":
                wrapped = body[:1] and body[0] & 0x0F == 8 and int.from_bytes(body[:2]) % 31 == 0
                return _members(lambda: zlib.decompressobj(zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS), body, limit)
            case b"zstd":
                options = {int(zstd.DecompressionParameter.window_log_max): _WINDOW_LOG}
                return _members(lambda: zstd.ZstdDecompressor(options=options), body, limit)
            case b"br":
                return _brotli(body, limit)
    except (zlib.error, zstd.ZstdError, brotli.error, EOFError):
        raise _Undecodable from None
    raise _Undecodable


def _members(new: Callable[[], Any], body: bytes, limit: int) -> bytes:
    """All members of a gzip file, or frames of zstd, one after the other: a few, for each costs a copy of the rest."""
    parts, size = [], 0
    for _ in range(_MEMBERS):
        decompressor = new()
        part = decompressor.decompress(body, limit + 1 - size)
        size += len(part)
        if size > limit:
            raise _TooLarge
        if not decompressor.eof:
            raise _Undecodable
        parts.append(part)
        body = decompressor.unused_data
        if not body:
            return b"".join(parts)
    raise _Undecodable


def _brotli(body: bytes, limit: int) -> bytes:
    decompressor = brotli.Decompressor()
    part = decompressor.process(body, output_buffer_limit=limit + 1)
    parts, size = [part], len(part)
    while part and size <= limit and not decompressor.is_finished():
        part = decompressor.process(b"", output_buffer_limit=limit + 1 - size)
        parts.append(part)
        size += len(part)
    if size > limit:
        raise _TooLarge
    if not decompressor.is_finished():
        raise _Undecodable
    return b"".join(parts)
