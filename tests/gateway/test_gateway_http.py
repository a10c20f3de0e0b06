"""HTTP as clients, load balancers and proxies speak it: what is theirs to say, and what each party may see of it."""

from __future__ import annotations

import asyncio
import gzip
from contextlib import suppress

import pytest

from tests.gateway.conftest import TOKEN, UPSTREAM_KEY, Running, Start
from tests.gateway.scripted import Script, Seen, anthropic_stream, stream, whole
from tests.gateway.test_gateway_coding import coding

BODY = b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}'
OK = whole(200, b"{}")


def head(*lines: bytes, first: bytes = b"POST /v1/messages HTTP/1.1") -> bytes:
    return b"\r\n".join([first, b"Host: localhost", b"Authorization: Bearer " + TOKEN.encode(), *lines, b"", b""])


def sized(*lines: bytes, first: bytes = b"POST /v1/messages HTTP/1.1") -> bytes:
    return head(*lines, b"Content-Length: %d" % len(BODY), first=first) + BODY


async def send(running: Running, *parts: bytes) -> bytes:
    """What comes back until the connection is closed; between the parts we wait for something to come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rpartition(":")[2]))
    answer = b""
    for number, part in enumerate(parts):
        if number:
            answer += await asyncio.wait_for(reader.read(65536), 5)
        writer.write(part)
    try:
        return answer + await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()


def sends(raw: bytes) -> Script:
    async def script(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()
        writer.close()

    return script


async def test_trailers_are_no_headers(start: Start) -> None:
    # uvicorn appends them to the headers: an Authorization that nobody judged would go on to the upstream.
    running = await start()
    running.anthropic.script = OK
    chunks = b"%x\r\n%b\r\n" % (len(BODY), BODY)
    end = b"0\r\nAuthorization: Bearer stolen\r\nx-late: 1\r\n\r\n"
    request = head(b"Connection: close", b"Expect: 100-continue", b"Transfer-Encoding: chunked", b"Trailer: x-late")
    answers = [await send(running, request + chunks + end), await send(running, request, chunks + end)]
    assert answers[1].startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")
    for seen in running.anthropic.seen:
        assert seen.body == BODY
        assert seen.header("authorization") == f"Bearer {UPSTREAM_KEY}"
        assert {name.lower() for name, _ in seen.headers} == {"host", "authorization", "content-length"}
    assert len(running.anthropic.seen) == 2


async def test_trailers_without_end_are_cut_off(start: Start) -> None:
    running = await start()
    request = head(b"Transfer-Encoding: chunked", first=b"POST /v1/nowhere HTTP/1.1") + b"2\r\n{}\r\n0\r\nx: "
    running.anthropic.script = OK
    with suppress(ConnectionError):
        assert await send(running, request + b"a" * (1 << 20)) == b""
    assert running.anthropic.seen == []


async def test_an_offer_of_another_protocol_does_not_cost_the_body(start: Start) -> None:
    # Java's HttpClient offers h2c with every first request; uvicorn's parser takes the body for that protocol's.
    running = await start()
    running.anthropic.script = OK
    offer = (b"Connection: Upgrade, HTTP2-Settings, close", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk")
    for parts in ([sized(*offer)], [sized(*offer, b"Expect: 100-continue")[: -len(BODY)], BODY]):
        assert b"HTTP/1.1 200" in await send(running, *parts)
        seen = running.anthropic.last
        assert seen.body == BODY
        assert {name.lower() for name, _ in seen.headers} == {"host", "authorization", "content-length"}
    both = sized(*offer) + sized(*offer)
    assert (await send(running, both)).count(b"HTTP/1.1 200") <= 1
    for first in (b"CONNECT evil.example:443 HTTP/1.1", b"CONNECT / HTTP/1.1"):
        assert (await send(running, head(first=first))).startswith(b"HTTP/1.1 400")
    assert len(running.anthropic.seen) <= 3


async def test_http_1_0_gets_no_chunks(start: Start) -> None:
    running = await start()
    answer = anthropic_stream()
    running.anthropic.script = stream(answer)
    got = await send(running, sized(first=b"POST /v1/messages HTTP/1.0"))
    assert got.partition(b"\r\n\r\n")[2] == answer
    assert b"chunked" not in got
    running.anthropic.script = whole(200, b"{}")
    got = await send(running, sized(first=b"POST /v1/messages HTTP/1.0"))
    assert got.endswith(b"content-length: 2\r\nconnection: close\r\n\r\n{}")


async def test_every_header_that_connection_names_stays_here(start: Start) -> None:
    running = await start()
    running.anthropic.script = sends(
        b"HTTP/1.1 200 OK\r\nConnection: x-one\r\nconnection: close, X-Two\r\nX-One: 1\r\nX-Two: 2\r\nX-Three: 3\r\n"
        b"Content-Length: 2\r\n\r\n{}"
    )
    named = (b"Connection: x-one", b"CONNECTION: close, X-TWO", b"x-one: 1", b"X-Two: 2", b"X-Three: 3")
    answer = await send(running, sized(*named))
    assert (b"x-one" in answer, b"x-two" in answer, b"x-three: 3" in answer) == (False, False, True)
    seen = running.anthropic.last
    assert (seen.header("x-one"), seen.header("x-two"), seen.header("x-three")) == (None, None, "3")
    assert seen.header("connection") in (None, "keep-alive")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 103 Early Hints\r\nlink: <x>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-t\r\n\r\n2\r\n{}\r\n0\r\nx-t: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n{}",
        b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{}",
    ],
)
async def test_answers_in_every_frame_arrive_whole(start: Start, answer: bytes) -> None:
    running = await start()
    running.anthropic.script = sends(answer)
    status, headers, body = await running.ask("POST", "/v1/messages", data=BODY)
    assert (status, body) == (200, b"{}")
    assert "x-t" not in headers
    status, headers, body = await running.ask("POST", "/v1/messages", json=coding())
    assert (status, body) == (200, b"{}")


async def test_compressed_requests_and_odd_queries_pass_as_they_are(start: Start) -> None:
    running = await start()
    running.anthropic.script = OK
    packed = gzip.compress(BODY)
    query = b"/v1/messages?a='\"<>|{}^`&b=%zz&c=[1]&&=&d=%2F..%2f"
    lines = (b"Connection: close", b"Content-Encoding: gzip", b"Content-Length: %d" % len(packed))
    answer = await send(running, head(*lines, first=b"POST " + query + b" HTTP/1.1") + packed)
    assert answer.startswith(b"HTTP/1.1 200")
    assert running.anthropic.last.body == packed
    assert running.anthropic.last.header("content-encoding") == "gzip"
    assert running.anthropic.last.target.encode() == query


async def test_methods(start: Start) -> None:
    running = await start()
    running.anthropic.script = running.openai.script = whole(200, b"{}", ("allow", "GET"))
    closing = (b"Connection: close",)
    answer = await send(running, head(*closing, first=b"HEAD /v1/models HTTP/1.1"))
    assert answer.endswith(b"content-length: 2\r\nallow: GET\r\nconnection: close\r\n\r\n")
    assert b"allow: GET" in await send(running, head(*closing, first=b"OPTIONS /v1/messages HTTP/1.1"))
    seen = len(running.anthropic.seen)
    assert b" 400 " in await send(running, head(*closing, first=b"OPTIONS * HTTP/1.1"))
    for first in (b"GET /v1/decide/should_respond HTTP/1.1", b"PUT /v1/feedback HTTP/1.1"):
        answer = await send(running, head(*closing, first=first))
        assert b" 405 " in answer
        assert b"allow: POST" in answer
    assert len(running.anthropic.seen) == seen


async def test_requests_have_to_come_in_time(start: Start) -> None:
    running = await start(head_timeout_s=0.5, body_timeout_s=0.5)

    async def slow(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(1)
        await OK(seen, writer)

    running.anthropic.script = slow
    chunk = b"%x\r\n%b\r\n" % (len(BODY), BODY)

    async def drip(*parts: bytes, then: bytes = b"x") -> bytes:
        """What comes back to a client that sends a byte now and then, for ever; or says no more at all."""
        reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rpartition(":")[2]))
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.02)
        answer = bytearray()

        async def read() -> None:
            with suppress(ConnectionError):  # the reset of one that went on sending: what came before it counts
                while part := await reader.read(65536):
                    answer.extend(part)

        reading = asyncio.ensure_future(read())
        with suppress(ConnectionError):
            while not reading.done():
                writer.write(then)
                await asyncio.sleep(0.02)
        writer.close()
        await reading
        return bytes(answer)

    async def kept_alive() -> bytes:
        return await drip(sized(), then=b"\r\n")

    answers = await asyncio.wait_for(
        asyncio.gather(
            drip(then=b""),
            drip(b"GET / HT", then=b""),
            drip(head()[:-2] + b"X-Slow: "),
            drip(head(b"Content-Length: 99999"), then=b""),
            drip(head(b"Content-Length: 99999")),
            drip(head(b"Transfer-Encoding: chunked"), chunk, then=b""),
            drip(head(b"Content-Length: 10", first=b"POST /v1/files HTTP/1.1"), then=b""),
            drip(head(b"Content-Length: 99999")[:-2].replace(b"Bearer", b"Wrong") + b"\r\n"),
            kept_alive(),
            send(running, sized(b"Connection: close")),
        ),
        20,
    )
    nothing, *late, refused, kept, whole_answer = answers
    assert nothing == b""
    assert [answer.partition(b"\r\n")[0] for answer in late] == [b"HTTP/1.1 408 Request Timeout"] * 6
    assert b'"type":"timeout_error"' in late[0]
    assert [answer.count(b"HTTP/1.1") for answer in (refused, kept, whole_answer)] == [1, 1, 1]
    assert b" 401 " in refused
    assert whole_answer.startswith(b"HTTP/1.1 200")  # nobody is hurried who waits for an answer
    assert kept.startswith(b"HTTP/1.1 200")
    stats = running.gateway.state.metrics.statistics()
    assert stats["request_timeouts"] == {"head": 4, "body": 5}
    assert running.gateway.active == 0


async def test_an_answer_that_nobody_reads_is_given_up(start: Start) -> None:
    running = await start(write_timeout_s=0.1)
    running.anthropic.script = stream(*[b"x" * (1 << 20)] * 64)
    _, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rpartition(":")[2]), limit=1000)
    writer.write(sized())
    while not running.anthropic.seen:
        await asyncio.sleep(0.01)
    await asyncio.wait_for(running.anthropic.last.closed.wait(), 5)
    assert running.gateway.state.metrics.statistics()["request_timeouts"] == {"answer": 1}
    writer.close()
