"""Asking registered models, as agents do: one question, whole or streamed, or many at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from typing import TYPE_CHECKING, Any

from provider.port import CONCURRENCY, CompletionResult, Sampling
from reasoning.config import Config
from reasoning.error_text import describe_error
from reasoning.errors import CallFailed
from reasoning.io.sse import StreamedCompletion
from reasoning.io.transport import Transport
from reasoning.serving.completion import Completion, chat_body, read_completion
from reasoning.serving.model_calls import ModelCalls
from storage.progress import OnProgress, Progress

if TYPE_CHECKING:
    from reasoning.serving.routes import Arm

SECONDS = 120.0
"""How long an answer may take, from connecting to its last byte: a server may load its model first."""

BUSY = frozenset({429, 503})
"""Statuses of a request that the server did not begin: it is sent again."""
_ATTEMPTS, _FIRST_PAUSE = 8, 0.2  # seconds; doubled each time, half a minute in all

Messages = Sequence[Mapping[str, Any]]
OnAnswer = Callable[[int, CompletionResult | None], None]
"""Told each answer by the number of its question; None where it was not asked, because of an interrupt."""


class Asker:
    """Connections to one server. `ask` may be called by several threads."""

    def __init__(self, config: Config, sampling: Sampling, wait: Callable[[float], None] = time.sleep) -> None:
        self._secrets = config.secrets
        self._calls = ModelCalls(config, time.time)
        self._transport = Transport()
        self._sampling = sampling
        self._wait = wait

    def ask(self, arm: Arm, messages: Messages, *, stream: bool = False) -> Completion:
        """One answer. Raises `CallFailed`. A server that is busy is asked again."""
        target = self._calls.target(arm)
        body = chat_body(
            arm,
            messages,
            max_tokens=self._sampling.max_tokens,
            temperature=self._sampling.temperature,
            fields=self._sampling.fields,
            stream=stream,
        )
        send = self._stream if stream else self._post
        for attempt in range(_ATTEMPTS):
            try:
                return send(target.url, target.headers, body)
            except CallFailed as error:
                if error.status not in BUSY or attempt == _ATTEMPTS - 1:
                    said = describe_error(error, *self._secrets).removeprefix(f"{type(error).__name__}: ")
                    raise CallFailed(error.reason, said, error.status) from None  # a server may echo its key
                self._wait(_FIRST_PAUSE * 2**attempt)
        raise AssertionError("an attempt either returns or raises")

    def _post(self, url: str, headers: Any, body: bytes) -> Completion:
        return read_completion(*self._transport.post(url, headers, body, SECONDS))

    def _stream(self, url: str, headers: Any, body: bytes) -> Completion:
        answer = StreamedCompletion()
        with self._transport.stream(url, headers, body, SECONDS) as (status, chunks):
            if status != 200:
                return read_completion(status, b"".join(chunks))
            for chunk in chunks:
                answer.feed(chunk)
        return answer.completion()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()


def ask_arm(
    config: Config,
    arm: Arm,
    conversations: Iterable[Messages],
    sampling: Sampling,
    *,
    concurrency: int = CONCURRENCY,
    on_answer: OnAnswer | None = None,
    progress: OnProgress | None = None,
) -> list[CompletionResult]:
    """Ask a server every conversation; answers in their order, those that failed with their `error` set."""
    asker, answers, conversations = Asker(config, sampling), dict[int, CompletionResult](), list(conversations)
    tell = on_answer or (lambda at, answer: None)
    with closing(asker), ThreadPoolExecutor(concurrency, thread_name_prefix="ask_arm") as pool:
        asked = {pool.submit(_ask, asker, arm, messages): at for at, messages in enumerate(conversations)}
        try:
            for future in as_completed(asked):
                at = asked[future]
                answers[at] = future.result()
                tell(at, answers[at])
                if progress:
                    progress(Progress(len(answers), len(conversations), "answers"))
        except BaseException:  # an interrupt: the rest is not asked
            for future in [future for future in asked if future.cancel()]:
                tell(asked[future], None)
            raise
    return [answers[at] for at in sorted(answers)]


def _ask(asker: Asker, arm: Arm, messages: Messages) -> CompletionResult:
    began = time.perf_counter()
    try:
        answer = asker.ask(arm, messages)
    except CallFailed as error:
        return CompletionResult("", None, None, None, None, None, error=str(error))
    return CompletionResult(
        text=answer.text,
        confidence=None,
        latency_ms=(time.perf_counter() - began) * 1000,
        input_tokens=answer.input_tokens,
        output_tokens=answer.output_tokens,
        finish_reason=answer.finish_reason,
        tokens=tuple(answer.tokens),
        token_logprobs=tuple(answer.token_logprobs),
    )
