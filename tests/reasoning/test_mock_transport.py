"""`transport=`: an agent tested without a server. What a mock says goes the way of a real answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reasoning import AsyncDecisionClient, DecisionClient
from reasoning.config import Config
from reasoning.errors import CallFailed, StreamInterrupted
from reasoning.mock_transport import MOCK_URL, MockTransport, ModelRequest, ModelResponse, write_mock_routes
from reasoning.serving.streams import AsyncCodingStream
from tests.reasoning.conftest import CONTEXT, rows

IGNORE = "<response><action>IGNORE</action></response>"
CODE = "Here it is:\n```python\nprint(1)\n```\n"


def rule(context: Any) -> str:
    return "RESPOND"


def raises(error: Exception) -> Callable[[ModelRequest], str]:
    def handler(request: ModelRequest) -> str:
        raise error

    return handler


async def streamed(client: AsyncDecisionClient) -> AsyncCodingStream:
    return await client.decide_coding({"prompt": "p"}, lambda _: {"code": "x"}, stream=True)


OUTCOMES: list[tuple[Callable[[ModelRequest], Any], str | None]] = [
    (lambda request: IGNORE, None),
    (lambda request: "nonsense", "unparseable"),
    (lambda request: ModelResponse(503, {"error": {"message": "busy"}}), "provider_error"),
    (lambda request: ModelResponse(402), "over_budget"),
    (raises(TimeoutError()), "timeout"),
    (raises(ConnectionRefusedError("nobody there")), "provider_error"),
    (raises(CallFailed("over_budget", "spent")), "over_budget"),
]


@pytest.mark.parametrize(("handler", "reason"), OUTCOMES)
def test_a_mock_is_heard_by_both_clients(data: Path, handler: Any, reason: str | None) -> None:
    write_mock_routes(data, "should_respond")
    transport = MockTransport(handler)
    with DecisionClient(data, transport=transport) as client:
        answers = [client.decide_should_respond(CONTEXT, rule)]

    async def decide() -> None:
        async with AsyncDecisionClient(data, transport=transport) as client:
            answers.append(await client.decide_should_respond(CONTEXT, rule))

    asyncio.run(decide())
    assert [answer.fallback_reason for answer in answers] == [reason] * 2
    assert [answer.source for answer in answers] == ["original" if reason else "custom"] * 2
    first, second = transport.requests
    assert (first.url, first.body["model"]) == (f"{MOCK_URL}/v1/chat/completions", "mock")
    assert first.body == second.body and not first.is_stream and 0 < first.seconds < 10
    assert len([row for row in rows(data) if row["source"] == "custom"]) == 2


def test_streams(data: Path) -> None:
    write_mock_routes(data, "coding")
    half = [b'data: {"choices":[{"index":0,"delta":{"content":"Here"}}]}\n\n']
    for handler, pieces, error in (
        (lambda request: CODE, CODE.splitlines(keepends=True), None),
        (lambda request: ModelResponse(body=half), ["Here"], StreamInterrupted),
    ):
        transport = MockTransport(handler)
        said: list[list[str]] = [[], []]
        broken: list[type[Exception]] = []
        with DecisionClient(data, transport=transport) as client:
            try:
                for piece in client.decide_coding({"prompt": "p"}, lambda _: {"code": "x"}, stream=True):
                    said[0].append(piece)
            except StreamInterrupted as interrupted:
                broken.append(type(interrupted))

        async def read(transport: MockTransport = transport, said: Any = said, broken: Any = broken) -> None:
            async with AsyncDecisionClient(data, transport=transport) as client:
                try:
                    async for piece in await streamed(client):
                        said[1].append(piece)
                except StreamInterrupted as interrupted:
                    broken.append(type(interrupted))

        asyncio.run(read())
        assert said == [pieces] * 2 and broken == ([error] * 2 if error else [])
        assert all(request.is_stream for request in transport.requests)


def test_an_error_of_the_test_reaches_its_author_and_leaves_no_breaker_open(data: Path) -> None:
    write_mock_routes(data, "should_respond")
    config = Config(data, breaker_failures=1)
    with DecisionClient(config=config, transport=MockTransport(raises(AssertionError("mine")))) as client:
        for _ in range(2):
            with pytest.raises(AssertionError, match="mine"):
                client.decide_should_respond(CONTEXT, rule)
        assert set(client.stats()["breakers"].values()) == {"closed"}


def test_an_async_handler_needs_the_async_client(data: Path) -> None:
    write_mock_routes(data, "should_respond")

    async def handler(request: ModelRequest) -> str:
        await asyncio.sleep(0)
        return IGNORE

    with DecisionClient(data, transport=MockTransport(handler)) as client, pytest.raises(TypeError, match="async"):
        client.decide_should_respond(CONTEXT, rule)

    async def decide() -> str:
        async with AsyncDecisionClient(data, transport=MockTransport(handler)) as client:
            return (await client.decide_should_respond(CONTEXT, rule)).source

    assert asyncio.run(decide()) == "custom"


def test_a_second_deployment_is_asked_while_the_first_ones_breaker_is_open(data: Path, route: Any) -> None:
    from reasoning.serving.routes import Arm

    route(
        Arm("a", "custom", 1.0, model="m", base_url="http://a.example"),
        Arm("b", "custom", 1e-9, model="m", base_url="http://b.example"),
    )

    def handler(request: ModelRequest) -> str | ModelResponse:
        return ModelResponse(500) if "//a." in request.url else IGNORE

    transport = MockTransport(handler)
    with DecisionClient(config=Config(data, breaker_failures=2), transport=transport) as client:
        answers = [client.decide_should_respond(CONTEXT, rule) for _ in range(4)]
    assert [answer.source for answer in answers] == ["original", "original", "custom", "custom"]
    assert [request.url[:10] for request in transport.requests] == ["http://a.e"] * 2 + ["http://b.e"] * 2
