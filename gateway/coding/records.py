"""Coding requests as decisions in the log: one row an answer, all rows of a request under one `request_id`.

What is not a whole answer is not `valid`, and the tag `cut` says why: the `client` went away, the `upstream` broke off
or sent something else, its `size` was too large to keep; else the answer's own stop reason, as `max_tokens`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from gateway.coding.model import DECISION_TYPE, Attempt, Plan
from gateway.coding.turns import render_turns, shows_pictures
from gateway.coding.untranslated import describe_chat
from gateway.errors import ModelAnswerError
from gateway.http.forward import Copy
from gateway.protocols.answers import UpstreamAnswer
from gateway.protocols.anthropic import MESSAGES, read_cut
from gateway.state import State
from prices.models import AnyPrice
from reasoning.decision_types import get_decision_type
from reasoning.errors import UnparseableAnswer
from reasoning.formats.turns import check_no_calls
from reasoning.ids import uuid7
from reasoning.records import Decision, FallbackReason
from reasoning.serving.routes import Arm


@dataclass(frozen=True, slots=True)
class CodingRequest:
    """What the rows of one request have in common. `session` is whose side is kept; the log has the `episode_id`, which
    is the same unless the client gave it. `price` is that of the model that the client asked for.

    `chat` is what `body`, of `size` bytes, says in the chat API; where it is None for the reason `untranslatable`, the
    log has the text of `gateway.coding.untranslated`.
    """

    request_id: UUID
    ts: datetime
    session: str
    episode_id: str
    key: str
    gateway_request_id: str
    plan: Plan
    body: dict[str, Any]
    size: int
    chat: dict[str, Any] | None
    untranslatable: str | None
    price: AnyPrice | None


async def record_custom(state: State, request: CodingRequest, attempt: Attempt, *, saves: bool) -> None:
    """Log what a model answered, and count its tokens. `saves`: it was asked in the upstream's place."""
    arm = attempt.arm
    input_tokens, output_tokens = attempt.input_tokens or 0, attempt.output_tokens or 0
    cost = arm.cost_usd(input_tokens, output_tokens)
    state.metrics.count_tokens("custom", input_tokens, output_tokens)
    state.metrics.spend.inc(cost)
    if saves and request.price is not None:
        # What it cost less is saved; what it cost more, or cost in vain, is in the spend.
        state.metrics.saved.inc(max(request.price.cost_usd(input=input_tokens, output=output_tokens) - cost, 0.0))
    if not state.settings.record:
        return

    def make() -> list[Decision]:
        said = UpstreamAnswer(
            text="".join(block["text"] for block in attempt.content if block["type"] == "text"),
            tool_calls=[
                {"name": block["name"], "arguments": block["input"]}
                for block in attempt.content
                if block["type"] == "tool_use"
            ],
            stop=attempt.stop_reason,
        )
        row = _row(state, request, said, arm, attempt.decision_id, attempt.cut)
        row.source, row.model, row.served = "custom", arm.model, attempt.served
        if attempt.ignored and isinstance(row.tags, dict):
            row.tags["ignored"] = ",".join(attempt.ignored)
        row.confidence, row.fallback_reason, row.error = attempt.confidence, attempt.reason, attempt.detail
        row.latency_ms, row.cost_usd = attempt.latency_ms, cost
        row.input_tokens, row.output_tokens = attempt.input_tokens, attempt.output_tokens
        return [row]

    answer = sum(len(block.get("text", "")) for block in attempt.content)
    await state.recorder.record(make, request.size + answer, answer=answer)


async def record_original(
    state: State,
    request: CodingRequest,
    copy: Copy,
    latency_ms: float,
    *,
    decision_id: UUID | None = None,
    fallback: FallbackReason | None = None,
    shadow: Arm | None = None,
    cut: str | None = None,
) -> None:
    """Log what Anthropic answered, from a copy of its answer: served, or beside a model's as the arm `shadow`."""

    def make() -> list[Decision]:
        error = None
        try:
            if cut is not None or not copy.usable:
                raise ModelAnswerError(f"cut_by_{cut or 'size'}")
            said = MESSAGES.read(copy.body, copy.content_type)
        except ModelAnswerError as found:
            if shadow is not None:
                return []  # nobody knows of it
            said, error = read_cut(copy.body, copy.content_type), str(found)
        state.metrics.count_tokens("anthropic", said.input_tokens or 0, said.output_tokens or 0)
        cut_by = cut or ("size" if not copy.usable else "upstream") if error else None
        row = _row(state, request, said, shadow or request.plan.drawn, decision_id, cut_by)
        row.error = error
        row.served, row.fallback_reason, row.latency_ms = shadow is None, fallback, latency_ms
        usage = said.usage(request.body.get("model"), request.price)
        row.fallback_model, row.cost_usd, row.price_source = usage.model, usage.cost_usd, usage.price_source
        row.input_tokens, row.output_tokens = usage.input_tokens, usage.output_tokens
        row.cache_read_tokens, row.cache_write_tokens = usage.cache_read_tokens, usage.cache_write_tokens
        state.metrics.upstream_spend.inc(row.cost_usd or 0.0)
        return [row]

    await state.recorder.record(make, copy.size + request.size, answer=copy.size)


def _row(
    state: State,
    request: CodingRequest,
    said: UpstreamAnswer,
    arm: Arm | None,
    decision_id: UUID | None,
    cut: str | None,
) -> Decision:
    """One row. Only what its author ended itself is valid: an answer that a limit cut teaches nobody."""
    if cut is None and said.stop is not None and not said.whole:
        cut = said.stop
    plan = request.plan
    chat, missing = _chat(request)
    messages = render_turns(chat)
    parsed = None
    if said.whole and cut is None:
        try:
            # Its calls are known. One that its words seem to hold would be learned as one that was made.
            check_no_calls(said.text)
            parsed = get_decision_type(DECISION_TYPE, state.config).parse_reply(said.completion, messages)
        except UnparseableAnswer:
            parsed = None
    return Decision(
        decision_id=decision_id or uuid7(request.ts),
        request_id=request.request_id,
        ts=request.ts,
        decision_type=DECISION_TYPE,
        source="original",
        served=True,
        agent_id=state.config.agent_id or f"gateway:{request.key}",
        episode_id=request.episode_id,
        config_hash=arm.config_hash if arm else None,
        experiment=plan.route.experiment if plan.route else None,
        arm=arm.name if arm else None,
        arm_probability=plan.probability if arm is not None and arm.mode == "live" else None,
        messages=messages,
        tools=chat.get("tools"),
        completion=said.completion,
        decision=parsed,
        valid=parsed is not None,
        tags={"door": "anthropic", "gateway_request_id": request.gateway_request_id}
        | ({"untranslated": ",".join(sorted(missing))} if missing else {})
        | ({"cut": cut} if cut else {}),
    )


def _chat(request: CodingRequest) -> tuple[dict[str, Any], set[str]]:
    """The conversation, and what its text lacks of what was asked."""
    if request.chat is not None:
        return request.chat, {"image"} if shows_pictures(request.chat) else set()
    chat, missing = describe_chat(request.body)
    if request.untranslatable and not request.untranslatable.endswith("block"):  # that one is named by its type
        missing.add(request.untranslatable)
    return chat, missing
