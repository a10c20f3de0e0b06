"""Many questions to one model at once, for its evaluation: answers with latency, log-probabilities and confidence.

Agents do not come this way: they ask through `reasoning`, with a deadline and a fallback.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from provider.port import CONCURRENCY, CompletionResult, Messages, Provider, Sampling
from reasoning.decision_types import AnswerFormat
from reasoning.serving import completion as client_completion
from storage.ledger.rows import Deployment, DeploymentState
from storage.progress import OnProgress

if TYPE_CHECKING:
    from storage.ledger.ledger import Ledger


def complete_many(
    provider: Provider,
    model: str,
    conversations: Iterable[Messages],
    sampling: Sampling,
    *,
    concurrency: int = CONCURRENCY,
    ledger: Ledger | None = None,
    progress: OnProgress | None = None,
    now: datetime | None = None,
) -> list[CompletionResult]:
    """Ask `model` (a deployment's `served_name`) every conversation (a list of messages); answers in their order.

    Transient errors are retried; a question that stays unanswered has its `error` set, so that one bad row does not
    lose the rest. With `ledger` the deployment counts as used at `now`, so that the guard does not take it for idle.
    """
    touch(ledger, model, now)
    answers = provider.ask(model, conversations, sampling, concurrency=concurrency, progress=progress)
    touch(ledger, model, now)
    if (form := sampling.answer_format) is None:
        return answers
    return [replace(answer, confidence=_measure_confidence(form, answer)) for answer in answers]


def _measure_confidence(answer_format: AnswerFormat, answer: CompletionResult) -> float | None:
    read = client_completion.Completion(answer.text, answer.tokens, answer.token_logprobs)
    return client_completion.measure_confidence(answer_format, read)


def touch(ledger: Ledger | None, model: str, now: datetime | None) -> None:
    """Count a deployment as used at `now`, so that the guard does not take it for idle."""
    if ledger is None:
        return
    for row in ledger.find(Deployment, served_name=model, state=DeploymentState.READY):
        ledger.update(Deployment, row.id, last_request_at=now or datetime.now(UTC), now=now)
