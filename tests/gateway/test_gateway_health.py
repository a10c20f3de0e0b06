"""What says something about a server, and what about one request only; connections that were closed; upgrades."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.gateway.conftest import Start
from tests.gateway.scripted import (
    ANTHROPIC_MESSAGE,
    DONE,
    Scripted,
    Seen,
    chat_answer,
    chat_chunk,
    cut,
    json,
    stream,
)
from tests.gateway.test_gateway_coding import ask, coding
from tests.gateway.test_gateway_http import head

CUT: dict[str, Any] = {
    "in the reasoning": json(chat_answer(None, finish="length")),
    "in a call": json(chat_answer(None, [{"id": "c", "function": {"name": "Bash", "arguments": '{"comm'}}], "length")),
    "in a streamed reasoning": stream(chat_chunk(reasoning="hm"), chat_chunk(finish_reason="length"), DONE),
    "open thought": json(chat_answer("<think>hm", finish="length")),
    "in a call as text": json(chat_answer('<tool_call>{"name": "Ba', finish="length")),
}


@pytest.mark.parametrize("kind", CUT)
async def test_a_small_max_tokens_is_the_matter_of_its_request(start: Start, kind: str) -> None:
    running = await start(config={"breaker_failures": 2}, coding_tools="text" if "as text" in kind else "auto")
    running.route()
    running.model.script = CUT[kind]
    running.anthropic.script = json(ANTHROPIC_MESSAGE)
    request = coding("fix the code", stream="stream" in kind)
    for _ in range(5):
        assert (await ask(running, request))[0] == 200
    assert set(running.gateway.state.coding.breaker_states().values()) == {"closed"}
    running.model.script = json(chat_answer("Done."))
    request["stream"] = False
    assert (await ask(running, request))[1].get("x-reasoning-source") == "custom"  # the same session


async def test_a_request_on_a_connection_that_was_just_closed_is_sent_again(start: Start) -> None:
    running = await start()
    for path, server in (("/v1/messages", running.anthropic), ("/v1/chat/completions", running.openai)):
        server.scripts = [json({}), cut, json({"second": True})]
        assert (await running.ask("POST", path, data=b"{}"))[0] == 200
        status, _, body = await running.ask("POST", path, data=b'{"a":1}')
        assert (status, body) == (200, b'{"second":true}')
        assert (len(server.seen), server.connections) == (3, 2)
        assert server.last.body == b'{"a":1}'


async def test_the_model_is_asked_again_as_well(start: Start) -> None:
    running = await start(config={"breaker_failures": 1})
    running.route()
    running.model.scripts = [json(chat_answer("one")), cut, json(chat_answer("two"))]
    sources = [(await ask(running, coding(f"fix the code {i}")))[1].get("x-reasoning-source") for i in range(2)]
    assert sources == ["custom", "custom"]


async def test_what_may_have_been_done_is_not_sent_again(start: Start) -> None:
    async def late(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(1.1)
        writer.close()

    async def begun(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-le")
        await writer.drain()
        writer.close()

    running = await start()
    server = running.anthropic
    for path, script in (
        ("/v1/messages", late),
        ("/v1/messages", begun),
        ("/v1/messages/batches", cut),
        ("/v1/files", cut),
    ):
        server.scripts = [json({}), script, json({"never": True})]
        await running.ask("POST", path, data=b"{}", headers=running.headers | {"anthropic-version": "2023-06-01"})
        seen = len(server.seen)
        status, _, _ = await running.ask(
            "POST", path, data=b"{}", headers=running.headers | {"anthropic-version": "2023-06-01"}
        )
        assert (status, len(server.seen)) == (502, seen + 1), path
    server.scripts = [cut, json({})]
    async with Scripted(cut) as fresh:  # a new connection that is closed is the server's failure, not a lost race
        running.gateway.state.pools["anthropic"].upstreams[0].base = fresh.url
        assert (await running.ask("POST", "/v1/messages", data=b"{}"))[0] == 502
        assert len(fresh.seen) == 1


async def test_an_idle_connection_is_not_kept_until_the_server_closes_it(start: Start) -> None:
    running = await start()
    connector = running.gateway.state.http.connector
    assert connector is not None
    assert connector._keepalive_timeout < 5  # what Node and uvicorn allow


@pytest.mark.parametrize("offer", [b"websocket", b"WebSocket", b"h2c, websocket", b"something/1"])
async def test_another_protocol_is_refused_at_once(start: Start, offer: bytes) -> None:
    running = await start()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rpartition(":")[2]))
    lines = (b"Connection: Upgrade", b"Upgrade: " + offer, b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    writer.write(head(*lines, first=b"GET /v1/responses HTTP/1.1"))
    answer = await asyncio.wait_for(reader.readuntil(b"}}"), 5)
    assert answer.startswith(b"HTTP/1.1 426 ")
    assert b"upgrade: HTTP/1.1\r\n" in answer
    assert b"WebSocket" in answer
    assert running.openai.seen == running.anthropic.seen == []
    running.openai.script = json({})
    writer.write(head(b"Connection: close", first=b"GET /v1/models HTTP/1.1"))  # the connection goes on
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n"), 5)).endswith(b"200 OK\r\n")
    writer.close()
