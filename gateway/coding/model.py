"""Asking the coding model of `routes.json` with the I/O of the gateway, and what came of it.

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

from gateway.coding.answer_spec import AnswerSpec, asked_of, shorten_names
from gateway.coding.redacted import redact_chat
from gateway.coding.translate import finish_reason_of, ignored_settings, to_message
from gateway.coding.translate_stream import ChatStream, error_event
from gateway.coding.turns import in_text, is_asked_in_text, shows_pictures
from gateway.errors import ModelAnswerError, Untranslatable
from gateway.http.exchange import Exchange
from gateway.http.security import Headers
from gateway.http.sse import encode_event
from gateway.http.upstream import send
from gateway.ops.logs import log
from reasoning.config import Config
from reasoning.errors import CallFailed, Unredactable
from reasoning.io.bounded import MAX_BYTES
from reasoning.records import FallbackReason
from reasoning.serving.completion import LOGPROBS_FIELDS, measure_confidence, read_completion
from reasoning.serving.model_calls import Choice, ModelCalls, check_size, failed_io, failed_status, load_answer
from reasoning.serving.routes import Arm, Route

DECISION_TYPE = "coding"
PING_S = 15.0
READ_OUT_S = 0.05
INLINE_BYTES = 16 << 10
"""An answer up to this size is read in the event loop, in some 10 ms at worst; else beside it."""
_SLICE = 8 << 10
"""Of a burst of a stream, so much is looked at before others get their turn, in bytes."""

SaveRecord = Callable[[], Awaitable[None]]
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
    ignored: tuple[str, ...] = ()  # settings of the request that the model was not told

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
        if self.ignored:
            told.append((b"x-reasoning-ignored", ", ".join(self.ignored).encode()))
        return told + ([(b"x-reasoning-decision-id", str(self.decision_id).encode())] if self.decision_id else [])


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
        if not config.redaction.enabled:
            log.warning("models are asked with private data, but learn from redacted rows: [redaction] enabled = false")
        self._calls = ModelCalls(config, clock)
        self._urls: dict[str, URL] = {}
        self._thinks_first: set[str | None] = set()  # models that began an answer with a thought without marking it

    def plan(self, session: str, chat: dict[str, Any]) -> Plan:
        """Who answers `session` now. A plan with an arm has reserved a call of it: `answer` must follow.

        Raises `Untranslatable` for what the arm that is drawn cannot be asked.
        """
        choice = self._calls.draw(DECISION_TYPE, session)
        if not choice.asks_model or choice.drawn is None:
            return _plan(choice)
        in_text = is_asked_in_text(choice.drawn, self._tools)
        if in_text and chat.get("tool_choice", "auto") not in ("auto", "none"):
            raise Untranslatable("tool_choice", "a model that writes its calls as text cannot be made to")
        if in_text and shows_pictures(chat):
            raise Untranslatable("image", "a model that is asked in text sees none")
        arm = self._calls.admit(choice)
        return _plan(choice, arm) if arm is not None else _plan(choice._replace(reason="circuit_open"))

    def route(self, decision_type: str) -> Route | None:
        """The route of a decision type, if a lease is in force."""
        return self._calls.find_route(decision_type)[0]

    def is_routed(self) -> bool:
        """Is there a route, be its lease in force or not?"""
        return self._calls.find_route(DECISION_TYPE)[1] not in ("no_route", "disabled")

    async def answer(
        self, exchange: Exchange, attempt: Attempt, route: Route, chat: dict[str, Any], keep: SaveRecord
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
        elif (message := await self._call(attempt, self._whole(route, chat, attempt, exchange))) is not None:
            attempt.served = True
            exchange.served_by = "custom"
            await keep()
            await exchange.reply(200, orjson.dumps(message), attempt.headers)

    def may_ask(self, arm: Arm, chat: dict[str, Any]) -> bool:
        """May this arm be asked beside the answer? Then a call of it is reserved, and `ask_beside` must follow."""
        forced = chat.get("tool_choice", "auto") not in ("auto", "none")
        more_than_text = forced or shows_pictures(chat)
        return not (more_than_text and is_asked_in_text(arm, self._tools)) and self._calls.may_call(arm)

    async def ask_beside(self, attempt: Attempt, route: Route, chat: dict[str, Any]) -> None:
        """Ask without serving: for shadow arms."""
        whole = {key: value for key, value in chat.items() if key not in ("stream", "stream_options")}
        await self._call(attempt, self._whole(route, whole, attempt))

    def attempt(self, arm: Arm, body: dict[str, Any], chat: dict[str, Any], decision_id: UUID | None = None) -> Attempt:
        """An attempt of `arm` to answer the Anthropic request `body`, which `chat` says in the chat API."""
        sent = {} if is_asked_in_text(arm, self._tools) else chat
        return Attempt(arm, decision_id, ignored=ignored_settings(body, sent))

    async def _call(self, attempt: Attempt, call: Coroutine[Any, Any, Any]) -> Any:
        """Await one call of the model and note what became of it. None where it failed."""
        try:
            result = await call
        except (CallFailed, ModelAnswerError, TimeoutError, aiohttp.ClientError, OSError) as error:
            failure = _failure(error, attempt)
            attempt.failed, attempt.reason, attempt.detail = True, failure.reason, str(failure)
            self._calls.settle(attempt.arm, failure)
            if isinstance(error, ModelAnswerError) and error.reason == "unmarked_thought":
                self._thinks_first.add(attempt.arm.asked_as)
            return None
        except BaseException:  # the client went away, above all
            self._calls.release(attempt.arm)
            raise
        else:
            self._calls.settle(attempt.arm)
            return result
        finally:
            attempt.latency_ms = attempt.latency_ms or (time.perf_counter() - attempt.started_at) * 1000

    def breaker_states(self) -> dict[str, str]:
        """State by model and place, for the statistics."""
        return {f"{model}@{url}": state for (url, model), state in self._calls.states().items()}

    def _post(self, arm: Arm, chat: dict[str, Any]) -> Coroutine[Any, Any, aiohttp.ClientResponse]:
        chat = {**self._config.decision_types[DECISION_TYPE].request_fields, **chat, "model": arm.asked_as}
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        target = self._calls.target(arm)
        if target.api_key:
            headers["Authorization"] = f"Bearer {target.api_key}"
        url = self._urls.get(target.url)
        if url is None:
            url = self._urls[target.url] = URL(target.url)
        return send(self._session, "POST", url, headers=headers, body=orjson.dumps(chat), repeatable=True)

    async def _prepare(self, arm: Arm, chat: dict[str, Any]) -> tuple[dict[str, Any], AnswerSpec]:
        """The request as the arm's model gets it, redacted, and what it wants of its answer."""
        asked = asked_of(
            chat,
            model=str(arm.model),
            tools_in_text=is_asked_in_text(arm, self._tools),
            thinks_first=arm.asked_as in self._thinks_first,
        )
        sent = in_text(chat) if asked.tools_in_text else shorten_names(chat, asked.names)
        if not self._config.redaction.enabled:
            return sent, asked
        try:
            sent, redacted = await redact_chat(sent, self._config.redaction.region)
        except Exception as error:  # what cannot be redacted is not sent, whatever the cause
            why = str(error) if isinstance(error, Unredactable) else type(error).__name__
            raise CallFailed("disabled", f"the prompt cannot be redacted: {why}") from None
        return sent, replace(asked, redacted=redacted)

    async def _whole(
        self, route: Route, chat: dict[str, Any], attempt: Attempt, exchange: Exchange | None = None
    ) -> dict[str, Any]:
        """The message of an answer that comes as a whole."""
        arm = attempt.arm
        sent, asked = await self._prepare(arm, chat)
        if route.min_confidence > 0:
            sent = {**sent, **LOGPROBS_FIELDS[arm.logprobs]}
        async with asyncio.timeout(route.deadline_ms / 1000):
            async with await self._post(arm, sent) as response:
                body = await _read(response)
                if response.status != 200:
                    raise failed_status(response.status)
        if exchange is not None:
            exchange.count_copy(len(body))
        completion = load_answer(body)
        attempt.cut_by_limit = finish_reason_of(completion) == "length"
        if len(body) <= INLINE_BYTES:
            message = to_message(completion, asked)
        else:
            message = await asyncio.to_thread(to_message, completion, asked)
        attempt.note(message["content"], message["usage"], message["stop_reason"])
        if route.min_confidence > 0:
            attempt.confidence = _confidence(body)
            if attempt.confidence is None or attempt.confidence < route.min_confidence:
                raise CallFailed("low_confidence", f"{attempt.confidence} is less than {route.min_confidence}")
        return message

    async def _stream(
        self, exchange: Exchange, route: Route, chat: dict[str, Any], attempt: Attempt, keep: SaveRecord
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
                    raise failed_status(response.status)
                out = b""
                while not out:
                    chunk = await response.content.readany()
                    out = await _feed(stream, chunk) if chunk else stream.finish()
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
                    out += await _feed(stream, chunk[at : at + _SLICE])
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


def _plan(choice: Choice, arm: Arm | None = None) -> Plan:
    return Plan(arm, choice.reason, choice.route, choice.drawn, choice.probability)


async def _feed(stream: ChatStream, piece: bytes) -> bytes:
    """What a piece of the model's stream gives. An event that is long is read beside the loop, as a long answer is."""
    if stream.pending > INLINE_BYTES:
        return await asyncio.to_thread(stream.feed, piece)
    return stream.feed(piece)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    while chunk := await response.content.readany():
        size += len(chunk)
        check_size(size, MAX_BYTES)
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


def _failure(error: Exception, attempt: Attempt) -> CallFailed:
    """Why a call failed, in words that hold nothing of its contents."""
    if isinstance(error, ModelAnswerError):
        whole = error.whole or attempt.cut_by_limit
        return CallFailed("unparseable" if whole else "provider_error", str(error))
    return failed_io(error, "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)


def _confidence(body: bytes) -> float | None:
    try:
        return measure_confidence("code", read_completion(200, body))
    except CallFailed:
        return None
