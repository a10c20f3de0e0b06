"""Answering a decision prompt: our model by its route, or the upstream that the client meant to ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import orjson

from gateway.decisions.api import count_answer
from gateway.decisions.episodes import episode_of, room_of, user_of
from gateway.decisions.forced import UNREADABLE, ForcedDecision
from gateway.decisions.prompts import STAGE_ONE_TOOL, DecisionPrompt, read_decision, recognise, write_answer
from gateway.decisions.whole_answer import fetch_whole
from gateway.errors import ModelAnswerError
from gateway.http.exchange import Exchange
from gateway.http.inference import OURS
from gateway.http.security import Headers
from gateway.protocols.answers import OwnAnswer, UpstreamAnswer
from gateway.protocols.port import Operation
from gateway.protocols.questions import TextPrompt
from gateway.state import State
from prices.models import find_price
from reasoning.core import Answer
from reasoning.decision_types import DecisionType, get_decision_type
from reasoning.errors import InvalidContext, UnparseableAnswer
from reasoning.fallback import fallback_call

Read = Callable[[UpstreamAnswer], dict[str, Any]]
"""The decision in an upstream's answer. Raises `UnparseableAnswer`."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is a decision, as it came."""

    operation: Operation
    path: bytes
    body: bytes
    request: dict[str, Any]


class _Upstream:
    """The upstream as the fallback of a decision: asked once at most, its response kept as it came."""

    def __init__(self, state: State, exchange: Exchange, asked: Asked, read: Read) -> None:
        assert exchange.protocol is not None
        self._state, self._exchange, self._asked, self._read = state, exchange, asked, read
        self._model = asked.operation.model(asked.path, asked.request)
        self.pool = state.pools[exchange.protocol.name]
        self.status = 0
        self.headers: Headers = []
        self.answer = b""

    async def __call__(self, context: dict[str, Any]) -> dict[str, Any]:
        await self.fetch()
        content_type = dict(self.headers).get(b"content-type", b"").decode("latin-1")
        if self.status != 200:
            raise ModelAnswerError("upstream_status", str(self.status))
        said = self._asked.operation.read(self.answer, content_type)
        self._report(said)
        if said.stop is not None and not said.whole:
            raise UnparseableAnswer(f"the answer was cut: {said.stop[:60]}")
        return self._read(said)

    def _report(self, said: UpstreamAnswer) -> None:
        """Put on record, and count, what the upstream's answer used: also of one that is no decision."""
        price = find_price(self._state.settings.prices, self._model, url=self.pool.url)
        usage = said.usage(self._model, price)
        if (inference := self._exchange.inference) is not None:
            inference.input_tokens, inference.output_tokens = said.input_tokens, said.output_tokens
            inference.cache_read_tokens, inference.reasoning_tokens = usage.cache_read_tokens, said.reasoning_tokens
            inference.finish_reason = said.stop
        with fallback_call() as call:
            for field in fields(usage):
                setattr(call, field.name, getattr(usage, field.name))
        self._state.metrics.count_tokens(self.pool.name, said.input_tokens or 0, said.output_tokens or 0)
        self._state.metrics.upstream_spend.inc(usage.cost_usd or 0.0)

    async def fetch(self) -> None:
        """Ask, and read the answer whole: a decision is small. Raises `UpstreamError`."""
        self.status, self.headers, self.answer = await fetch_whole(
            self._state, self._exchange, self.pool, self._asked.path, self._asked.body
        )


def find_decision_prompt(
    state: State, operation: Operation, request: dict[str, Any]
) -> tuple[DecisionPrompt, TextPrompt] | None:
    """The decision that a request asks for, and how. One that asks for more than its words is not one."""
    question = operation.question(request)
    if question is None:
        return None
    found = recognise(question.text, state.prompt_kinds, state.config.decision_types)
    return (found, question) if found is not None and (not question.json_object or found.format == "json") else None


async def answer_decision_prompt(
    state: State, exchange: Exchange, asked: Asked, found: tuple[DecisionPrompt, TextPrompt]
) -> None:
    """Decide and answer in the format asked for. What the upstream answered goes back as it came."""
    prompt, question = found
    kind = get_decision_type(prompt.decision_type, state.config)
    scope = prompt.context["agent_name"]

    def write(answer: Answer) -> OwnAnswer:
        text, stop = question.cut(write_answer(prompt, answer.decision, kind))
        return OwnAnswer(text, answer.model or "", answer.input_tokens or 0, answer.output_tokens or 0, stop)

    await _answer(
        state,
        exchange,
        asked,
        kind,
        prompt.context,
        read=partial(_read_prompt, prompt, kind),
        write=write,
        about={
            "episode_id": _episode(state, exchange, asked.request, scope, prompt.marks),
            "subject_ids": [*prompt.subject_ids, *filter(None, [user_of(asked.request)])],
        },
    )


async def answer_forced(state: State, exchange: Exchange, asked: Asked, found: ForcedDecision) -> None:
    """Decide a forced tool or schema, and answer as the client expects it: by a tool call or as JSON."""
    forced = found.type

    def write(answer: Answer) -> OwnAnswer:
        call = forced.complete(answer.decision)
        assert call is not None  # else it was not accepted
        own = OwnAnswer("", answer.model or "", answer.input_tokens or 0, answer.output_tokens or 0)
        if forced.form.as_tool:
            return replace(own, call=call, named=found.named)
        return replace(own, text=orjson.dumps(call[1]).decode())

    await _answer(
        state,
        exchange,
        asked,
        forced.kind,
        found.context,
        read=forced.read,
        write=write,
        about={
            "episode_id": _episode(state, exchange, asked.request, forced.kind.name, found.marks),
            "subject_ids": list(filter(None, [user_of(asked.request)])),
            "accept": lambda decision: forced.complete(decision) is not None,
        },
    )


async def _answer(
    state: State,
    exchange: Exchange,
    asked: Asked,
    kind: DecisionType,
    context: dict[str, Any],
    *,
    read: Read,
    write: Callable[[Answer], OwnAnswer],
    about: dict[str, Any],
) -> None:
    """Decide, and send the model's answer as `write` says it, or the upstream's as it came."""
    exchange.kind = kind.name
    upstream = _Upstream(state, exchange, asked, read)
    key = exchange.admission.key
    assert key is not None
    with exchange.watch():
        answer = None
        try:
            answer = await state.client.decide(
                kind,
                context,
                upstream,
                room_id=room_of(exchange.admission.headers, asked.request),
                tags={"door": asked.operation.name, "key": key.name},
                **about,
            )
        except (ModelAnswerError, UnparseableAnswer, InvalidContext):
            if not upstream.status:  # our client could not use the context: the upstream still can
                await upstream.fetch()
        _trace(state, exchange, asked, kind.name, answer)
        if answer is None or answer.source == "original":
            await _send_upstream(state, exchange, kind.name, upstream, answer)
            return
        exchange.served_by = "custom"
        count_answer(state, kind.name, answer)
        content_type, out = asked.operation.write(write(answer), asked.request)
        headers = [
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(out)),
            (b"request-id", exchange.request_id.encode()),
            (b"x-reasoning-source", b"custom"),
        ]
        if state.settings.record:
            headers.append((b"x-reasoning-decision-id", str(answer.decision_id).encode()))
        await exchange.start(200, headers)
        await exchange.write(out, more=False)


def _trace(state: State, exchange: Exchange, asked: Asked, decision_type: str, answer: Answer | None) -> None:
    """Put on the request's span what was decided."""
    inference = exchange.inference
    if inference is None or answer is None:
        return
    inference.decision_type, inference.output = decision_type, answer.decision
    inference.decision_id = str(answer.decision_id) if state.settings.record else None
    if answer.source == "custom":
        inference.provider, inference.response_model, inference.finish_reason = OURS, answer.model, "stop"
        inference.input_tokens, inference.output_tokens = answer.input_tokens, answer.output_tokens
    if state.settings.trace_content and asked.operation.turns is not None:
        with suppress(*UNREADABLE):  # what is behind the last message may be anything
            inference.turns = asked.operation.turns(asked.request) or ()


async def _send_upstream(
    state: State, exchange: Exchange, decision_type: str, upstream: _Upstream, answer: Answer | None
) -> None:
    exchange.served_by = upstream.pool.name
    exchange.reason = answer.fallback_reason if answer else "upstream_undecided"
    if exchange.reason:
        state.metrics.fallbacks.labels(decision_type, exchange.reason).inc()
    if answer is not None and state.settings.record:  # for feedback
        upstream.headers.append((b"x-reasoning-decision-id", str(answer.decision_id).encode()))
    await exchange.start(upstream.status, upstream.headers)
    await exchange.write(upstream.answer, more=False)


def _read_prompt(prompt: DecisionPrompt, kind: DecisionType, said: UpstreamAnswer) -> dict[str, Any]:
    """The decision that answers a prompt: words, or elizaOS's one tool call. Raises `UnparseableAnswer`."""
    text = said.text
    if said.tool_calls:
        call = said.tool_calls[0]
        if len(said.tool_calls) > 1 or call["name"] != STAGE_ONE_TOOL or text.strip():
            raise UnparseableAnswer(f"the answer calls tools: {call['name'][:60]!r}")
        arguments = call["arguments"]
        text = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
    return read_decision(prompt.format, text, kind, prompt.context)


def _episode(state: State, exchange: Exchange, request: dict[str, Any], about: str, marks: Sequence[str]) -> str:
    """The conversation of a request. `about` says whose prompts are compared beside the key's and the user's."""
    key = exchange.admission.key
    assert key is not None
    if told := episode_of(exchange.admission.headers, request):
        return key.episode(told)
    return state.episodes.find("\0".join((key.name, about, user_of(request) or "")), marks)
