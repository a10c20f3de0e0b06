"""Many questions to one model at once, for its evaluation: answers with latency and log-probabilities.

Agents do not come this way: they ask through `reasoning`, with a deadline and a fallback.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tenacity import AsyncRetrying, wait_exponential_jitter

from provider.errors import ProviderError
from provider.together.client import asynchronous, translate_sdk_errors
from provider.together.retries import retry_policy
from reasoning.decision_types import AnswerFormat, DecisionType
from reasoning.serving import completion as client_completion
from storage.ledger.rows import Deployment
from storage.progress import OnProgress, Progress

if TYPE_CHECKING:
    from together import AsyncTogether, Together

    from storage.ledger.ledger import Ledger

CONCURRENCY = 16


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer, or why there is none (`error`; then `text` is empty).

    `latency_ms` is that of the attempt that answered, without the waits before it. `confidence` is measured as agents'
    clients measure it (`reasoning.serving.completion.measure_confidence`); None when no answer format was given to read
    by. `token_logprobs` are natural logarithms, parallel to `tokens`.
    """

    text: str
    confidence: float | None
    latency_ms: float | None
    input_tokens: int | None
    output_tokens: int | None
    finish_reason: str | None
    tokens: tuple[str, ...] = ()
    token_logprobs: tuple[float | None, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a model is asked. `fields` are further fields of each request (`DecisionType.request_fields`)."""

    max_tokens: int
    temperature: float = 0.0
    fields: Mapping[str, Any] = field(default_factory=dict)
    answer_format: AnswerFormat | None = None
    """What confidence is measured by; None: it is not measured."""

    @classmethod
    def of(cls, decision_type: DecisionType) -> Sampling:
        """The sampling of a decision type."""
        return cls(
            max_tokens=decision_type.max_tokens,
            temperature=decision_type.temperature,
            fields=decision_type.request_fields,
            answer_format=decision_type.answer,
        )


def complete_many(
    client: Together,
    model: str,
    conversations: Iterable[Sequence[Any]],
    sampling: Sampling,
    *,
    concurrency: int = CONCURRENCY,
    ledger: Ledger | None = None,
    progress: OnProgress | None = None,
    now: datetime | None = None,
) -> list[Completion]:
    """Ask `model` (a deployment's `served_name`) every conversation (a list of messages); answers in their order.

    Transient errors are retried; a question that stays unanswered has its `error` set, so that one bad row does not
    lose the rest. With `ledger` the deployment counts as used at `now`, so that the guard does not take it for idle.
    """
    asked = list(conversations)
    _touch(ledger, model, now)

    def run() -> list[Completion]:
        request = {"model": model, "max_tokens": sampling.max_tokens, "temperature": sampling.temperature}
        request |= sampling.fields
        return asyncio.run(_complete_all(client, request, asked, concurrency, progress))

    answers: list[Completion] = _outside_of_loop(run)
    _touch(ledger, model, now)
    if (form := sampling.answer_format) is None:
        return answers
    return [replace(answer, confidence=_measure_confidence(form, answer)) for answer in answers]


def _measure_confidence(answer_format: AnswerFormat, answer: Completion) -> float | None:
    read = client_completion.Completion(answer.text, answer.tokens, answer.token_logprobs)
    return client_completion.measure_confidence(answer_format, read)


def _touch(ledger: Ledger | None, model: str, now: datetime | None) -> None:
    if ledger is None:
        return
    for row in ledger.find(Deployment, served_name=model, state="ready"):
        ledger.update(Deployment, row.id, last_request_at=now or datetime.now(UTC), now=now)


def _outside_of_loop(run: Any) -> Any:
    """Run it here, or, where an event loop is running already (an async flow), in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return run()
    outcome: dict[str, Any] = {}

    def target() -> None:
        try:
            outcome["value"] = run()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=target, name="complete_many")
    thread.start()
    thread.join()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


async def _complete_all(
    client: Together,
    request: Mapping[str, Any],
    conversations: Sequence[Sequence[Any]],
    concurrency: int,
    progress: OnProgress | None,
) -> list[Completion]:
    done, limit = 0, asyncio.Semaphore(concurrency)
    async with asynchronous(client) as its_twin:

        async def ask(messages: Sequence[Any]) -> Completion:
            nonlocal done
            async with limit:
                answer = await _complete(its_twin, request, messages)
            done += 1
            if progress:
                progress(Progress(done, len(conversations), "answers"))
            return answer

        return await asyncio.gather(*(ask(messages) for messages in conversations))


async def _complete(client: AsyncTogether, request: Mapping[str, Any], messages: Sequence[Any]) -> Completion:
    try:
        async for attempt in AsyncRetrying(**retry_policy(backoff=wait_exponential_jitter(multiplier=0.2, max=5))):
            with attempt, translate_sdk_errors(f"asking {request['model']}"):
                began = time.perf_counter()
                answer = await client.chat.completions.create(messages=list(messages), logprobs=1, **request)
                return _read(answer, (time.perf_counter() - began) * 1000)
    except ProviderError as error:
        return Completion("", None, None, None, None, None, error=str(error))
    raise AssertionError("a retry either returns or raises")


def _read(answer: Any, latency_ms: float) -> Completion:
    choice, usage, logprobs = answer.choices[0], answer.usage, answer.choices[0].logprobs
    return Completion(
        text=(choice.message.content if choice.message else None) or "",
        confidence=None,
        latency_ms=latency_ms,
        input_tokens=usage.prompt_tokens if usage else None,
        output_tokens=usage.completion_tokens if usage else None,
        finish_reason=choice.finish_reason,
        tokens=tuple((logprobs.tokens if logprobs else None) or ()),
        token_logprobs=tuple((logprobs.token_logprobs if logprobs else None) or ()),
    )
