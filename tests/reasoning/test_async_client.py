from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reasoning import AsyncDecisionClient
from reasoning.config import Config
from reasoning.errors import StreamInterrupted, UnknownDecisionType
from reasoning.serving.routes import Arm
from tests.reasoning.conftest import CONTEXT, ModelServer, Request, completion, events, http, rows, says, sends, streams

Write = Callable[..., Any]


async def rule(context: Any) -> str:
    return "RESPOND"


async def test_a_models_answer_and_the_originals(data: Path, server: ModelServer, route: Write) -> None:
    route()
    async with AsyncDecisionClient(data) as client:
        assert (await client.decide_should_respond(CONTEXT, rule)).decision == {"action": "IGNORE"}
        server.answer = sends(http(b"", 500))
        answer = await client.decide_should_respond(CONTEXT, rule)
        assert (answer.source, answer.fallback_reason) == ("original", "provider_error")
        assert (await client.decide_should_respond(CONTEXT, lambda _: "STOP")).decision == {"action": "STOP"}
        assert await client.feedback("good", 1, decision_id=answer.decision_id)
        assert await client.demonstrate(answer.decision_id, "STOP")
        with pytest.raises(UnknownDecisionType):
            await client.decide("vote", CONTEXT, rule)
    assert server.connections == 1 and len(rows(data)) == 7


async def test_many_at_once_share_one_client(data: Path, server: ModelServer, route: Write) -> None:
    route()
    async with AsyncDecisionClient(data) as client:
        answers = await asyncio.gather(*(client.decide_should_respond(CONTEXT, rule) for _ in range(100)))
    assert {a.fallback_reason for a in answers} == {None} and len(rows(data)) == 100


@pytest.mark.parametrize("bytes_first", [0, 20, -5])
async def test_the_deadline_covers_the_last_byte(
    data: Path, server: ModelServer, route: Write, bytes_first: int
) -> None:
    whole = http(completion("<response><action>IGNORE</action></response>"))

    def slow(request: Request, connection: socket.socket) -> None:
        connection.sendall(whole[:bytes_first])
        server.hang(request, connection)

    server.answer = slow
    route(deadline_ms=100)
    async with AsyncDecisionClient(data) as client:
        assert (await client.decide_should_respond(CONTEXT, rule)).fallback_reason == "timeout"


async def test_cancellation_is_honoured_and_says_nothing_about_the_model(
    data: Path, server: ModelServer, route: Write
) -> None:
    server.answer = server.hang
    route(deadline_ms=60_000)
    async with AsyncDecisionClient(config=Config(data, breaker_failures=1)) as client:
        task = asyncio.create_task(client.decide_should_respond(CONTEXT, rule))
        while not server.requests:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert list(client.stats()["breakers"].values()) == ["closed"]
        server.answer = says("<response><action>STOP</action></response>")
        assert (await client.decide_should_respond(CONTEXT, rule)).source == "custom"
    assert len(rows(data)) == 1


async def test_a_cancelled_original_passes(data: Path) -> None:
    async def slow(_: Any) -> str:
        await asyncio.sleep(60)
        return "STOP"

    async with AsyncDecisionClient(data) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await client.decide_should_respond(CONTEXT, slow)


async def test_what_the_original_raises_passes_and_is_recorded(data: Path) -> None:
    async def broken(_: Any) -> str:
        raise LookupError("mine")

    async with AsyncDecisionClient(data) as client:
        with pytest.raises(LookupError, match="mine"):
            await client.decide_should_respond(CONTEXT, broken)
    assert rows(data)[0]["error"] == "LookupError: mine"


async def test_shadows_do_not_delay_and_are_flushed(data: Path, server: ModelServer, route: Write) -> None:
    live = Arm("live", "custom", 1.0, model="a", base_url=server.url)
    route(live, Arm("next", "custom", 0, "shadow", model="b", base_url=server.url), Arm("o", "original", 0, "shadow"))
    async with AsyncDecisionClient(data) as client:
        await client.decide_should_respond(CONTEXT, rule)
    assert {row["arm"]: row["served"] for row in rows(data)} == {"live": True, "next": False, "o": False}


async def test_shadows_that_are_too_many_or_too_late_are_dropped(data: Path, server: ModelServer, route: Write) -> None:
    server.answer = server.hang
    shadow = Arm("next", "custom", 0, "shadow", model="b", base_url=server.url)
    route(Arm("original", "original", 1.0), shadow, deadline_ms=60_000)
    client = AsyncDecisionClient(config=Config(data, shadow_workers=1, shadow_queue=2))
    for _ in range(10):
        assert (await client.decide_should_respond(CONTEXT, rule)).source == "original"
    assert client.stats()["shadows"] == {"taken": 3, "dropped": 7}
    await client.close(seconds=0)
    assert client.stats()["shadows"] == {"taken": 3, "dropped": 10}


def test_a_client_outlives_its_event_loop(data: Path, server: ModelServer, route: Write) -> None:
    route()
    client = AsyncDecisionClient(data)
    for _ in range(3):  # every loop is closed with its connections still open
        assert asyncio.run(client.decide_should_respond(CONTEXT, rule)).source == "custom"
    asyncio.run(client.close())
    assert len(rows(data)) == 3


def test_a_forked_child_goes_on(data: Path, server: ModelServer, route: Write) -> None:
    route()
    client = AsyncDecisionClient(data)
    assert asyncio.run(client.decide_should_respond(CONTEXT, rule)).source == "custom"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = asyncio.run(client.decide_should_respond(CONTEXT, rule)).source != "custom"
            asyncio.run(client.close())
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert asyncio.run(client.decide_should_respond(CONTEXT, rule)).source == "custom"
    asyncio.run(client.close())
    assert len(rows(data)) == 3


class TestStreams:
    async def test_pieces_and_answer(self, data: Path, server: ModelServer, route: Write) -> None:
        route()
        server.answer = streams("Here:\n", "```py\nx\n", "```")
        async with AsyncDecisionClient(data) as client:
            stream = await client.decide_coding({"prompt": "p"}, lambda _: {"code": "y"}, stream=True)
            assert "".join([piece async for piece in stream]) == "Here:\n```py\nx\n```"
            assert stream.answer.decision["code"] == "x"

    async def test_before_and_after_the_first_piece(self, data: Path, server: ModelServer, route: Write) -> None:
        route()
        async with AsyncDecisionClient(data) as client:
            server.answer = streams(end=b"")
            stream = await client.decide_coding({"prompt": "p"}, lambda _: {"code": "y"}, stream=True)
            assert [piece async for piece in stream] == ["```\ny\n```"]
            server.answer = streams("Here", end=b"")
            stream = await client.decide_coding({"prompt": "p"}, lambda _: {"code": "y"}, stream=True)
            with pytest.raises(StreamInterrupted, match="breaks off"):
                _ = [piece async for piece in stream]

    async def test_an_agent_may_stop_reading(self, data: Path, server: ModelServer, route: Write) -> None:
        route()

        def slow(request: Request, connection: socket.socket) -> None:
            connection.sendall(events("a", end=b""))
            server.hang(request, connection)

        server.answer = slow
        async with AsyncDecisionClient(data) as client:
            stream = await client.decide_coding({"prompt": "p"}, lambda _: {"code": "y"}, stream=True)
            assert await anext(aiter(stream)) == "a"
            await stream.aclose()
            assert client.stats()["streams"] == {"abandoned": 1}

    async def test_an_original_may_stream_too(self, data: Path) -> None:
        async def pieces(_: Any) -> Any:
            yield "```py\n"
            yield "z\n```"

        async with AsyncDecisionClient(data) as client:
            stream = await client.decide_coding({"prompt": "p"}, pieces, stream=True)
            assert [piece async for piece in stream] == ["```py\n", "z\n```"]
            assert stream.answer.decision["code"] == "z"
