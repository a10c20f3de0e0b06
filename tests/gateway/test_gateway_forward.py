"""Passing on: every byte of the request and of the answer, disconnects, upstreams that fail."""

from __future__ import annotations

import asyncio
import gzip
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from gateway.http.upstream import Pool
from gateway.protocols.anthropic import ANTHROPIC
from gateway.protocols.openai import OPENAI
from gateway.protocols.table import make_table
from gateway.settings import UpstreamSettings
from tests.gateway import scripted
from tests.gateway.conftest import TOKEN, UPSTREAM_KEY, Start
from tests.gateway.scripted import ANTHROPIC_MESSAGE, json, stream, whole

QUESTION = b'{"model": "claude-x","max_tokens":10, "messages":[{"role":"user","content":"h\\u00e9llo"}] }'


async def test_body_query_and_headers_pass_byte_for_byte(start: Start) -> None:
    running = await start()
    answer = b'{"odd" :  "spacing", "signature":"\xc3\xa9=="}'
    running.anthropic.script = whole(
        200,
        answer,
        ("request-id", "req_1"),
        ("anthropic-ratelimit-requests-remaining", "7"),
        ("retry-after", "3"),
        ("x-should-retry", "false"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("access-control-allow-origin", "*"),
    )
    status, headers, body = await running.ask(
        "POST",
        "/v1/messages?beta=true&x=%2F%20a+b&&y",
        data=QUESTION,
        headers={
            "authorization": f"Bearer {TOKEN}",
            "anthropic-version": "2026-10-21",
            "anthropic-beta": "a-1,b-2",
            "User-Agent": "odd/1",
            "connection": "keep-alive, x-private",
            "x-private": "1",
            "x-reasoning-coding": "off",
            "accept-encoding": "br;q=0.5, gzip",
        },
    )
    seen = running.anthropic.last
    assert (status, body) == (200, answer)
    assert seen.body == QUESTION
    assert seen.target == "/v1/messages?beta=true&x=%2F%20a+b&&y"
    assert seen.header("anthropic-version") == "2026-10-21"
    assert seen.header("anthropic-beta") == "a-1,b-2"
    assert seen.header("user-agent") == "odd/1"
    assert seen.header("accept-encoding") == "br;q=0.5, gzip"
    assert seen.header("host") == running.anthropic.url.removeprefix("http://")
    assert seen.header("x-private") is None
    assert seen.header("x-reasoning-coding") is None
    assert seen.header("authorization") == f"Bearer {UPSTREAM_KEY}"
    assert headers["request-id"] == "req_1"
    assert headers["anthropic-ratelimit-requests-remaining"] == "7"
    assert headers["retry-after"] == "3"
    assert headers["x-should-retry"] == "false"
    assert headers.getall("set-cookie") == ["a=1", "b=2"]
    assert "x-hop" not in headers
    assert "access-control-allow-origin" not in headers
    assert "server" not in headers


@pytest.mark.parametrize(
    ("method", "path", "to"),
    [
        ("POST", "/v1/messages/count_tokens?beta=true", "anthropic"),
        ("GET", "/v1/messages/batches/b_1/results", "anthropic"),
        ("GET", "/v1/models?limit=2", "openai"),
        ("GET", "/v1/models/gpt-4.1%2Bx", "openai"),
        ("POST", "/v1/embeddings", "openai"),
        ("DELETE", "/v1/responses/resp_1", "openai"),
        ("GET", "/api/hello", "anthropic"),
        ("POST", "/api/event_logging/batch", "anthropic"),
        ("PATCH", "/v1/sessions/x", "anthropic"),
    ],
)
async def test_every_other_path_goes_to_its_api(start: Start, method: str, path: str, to: str) -> None:
    running = await start()
    pool = getattr(running, to)
    pool.script = whole(207, b"odd \x00 bytes", content_type="application/x-odd")
    data = b"\x00\xff not json" if method in ("POST", "PATCH") else None
    status, headers, body = await running.ask(method, path, data=data)
    assert (status, body, headers["content-type"]) == (207, b"odd \x00 bytes", "application/x-odd")
    assert (pool.last.method, pool.last.target, pool.last.body) == (method, path, data or b"")


async def test_models_of_an_anthropic_client_are_anthropics(start: Start) -> None:
    running = await start()
    running.anthropic.script = json({"data": []})
    headers = {"x-api-key": TOKEN, "anthropic-version": "2023-06-01"}
    status, _, _ = await running.ask("GET", "/v1/models", headers=headers)
    assert status == 200
    assert running.anthropic.last.header("x-api-key") == UPSTREAM_KEY
    assert running.anthropic.last.header("authorization") is None


async def test_paths_without_v1_are_aliases(start: Start) -> None:
    running = await start()
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    running.openai.script = json({})
    await running.ask("POST", "/messages?a=b", data=QUESTION)
    assert running.anthropic.last.target == "/v1/messages?a=b"
    await running.ask("POST", "/chat/completions", data=b"{}")
    assert running.openai.last.target == "/v1/chat/completions"


async def test_head_probe_passes(start: Start) -> None:
    running = await start()
    running.anthropic.script = whole(200, b"12345")
    status, headers, body = await running.ask("HEAD", "/")
    assert (status, headers["content-length"], body) == (200, "5", b"")


async def test_the_clients_own_credential_passes_when_the_token_has_its_own_header(start: Start) -> None:
    running = await start()
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    for own in ({"x-api-key": "sk-client"}, {"authorization": "Bearer sk-client"}):
        await running.ask("POST", "/v1/messages", data=QUESTION, headers={"x-reasoning-token": TOKEN, **own})
        sent = {k.lower(): v for k, v in running.anthropic.last.headers}
        assert {k: v for k, v in sent.items() if k in ("x-api-key", "authorization")} == own
        assert "x-reasoning-token" not in sent
        assert TOKEN not in str(sent)


async def test_compressed_answers_are_not_touched(start: Start) -> None:
    running = await start()
    packed = gzip.compress(b"x" * 1000)
    running.anthropic.script = whole(200, packed, ("content-encoding", "gzip"))
    _, headers, body = await running.ask("GET", "/v1/messages/batches")
    assert (headers["content-encoding"], body) == ("gzip", packed)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 413, 429, 500, 503, 529])
async def test_errors_of_the_upstream_pass_and_turn_nobody_away(start: Start, status: int) -> None:
    # LiteLLM made every following request a 429 after one 401 of its upstream.
    running = await start()
    error = b'{"type":"error","error":{"type":"x","message":"no"},"request_id":"r"}'
    running.anthropic.scripts = [whole(status, error, ("retry-after", "9"))] * 8
    for _ in range(8):
        got, headers, body = await running.ask("POST", "/v1/messages", data=QUESTION)
        assert (got, body, headers["retry-after"]) == (status, error, "9")
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    assert (await running.ask("POST", "/v1/messages", data=QUESTION))[0] == 200


async def test_redirects_are_answers_and_not_followed(start: Start) -> None:
    running = await start()
    running.anthropic.script = whole(302, b"", ("location", running.openai.url + "/steal"))
    status, headers, _ = await running.ask("GET", "/v1/messages/x")
    assert (status, headers["location"]) == (302, running.openai.url + "/steal")
    assert running.openai.seen == []


async def test_stream_passes_as_it_comes(start: Start) -> None:
    running = await start()
    arrived = asyncio.Event()

    async def script(seen: scripted.Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"5\r\nfirst\r\n")
        await writer.drain()
        await asyncio.wait_for(arrived.wait(), 5)
        writer.write(b"6\r\nsecond\r\n0\r\n\r\n")

    running.anthropic.script = script
    async with running.http.post(running.url + "/v1/messages", data=QUESTION, headers=running.headers) as response:
        assert await response.content.readexactly(5) == b"first"
        arrived.set()
        assert await response.content.read() == b"second"


@pytest.mark.parametrize("coding", [False, True])
async def test_slow_client_holds_the_upstream_back(start: Start, coding: bool) -> None:
    running = await start()
    running.route()
    piece = b"x" * (1 << 16)
    total, sent = 384, 0  # pieces: more than the buffers of four sockets hold

    async def script(seen: scripted.Seen, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        while sent < total:
            sent += 1
            part = scripted.chat_chunk(content=piece.decode()) if coding else piece
            writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            await writer.drain()
        last = b"".join(scripted.chat_stream()) if coding else b"."
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))

    running.anthropic.script = running.model.script = script
    headers = running.headers | {"x-reasoning-coding": "on" if coding else "off"}
    body = QUESTION.replace(b":10,", b":2000000,")[:-2] + b',"stream":true}'
    async with running.http.post(running.url + "/v1/messages", data=body, headers=headers) as response:
        before = -1
        while sent < total and sent != before:  # until nothing moves any more
            before = sent
            await asyncio.sleep(0.3)
        assert 0 < sent < total
        got = await response.read()
    assert got.count(piece) == total
    assert len(got) == total * len(piece) + 1 if not coding else b"message_stop" in got[-100:]


async def test_cut_upstream_is_a_cut_for_the_client(start: Start) -> None:
    running = await start()
    running.anthropic.script = stream(b"event: message_start\ndata: {}\n\n", end=False)
    with pytest.raises(aiohttp.ClientPayloadError):
        await running.ask("POST", "/v1/messages", data=QUESTION)

    async def short(seen: scripted.Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
        writer.close()

    running.anthropic.script = short
    with pytest.raises(aiohttp.ClientPayloadError):
        await running.ask("POST", "/v1/messages", data=QUESTION)


@pytest.mark.parametrize("when", ["before the answer", "within the answer"])
async def test_client_that_goes_stops_the_upstream(start: Start, when: str) -> None:
    running = await start()
    asked = asyncio.Event()

    async def script(seen: scripted.Seen, writer: asyncio.StreamWriter) -> None:
        asked.set()
        if when == "within the answer":
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await seen.closed.wait()
        writer.close()

    running.anthropic.script = script
    task = asyncio.create_task(running.ask("POST", "/v1/messages", data=QUESTION))
    await asyncio.wait_for(asked.wait(), 5)
    if when == "within the answer":
        await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait_for(running.anthropic.last.closed.wait(), 5)
    async with asyncio.timeout(5):
        while running.gateway.active:
            await asyncio.sleep(0.01)
    assert running.gateway.state.metrics.statistics()["client_disconnects"] == 1
    assert [upstream.active for upstream in running.gateway.state.pools["anthropic"].upstreams] == [0]


async def test_large_uploads_stream_through_and_small_bodies_have_a_limit(start: Start) -> None:
    running = await start()
    running.anthropic.script = json({"id": "file_1"})
    headers = running.headers | {"anthropic-version": "2026-10-21"}
    large = b"x" * (33 << 20)
    status, _, _ = await running.ask("POST", "/v1/files", data=large, headers=headers)
    assert status == 200
    assert len(running.anthropic.last.body) == len(large)
    status, _, body = await running.ask("POST", "/v1/messages", data=large, headers=headers)
    assert status == 413
    assert b'"request_too_large"' in body

    async def chunks() -> Any:
        for _ in range(33):
            yield b"x" * (1 << 20)

    status, _, body = await running.ask("POST", "/v1/messages", data=chunks(), headers=headers)
    assert status == 413


async def test_upload_that_grows_too_large_on_its_way_is_refused(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.app.MAX_BODY_BYTES", 100)
    small = replace(ANTHROPIC, large_bodies=((b"/v1/files", 1 << 20),))
    running = await start(protocols=make_table([small, OPENAI]))
    running.anthropic.script = json({})

    async def chunks() -> Any:
        for _ in range(40):
            yield b"x" * (1 << 16)

    headers = running.headers | {"anthropic-version": "2026-10-21"}
    status, _, body = await running.ask("POST", "/v1/files", data=chunks(), headers=headers)
    assert status == 413
    assert b'"request_too_large"' in body
    assert [upstream.active for upstream in running.gateway.state.pools["anthropic"].upstreams] == [0]


async def test_long_headers_of_an_upstream_pass(start: Start) -> None:
    running = await start()
    running.anthropic.script = json({}, 200, ("content-security-policy", "a" * 30_000))
    _, headers, _ = await running.ask("GET", "/v1/messages/x")
    assert len(headers["content-security-policy"]) == 30_000


async def test_unreachable_and_silent_upstreams_are_errors_in_the_apis_shape(start: Start) -> None:
    running = await start(upstreams=dict.fromkeys(("anthropic", "openai"), (UpstreamSettings("http://127.0.0.1:9"),)))
    status, headers, body = await running.ask("POST", "/v1/messages", data=QUESTION)
    assert (status, headers["x-should-retry"]) == (502, "true")
    assert b'{"type":"error","error":{"type":"api_error"' in body
    status, _, body = await running.ask("POST", "/v1/chat/completions", data=b"{}")
    assert status == 502
    assert body.startswith(b'{"error":{"message"')
    assert (await running.ask("GET", "/readyz"))[0] == 503
    silent = await start(read_timeout_s=0.05)
    silent.anthropic.script = scripted.hang
    status, _, body = await silent.ask("POST", "/v1/messages", data=QUESTION)
    assert status == 504
    assert b"timeout_error" in body
    silent.anthropic.script = scripted.cut
    assert (await silent.ask("POST", "/v1/messages", data=QUESTION))[0] == 502


async def test_next_server_of_a_pool_is_asked_when_one_cannot_be_reached(start: Start) -> None:
    running = await start()
    pool = running.gateway.state.pools["anthropic"]
    dead = UpstreamSettings("http://127.0.0.1:9", weight=1000)
    pool.upstreams[:0] = Pool("x", (dead,)).upstreams
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    for _ in range(4):
        assert (await running.ask("POST", "/v1/messages", data=QUESTION))[0] == 200
    assert pool.upstreams[0].failures == 1  # then it was left alone
    assert len(running.anthropic.seen) == 4


def test_pool_prefers_the_least_busy_in_proportion_to_weight() -> None:
    now = [0.0]
    pool = Pool("p", [UpstreamSettings("http://a", 1.0), UpstreamSettings("http://b", 3.0)], clock=lambda: now[0])
    for _ in range(8):
        chosen = pool.choose()
        assert chosen is not None
        chosen.active += 1
    assert [upstream.active for upstream in pool.upstreams] == [2, 6]
    pool.failed(pool.upstreams[1])
    assert all(pool.choose() is pool.upstreams[0] for _ in range(20))
    now[0] = 1.0
    pool.upstreams[1].active = 0
    assert pool.choose() is pool.upstreams[1]
    pool.failed(pool.upstreams[0])
    pool.failed(pool.upstreams[1])
    assert not pool.is_healthy()
    assert pool.choose() is pool.upstreams[0]  # the one whose pause ends first


async def test_concurrency_is_capped(start: Start) -> None:
    running = await start(max_concurrency=2)
    running.anthropic.script = scripted.hang
    tasks = [asyncio.create_task(running.ask("POST", "/v1/messages", data=QUESTION)) for _ in range(2)]
    async with asyncio.timeout(5):
        while len(running.anthropic.seen) < 2:
            await asyncio.sleep(0.01)
    status, headers, body = await running.ask("POST", "/v1/messages", data=QUESTION)
    assert (status, headers["retry-after"]) == (529, "1")
    assert b"overloaded_error" in body
    assert (await running.ask("POST", "/v1/responses", data=b"{}"))[0] == 503
    assert (await running.ask("GET", "/healthz", headers={}))[0] == 200
    for task in tasks:
        task.cancel()
