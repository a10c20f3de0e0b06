"""The decision client for asyncio."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload
from uuid import UUID

from reasoning.config import Config
from reasoning.core import Answer, Attempt, ClientCore, Question
from reasoning.decision_models import DecisionModel, find_decision_model
from reasoning.decision_types import Context, DecisionType
from reasoning.errors import CallFailed
from reasoning.fallback import Fallback, Usage, collecting, split_result
from reasoning.questions import QuestionSet, TypedQuestion, question_set
from reasoning.records import FeedbackKind
from reasoning.serving.hosted import hosted_request, read_hosted
from reasoning.serving.routes import Arm
from reasoning.serving.shadow import ShadowTasks

if TYPE_CHECKING:
    from reasoning.io.transport_port import AsyncPort
    from reasoning.serving.streams import AsyncCodingStream

AsyncOriginal = Callable[[Any], Awaitable[Any] | Any]


class AsyncDecisionClient:
    """`DecisionClient` for asyncio; `original` may be a coroutine function. It outlives its event loop."""

    def __init__(
        self,
        data: Path | str | None = None,
        *,
        agent_id: str | None = None,
        config: Config | None = None,
        clock: Callable[[], float] = time.time,
        transport: AsyncPort | None = None,
    ) -> None:
        self._given_transport = transport
        self._core = ClientCore(data, agent_id, config, clock)
        self.config = self._core.config
        self._reset()
        _clients.add(self)
        if self.config.enabled and self.config.routes.exists():
            self._http()
            self._core.load_rules()

    async def decide(
        self,
        decision_type: str | DecisionType,
        context: Context,
        original: AsyncOriginal,
        *,
        episode_id: str | None = None,
        room_id: str | None = None,
        subject_ids: Iterable[str] = (),
        tags: Mapping[str, str] | None = None,
    ) -> Answer:
        """Decide once. What `original` raises passes unchanged, and is recorded; so does a cancellation, unrecorded."""
        question = self._core.ask(decision_type, context, episode_id, room_id, subject_ids, tags)
        shadows = question.shadow_arms()
        copy = self._shadow_models(question, shadows) if shadows else None
        answer = None
        if question.asks_model and question.arm is not None:
            attempt = await self._attempt(question, question.arm)
            self._before_serving(attempt)
            answer = self._core.serve_custom(question, attempt)
        if answer is None:
            return await self._ask_original(question, original)
        if copy is not None:
            self._shadow_original(copy, shadows, original)
        return answer

    async def ask(
        self,
        state: Any,
        questions: Mapping[str, TypedQuestion],
        fallback: AsyncOriginal | str,
        *,
        name: str = "ask",
        **ids: Any,
    ) -> Answer:
        """As `DecisionClient.ask`; `fallback` may be a coroutine function."""
        asked = question_set(questions, name)
        original: AsyncOriginal
        if isinstance(fallback, str):
            model = find_decision_model(self.config.decision_models, fallback)
            original = partial(self._ask_hosted, model, asked)
        else:
            original = fallback
        kind = (
            self._core.type_of(asked)
            if self._core.knows(asked)
            else await asyncio.to_thread(self._core.type_of, asked)  # writes a file
        )
        return await self.decide(kind, {"state": state}, lambda context: original(context["state"]), **ids)

    async def ask_hosted(self, model: str, state: Any, questions: Mapping[str, TypedQuestion]) -> Fallback:
        """The answers of a hosted decision model of reasoning.toml (`reasoning.decision_models`), for a fallback.

        Raises `CallFailed` where it gives none.
        """
        found = find_decision_model(self.config.decision_models, model)
        return await self._ask_hosted(found, question_set(questions), state)

    async def _ask_hosted(self, model: DecisionModel, asked: QuestionSet, state: Any) -> Fallback:
        response = await self._http().apost(*hosted_request(model, state, asked))
        return read_hosted(model, asked, *response)

    async def decide_should_respond(self, context: Context, original: AsyncOriginal, **ids: Any) -> Answer:
        """`decide("should_respond", …)`."""
        return await self.decide("should_respond", context, original, **ids)

    async def decide_planning(self, context: Context, original: AsyncOriginal, **ids: Any) -> Answer:
        """`decide("planning", …)`."""
        return await self.decide("planning", context, original, **ids)

    @overload
    async def decide_coding(
        self, context: Context, original: AsyncOriginal, *, stream: Literal[True], **ids: Any
    ) -> AsyncCodingStream: ...

    @overload
    async def decide_coding(
        self, context: Context, original: AsyncOriginal, *, stream: Literal[False] = False, **ids: Any
    ) -> Answer: ...

    async def decide_coding(
        self, context: Context, original: AsyncOriginal, *, stream: bool = False, **ids: Any
    ) -> Answer | AsyncCodingStream:
        """As `DecisionClient.decide_coding`; with `stream`, an asynchronous iterator."""
        if not stream:
            return await self.decide("coding", context, original, **ids)
        from reasoning.serving.streams import AsyncCodingStream

        return AsyncCodingStream(self._core, self._http, self._core.ask("coding", context, **ids), original)

    async def feedback(
        self,
        metric: str,
        value: float | bool | str | dict[str, Any],
        *,
        decision_id: UUID | str | None = None,
        episode_id: str | None = None,
        kind: FeedbackKind = "metric",
        author: str | None = None,
    ) -> bool:
        """As `DecisionClient.feedback`."""
        return self._core.feedback(metric, value, decision_id, episode_id, kind, author)

    async def demonstrate(
        self, decision_id: UUID | str, decision: dict[str, Any] | str, *, author: str | None = None
    ) -> bool:
        """As `DecisionClient.demonstrate`."""
        return self._core.demonstrate(decision_id, decision, author)

    def stats(self) -> dict[str, Any]:
        """Counts of this process, in groups: what was served, why not a model, what was dropped."""
        return self._core.stats()

    async def close(self, seconds: float = 5.0) -> None:
        """Wait so long for the shadows of this loop, then close connections and seal the segment."""
        await self._shadows.close(seconds)
        if self._transport is not None:
            await self._transport.aclose()
        self._core.writer.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _reset(self) -> None:
        self._transport: AsyncPort | None = self._given_transport
        self._shadows = ShadowTasks(
            self.config.shadow_workers, self.config.shadow_queue, partial(self._core.count, "shadows")
        )

    def _reset_in_child(self) -> None:
        self._core.reset()
        self._reset()

    def _http(self) -> AsyncPort:
        if self._transport is None:
            from reasoning.io.transport import AsyncTransport

            self._transport = AsyncTransport()
        return self._transport

    def _before_serving(self, attempt: Attempt) -> None:
        """A subclass may set `attempt.fallback_reason`; the fallback then answers."""

    async def _attempt(self, question: Question, arm: Arm) -> Attempt:
        transport = self._http()
        started = time.perf_counter()
        response: tuple[int, bytes] | CallFailed
        try:
            if self._core.redacts_long(question):
                await asyncio.to_thread(self._core.redact, question)
            response = await transport.apost(*self._core.request(question, arm))
        except CallFailed as error:
            response = error
        except BaseException:  # a cancellation, above all
            self._core.calls.release(arm)
            raise
        return self._core.judge(question, arm, response, started)

    async def _ask_original(self, question: Question, original: AsyncOriginal) -> Answer:
        started, calls = time.perf_counter(), list[Usage]()
        try:
            with collecting(calls):
                result = original(question.context)
                if inspect.isawaitable(result):
                    result = await result
        except Exception as error:
            self._core.record_original_error(question, question.arm, error, started, calls)
            raise
        return self._core.serve_original(question, result, started, calls)

    def _shadow_models(self, question: Question, arms: list[Arm]) -> Question | None:
        copy = self._core.shadow_question(question)
        for arm in arms:
            if copy is not None and arm.source == "custom":
                self._shadows.submit(partial(self._shadow_model, copy, arm))
        return copy

    async def _shadow_model(self, question: Question, arm: Arm) -> None:
        if self._core.calls.may_call(arm):
            self._core.record_custom(question, await self._attempt(question, arm), served=False)
        else:
            self._core.count("shadows", "circuit_open")

    def _shadow_original(self, question: Question, arms: list[Arm], original: AsyncOriginal) -> None:
        for arm in arms:
            if arm.source == "original":
                self._shadows.submit(partial(self._answer_in_shadow, question, arm, original))

    async def _answer_in_shadow(self, question: Question, arm: Arm, original: AsyncOriginal) -> None:
        started, calls = time.perf_counter(), list[Usage]()
        try:
            with collecting(calls):
                result = original(question.context)
                if inspect.isawaitable(result):
                    result = await result
        except Exception as error:
            self._core.record_original_error(question, arm, error, started, calls)
        else:
            told = self._core.told_probabilities(question, result)
            self._core.record_original(
                question, arm, *split_result(result, calls), started, served=False, probabilities=told
            )


_clients: weakref.WeakSet[AsyncDecisionClient] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for client in list(_clients):
        client._reset_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
