"""Coding requests in Anthropic's form: answered by the coding model, or by Anthropic, byte for byte."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

from gateway.coding.model import DECISION_TYPE, Attempt, Plan
from gateway.coding.records import CodingRequest, record_custom, record_original
from gateway.coding.sessions import session_of, side_in_conversation
from gateway.coding.translate import to_chat
from gateway.decisions.episodes import episode_of
from gateway.errors import Untranslatable
from gateway.http.exchange import Exchange
from gateway.http.forward import Copy, fetch, forward
from gateway.http.inference import OURS
from gateway.ops.logs import log
from gateway.settings import Key
from gateway.state import State
from prices.models import find_price
from reasoning.ids import uuid7
from reasoning.records import FallbackReason
from reasoning.serving.routes import Arm, Route


async def answer_coding(
    state: State, exchange: Exchange, path: bytes, body: bytes, request: dict[str, Any], size: int
) -> None:
    """Answer a coding request (of `size` bytes when decompressed): the coding model by its route, or Anthropic."""
    key = exchange.admission.key
    assert key is not None
    session = session_of(request, exchange.admission.headers, key.name)
    asked, reason = _plan(state, exchange, key, session, request, size)
    decision_id = _trace_decision(exchange, _decision_id(state, asked))
    attempt: Attempt | None = None
    plan = asked.plan
    if plan.arm is not None and plan.route is not None and asked.chat is not None:
        attempt = state.coding.attempt(plan.arm, asked.body, asked.chat, decision_id)
        if await _answer(state, exchange, asked, attempt, plan.route, asked.chat):
            _shadow(state, exchange, asked, path, body)
            return
        if attempt.served or exchange.gone:
            return
        decision_id = _trace_decision(exchange, _decision_id(state, asked))
    else:
        exchange.reason = reason or plan.reason
        if exchange.reason:
            state.metrics.fallbacks.labels(DECISION_TYPE, exchange.reason).inc()
        begun = state.coding.is_routed() or state.sessions.side(session) == "custom"
        if reason != "disabled" and begun and asked.untranslatable != "malformed":  # that, Anthropic refuses
            state.sessions.put(session, "anthropic")
    await _forward(state, exchange, asked, path, body, decision_id, attempt.reason if attempt else plan.reason)


def _plan(
    state: State, exchange: Exchange, key: Key, session: str, request: dict[str, Any], size: int
) -> tuple[CodingRequest, str | None]:
    """The request as the log has it, with the plan for it, and why it is not the coding model's, if that is known."""
    enabled = state.settings.coding and key.coding
    told = episode_of(exchange.admission.headers, {})
    chat: dict[str, Any] | None = None
    plan, reason, untranslatable = Plan(), None, None
    try:
        version = exchange.header(b"anthropic-version")
        images, effort = state.settings.coding_images, state.settings.coding_effort
        chat = to_chat(request, model="", images=images, effort=effort, version=version)
        if not enabled:
            plan = Plan(reason="disabled")
        elif (side_in_conversation(request) or state.sessions.side(session)) == "anthropic":
            reason = "session_at_anthropic"
        else:
            plan = state.coding.plan(session, chat)
    except Untranslatable as error:
        untranslatable = error.reason
        reason = f"untranslatable_{error.reason}"
        log.debug("not translatable", extra={"fields": {"reason": error.reason}})
    now = datetime.now(UTC)
    asked = CodingRequest(
        request_id=uuid7(now),
        ts=now,
        session=session,
        episode_id=key.episode(told) if told else session,
        key=key.name,
        gateway_request_id=exchange.request_id,
        plan=plan,
        body=request,
        size=size,
        chat=chat,
        untranslatable=untranslatable,
        price=find_price(state.settings.prices, request.get("model"), url=state.pools["anthropic"].url, ts=now),
    )
    return asked, reason if enabled else "disabled"


def _decision_id(state: State, asked: CodingRequest) -> UUID | None:
    """An id for one more answer of the request. None where nothing is recorded."""
    return state.owners.make_id(asked.ts, asked.key) if state.settings.record else None


async def _forward(
    state: State,
    exchange: Exchange,
    asked: CodingRequest,
    path: bytes,
    body: bytes,
    decision_id: UUID | None,
    fallback: FallbackReason | None,
) -> None:
    """Have Anthropic answer, record its answer under `decision_id`, and ask the shadow arms."""
    copy: Copy | None = None
    if decision_id is not None:
        started = time.perf_counter()

        async def keep(copy: Copy) -> None:
            latency_ms = (time.perf_counter() - started) * 1000
            cut = None if copy.complete else "client" if exchange.gone else "upstream"
            await record_original(state, asked, copy, latency_ms, decision_id=decision_id, fallback=fallback, cut=cut)

        copy = Copy([(b"x-reasoning-decision-id", str(decision_id).encode())], keep)
    await forward(exchange, state.http, state.pools["anthropic"], path=path, body=body, copy=copy)
    if copy is None or not copy.readable:
        return
    if copy.usable:
        _shadow(state, exchange, asked, path, body)
    elif not copy.complete:  # its head has told the decision's id
        await keep(copy)


async def _answer(
    state: State, exchange: Exchange, asked: CodingRequest, attempt: Attempt, route: Route, chat: dict[str, Any]
) -> bool:
    """Have the model answer, and keep what came of it. False where Anthropic has to answer, now or when asked again."""
    kept = False

    async def keep() -> None:
        nonlocal kept
        kept = True
        await record_custom(state, asked, attempt, saves=not attempt.failed)

    with exchange.watch():
        await state.coding.answer(exchange, attempt, route, chat, keep)
    if exchange.gone:
        if attempt.served and not kept:  # what it had said until then was read, and is paid for
            attempt.cut, attempt.detail = "client", "the client went away"
            await keep()
        return False
    if not attempt.failed:
        _trace(exchange, attempt)
        state.sessions.put(asked.session, "custom")
        return True
    if not kept:
        await record_custom(state, asked, attempt, saves=False)
    if attempt.served or not attempt.cut_by_limit:  # which is this request's own, and moves no session
        state.sessions.put(asked.session, "anthropic")  # also the retry that follows an error event
    exchange.reason = attempt.reason
    state.metrics.fallbacks.labels(DECISION_TYPE, attempt.reason).inc()
    return False


def _trace_decision(exchange: Exchange, decision_id: UUID | None) -> UUID | None:
    """Name the decision on the request's span: the one that is answered, if several were tried."""
    if exchange.inference is not None and decision_id is not None:
        exchange.inference.decision_type, exchange.inference.decision_id = DECISION_TYPE, str(decision_id)
    return decision_id


def _trace(exchange: Exchange, attempt: Attempt) -> None:
    """Put on the request's span what the model answered."""
    if (inference := exchange.inference) is not None:
        inference.provider, inference.response_model = OURS, attempt.arm.model
        inference.input_tokens, inference.output_tokens = attempt.input_tokens, attempt.output_tokens
        inference.finish_reason = attempt.stop_reason


def _shadow(state: State, exchange: Exchange, asked: CodingRequest, path: bytes, body: bytes) -> None:
    """Have the shadow arms of the route answer as well, now that the answer has gone out. Anthropic as a shadow only
    answers where a model served, in the client's name."""
    route = asked.plan.route
    if route is None:
        return
    for arm in (arm for arm in route.arms if arm.mode == "shadow"):
        if arm.source == "custom":
            state.shadows.submit(partial(_ask_model, state, asked, route, arm))
        elif exchange.served_by == "custom":
            state.shadows.submit(partial(_ask_anthropic, state, exchange, asked, arm, path, body))


async def _ask_model(state: State, asked: CodingRequest, route: Route, arm: Arm) -> None:
    if asked.chat is not None and state.coding.may_ask(arm, asked.chat):
        attempt = state.coding.attempt(arm, asked.body, asked.chat)
        await state.coding.ask_beside(attempt, route, asked.chat)
        await record_custom(state, asked, attempt, saves=False)


async def _ask_anthropic(
    state: State, exchange: Exchange, asked: CodingRequest, arm: Arm, path: bytes, body: bytes
) -> None:
    started = time.perf_counter()
    copy = await fetch(exchange, state.http, state.pools["anthropic"], path=path, body=body)
    if copy.usable:
        await record_original(state, asked, copy, (time.perf_counter() - started) * 1000, shadow=arm)
