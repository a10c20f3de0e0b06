"""Reading what a request asks, also where its body is compressed (RFC 9110, 8.4): gzip, deflate, br and zstd.

What is passed on is the body as it came; this is a copy to look at. What is not small is decompressed in a thread, two
at a time. Parsing holds the interpreter, in a thread as well, so what it may cost is bounded before it begins: by bytes
and by the number of JSON values, which is estimated from above by counting the characters that separate values. A
request above `MAX_BYTES` or `MAX_PARSED_VALUES` passes on unread. One above `MAX_VALUES` is refused: text that
fills a model's context holds fewer such characters. One large body is parsed at a time; others get their turn between.
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

from gateway.errors import RequestRefused
from gateway.http.budget import FREE_BYTES
from gateway.http.exchange import MAX_BODY_BYTES, Exchange
from reasoning.io.bounded import MAX_BYTES, MAX_DEPTH, count_values, is_deep
from reasoning.io.bounded import MAX_VALUES as MAX_PARSED_VALUES

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

INLINE_BYTES = 256 << 10
"""So much is decompressed in the event loop: about 1 ms."""
MAX_VALUES = 2_000_000
VALUE_BYTES = 72
"""Memory of a JSON value besides its text: dictionaries of one item are the largest, 232 bytes for three separators."""

_MEMBERS = 8
_WINDOW_LOG = 23  # the memory that a zstd frame may ask for: 8 MB, as RFC 9659 has it for HTTP
_threads = ThreadPoolExecutor(2, thread_name_prefix="gateway-body")
_large = asyncio.Lock()  # one large body is parsed at a time


class _TooLarge(Exception):
    pass


class _Undecodable(Exception):
    pass


async def read_request(exchange: Exchange, body: bytes) -> tuple[dict[str, Any], bytes] | None:
    """The object that a body holds, and the body without its content coding. None for what passes on unread: damaged,
    too large or too deep to be looked at, or no JSON object, which only the upstream can judge.

    Raises `RequestRefused`: 413 for what swells or has too many values, 503 where too much is under way.
    """
    plain = await decode_body(exchange, body)
    if plain is None:
        return None
    values = await _count_in_turns(plain)
    if values > MAX_VALUES:
        raise RequestRefused(
            413, "request_too_large", f"the request holds more JSON values than any model takes ({MAX_VALUES:,})"
        )
    if len(plain) > MAX_BYTES or values > MAX_PARSED_VALUES:
        exchange.reason = "too_large_to_read"
        return None
    if len(plain) <= FREE_BYTES:
        request = _parse(plain)
    else:
        cost = (0 if plain is body else len(plain)) + len(plain) + values * VALUE_BYTES
        exchange.hold(cost)
        if len(plain) <= INLINE_BYTES:
            request = _parse(plain)
        else:
            async with _large:
                request = _parse(plain)
                await asyncio.sleep(0)
        if request is None:
            exchange.drop(cost)
    if request is None:
        return None
    return request, plain


async def _count_in_turns(plain: bytes) -> int:
    """`count_values`, up to a little more than `MAX_VALUES`. Others get their turn between the pieces."""
    found = 0
    for start in range(0, len(plain), INLINE_BYTES):
        if start:
            await asyncio.sleep(0)
        found += count_values(plain, start, start + INLINE_BYTES)
        if found > MAX_VALUES:
            break
    return found


def _parse(plain: bytes) -> dict[str, Any] | None:
    try:
        request = orjson.loads(plain)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(request, dict):
        return None
    return None if plain.count(b"[") + plain.count(b"{") > MAX_DEPTH and is_deep(request) else request


async def decode_body(exchange: Exchange, body: bytes) -> bytes | None:
    """The body without its content coding; None for what is damaged, coded otherwise or twice.

    Raises `RequestRefused`: 413 for what is larger than a request may be.
    """
    if b"content-encoding" not in exchange.admission.headers:
        return body
    told = b",".join(value for name, value in exchange.headers if name == b"content-encoding")
    codings = [coding for part in told.split(b",") if (coding := part.strip().lower()) not in (b"", b"identity")]
    if not codings:
        return body
    try:
        if len(codings) > 1:
            raise _Undecodable
        if len(body) <= INLINE_BYTES and codings[0] != b"br":  # whose window alone takes 10 ms
            with suppress(_TooLarge):
                return _decode(body, codings[0], INLINE_BYTES)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(_threads, _decode, body, codings[0], MAX_BODY_BYTES)
    except _TooLarge:
        raise RequestRefused(
            413, "request_too_large", f"the request is larger than {MAX_BODY_BYTES >> 20} MB when it is decompressed"
        ) from None
    except _Undecodable:
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
