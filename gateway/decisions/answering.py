"""Answering a decision prompt: our model by its route, or the upstream that the client meant to ask."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import orjson

from gateway.decisions.api import count_answer
from gateway.decisions.episodes import episode_of, room_of, user_of
from gateway.decisions.prompts import STAGE_ONE_TOOL, DecisionPrompt, read_decision, recognise, write_answer
from gateway.errors import ModelAnswerError, UpstreamError
from gateway.http.exchange import Exchange
from gateway.http.security import Headers, forwarded_headers, returned_headers
from gateway.http.upstream import ask
from gateway.protocols.answers import OwnAnswer, UpstreamAnswer
from gateway.protocols.port import Operation
from gateway.protocols.questions import TextPrompt
from gateway.state import State
from prices.models import find_price
from reasoning.decision_types import DecisionType, get_decision_type
from reasoning.errors import InvalidContext, UnparseableAnswer
from reasoning.fallback import fallback_call
from reasoning.io.bounded import MAX_BYTES


class _Upstream:
    """The upstream as the original logic of a decision: asked once at most, its answer kept as it came."""

    def __init__(
        self,
        state: State,
        exchange: Exchange,
        prompt: DecisionPrompt,
        operation: Operation,
        path: bytes,
        body: bytes,
        model: object,
    ) -> None:
        assert exchange.protocol is not None
        self._state, self._exchange, self._prompt = state, exchange, prompt
        self._operation, self._path, self._body, self._model = operation, path, body, model
        self._protocol, self.pool = exchange.protocol, state.pools[exchange.protocol.name]
        self.status = 0
        self.headers: Headers = []
        self.answer = b""

    async def __call__(self, context: dict[str, Any]) -> dict[str, Any]:
        await self.fetch()
        content_type = dict(self.headers).get(b"content-type", b"").decode("latin-1")
        if self.status != 200:
            raise ModelAnswerError("upstream_status", str(self.status))
        said = self._operation.read(self.answer, content_type)
        self._report(said)
        kind = get_decision_type(self._prompt.decision_type, self._state.config)
        return self._read(said, kind)

    def _report(self, said: UpstreamAnswer) -> None:
        """Put on record, and count, what the upstream's answer used: also of one that is no decision."""
        price = find_price(self._state.settings.prices, self._model, url=self.pool.url)
        usage = said.usage(self._model, price)
        with fallback_call() as call:
            for field in fields(usage):
                setattr(call, field.name, getattr(usage, field.name))
        self._state.metrics.count_tokens(self.pool.name, said.input_tokens or 0, said.output_tokens or 0)
        self._state.metrics.upstream_spend.inc(usage.cost_usd or 0.0)

    def _read(self, said: UpstreamAnswer, kind: DecisionType) -> dict[str, Any]:
        """The decision in an answer that its model ended, in words. Raises `UnparseableAnswer`."""
        if said.stop is not None and not said.whole:
            raise UnparseableAnswer(f"the answer was cut: {said.stop[:60]}")
        text = said.text
        if said.tool_calls:
            call = said.tool_calls[0]
            if len(said.tool_calls) > 1 or call["name"] != STAGE_ONE_TOOL or text.strip():
                raise UnparseableAnswer(f"the answer calls tools: {call['name'][:60]!r}")
            arguments = call["arguments"]
            text = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
        return read_decision(self._prompt.format, text, kind, self._prompt.context)

    async def fetch(self) -> None:
        """Ask, and read the answer whole: a decision is small. Raises `UpstreamError`."""
        upstream, response = await ask(
            self._state.http,
            self.pool,
            self._exchange.method,
            self._path,
            self._exchange.query,
            lambda chosen: forwarded_headers(
                self._exchange.headers,
                self._exchange.admission,
                self._protocol,
                chosen.settings.api_key,
                identity=True,
            ),
            self._body,
        )
        try:
            parts, size = [], 0
            while chunk := await response.content.readany():
                size += len(chunk)
                if size > MAX_BYTES:  # not asked again: it would cost the same once more
                    raise UpstreamError(f"{self.pool.name} answered a decision with more than {MAX_BYTES} bytes")
                parts.append(chunk)
        finally:
            upstream.active -= 1
            response.release() if response.content.at_eof() else response.close()
        self.status, self.answer = response.status, b"".join(parts)
        self.headers = [h for h in returned_headers(response.raw_headers) if h[0] != b"content-length"]
        self.headers.append((b"content-length", b"%d" % size))


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
    state: State,
    exchange: Exchange,
    found: tuple[DecisionPrompt, TextPrompt],
    *,
    operation: Operation,
    path: bytes,
    body: bytes,
    request: dict[str, Any],
) -> None:
    """Decide and answer in the format asked for. What the upstream answered goes back as it came."""
    prompt, question = found
    exchange.kind = prompt.decision_type
    upstream = _Upstream(state, exchange, prompt, operation, path, body, request.get("model"))
    key = exchange.admission.key
    assert key is not None
    with exchange.watch():
        answer = None
        try:
            answer = await state.client.decide(
                prompt.decision_type,
                prompt.context,
                upstream,
                episode_id=_episode(state, exchange, prompt, request),
                room_id=room_of(exchange.admission.headers, request),
                subject_ids=[*prompt.subject_ids, *filter(None, [user_of(request)])],
                tags={"door": operation.name, "key": key.name},
            )
        except (ModelAnswerError, UnparseableAnswer, InvalidContext):
            if not upstream.status:  # our client could not use the context: the upstream still can
                await upstream.fetch()
        if answer is None or answer.source == "original":
            exchange.served_by = upstream.pool.name
            exchange.reason = answer.fallback_reason if answer else "upstream_undecided"
            if exchange.reason:
                state.metrics.fallbacks.labels(prompt.decision_type, exchange.reason).inc()
            if answer is not None and state.settings.record:  # for feedback
                upstream.headers.append((b"x-reasoning-decision-id", str(answer.decision_id).encode()))
            await exchange.start(upstream.status, upstream.headers)
            await exchange.write(upstream.answer, more=False)
            return
        exchange.served_by = "custom"
        count_answer(state, prompt.decision_type, answer)
        kind = get_decision_type(prompt.decision_type, state.config)
        text, stop = question.cut(write_answer(prompt, answer.decision, kind))
        own = OwnAnswer(text, answer.model or "", answer.input_tokens or 0, answer.output_tokens or 0, stop)
        content_type, out = operation.write(own, request)
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


def _episode(state: State, exchange: Exchange, prompt: DecisionPrompt, request: dict[str, Any]) -> str:
    key = exchange.admission.key
    assert key is not None
    if told := episode_of(exchange.admission.headers, request):
        return key.episode(told)
    scope = (key.name, prompt.context["agent_name"], user_of(request) or "")
    return state.episodes.find("\0".join(scope), prompt.marks)
