"""Models that a test plays: `DecisionClient(data, transport=MockTransport(handler))`, and the same for asyncio.

::

    write_mock_routes(data, "should_respond")
    transport = MockTransport(lambda request: "<response><action>IGNORE</action></response>")
    with DecisionClient(data, transport=transport) as client:
        assert client.decide_should_respond(context, my_rule).source == "custom"

Only the network is replaced: routes, redaction, breakers, parsing, fallbacks and the log are the real ones.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from reasoning.errors import CallFailed
from reasoning.io.transport_port import Headers
from reasoning.serving.model_calls import failed_io
from reasoning.serving.routes import MAX_LEASE, Arm, Route, Routes, write_routes

MOCK_URL = "http://127.0.0.1:9"
"""Where the routes of `write_mock_routes` lead. Nothing is ever sent there."""


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """What a model is asked. `body` is the JSON of `POST /v1/chat/completions`; `seconds` the deadline."""

    url: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    seconds: float

    @property
    def is_stream(self) -> bool:
        """Is the answer wanted as server-sent events?"""
        return bool(self.body.get("stream"))


@dataclass(frozen=True, slots=True)
class ModelResponse:
    """What a model's server answers: bytes, an object that is sent as JSON, or the chunks of a stream."""

    status: int = 200
    body: bytes | dict[str, Any] | Sequence[bytes] = b""

    def chunks(self) -> list[bytes]:
        """The body as it comes."""
        if isinstance(self.body, bytes):
            return [self.body]
        return [orjson.dumps(self.body)] if isinstance(self.body, dict) else list(self.body)


MockReply = str | ModelResponse
Handler = Callable[[ModelRequest], MockReply | Awaitable[MockReply]]


class MockTransport:
    """Gives every request to `handler`. `requests` are those that came, the latest last.

    The handler returns the model's text, or a `ModelResponse` for any other answer; it may be a coroutine function for
    `AsyncDecisionClient`. An `OSError`, `TimeoutError` or `CallFailed` that it raises is a failure of the network: the
    original answers. Anything else is an error of the test and reaches the caller of `decide`.
    """

    def __init__(self, handler: Handler) -> None:
        self.requests: list[ModelRequest] = []
        self._handler = handler

    def post(self, url: str, headers: Headers, body: bytes, seconds: float) -> tuple[int, bytes]:
        """As `SyncPort.post`."""
        response = self._ask(self._read(url, headers, body, seconds))
        return response.status, b"".join(response.chunks())

    @contextmanager
    def stream(self, url: str, headers: Headers, body: bytes, seconds: float) -> Iterator[tuple[int, Iterator[bytes]]]:
        """As `SyncPort.stream`."""
        response = self._ask(self._read(url, headers, body, seconds))
        yield response.status, iter(response.chunks())

    def close(self) -> None:
        """Nothing is open."""

    async def apost(self, url: str, headers: Headers, body: bytes, seconds: float) -> tuple[int, bytes]:
        """As `AsyncPort.apost`."""
        response = await self._aask(self._read(url, headers, body, seconds))
        return response.status, b"".join(response.chunks())

    @asynccontextmanager
    async def astream(
        self, url: str, headers: Headers, body: bytes, seconds: float
    ) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """As `AsyncPort.astream`."""
        response = await self._aask(self._read(url, headers, body, seconds))

        async def chunks() -> AsyncIterator[bytes]:
            for chunk in response.chunks():
                yield chunk

        yield response.status, chunks()

    async def aclose(self) -> None:
        """Nothing is open."""

    def _read(self, url: str, headers: Headers, body: bytes, seconds: float) -> ModelRequest:
        told = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
        request = ModelRequest(url, told, orjson.loads(body), seconds)
        self.requests.append(request)
        return request

    def _ask(self, request: ModelRequest) -> ModelResponse:
        try:
            answer = self._handler(request)
        except (OSError, CallFailed) as error:
            raise _failed(error) from None
        if isinstance(answer, str | ModelResponse):
            return _response(request, answer)
        if inspect.iscoroutine(answer):
            answer.close()
        raise TypeError("the handler is async, and this client is not: use AsyncDecisionClient")

    async def _aask(self, request: ModelRequest) -> ModelResponse:
        try:
            answer = self._handler(request)
            if not isinstance(answer, str | ModelResponse):
                answer = await answer
        except (OSError, CallFailed) as error:
            raise _failed(error) from None
        return _response(request, answer)


def write_mock_routes(data: Path | str, *decision_types: str, min_confidence: float = 0.0) -> None:
    """Write `routes.json` in the data folder, so that a model answers these decision types for an hour from now."""
    arm = Arm("mock", "custom", weight=1.0, model="mock", base_url=MOCK_URL)
    route = Route((arm,), min_confidence=min_confidence)
    now = datetime.now(UTC)
    routes = Routes(now, now + MAX_LEASE, dict.fromkeys(decision_types, route))
    write_routes(Path(data) / "routes.json", routes)


def _failed(error: Exception) -> CallFailed:
    return failed_io(error, f"{type(error).__name__}: {error}")


def _response(request: ModelRequest, answer: MockReply) -> ModelResponse:
    if isinstance(answer, ModelResponse):
        return answer
    if not request.is_stream:
        message = {"role": "assistant", "content": answer}
        return ModelResponse(body={"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
    pieces = [{"index": 0, "delta": {"content": line}} for line in answer.splitlines(keepends=True)]
    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
    events = [b"data: " + orjson.dumps({"choices": [choice]}) + b"\n\n" for choice in (*pieces, last)]
    return ModelResponse(body=[*events, b"data: [DONE]\n\n"])
