"""The Anthropic door: coding goes to the coding model where that can be, all else to Anthropic, byte for byte."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson

from gateway.coding import DECISION_TYPE, Attempt, Plan
from gateway.decision_prompts import answer_decision_prompt, find_decision_prompt
from gateway.errors import ModelAnswerError, Untranslatable
from gateway.exchange import Exchange
from gateway.forward import Copy, forward
from gateway.logs import log
from gateway.read_answers import Said, read_answer, with_tool_calls
from gateway.sessions import session_of, side_in_conversation
from gateway.state import State
from gateway.translate import to_chat
from reasoning.decision_types import get_decision_type
from reasoning.errors import UnparseableAnswer
from reasoning.ids import uuid7
from reasoning.records import Decision, Message


async def messages(state: State, exchange: Exchange, path: bytes) -> None:
    """`POST /v1/messages`."""
    exchange.route = "messages"
    body = await exchange.read()
    request = _parse(body)
    key = exchange.admission.key
    assert key is not None
    if request is None:
        await forward(exchange, state.http, state.anthropic, path=path, body=body)
        return
    if state.settings.decisions and key.decisions and (found := find_decision_prompt(state, "anthropic", request)):
        await answer_decision_prompt(
            state, exchange, found, form="anthropic", pool=state.anthropic, path=path, body=body, request=request
        )
        return
    if not state.classifier(request, exchange.admission.headers).coding:
        await forward(exchange, state.http, state.anthropic, path=path, body=body)
        return
    exchange.kind = DECISION_TYPE
    await _coding(state, exchange, path, body, request, enabled=state.settings.coding and key.coding)


async def _coding(
    state: State, exchange: Exchange, path: bytes, body: bytes, request: dict[str, Any], *, enabled: bool
) -> None:
    key = exchange.admission.key
    assert key is not None
    session = session_of(request, exchange.admission.headers, key.name)
    chat: dict[str, Any] | None = None
    plan, reason = Plan(), None
    try:
        chat = to_chat(request, model="", images=state.settings.coding_images)
    except Untranslatable as error:
        reason = f"untranslatable_{error.reason}"
        log.debug("not translatable", extra={"fields": {"reason": error.reason}})
    if not enabled:
        plan = Plan(reason="disabled")
    elif chat is None:
        pass
    elif (side_in_conversation(request) or state.sessions.side(session)) == "anthropic":
        reason = "session_at_anthropic"
    else:
        plan = state.coding.plan(session)
    asked_at = datetime.now(UTC)
    attempt: Attempt | None = None
    if plan.arm is not None and chat is not None:
        chat["model"] = plan.arm.model
        async with exchange.watch():
            attempt = await state.coding.answer(exchange, plan, chat)
        if attempt is None:  # the client went away
            return
        _record_custom(state, exchange, session, asked_at, plan, chat, attempt)
        if not attempt.failed:
            state.sessions.put(session, "custom")
            return
        state.sessions.put(session, "anthropic")  # also the retry that follows an error event
        exchange.reason = attempt.reason
        state.metrics.fallbacks.labels(DECISION_TYPE, attempt.reason).inc()
        if attempt.served:
            return
    else:
        exchange.reason = reason or plan.reason
        if exchange.reason:
            state.metrics.fallbacks.labels(DECISION_TYPE, exchange.reason).inc()
        if enabled and chat is not None and plan.reason not in ("disabled", "no_route"):
            state.sessions.put(session, "anthropic")
    copy = Copy() if state.settings.record and chat is not None else None
    await forward(exchange, state.http, state.anthropic, path=path, body=body, copy=copy)
    if copy is not None and copy.usable and chat is not None:
        fallback = attempt.reason if attempt else plan.reason
        _record_original(state, exchange, session, asked_at, plan, chat, copy, fallback)


def _parse(body: bytes) -> dict[str, Any] | None:
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None  # Anthropic says what is wrong with it
    return request if isinstance(request, dict) else None


def _record_custom(
    state: State, exchange: Exchange, session: str, ts: datetime, plan: Plan, chat: dict[str, Any], attempt: Attempt
) -> None:
    arm = plan.arm
    assert arm is not None
    cost = arm.cost_usd(attempt.input_tokens or 0, attempt.output_tokens or 0)
    state.metrics.count_tokens("custom", attempt.input_tokens or 0, attempt.output_tokens or 0)
    state.metrics.spend.inc(cost)
    if not state.settings.record:
        return

    def make() -> list[Decision]:
        said = Said(
            text="".join(block["text"] for block in attempt.content if block["type"] == "text"),
            tool_calls=[
                {"name": block["name"], "arguments": block["input"]}
                for block in attempt.content
                if block["type"] == "tool_use"
            ],
        )
        decision = _decision(state, exchange, session, ts, plan, chat, said)
        decision.source, decision.model = "custom", arm.model
        decision.served = attempt.served
        decision.fallback_reason = attempt.reason
        decision.error = attempt.detail
        decision.latency_ms = attempt.latency_ms
        decision.input_tokens, decision.output_tokens = attempt.input_tokens, attempt.output_tokens
        decision.cost_usd = cost
        return [decision]

    state.recorder.submit(make, _size(chat))


def _record_original(
    state: State,
    exchange: Exchange,
    session: str,
    ts: datetime,
    plan: Plan,
    chat: dict[str, Any],
    copy: Copy,
    fallback: Any,
) -> None:
    latency_ms = (exchange.elapsed_s()) * 1000

    def make() -> list[Decision]:
        try:
            said = read_answer("anthropic", copy.body, copy.content_type)
        except ModelAnswerError:
            return []  # Anthropic's own error within a 200: nothing was answered
        state.metrics.count_tokens("anthropic", said.input_tokens or 0, said.output_tokens or 0)
        decision = _decision(state, exchange, session, ts, plan, chat, said)
        decision.served = True
        decision.fallback_reason = fallback
        decision.latency_ms = latency_ms
        decision.input_tokens, decision.output_tokens = said.input_tokens, said.output_tokens
        return [decision]

    state.recorder.submit(make, copy.size + _size(chat))


def _decision(
    state: State, exchange: Exchange, session: str, ts: datetime, plan: Plan, chat: dict[str, Any], said: Said
) -> Decision:
    """One row of the log. Valid is an answer of explanation and one block of code; tool calls are kept as text."""
    kind = get_decision_type(DECISION_TYPE, state.config)
    try:
        parsed = kind.parse(said.completion)
    except UnparseableAnswer:
        parsed = None
    drawn = plan.drawn
    key = exchange.admission.key
    return Decision(
        decision_id=uuid7(ts),
        request_id=uuid7(ts),
        ts=ts,
        decision_type=DECISION_TYPE,
        source="original",
        served=True,
        agent_id=state.config.agent_id or (f"gateway:{key.name}" if key else None),
        episode_id=session,
        config_hash=drawn.config_hash if drawn else None,
        experiment=plan.route.experiment if plan.route else None,
        arm=drawn.name if drawn else None,
        arm_probability=plan.probability,
        messages=flatten_messages(chat["messages"]),
        tools=chat.get("tools"),
        completion=said.completion,
        decision=parsed,
        valid=parsed is not None,
        tags={"door": "anthropic", "gateway_request_id": exchange.request_id},
    )


def flatten_messages(chat_messages: list[dict[str, Any]]) -> list[Message]:
    """Chat messages as the log keeps them: role and text. Pictures are named, tool calls written out."""
    flat: list[Message] = []
    for message in chat_messages:
        content = message.get("content") or ""
        if isinstance(content, list):
            content = "\n".join(part["text"] if part["type"] == "text" else "[image]" for part in content)
        if calls := message.get("tool_calls"):
            content = with_tool_calls(
                content,
                [{"name": c["function"]["name"], "arguments": orjson.loads(c["function"]["arguments"])} for c in calls],
            )
        flat.append({"role": message["role"], "content": content})
    return flat


def _size(chat: dict[str, Any]) -> int:
    return sum(len(str(message.get("content") or "")) for message in chat["messages"]) + 1000
