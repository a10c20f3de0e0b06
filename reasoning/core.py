"""What the sync and the async client share: everything but the waiting.

A decision goes `ask` → (transport → `judge` → `serve_custom`) → `serve_original`. Nothing here raises because of the
outside world: routes, disk, contexts and models may fail.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson

from reasoning.config import Config, load_config
from reasoning.decision_types import (
    Context,
    DecisionType,
    check_demonstration,
    get_decision_type,
    partial_metric,
    questions_type,
)
from reasoning.error_text import describe_error
from reasoning.errors import CallFailed, RecordError, UnparseableAnswer, Unredactable
from reasoning.fallback import NO_USAGE, Fallback, Usage, add_usage, split_result
from reasoning.ids import uuid7
from reasoning.io.spool import SegmentWriter
from reasoning.question_catalog import keep_questions
from reasoning.questions import Probabilities, QuestionSet, TypedQuestion, normalize_probabilities, question_set
from reasoning.records import Decision, FallbackReason, Feedback, FeedbackKind, Message, Source, encode_record
from reasoning.redaction.placeholders import RedactedPrompt
from reasoning.serving.completion import (
    Completion,
    check_whole,
    measure_confidence,
    read_completion,
    read_probabilities,
    request_body,
)
from reasoning.serving.model_calls import ModelCalls
from reasoning.serving.routes import Arm, Route

_log = logging.getLogger("reasoning")

_RECENT = 8192
"""So many decisions are remembered, to check demonstrations of them; some 2 MB."""

_MAX_ASKED = 10_000
"""So many sets of questions are remembered."""

NOT_INSTALLED = (
    "the rules of redaction are not installed; pip install 'custom-reasoning[redact]', or set enabled = false in "
    "[redaction] of reasoning.toml to send prompts to models as they are"
)
OFF = "[redaction] enabled = false"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the agent got.

    `decision` is the decision type's object; where the original gave something that is none, it is that itself.
    `fallback_reason` says why the original answered in a model's place. `latency_ms` is from question to answer.
    `decision_id` is what feedback refers to. Tokens are those of the model that answered, where its server told them,
    or those that the fallback reported. `model` is None where the fallback answered. `probabilities` has those of every
    option of typed questions (`reasoning.questions`), where they are known.
    """

    decision: Any
    decision_id: UUID
    request_id: UUID
    source: Source
    model: str | None
    confidence: float | None
    fallback_reason: FallbackReason | None
    latency_ms: float
    input_tokens: int | None = None
    output_tokens: int | None = None
    probabilities: Probabilities | None = None


@dataclass(slots=True)
class Question:
    """One question under way. `fallback_reason` is set when no model may answer it (any more)."""

    type: DecisionType
    context: Context
    request_id: UUID
    ts: datetime
    started: float
    messages: list[Message] = field(default_factory=list)
    room_id: str | None = None
    episode_id: str | None = None
    subject_ids: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    route: Route | None = None
    arm: Arm | None = None
    arm_probability: float | None = None
    fallback_reason: FallbackReason | None = None
    error: str | None = None
    redacted: RedactedPrompt | None = None

    @property
    def asks_model(self) -> bool:
        """Is a custom model to answer?"""
        return self.arm is not None and self.arm.source == "custom" and self.fallback_reason is None

    def actions(self) -> Context | None:
        """The part of the context that says which actions an answer may have."""
        if not self.messages:
            return None
        try:
            return self.type.form.choices(self.context)
        except Exception:  # the agent may have changed its context since
            return None

    def shadow_arms(self) -> list[Arm]:
        """The arms that answer as well, without being served."""
        return [arm for arm in self.route.arms if arm.mode == "shadow"] if self.route and self.messages else []


@dataclass(slots=True)
class Attempt:
    """What became of asking one model."""

    arm: Arm
    latency_ms: float
    completion: Completion | None = None
    decision: dict[str, Any] | None = None
    confidence: float | None = None
    valid: bool = False
    fallback_reason: FallbackReason | None = None
    error: str | None = None
    probabilities: Probabilities | None = None


class ClientCore:
    """The state of one client: configuration, calls of models, spool and counts."""

    def __init__(
        self, data: Path | str | None, agent_id: str | None, config: Config | None, clock: Callable[[], float]
    ) -> None:
        if config is not None and data is not None:
            raise TypeError("give data or config, not both: a config names its data folder")
        self.config = config or load_config(data)
        self.agent_id = str(agent_id) if agent_id else self.config.agent_id
        self.clock = clock
        self.calls = ModelCalls(self.config, clock)
        self.writer = SegmentWriter(self.config.spool, clock=clock)
        self.make_id: Callable[[Question], UUID] = lambda question: uuid7(question.ts)
        self.reset()

    def reset(self) -> None:
        """As new, for a forked child: it counts from zero, and inherits no lock that a thread may have held."""
        self._counts: Counter[tuple[str, str]] = Counter()
        self._asked: dict[str, DecisionType] = {}
        self._recent: dict[UUID, tuple[DecisionType, Context | None]] = {}
        self._lock = threading.RLock()  # reentrant: a signal handler may decide in the middle of a decision
        self.calls.reset()

    def ask(
        self,
        decision_type: str | DecisionType,
        context: Context,
        episode_id: str | None = None,
        room_id: str | None = None,
        subject_ids: Iterable[str] = (),
        tags: Mapping[str, str] | None = None,
    ) -> Question:
        """Render the context and draw the arm. Raises only `UnknownDecisionType`."""
        started = time.perf_counter()
        found = decision_type if isinstance(decision_type, DecisionType) else self._type(decision_type)
        now = self.clock()
        ts = datetime.fromtimestamp(now, UTC)
        question = Question(found, context, uuid7(ts), ts, started)
        try:
            question.messages = found.render(context)
            question.episode_id = _id(episode_id, context, "episode_id")
            question.room_id = _id(room_id, context, "room_id")
            question.subject_ids = _subjects(subject_ids, context)
            question.tags = {str(name): str(value) for name, value in tags.items()} if tags else {}
        except Exception as error:  # reading a caller's context may do anything
            question.messages = []
            question.fallback_reason = "no_route"
            question.error = describe_error(error)
            self.count("contexts refused", type(error).__name__)
            self._warn(
                "contexts refused", "a context cannot be shown to a model, the original answers: %s", question.error
            )
            return question
        choice = self.calls.draw(found.name, question.episode_id or str(question.request_id), now)
        question.route, question.arm, question.arm_probability, question.fallback_reason, question.error = choice
        if choice.asks_model:
            if (arm := self.calls.admit(choice)) is not None:
                question.arm = arm
            else:
                question.fallback_reason = "circuit_open"
        return question

    def request(
        self, question: Question, arm: Arm, *, stream: bool = False
    ) -> tuple[str, tuple[tuple[bytes, bytes], ...], bytes, float]:
        """URL, headers, body and deadline in seconds of the call to an arm."""
        target = self.calls.target(arm)
        body = request_body(arm, question.type, self.redact(question), stream=stream)
        assert question.route is not None
        return target.url, target.headers, body, question.route.deadline_ms / 1000

    def redact(self, question: Question) -> list[Message]:
        """The messages as models are asked them: redacted as training rows are, unless the configuration says no.

        Raises `CallFailed` (`disabled`) where they cannot be redacted: then no model is asked.
        """
        if question.redacted is None:
            settings = self.config.redaction
            if not settings.enabled:
                self.count("redaction", "off")
                self._warn("redaction", "models are asked with private data, but learn from redacted rows: %s", OFF)
                return question.messages
            try:
                from reasoning.redaction.prompts import redact_prompt

                question.redacted = redact_prompt(question.messages, region=settings.region)
            except ImportError as error:
                self.count("redaction", "not installed")
                self._warn("redaction", "no model is asked, the original answers: %s (%s)", NOT_INSTALLED, error)
                raise CallFailed("disabled", NOT_INSTALLED) from None
            except Exception as error:  # what cannot be redacted is not sent, whatever the cause
                self.count("redaction", "failed")
                why = str(error) if isinstance(error, Unredactable) else type(error).__name__
                raise CallFailed("disabled", f"the prompt cannot be redacted: {why}") from None
        return question.redacted.messages

    def load_rules(self) -> None:
        """Import what `redact` needs, 0.4 s, so that it does not fall on the first decision."""
        if self.config.redaction.enabled:
            with contextlib.suppress(ImportError):  # told when a model is to be asked
                import reasoning.redaction.prompts  # noqa: F401

    def redacts_long(self, question: Question) -> bool:
        """Does `redact` take more than a few milliseconds, so that an event loop should not wait for it?"""
        if question.redacted is not None or not self.config.redaction.enabled:
            return False
        try:
            from reasoning.redaction.prompts import takes_long
        except ImportError:
            return False
        return takes_long([message["content"] for message in question.messages], self.config.redaction.region)

    def judge(
        self, question: Question, arm: Arm, response: tuple[int, bytes] | Completion | CallFailed, started: float
    ) -> Attempt:
        """Read what a call gave. `started` is its start by `time.perf_counter`."""
        attempt = Attempt(arm, (time.perf_counter() - started) * 1000)
        try:
            if isinstance(response, CallFailed):
                raise response
            completion = response if isinstance(response, Completion) else read_completion(*response)
        except CallFailed as error:
            self.calls.settle(arm, error)
            attempt.fallback_reason, attempt.error = error.reason, describe_error(error, *self.config.secrets)
            return attempt
        self.calls.settle(arm)
        attempt.completion = completion
        try:
            check_whole(completion, question.type.max_tokens)
            decision = question.type.parse(completion.text, question.context)
            question.type.form.check_complete(question.type, decision)
            attempt.decision = question.redacted.restore_decision(decision) if question.redacted else decision
        except Exception as error:  # of what a model wrote, or of a context that has changed since
            attempt.fallback_reason, attempt.error = "unparseable", describe_error(error, *self.config.secrets)
            return attempt
        attempt.valid = True
        attempt.confidence = measure_confidence(question.type.answer, completion)
        attempt.probabilities = read_probabilities(question.type, completion)
        least = question.route.min_confidence if question.route else 0.0
        if least > 0 and (attempt.confidence is None or attempt.confidence < least):
            attempt.fallback_reason = "low_confidence"
        return attempt

    def serve_custom(self, question: Question, attempt: Attempt) -> Answer | None:
        """Record a live model's answer. None when the original has to answer in its place."""
        if attempt.fallback_reason is not None:
            question.fallback_reason = attempt.fallback_reason
            self.record_custom(question, attempt, served=False)
            return None
        decision_id = self.record_custom(question, attempt, served=True)
        return self._answer(question, attempt.decision, decision_id, "custom", attempt)

    def record_custom(self, question: Question, attempt: Attempt, *, served: bool) -> UUID:
        """Write the row of a model's answer. Its id."""
        row = self._row(question, attempt.arm, served=served)
        row.source, row.model = "custom", attempt.arm.model
        row.decision, row.confidence, row.valid = attempt.decision, attempt.confidence, attempt.valid
        row.probabilities = attempt.probabilities
        row.fallback_reason, row.error, row.latency_ms = attempt.fallback_reason, attempt.error, attempt.latency_ms
        if attempt.completion is not None:
            row.completion = attempt.completion.text
            row.input_tokens, row.output_tokens = attempt.completion.input_tokens, attempt.completion.output_tokens
            row.cost_usd = attempt.arm.cost_usd(row.input_tokens or 0, row.output_tokens or 0)
        return self._write(row)

    def serve_original(self, question: Question, result: Any, started: float, calls: list[Usage]) -> Answer:
        """Record what the fallback returned, and pass its decision on as it is. `calls` are what its models used."""
        probabilities = self.told_probabilities(question, result)
        result, usage = split_result(result, calls)
        decision_id, decision = self.record_original(
            question, question.arm, result, usage, started, served=True, probabilities=probabilities
        )
        as_it_is = isinstance(result, dict) and not question.type.questions
        served = result if as_it_is or decision is None else decision
        return self._answer(question, served, decision_id, "original", usage=usage, probabilities=probabilities)

    def question_type(self, questions: Mapping[str, TypedQuestion], name: str) -> DecisionType:
        """The decision type of typed questions, kept in the catalog so that others know it. Raises `InvalidQuestions`.

        The catalog may be full or out of reach: then the questions are asked and recorded all the same.
        """
        asked = question_set(questions, name)
        return self.type_of(asked)

    def knows(self, asked: QuestionSet) -> bool:
        """Was this set asked before, so that its type costs no file?"""
        return asked.type_name in self._asked

    def type_of(self, asked: QuestionSet) -> DecisionType:
        """As `question_type`, of a set."""
        found = self._asked.get(asked.type_name)
        if found is None:
            found = questions_type(asked)
            try:
                kept = keep_questions(self.config.data, asked)
                why = "the catalog is full; put what changes from case to case into the state, not into the questions"
            except OSError as error:
                kept, why = False, describe_error(error)
            if not kept:
                self.count("questions", "not kept")
                self._warn("questions", "questions are not kept, so nothing can learn from them: %s", why)
            if len(self._asked) < _MAX_ASKED:
                self._asked[found.name] = found
        return found

    def _type(self, name: str) -> DecisionType:
        return self._asked.get(name) or get_decision_type(name, self.config)

    def told_probabilities(self, question: Question, result: Any) -> Probabilities | None:
        """The probabilities that a fallback reports with its answers to typed questions."""
        told = getattr(result, "probabilities", None) if isinstance(result, Fallback) else None
        return None if told is None else normalize_probabilities(question.type.questions, told)

    def record_original(
        self,
        question: Question,
        arm: Arm | None,
        result: Any,
        usage: Usage,
        started: float,
        *,
        served: bool,
        probabilities: Probabilities | None = None,
    ) -> tuple[UUID, dict[str, Any] | None]:
        """Write the row of the fallback's answer. Its id, and the decision if it is one of the type."""
        row = self._row(question, arm, served=served, usage=usage)
        row.probabilities = probabilities
        row.latency_ms = (time.perf_counter() - started) * 1000
        try:
            row.decision = question.type.normalize(result, question.context)
            row.completion = question.type.format_answer(row.decision)
        except Exception as error:  # the user's own objects may do anything
            row.valid, row.error = False, describe_error(error, *self.config.secrets)
            row.completion = result if isinstance(result, str) else None
            if isinstance(result, Coroutine):
                row.error = "the original is async, and this client is not: use AsyncDecisionClient"
                self.count("original", "async in a sync client")
                self._warn("original", "no decision: %s", row.error)
        return self._write(row), row.decision

    def record_original_error(
        self, question: Question, arm: Arm | None, error: Exception, started: float, calls: list[Usage]
    ) -> None:
        """Write the row of a fallback that raised: nothing was served, but its calls may have cost something."""
        row = self._row(question, arm, served=False, usage=add_usage(calls))
        row.latency_ms = (time.perf_counter() - started) * 1000
        row.valid, row.error = False, describe_error(error, *self.config.secrets)
        self.count("original", "raised")
        self._write(row)

    def record_abandoned_original(self, question: Question, text: str, started: float, calls: list[Usage]) -> None:
        """Write the row of a fallback's stream that the agent did not read to its end."""
        row = self._row(question, question.arm, served=True, usage=add_usage(calls))
        row.latency_ms = (time.perf_counter() - started) * 1000
        row.completion, row.valid, row.error = text, False, "abandoned: the agent read no further"
        self._write(row)

    def feedback(
        self,
        metric: str,
        value: float | bool | str | dict[str, Any],
        decision_id: UUID | str | None,
        episode_id: str | None,
        kind: FeedbackKind,
        author: str | None,
    ) -> bool:
        """Write one feedback. False when the disk would not take it; `RecordError` when no log could hold it.

        The value of a demonstration is an object, or JSON text of one.
        """
        try:
            target = UUID(str(decision_id)) if decision_id is not None else None
        except ValueError:
            raise RecordError(f"decision_id: {decision_id!r} is not a UUID") from None
        if kind not in ("metric", "demonstration", "comment"):
            raise RecordError(f"kind: {kind!r} is none of metric, demonstration, comment")
        if kind == "demonstration":
            metric, value = self._check_demonstration(metric, target, value)
        elif isinstance(value, dict):
            raise RecordError("value: only a demonstration is an object; give a number, a boolean or text")
        ts = datetime.fromtimestamp(self.clock(), UTC)
        record = Feedback(uuid7(ts), ts, metric, value, kind, target, episode_id, author)
        encode_record(record)
        return self.writer.write(record)

    def demonstrate(self, decision_id: UUID | str, decision: dict[str, Any] | str, author: str | None) -> bool:
        """Write what the right answer was, as `feedback` does."""
        value = {"action": decision} if isinstance(decision, str) else decision
        return self.feedback("demonstration", value, decision_id, None, "demonstration", author)

    def _check_demonstration(self, metric: str, decision_id: UUID | None, value: Any) -> tuple[str, str]:
        """The metric and the JSON text of a demonstration. `RecordError` where it is no answer of its decision's type.

        One that answers some of several typed questions has a metric of its own, so that it replaces no other.

        The type of a decision that this client did not take lately is not known: then the demonstration must be an
        answer of one of the declared types, and landing, which knows the decision, checks it again.
        """
        if decision_id is None:
            raise RecordError("decision_id: a demonstration is the right answer of one decision, not of an episode")
        if isinstance(value, str):
            try:
                value = orjson.loads(value)
            except orjson.JSONDecodeError as error:
                raise RecordError(f"value: a demonstration is an object, or JSON text of one: {error}") from None
        known = self._recent.get(decision_id)
        types = [known[0]] if known else list(self.config.decision_types.values())
        try:
            check_demonstration(value, types, known[1] if known else None)
            return partial_metric(metric, value, types), orjson.dumps(value).decode()
        except UnparseableAnswer as error:
            raise RecordError(f"demonstration: {error}") from None
        except TypeError as error:
            raise RecordError(f"demonstration: {error}") from None

    def shadow_question(self, question: Question) -> Question | None:
        """The question for the background, with a copy of its context, which the agent cannot change any more.

        None when the context cannot be copied.
        """
        try:
            context = copy.deepcopy(question.context)
        except Exception as error:  # what a context holds is the user's
            self.count("shadows", "context not copied")
            self._warn("shadows", "a context cannot be copied for shadow arms: %s", describe_error(error))
            return None
        return replace(question, context=context, fallback_reason=None, error=None)

    def count(self, what: str, which: str) -> None:
        """Count an event for `stats`."""
        with self._lock:
            self._counts[what, which] += 1

    def stats(self) -> dict[str, Any]:
        """Counts since this process made the client, in groups; and the state of the breakers and of the log."""
        groups: dict[str, Any] = {"served": {}, "fallbacks": {}}
        with self._lock:
            counts = sorted(self._counts.items())
        for (what, which), count in counts:
            groups.setdefault(what, {})[which] = count
        groups["breakers"] = {f"{model} at {url}": state for (url, model), state in self.calls.states().items()}
        groups["routes_error"] = self.calls.lease.error
        groups["records"] = {
            "written": self.writer.written,
            "dropped": dict(self.writer.dropped),
            "sync_errors": self.writer.sync_errors,
            "last_error": self.writer.last_error,
        }
        return groups

    def _row(self, question: Question, arm: Arm | None, *, served: bool, usage: Usage = NO_USAGE) -> Decision:
        """A row of the original's, to be completed. How it was chosen is the drawn arm's, whoever answers."""
        drawn = arm is question.arm
        decision_id = self.make_id(question)
        self._recent[decision_id] = question.type, question.actions()
        if len(self._recent) > _RECENT:
            with contextlib.suppress(StopIteration, KeyError, RuntimeError):  # another thread was quicker
                del self._recent[next(iter(self._recent))]
        return Decision(
            decision_id=decision_id,
            request_id=question.request_id,
            ts=question.ts,
            decision_type=question.type.name,
            source="original",
            served=served,
            messages=question.messages,
            agent_id=self.agent_id,
            room_id=question.room_id,
            episode_id=question.episode_id,
            subject_ids=question.subject_ids,
            config_hash=arm.config_hash if arm else None,
            experiment=question.route.experiment if question.route else None,
            arm=arm.name if arm else None,
            arm_probability=question.arm_probability if drawn else None,
            fallback_reason=question.fallback_reason if drawn else None,
            error=question.error if drawn else None,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cost_usd=usage.cost_usd,
            fallback_model=usage.model,
            cache_read_tokens=usage.cache_read_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            price_source=usage.price_source,
            tags=question.tags,
        )

    def _write(self, row: Decision) -> UUID:
        self.writer.write(row)
        return row.decision_id

    def _answer(
        self,
        question: Question,
        decision: Any,
        decision_id: UUID,
        source: Source,
        attempt: Attempt | None = None,
        *,
        usage: Usage = NO_USAGE,
        probabilities: Probabilities | None = None,
    ) -> Answer:
        self.count("served", source)
        if question.fallback_reason is not None:
            self.count("fallbacks", question.fallback_reason)
        latency_ms = (time.perf_counter() - question.started) * 1000
        told = (attempt.completion if attempt else None) or usage
        return Answer(
            decision,
            decision_id,
            question.request_id,
            source,
            attempt.arm.model if attempt else None,
            attempt.confidence if attempt else None,
            question.fallback_reason,
            latency_ms,
            told.input_tokens,
            told.output_tokens,
            attempt.probabilities if attempt else probabilities,
        )

    def _warn(self, what: str, message: str, *args: Any) -> None:
        count = sum(n for (group, _), n in self._counts.items() if group == what)
        if count & (count - 1) == 0:  # the 1st, 2nd, 4th, …
            _log.warning(message, *args)


def _id(given: Any, context: Context, key: str) -> str | None:
    value = context.get(key) if given is None else given
    return None if value is None else str(value)


def _subjects(given: Iterable[str], context: Context) -> list[str]:
    """The people in a context: as given, else `context["subject_ids"]`, else all speakers but the agent."""
    given = given or context.get("subject_ids") or ()
    if isinstance(given, str):
        given = (given,)
    found = [str(subject) for subject in given]
    if found or "messages" not in context:
        return found
    agent_name = context.get("agent_name")
    return [name for name in dict.fromkeys([m["speaker"] for m in context["messages"]]) if name != agent_name]
