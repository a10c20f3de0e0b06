"""Typed questions over HTTP, at the paths of `/v1/decisions` and `/v1/systemone`.

A request is answered by our model where its questions have a route, otherwise by the decision model that the client
meant, byte for byte. Both are recorded, with the probability of every option. What our models cannot be asked (images,
questions that are not ours to read) goes to the upstream as it came, and so does what the upstream will refuse: its
own error tells the client what is wrong.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import orjson

from gateway.decisions.api import count_answer
from gateway.decisions.episodes import episode_of, room_of, user_of
from gateway.decisions.whole_answer import WholeAnswer, fetch_whole
from gateway.errors import ModelAnswerError
from gateway.http.bodies import read_request
from gateway.http.exchange import Exchange
from gateway.http.forward import forward
from gateway.http.inference import OURS, Inference
from gateway.http.upstream import Pool
from gateway.protocols.answers import UpstreamAnswer
from gateway.protocols.port import TypedOperation
from gateway.state import State
from prices.models import find_price
from reasoning.core import Answer
from reasoning.errors import InvalidContext, UnparseableAnswer
from reasoning.fallback import Fallback
from reasoning.questions import Probabilities, TypedQuestion
from reasoning.serving.decision_wires import DecisionRequest, DecisionResponse, DecisionWire, Unaskable


async def answer_typed(state: State, exchange: Exchange, operation: TypedOperation, path: bytes) -> None:
    """Answer a POST that asks typed questions."""
    key, protocol = exchange.admission.key, exchange.protocol
    assert key is not None
    assert protocol is not None
    exchange.route, pool = operation.name, state.pools[protocol.name]
    body = await exchange.read()
    asked = None
    if state.settings.decisions and key.decisions and (read := await read_request(exchange, body)) is not None:
        try:
            asked = operation.wire.read_request(read[0])
        except Unaskable:  # the upstream answers, or says what is wrong with it
            exchange.reason = "not_ours"
            state.metrics.fallbacks.labels(operation.name, "not_ours").inc()
    if asked is None or read is None:
        exchange.keep_body(body)
        await forward(exchange, state.http, pool, path=path, body=body)
        return
    upstream = _Upstream(state, exchange, operation.wire, asked, path, body)
    await _decide(state, exchange, operation, asked, upstream, read[0])


class _Upstream:
    """The decision model that the client meant, as the fallback: asked once at most, its answer kept as it came."""

    def __init__(
        self,
        state: State,
        exchange: Exchange,
        wire: DecisionWire,
        asked: DecisionRequest,
        path: bytes,
        body: bytes,
    ) -> None:
        assert exchange.protocol is not None
        self._state, self._exchange, self._wire, self._asked = state, exchange, wire, asked
        self._path, self._body = path, body
        self.pool: Pool = state.pools[exchange.protocol.name]
        self.whole: WholeAnswer | None = None

    async def __call__(self, state: Any) -> Fallback:
        whole = await self.fetch()
        if whole.status != 200:
            raise ModelAnswerError("upstream_status", str(whole.status))
        told = self._wire.read_response(whole.body, self._asked.questions, list(self._asked.raw))
        return self._report(told)

    async def fetch(self) -> WholeAnswer:
        """Its answer. Raises `UpstreamError`."""
        if self.whole is None:
            self.whole = await fetch_whole(self._state, self._exchange, self.pool, self._path, self._body)
        return self.whole

    def _report(self, told: DecisionResponse) -> Fallback:
        """What it answered and used, for the record; the tokens are counted."""
        model = told.model or self._asked.model
        said = UpstreamAnswer(
            input_tokens=told.input_tokens,
            output_tokens=told.output_tokens,
            cache_read_tokens=told.cache_read_tokens or 0,
            reasoning_tokens=told.reasoning_tokens,
        )
        usage = said.usage(model, find_price(self._state.settings.prices, model, url=self.pool.url))
        self._state.metrics.count_tokens(self.pool.name, said.input_tokens or 0, said.output_tokens or 0)
        self._state.metrics.upstream_spend.inc(usage.cost_usd or 0.0)
        used = {field.name: getattr(usage, field.name) for field in fields(usage)}
        return Fallback(told.answers, probabilities=told.probabilities, **used)


async def _decide(
    state: State,
    exchange: Exchange,
    operation: TypedOperation,
    asked: DecisionRequest,
    upstream: _Upstream,
    request: dict[str, Any],
) -> None:
    key, told = exchange.admission.key, exchange.admission.headers
    assert key is not None
    episode = episode_of(told, request)
    name = exchange.kind = asked.questions.type_name
    with exchange.watch():
        answer = None
        try:
            answer = await state.client.ask(
                asked.state,
                {question.name: question for question in asked.questions.questions},
                upstream,
                episode_id=key.episode(episode) if episode else None,
                room_id=room_of(told, request),
                subject_ids=list(filter(None, [user_of(request)])),
                tags={"door": operation.name, "key": key.name},
            )
        except (ModelAnswerError, UnparseableAnswer, InvalidContext):
            await upstream.fetch()  # our client could not use the state or the answer: the client still can
        if answer is not None:
            assert exchange.protocol is not None
            exchange.inference = Inference(
                "chat",
                OURS if answer.source == "custom" else exchange.protocol.genai_provider or exchange.protocol.name,
                request.get("model"),
                response_model=answer.model,
                decision_type=name,
                decision_id=str(answer.decision_id) if state.settings.record else None,
                input_tokens=answer.input_tokens,
                output_tokens=answer.output_tokens,
            )
        if answer is None or answer.source == "original":
            await _send_upstream(state, exchange, await upstream.fetch(), answer)
            return
        exchange.served_by = "custom"
        count_answer(state, name, answer)
        told_all = DecisionResponse(
            answer.model or "",
            answer.decision,
            _all_probabilities(asked, answer),
            answer.input_tokens,
            answer.output_tokens,
        )
        headers = [(b"x-reasoning-source", b"custom"), (b"request-id", exchange.request_id.encode())]
        if state.settings.record:
            headers.append((b"x-reasoning-decision-id", str(answer.decision_id).encode()))
        await exchange.reply(200, orjson.dumps(operation.wire.write_response(asked, told_all)), headers)


async def _send_upstream(state: State, exchange: Exchange, whole: WholeAnswer, answer: Answer | None) -> None:
    exchange.served_by = exchange.protocol.name if exchange.protocol else ""
    exchange.reason = answer.fallback_reason if answer else "upstream_undecided"
    if exchange.reason:
        state.metrics.fallbacks.labels(exchange.route, exchange.reason).inc()
    headers = list(whole.headers)
    if answer is not None and state.settings.record:  # for feedback
        headers.append((b"x-reasoning-decision-id", str(answer.decision_id).encode()))
    await exchange.start(whole.status, headers)
    await exchange.write(whole.body, more=False)


def _all_probabilities(asked: DecisionRequest, answer: Answer) -> Probabilities:
    """Those of every question. A model whose server tells none of a question is taken to be certain."""
    told = answer.probabilities or {}
    return {
        question.name: told.get(question.name) or _certain(question, answer.decision[question.name])
        for question in asked.questions.questions
    }


def _certain(question: TypedQuestion, value: Any) -> dict[str, float]:
    chosen = question.key(value)
    return {key: float(key == chosen) for key in question.keys}
