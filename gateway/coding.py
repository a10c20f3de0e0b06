"""Asking the coding model of `routes.json`: lease, draw, breaker, deadline; and what came of it.

The model is asked with our own credentials and headers only: nothing of the client's but the conversation goes there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import aiohttp
import orjson
from yarl import URL

from gateway.asked import Asked, asked_of, shorten_names
from gateway.errors import ModelAnswerError, Untranslatable
from gateway.exchange import Exchange
from gateway.logs import log
from gateway.redacted import redact_chat
from gateway.security import Headers
from gateway.sse import encode_event
from gateway.translate import to_message
from gateway.translate_stream import ChatStream, error_event
from gateway.turns import in_text, is_asked_in_text, shows_pictures
from gateway.upstream import send
from reasoning.bounded import MAX_BYTES, TooLarge, load_bounded
from reasoning.breaker import REQUEST_ERRORS, CircuitBreaker
from reasoning.completion import measure_confidence, read_completion
from reasoning.config import Config, api_key_for
from reasoning.errors import CallFailed, RoutesError, Unredactable
from reasoning.lease import RoutesLease
from reasoning.records import FallbackReason
from reasoning.routes import Arm, Route, choose_arm

DECISION_TYPE = "coding"
PATH = "/v1/chat/completions"
PING_S = 15.0
READ_OUT_S = 0.05
INLINE_BYTES = 16 << 10
"""An answer up to this size is read in the event loop, in some 10 ms at worst; else beside it."""
_SLICE = 8 << 10
"""Of a burst of a stream, so much is looked at before others get their turn, in bytes."""

Keep = Callable[[], Awaitable[None]]
"""Puts an attempt on record."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a request is to be answered: by `arm`, or by Anthropic because of `reason` (None: drawn so)."""

    arm: Arm | None = None
    reason: FallbackReason | None = None
    route: Route | None = None
    drawn: Arm | None = None
    probability: float | None = None


@dataclass(slots=True)
class Attempt:
    """What a call of the model came to. `served`: the client has got its answer, or at least its beginning."""

    arm: Arm
    decision_id: UUID | None = None  # of the row in the log, where there is to be one
    served: bool = False
    failed: bool = False
    reason: FallbackReason | None = None
    detail: str | None = None
    cut_by_limit: bool = False  # the request's own limit of tokens ended it
    cut: str | None = None  # who broke it off after its beginning: `client` or `upstream`
    content: list[dict[str, Any]] = field(default_factory=list)
    stop_reason: str | None = None
    confidence: float | None = None  # only where the route asks for one
    input_tokens: int | None = None
    output_tokens: int | None = None
    started_at: float = field(default_factory=time.perf_counter)
    latency_ms: float = 0.0

    def note(self, content: list[dict[str, Any]], usage: dict[str, int], stop_reason: str | None) -> None:
        """Keep what was said so far."""
        self.content, self.stop_reason = content, stop_reason
        self.input_tokens = usage["input_tokens"] + usage["cache_read_input_tokens"]
        self.output_tokens = usage["output_tokens"]
        self.latency_ms = (time.perf_counter() - self.started_at) * 1000

    @property
    def headers(self) -> Headers:
        """What the client is told of who answered."""
        told = [
            (b"x-reasoning-source", b"custom"),
            (b"x-reasoning-model", str(self.arm.model).encode("ascii", "replace")),
        ]
        return told + ([(b"x-reasoning-decision-id", str(self.decision_id).encode())] if self.decision_id else [])


class _CallFailed(Exception):
    def __init__(self, reason: FallbackReason, detail: str, status: int = 0) -> None:
        super().__init__(detail)
        self.reason: FallbackReason = reason
        self.status = status


class CodingModel:
    """The model, or the deployments of it: arms of one model are replicas, of which the least busy one is asked."""

    def __init__(
        self,
        config: Config,
        session: aiohttp.ClientSession,
        *,
        idle_timeout_s: float = 60.0,
        tools: str = "auto",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._session = session
        self._idle_timeout_s = idle_timeout_s
        self._tools = tools
        self._clock = clock
        if not config.redaction.enabled:
            log.warning("models are asked with private data, but learn from redacted rows: [redaction] enabled = false")
        self._lease = RoutesLease(config.routes, clock)
        self._api_keys: dict[str, str | None] = {}  # by the place that may see it
        self._urls: dict[str, URL] = {}
        self._breakers: dict[tuple[str | None, str | None], CircuitBreaker] = {}
        self._active: dict[tuple[str | None, str | None], int] = {}

    def plan(self, session: str, chat: dict[str, Any]) -> Plan:
        """Who answers `session` now. A plan with an arm holds its breaker's leave: `answer` must follow.

        Raises `Untranslatable` for what the arm that is drawn cannot be asked.
        """
        if not self._config.enabled:
            return Plan(reason="disabled")
        route, reason = self._lease.find(DECISION_TYPE, self._clock())
        if route is None:
            return Plan(reason=reason)
        try:
            drawn, probability = choose_arm(route, session)
        except RoutesError:
            return Plan(reason="no_route", route=route)
        if drawn.source == "original":
            return Plan(route=route, drawn=drawn, probability=probability)
        if chat.get("tool_choice", "auto") not in ("auto", "none") and is_asked_in_text(drawn, self._tools):
            raise Untranslatable("tool_choice", "a model that writes its calls as text cannot be made to")
        if shows_pictures(chat) and is_asked_in_text(drawn, self._tools):
            raise Untranslatable("image", "a model that is asked in text sees none")
        replicas = [
            arm
            for arm in route.arms
            if arm.source == "custom" and arm.mode == "live" and arm.model == drawn.model and arm.weight > 0
        ]
        for arm in sorted(replicas, key=lambda arm: (self._active.get(_place(arm), 0) / arm.weight, arm is not drawn)):
            if self._breaker(arm).allow():
                return Plan(arm=arm, route=route, drawn=drawn, probability=probability)
        return Plan(reason="circuit_open", route=route, drawn=drawn, probability=probability)

    def route(self, decision_type: str) -> Route | None:
        """The route of a decision type, if a lease is in force."""
        return self._lease.find(decision_type, self._clock())[0]

    def is_routed(self) -> bool:
        """Is there a route, be its lease in force or not?"""
        return self._config.enabled and self._lease.find(DECISION_TYPE, self._clock())[1] != "no_route"

    async def answer(
        self, exchange: Exchange, attempt: Attempt, route: Route, chat: dict[str, Any], keep: Keep
    ) -> None:
        """Ask the model and answer the client. Before the first byte every failure leaves `served` false; after it the
        client gets an `error` event. What was served is kept before its end goes out. Call it inside
        `exchange.watch()`."""
        if chat.get("stream"):
            await self._call(attempt, self._stream(exchange, route, chat, attempt, keep))
            if attempt.failed and attempt.served:
                attempt.cut = "upstream"
                await keep()
                await self._break_off(exchange)
        elif (message := await self._call(attempt, self._whole(route, chat, attempt))) is not None:
            attempt.served = True
            exchange.served_by = "custom"
            await keep()
            await exchange.reply(200, orjson.dumps(message), attempt.headers)

    def may_ask(self, arm: Arm, chat: dict[str, Any]) -> bool:
        """May this arm be asked beside the answer? Then it holds its breaker's leave, and `ask_beside` must follow."""
        forced = chat.get("tool_choice", "auto") not in ("auto", "none")
        more_than_text = forced or shows_pictures(chat)
        return not (more_than_text and is_asked_in_text(arm, self._tools)) and self._breaker(arm).allow()

    async def ask_beside(self, arm: Arm, route: Route, chat: dict[str, Any]) -> Attempt:
        """Ask without serving: for shadow arms."""
        attempt = Attempt(arm)
        whole = {key: value for key, value in chat.items() if key not in ("stream", "stream_options")}
        await self._call(attempt, self._whole(route, whole, attempt))
        return attempt

    async def _call(self, attempt: Attempt, call: Coroutine[Any, Any, Any]) -> Any:
        """Await one call of the model and note what became of it. None where it failed."""
        breaker, place = self._breaker(attempt.arm), _place(attempt.arm)
        self._active[place] = self._active.get(place, 0) + 1
        settled = False
        try:
            result = await call
            breaker.succeed()
            settled = True
            return result
        except (_CallFailed, ModelAnswerError, TimeoutError, aiohttp.ClientError, OSError) as error:
            attempt.failed = True
            attempt.reason, attempt.detail = _explain(error)
            if _is_well(error) or attempt.cut_by_limit:
                breaker.succeed()
                settled = True
            elif not (
                isinstance(error, _CallFailed) and (error.status in REQUEST_ERRORS or error.reason == "disabled")
            ):
                breaker.fail()
                settled = True
            # What was wrong with one request says nothing about the server.
            return None
        finally:
            if not settled:
                breaker.release()
            self._active[place] -= 1
            attempt.latency_ms = attempt.latency_ms or (time.perf_counter() - attempt.started_at) * 1000

    def breaker_states(self) -> dict[str, str]:
        """State by model and place, for the statistics."""
        return {f"{model}@{url}": breaker.state for (model, url), breaker in self._breakers.items()}

    def _breaker(self, arm: Arm) -> CircuitBreaker:
        place = _place(arm)
        if place not in self._breakers:
            self._breakers[place] = CircuitBreaker(self._config.breaker_failures, self._config.breaker_seconds)
        return self._breakers[place]

    def _post(self, arm: Arm, chat: dict[str, Any]) -> Coroutine[Any, Any, aiohttp.ClientResponse]:
        chat = {**self._config.decision_types[DECISION_TYPE].request_fields, **chat, "model": arm.model}
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        place = arm.base_url or ""
        if place not in self._api_keys:
            self._api_keys[place] = api_key_for(self._config, place)
        if key := self._api_keys[place]:
            headers["Authorization"] = f"Bearer {key}"
        url = self._urls.get(place)
        if url is None:
            url = self._urls[place] = URL(f"{place}{PATH}")
        return send(self._session, "POST", url, headers=headers, body=orjson.dumps(chat), repeatable=True)

    async def _prepare(self, arm: Arm, chat: dict[str, Any]) -> tuple[dict[str, Any], Asked]:
        """The request as the arm's model gets it, redacted, and what it wants of its answer."""
        asked = asked_of(chat, model=str(arm.model), tools_in_text=is_asked_in_text(arm, self._tools))
        sent = in_text(chat) if asked.tools_in_text else shorten_names(chat, asked.names)
        if not self._config.redaction.enabled:
            return sent, asked
        try:
            sent, redacted = await redact_chat(sent, self._config.redaction.region)
        except Exception as error:  # what cannot be redacted is not sent, whatever the cause
            why = str(error) if isinstance(error, Unredactable) else type(error).__name__
            raise _CallFailed("disabled", f"the prompt cannot be redacted: {why}") from None
        return sent, replace(asked, redacted=redacted)

    async def _whole(self, route: Route, chat: dict[str, Any], attempt: Attempt) -> dict[str, Any]:
        """The message of an answer that comes as a whole."""
        arm = attempt.arm
        sent, asked = await self._prepare(arm, chat)
        if route.min_confidence > 0:
            sent = {**sent, "logprobs": 1}
        async with asyncio.timeout(route.deadline_ms / 1000):
            async with await self._post(arm, sent) as response:
                body = await _read(response)
                if response.status != 200:
                    raise _status(response.status)
        try:
            completion = load_bounded(body)
        except TooLarge as error:
            raise _CallFailed("unparseable", str(error)) from None
        except orjson.JSONDecodeError:
            raise _CallFailed("provider_error", "the answer is not JSON") from None
        attempt.cut_by_limit = _finish_reason(completion) == "length"
        if len(body) <= INLINE_BYTES:
            message = to_message(completion, asked)
        else:
            message = await asyncio.to_thread(to_message, completion, asked)
        attempt.note(message["content"], message["usage"], message["stop_reason"])
        if route.min_confidence > 0:
            attempt.confidence = _confidence(body)
            if attempt.confidence is None or attempt.confidence < route.min_confidence:
                raise _CallFailed("low_confidence", f"{attempt.confidence} is less than {route.min_confidence}")
        return message

    async def _stream(
        self, exchange: Exchange, route: Route, chat: dict[str, Any], attempt: Attempt, keep: Keep
    ) -> None:
        arm = attempt.arm
        sent, asked = await self._prepare(arm, chat)
        stream = ChatStream(asked)
        response: aiohttp.ClientResponse | None = None
        listener: _Listener | None = None
        try:
            async with asyncio.timeout(route.deadline_ms / 1000):  # to the first piece of the answer
                response = await self._post(arm, sent)
                if response.status != 200:
                    raise _status(response.status)
                out = b""
                while not out:
                    chunk = await response.content.readany()
                    out = stream.feed(chunk) if chunk else stream.finish()
            attempt.served = True
            listener = _Listener(exchange, response.content, self._idle_timeout_s)
            exchange.served_by = "custom"
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
            headers += [(b"request-id", exchange.request_id.encode()), *attempt.headers]
            await exchange.start(200, headers)
            while not stream.finished:
                if out:
                    await exchange.write(out)
                chunk = await listener.next()
                out = b"" if chunk else stream.finish()
                for at in range(0, len(chunk), _SLICE):
                    if out and not stream.finished:  # the end goes out when the answer is on record
                        await exchange.write(out)
                        out = b""
                    if at:
                        await asyncio.sleep(0)
                    out += stream.feed(chunk[at : at + _SLICE])
            attempt.note(stream.content, stream.usage, stream.stop_reason)
            await keep()
            await exchange.write(out, more=False)
            await _read_out(response)
        finally:
            attempt.cut_by_limit = stream.finish_reason == "length"
            attempt.note(stream.content, stream.usage, stream.stop_reason)
            if listener is not None:
                listener.close()
            if response is not None:
                response.close()

    @staticmethod
    async def _break_off(exchange: Exchange) -> None:
        message = "the model broke off its answer; ask again"
        await exchange.write(error_event("api_error", message), more=False)


class _Listener:
    """Reads a stream; a ping to the client for every `PING_S` of silence, and a `TimeoutError` after `idle_timeout_s`.

    One timer for all of it: `asyncio.timeout` around every read costs more than what is read.
    """

    def __init__(self, exchange: Exchange, content: aiohttp.StreamReader, idle_timeout_s: float) -> None:
        self._exchange = exchange
        self._content = content
        self._idle_timeout_s = idle_timeout_s
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None  # while it waits
        self._pings = 0
        self._ping: asyncio.Future[None] | None = None
        self._timer = self._loop.call_later(min(PING_S, idle_timeout_s), self._look)

    async def next(self) -> bytes:
        """The next bytes; none at the end."""
        self._since, self._pings = self._loop.time(), 0
        chunk = await self._content.readany()
        self._since = None
        return chunk

    def close(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        silent = 0.0 if self._since is None else self._loop.time() - self._since
        if silent >= self._idle_timeout_s:
            self._content.set_exception(TimeoutError())
            return
        if silent >= PING_S * (self._pings + 1):
            self._pings += 1
            self._ping = asyncio.ensure_future(self._exchange.write(encode_event("ping", {"type": "ping"})))
        left = min(PING_S * (self._pings + 1), self._idle_timeout_s) - silent
        self._timer = self._loop.call_later(left, self._look)


def _place(arm: Arm) -> tuple[str | None, str | None]:
    return arm.model, arm.base_url


async def _read(response: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    while chunk := await response.content.readany():
        size += len(chunk)
        if size > MAX_BYTES:
            raise _CallFailed("unparseable", f"an answer of more than {MAX_BYTES} bytes")
        parts.append(chunk)
    return b"".join(parts)


async def _read_out(response: aiohttp.ClientResponse) -> None:
    """Read the end of an answer that was told whole, so that its connection can be used again."""
    if response.content.at_eof():
        return
    with suppress(TimeoutError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(READ_OUT_S):
            while await response.content.readany():
                pass


def _status(status: int) -> _CallFailed:
    reason: FallbackReason = "over_budget" if status == 402 else "timeout" if status in (408, 504) else "provider_error"
    return _CallFailed(reason, f"HTTP {status}", status)


def _finish_reason(completion: Any) -> Any:
    try:
        return completion["choices"][0].get("finish_reason")
    except (TypeError, KeyError, IndexError, AttributeError):
        return None


def _is_well(error: Exception) -> bool:
    """Does the server that gave this answer do what it should, though the answer cannot be served? A whole answer with
    status 200 comes from a healthy server, whatever its model wrote."""
    if isinstance(error, ModelAnswerError):
        return error.reason in ("content_filter", "tool_choice", "tool_arguments", "empty")
    return isinstance(error, _CallFailed) and error.reason in ("low_confidence", "unparseable")


def _explain(error: Exception) -> tuple[FallbackReason, str]:
    """Why a call failed, in words that hold nothing of its contents."""
    if isinstance(error, _CallFailed):
        return error.reason, str(error)
    if isinstance(error, ModelAnswerError):
        broken = error.reason in ("error_in_stream", "unfinished", "content_filter")
        return ("provider_error" if broken else "unparseable"), str(error)
    if isinstance(error, TimeoutError):
        return "timeout", "no answer in time"
    return "provider_error", type(error).__name__


def _confidence(body: bytes) -> float | None:
    try:
        return measure_confidence("code", read_completion(200, body))
    except CallFailed:
        return None
