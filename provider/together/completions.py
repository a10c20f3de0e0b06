"""Many questions to one model of Together at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tenacity import AsyncRetrying, wait_exponential_jitter

from provider.errors import ProviderError
from provider.port import CompletionResult, Messages, Sampling
from provider.retries import retry_policy
from provider.together.client import asynchronous, translate_sdk_errors
from storage.progress import OnProgress, Progress

if TYPE_CHECKING:
    from together import AsyncTogether, Together


def ask_all(
    client: Together,
    model: str,
    conversations: Iterable[Messages],
    sampling: Sampling,
    concurrency: int,
    progress: OnProgress | None,
) -> list[CompletionResult]:
    """Ask `model` every conversation; answers in their order. A question that stays unanswered has its `error`."""
    asked = list(conversations)

    def run() -> list[CompletionResult]:
        request = {"model": model, "max_tokens": sampling.max_tokens, "temperature": sampling.temperature}
        request |= sampling.fields
        return asyncio.run(_complete_all(client, request, asked, concurrency, progress))

    answers: list[CompletionResult] = _outside_of_loop(run)
    return answers


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
) -> list[CompletionResult]:
    done, limit = 0, asyncio.Semaphore(concurrency)
    async with asynchronous(client) as its_twin:

        async def ask(messages: Sequence[Any]) -> CompletionResult:
            nonlocal done
            async with limit:
                answer = await _complete(its_twin, request, messages)
            done += 1
            if progress:
                progress(Progress(done, len(conversations), "answers"))
            return answer

        return await asyncio.gather(*(ask(messages) for messages in conversations))


async def _complete(client: AsyncTogether, request: Mapping[str, Any], messages: Sequence[Any]) -> CompletionResult:
    try:
        async for attempt in AsyncRetrying(**retry_policy(backoff=wait_exponential_jitter(multiplier=0.2, max=5))):
            with attempt, translate_sdk_errors(f"asking {request['model']}"):
                began = time.perf_counter()
                answer = await client.chat.completions.create(messages=list(messages), logprobs=1, **request)
                return _read(answer, (time.perf_counter() - began) * 1000)
    except ProviderError as error:
        return CompletionResult("", None, None, None, None, None, error=str(error))
    raise AssertionError("a retry either returns or raises")


def _read(answer: Any, latency_ms: float) -> CompletionResult:
    choice, usage, logprobs = answer.choices[0], answer.usage, answer.choices[0].logprobs
    return CompletionResult(
        text=(choice.message.content if choice.message else None) or "",
        confidence=None,
        latency_ms=latency_ms,
        input_tokens=usage.prompt_tokens if usage else None,
        output_tokens=usage.completion_tokens if usage else None,
        finish_reason=choice.finish_reason,
        tokens=tuple((logprobs.tokens if logprobs else None) or ()),
        token_logprobs=tuple((logprobs.token_logprobs if logprobs else None) or ()),
    )
