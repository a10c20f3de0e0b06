"""The decision client: ask a custom model where the routes say so, otherwise the fallback; record every answer.

::

    client = DecisionClient()
    answer = client.decide_should_respond(context, my_rule)
    ...
    client.feedback("helpful", True, decision_id=answer.decision_id)

Whatever fails on our side (routes, network, model, disk), the agent gets the fallback's answer, with the reason
recorded. After construction the clients raise only what the original itself raises, `UnknownDecisionType`, and
`RecordError` for a feedback that is none.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
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
from reasoning.serving.shadow import ShadowThreads

if TYPE_CHECKING:
    from reasoning.async_client import AsyncDecisionClient
    from reasoning.io.transport_port import SyncPort
    from reasoning.serving.streams import CodingStream

__all__ = ["Answer", "AsyncDecisionClient", "DecisionClient"]

Original = Callable[[Any], Any]


class DecisionClient:
    """For threads; one a process is enough. Broken configuration raises `ConfigError` here and nowhere later.

    `data` is the data folder and goes before the environment and `reasoning.toml`; `clock` gives seconds since the
    epoch, for replays and tests; `transport` asks models in the network's place, such as a
    `reasoning.mock_transport.MockTransport`.

    `original` is called as `original(context)` and gives a decision object, or text: the action of a label type, or an
    answer as models write it, such as text with one block of code. A context may hold `episode_id`, `room_id` and
    `subject_ids`, for where no argument gives them; `subject_ids` default to the speakers of the conversation. It
    works after a fork, too.
    """

    def __init__(
        self,
        data: Path | str | None = None,
        *,
        agent_id: str | None = None,
        config: Config | None = None,
        clock: Callable[[], float] = time.time,
        transport: SyncPort | None = None,
    ) -> None:
        self._given_transport = transport
        self._core = ClientCore(data, agent_id, config, clock)
        self.config = self._core.config
        self._reset()
        _clients.add(self)
        if self.config.enabled and self.config.routes.exists():
            self._http()  # its import, 0.1 s, should not fall on the first decision
            self._core.load_rules()

    def decide(
        self,
        decision_type: str | DecisionType,
        context: Context,
        original: Original,
        *,
        episode_id: str | None = None,
        room_id: str | None = None,
        subject_ids: Iterable[str] = (),
        tags: Mapping[str, str] | None = None,
    ) -> Answer:
        """Decide once. What `original` raises passes unchanged, and is recorded."""
        question = self._core.ask(decision_type, context, episode_id, room_id, subject_ids, tags)
        shadows = question.shadow_arms()
        copy = self._shadow_models(question, shadows) if shadows else None
        answer = None
        if question.asks_model and question.arm is not None:
            answer = self._core.serve_custom(question, self._attempt(question, question.arm))
        if answer is None:
            return self._ask_original(question, original)
        if copy is not None:
            self._shadow_original(copy, shadows, original)
        return answer

    def ask(
        self,
        state: Any,
        questions: Mapping[str, TypedQuestion],
        fallback: Original | str,
        *,
        name: str = "ask",
        **ids: Any,
    ) -> Answer:
        """Answer typed questions (`reasoning.questions`) about one state: text, an object, or a list of messages.

        `fallback` is called as `fallback(state)` and gives an answer for each question, by name: text, an `Enum`, a
        boolean, or the number of a score's level. The answer's `decision` has them all, its `probabilities` those of
        every option where they are known. In the place of `fallback` may stand the name of a hosted decision model
        (`reasoning.decision_models`). The questions are a decision type of their own, `<name>_<hash of their
        content>`. `ids` are those of `decide`. Raises `InvalidQuestions`.
        """
        asked = question_set(questions, name)
        original: Original
        if isinstance(fallback, str):
            model = find_decision_model(self.config.decision_models, fallback)
            original = partial(self._ask_hosted, model, asked)
        else:
            original = fallback
        kind = self._core.type_of(asked)
        return self.decide(kind, {"state": state}, lambda context: original(context["state"]), **ids)

    def ask_hosted(self, model: str, state: Any, questions: Mapping[str, TypedQuestion]) -> Fallback:
        """The answers of a hosted decision model of reasoning.toml (`reasoning.decision_models`), for a fallback.

        Raises `CallFailed` where it gives none.
        """
        found = find_decision_model(self.config.decision_models, model)
        return self._ask_hosted(found, question_set(questions), state)

    def _ask_hosted(self, model: DecisionModel, asked: QuestionSet, state: Any) -> Fallback:
        response = self._http().post(*hosted_request(model, state, asked))
        return read_hosted(model, asked, *response)

    def decide_should_respond(self, context: Context, original: Original, **ids: Any) -> Answer:
        """`decide("should_respond", …)`."""
        return self.decide("should_respond", context, original, **ids)

    def decide_planning(self, context: Context, original: Original, **ids: Any) -> Answer:
        """`decide("planning", …)`."""
        return self.decide("planning", context, original, **ids)

    @overload
    def decide_coding(
        self, context: Context, original: Original, *, stream: Literal[True], **ids: Any
    ) -> CodingStream: ...

    @overload
    def decide_coding(
        self, context: Context, original: Original, *, stream: Literal[False] = False, **ids: Any
    ) -> Answer: ...

    def decide_coding(
        self, context: Context, original: Original, *, stream: bool = False, **ids: Any
    ) -> Answer | CodingStream:
        """`decide("coding", …)`. With `stream`, an iterator of the text's pieces, whose `answer` is there at its end.

        Until the first piece everything falls back to the original, as ever. After it a failure raises
        `StreamInterrupted`: what was handed out cannot be taken back. Shadow arms and the least confidence of the
        route do not apply to streams.
        """
        if not stream:
            return self.decide("coding", context, original, **ids)
        from reasoning.serving.streams import CodingStream

        return CodingStream(self._core, self._http, self._core.ask("coding", context, **ids), original)

    def feedback(
        self,
        metric: str,
        value: float | bool | str | dict[str, Any],
        *,
        decision_id: UUID | str | None = None,
        episode_id: str | None = None,
        kind: FeedbackKind = "metric",
        author: str | None = None,
    ) -> bool:
        """Record what was learned about a decision or an episode. The latest of a metric wins.

        False when it could not be written (then it is counted). `RecordError` when it is no feedback: not exactly one
        of the two ids, or a value that is neither number, boolean nor text.
        """
        return self._core.feedback(metric, value, decision_id, episode_id, kind, author)

    def demonstrate(
        self, decision_id: UUID | str, decision: dict[str, Any] | str, *, author: str | None = None
    ) -> bool:
        """Record the right answer of a decision: an object of its type's form, or a label's action as text."""
        return self._core.demonstrate(decision_id, decision, author)

    def stats(self) -> dict[str, Any]:
        """Counts of this process, in groups: what was served, why not a model, what was dropped."""
        return self._core.stats()

    def close(self, seconds: float = 5.0) -> None:
        """Wait so long for the shadows, then close connections and seal the segment. The client may be used again."""
        self._shadows.close(seconds)
        if self._transport is not None:
            self._transport.close()
        self._core.writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _reset(self) -> None:
        self._transport: SyncPort | None = self._given_transport
        self._shadows = ShadowThreads(
            self.config.shadow_workers, self.config.shadow_queue, partial(self._core.count, "shadows")
        )

    def _reset_in_child(self) -> None:
        self._core.reset()
        self._reset()

    def _http(self) -> SyncPort:
        if self._transport is None:
            from reasoning.io.transport import Transport

            self._transport = Transport()
        return self._transport

    def _attempt(self, question: Question, arm: Arm) -> Attempt:
        transport = self._http()
        started = time.perf_counter()
        response: tuple[int, bytes] | CallFailed
        try:
            response = transport.post(*self._core.request(question, arm))
        except CallFailed as error:
            response = error
        except BaseException:  # KeyboardInterrupt and its like
            self._core.calls.release(arm)
            raise
        return self._core.judge(question, arm, response, started)

    def _ask_original(self, question: Question, original: Original) -> Answer:
        started, calls = time.perf_counter(), list[Usage]()
        try:
            with collecting(calls):
                result = original(question.context)
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

    def _shadow_model(self, question: Question, arm: Arm) -> None:
        if self._core.calls.may_call(arm):
            self._core.record_custom(question, self._attempt(question, arm), served=False)
        else:
            self._core.count("shadows", "circuit_open")

    def _shadow_original(self, question: Question, arms: list[Arm], original: Original) -> None:
        for arm in arms:
            if arm.source == "original":
                self._shadows.submit(partial(self._answer_in_shadow, question, arm, original))

    def _answer_in_shadow(self, question: Question, arm: Arm, original: Original) -> None:
        started, calls = time.perf_counter(), list[Usage]()
        try:
            with collecting(calls):
                result = original(question.context)
        except Exception as error:
            self._core.record_original_error(question, arm, error, started, calls)
        else:
            told = self._core.told_probabilities(question, result)
            self._core.record_original(
                question, arm, *split_result(result, calls), started, served=False, probabilities=told
            )


_clients: weakref.WeakSet[DecisionClient] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for client in list(_clients):
        client._reset_in_child()


def _flush_at_exit() -> None:
    for client in list(_clients):
        with contextlib.suppress(Exception):
            client.close(seconds=2.0)


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_flush_at_exit)


def __getattr__(name: str) -> Any:
    # asyncio takes longer to import than all the rest: only those pay for it who use it.
    if name == "AsyncDecisionClient":
        from reasoning.async_client import AsyncDecisionClient

        return AsyncDecisionClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
