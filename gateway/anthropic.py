"""The Anthropic door: coding goes to the coding model where that can be, all else to Anthropic, byte for byte."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import partial
from typing import Any

from gateway.bodies import read_request
from gateway.coding import DECISION_TYPE, Attempt, Plan
from gateway.coding_records import CodingRequest, record_custom, record_original
from gateway.decision_prompts import answer_decision_prompt, find_decision_prompt
from gateway.episodes import told_episode
from gateway.errors import Untranslatable
from gateway.exchange import Exchange
from gateway.forward import Copy, fetch, forward
from gateway.logs import log
from gateway.prices import find_price
from gateway.sessions import session_of, side_in_conversation
from gateway.state import State
from gateway.translate import to_chat
from reasoning.ids import uuid7
from reasoning.routes import Arm, Route


async def messages(state: State, exchange: Exchange, path: bytes) -> None:
    """`POST /v1/messages`."""
    exchange.route = "messages"
    body = await exchange.read()
    read = await read_request(exchange, body)
    key = exchange.admission.key
    assert key is not None
    if read is None:
        exchange.keep_body(body)
        await forward(exchange, state.http, state.anthropic, path=path, body=body)
        return
    request, size = read[0], len(read[1])
    del read  # an answer may take minutes
    if state.settings.decisions and key.decisions and (found := find_decision_prompt(state, "anthropic", request)):
        await answer_decision_prompt(
            state, exchange, found, form="anthropic", pool=state.anthropic, path=path, body=body, request=request
        )
        return
    if not state.classifier(request, exchange.admission.headers).coding:
        del request
        exchange.keep_body(body)
        await forward(exchange, state.http, state.anthropic, path=path, body=body)
        return
    exchange.kind = DECISION_TYPE
    await _coding(state, exchange, path, body, request, size=size, enabled=state.settings.coding and key.coding)


async def _coding(
    state: State, exchange: Exchange, path: bytes, body: bytes, request: dict[str, Any], *, size: int, enabled: bool
) -> None:
    key = exchange.admission.key
    assert key is not None
    session = session_of(request, exchange.admission.headers, key.name)
    told = told_episode(exchange.admission.headers, {})
    episode_id = key.episode(told) if told else session
    chat: dict[str, Any] | None = None
    plan, reason, untranslatable = Plan(), None, None
    try:
        version = exchange.header(b"anthropic-version")
        chat = to_chat(request, model="", images=state.settings.coding_images, version=version)
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
    if not enabled:
        reason = "disabled"
    price = find_price(state.settings.prices, request.get("model"))
    now = datetime.now(UTC)
    asked = CodingRequest(
        request_id=uuid7(now),
        ts=now,
        session=session,
        episode_id=episode_id,
        key=key.name,
        gateway_request_id=exchange.request_id,
        plan=plan,
        body=request,
        size=size,
        chat=chat,
        untranslatable=untranslatable,
        price=price,
    )
    decision_id = state.owners.make_id(now, key.name) if state.settings.record else None
    attempt: Attempt | None = None
    if plan.arm is not None and plan.route is not None and chat is not None:
        attempt = Attempt(plan.arm, decision_id)
        if await _answer(state, exchange, asked, attempt, plan.route, chat):
            _shadow(state, exchange, asked, path, body)
            return
        if attempt.served or exchange.gone:
            return
        decision_id = state.owners.make_id(now, key.name) if decision_id else None
    else:
        exchange.reason = reason or plan.reason
        if exchange.reason:
            state.metrics.fallbacks.labels(DECISION_TYPE, exchange.reason).inc()
        begun = state.coding.is_routed() or state.sessions.side(session) == "custom"
        if enabled and begun and untranslatable != "malformed":  # that, Anthropic refuses
            state.sessions.put(session, "anthropic")
    copy: Copy | None = None
    if decision_id is not None:
        started, fallback = time.perf_counter(), attempt.reason if attempt else plan.reason

        async def keep(copy: Copy) -> None:
            latency_ms = (time.perf_counter() - started) * 1000
            cut = None if copy.complete else "client" if exchange.gone else "upstream"
            await record_original(state, asked, copy, latency_ms, decision_id=decision_id, fallback=fallback, cut=cut)

        copy = Copy([(b"x-reasoning-decision-id", str(decision_id).encode())], keep)
    await forward(exchange, state.http, state.anthropic, path=path, body=body, copy=copy)
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
        state.sessions.put(asked.session, "custom")
        return True
    if not kept:
        await record_custom(state, asked, attempt, saves=False)
    if attempt.served or not attempt.cut_by_limit:  # which is this request's own, and moves no session
        state.sessions.put(asked.session, "anthropic")  # also the retry that follows an error event
    exchange.reason = attempt.reason
    state.metrics.fallbacks.labels(DECISION_TYPE, attempt.reason).inc()
    return False


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
        await record_custom(state, asked, await state.coding.ask_beside(arm, route, asked.chat), saves=False)


async def _ask_anthropic(
    state: State, exchange: Exchange, asked: CodingRequest, arm: Arm, path: bytes, body: bytes
) -> None:
    started = time.perf_counter()
    copy = await fetch(exchange, state.http, state.anthropic, path=path, body=body)
    if copy.usable:
        await record_original(state, asked, copy, (time.perf_counter() - started) * 1000, shadow=arm)
