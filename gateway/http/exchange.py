"""One request of a client and the sending of its answer: reading within limits, watching for the client to go away."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from gateway.errors import RequestRefused
from gateway.http.budget import FREE_BYTES, Budget
from gateway.http.inference import FeedbackEvent, Inference
from gateway.http.security import Admission, Headers
from gateway.protocols.port import MB, Protocol

MAX_BODY_BYTES = 32 * MB
"""Of a request that is read whole. What a protocol takes beyond that (`Protocol.large_bodies`) is streamed through."""

# A client that goes before it is looked for is noticed then. Most of the cost of looking is in beginning to.
WATCH_AFTER_S = 0.05

_random = random.Random()  # our own: nobody's seed makes two gateways give the same ids
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ClientGone(Exception):
    """The client closed its connection before its request was whole."""


class Exchange:
    """An admitted request and the sending of its answer. Handlers set `route`, `served_by`, `reason` and `kind`."""

    __slots__ = (
        *("scope", "admission", "method", "path", "query", "request_id", "route", "served_by", "reason", "kind"),
        *(
            "started_at",
            "first_byte_at",
            "status",
            "bytes_out",
            "gone",
            "finished",
            "refusal",
            "protocol",
            "inference",
            "feedback",
            "_budget",
            "_held",
            "_receive",
            "_send",
            "_watching",
        ),
    )

    def __init__(
        self, scope: Message, receive: Receive, send: Send, admission: Admission, budget: Budget | None = None
    ) -> None:
        self.scope = scope
        self.admission = admission
        self.method: str = scope["method"]
        self.path: bytes = scope["raw_path"]
        self.query: bytes = scope["query_string"]
        self.request_id = f"req_rsn{_random.getrandbits(128):032x}"
        self.route = "other"
        self.served_by = "gateway"  # gateway | custom | the pool's name
        self.reason: str | None = None  # why it was not the custom model
        self.kind: str | None = None  # the decision type that was recognised
        self.started_at = time.perf_counter()
        self.first_byte_at: float | None = None
        self.status = 0
        self.bytes_out = 0
        self.gone = False
        self.finished = False
        self.refusal: RequestRefused | None = None  # of a body that was already on its way to an upstream
        self.protocol: Protocol | None = None  # whose API was asked, once that is known
        self.inference: Inference | None = None  # what was asked of a model
        self.feedback: FeedbackEvent | None = None  # what was recorded of a decision
        self._budget = budget
        self._held = 0
        self._receive = receive
        self._send = send
        self._watching = False

    @property
    def headers(self) -> Headers:
        headers: Headers = self.scope["headers"]
        return headers

    def header(self, name: bytes) -> str:
        return self.admission.headers.get(name, b"").decode("latin-1")

    @property
    def has_body(self) -> bool:
        headers = self.admission.headers
        return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers

    def hold(self, size: int) -> None:
        """Count memory that this request needs until it ends, or until `drop`. Raises `RequestRefused` (503)."""
        if self._budget is not None:
            self._budget.take(size)
            self._held += size

    def drop(self, size: int | None = None) -> None:
        """This much of it (all, without a size) is not needed any more."""
        if self._budget is not None:
            size = self._held if size is None else size
            self._budget.give(size)
            self._held -= size

    def count_copy(self, size: int) -> None:
        """Count what is kept of an answer, until this request ends. Never refuses: other requests are, sooner."""
        if self._budget is not None:
            self._budget.used += size
            self._held += size

    def keep_body(self, body: bytes) -> None:
        """From now on only the body as it came is needed."""
        self.drop()
        if len(body) > FREE_BYTES and self._budget is not None:
            self._budget.used += len(body)  # it is here already
            self._held = len(body)

    async def read(self, limit: int = MAX_BODY_BYTES) -> bytes:
        """The whole body. Raises `RequestRefused` (413; 503 where too much is under way) and `ClientGone`."""
        self._refuse_length(limit)
        message = await self._receive()
        if not message.get("more_body", False) and message["type"] == "http.request":
            body: bytes = message.get("body", b"")
            if len(body) > limit:
                self._too_large(limit)
            return body
        parts, size = [], 0
        while True:
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                self._too_large(limit)
            if size > FREE_BYTES:
                self.hold(size - self._held)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)
            message = await self._receive()

    async def stream(self, limit: int) -> AsyncIterator[bytes]:
        """The body as it comes, for what is too large to hold."""
        self._refuse_length(limit)
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                self._too_large(limit)
            if part:
                yield part
            if not message.get("more_body", False):
                return

    def _refuse_length(self, limit: int) -> None:
        length = self.admission.headers.get(b"content-length")
        if length is not None and (not length.isdigit() or int(length) > limit):
            self._too_large(limit)

    def _too_large(self, limit: int) -> None:
        self.refusal = RequestRefused(413, "request_too_large", f"the request is larger than {limit // MB} MB")
        raise self.refusal

    def watch(self) -> _Watch:
        """`with` it: what runs inside is cancelled when the client goes away, so that nobody pays for an answer
        that nobody gets. Only after the body was read: it takes over `receive`."""
        return _Watch(self)

    def start(self, status: int, headers: Headers) -> Awaitable[None]:
        """Await it at once: a plain function because a coroutine around another costs at every chunk."""
        self.status = status
        return self._send({"type": "http.response.start", "status": status, "headers": headers})

    def write(self, body: bytes, *, more: bool = True) -> Awaitable[None]:
        """Await it at once, as `start`."""
        if self.first_byte_at is None and body:
            self.first_byte_at = time.perf_counter()
        self.bytes_out += len(body)
        self.finished = not more
        return self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def reply(self, status: int, body: bytes, headers: Headers | None = None) -> None:
        """A whole answer of our own, of JSON."""
        base = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"request-id", self.request_id.encode()),
        ]
        await self.start(status, base + (headers or []))
        await self.write(body, more=False)


class _Watch:
    """See `Exchange.watch`. A watch within a watch does nothing."""

    __slots__ = ("_exchange", "_task", "_timer", "_watcher")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        exchange = self._exchange
        if not exchange._watching:
            exchange._watching = True
            self._task = asyncio.current_task()
            self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._begin)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if self._timer is None:
            return False
        self._exchange._watching = False
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if kind is asyncio.CancelledError and self._exchange.gone:
            assert self._task is not None
            self._task.uncancel()
            return True
        return False

    def _begin(self) -> None:
        assert self._task is not None
        self._watcher = asyncio.create_task(self._wait_gone(self._task))

    async def _wait_gone(self, task: asyncio.Task[Any]) -> None:
        exchange = self._exchange
        while (await exchange._receive())["type"] != "http.disconnect":
            pass
        if not exchange.finished:  # the server says "disconnect" after a whole answer as well
            exchange.gone = True
            task.cancel()
