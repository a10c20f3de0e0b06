"""Asking registered models, as agents do: one question, whole or streamed, or many at once for an evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from provider.endpoint.arms import arm_of, most_usd
from provider.money.metering import tokens_usd
from provider.port import CONCURRENCY, Completion, Sampling
from reasoning.config import Config
from reasoning.error_text import describe_error
from reasoning.errors import CallFailed
from reasoning.io.sse import StreamedCompletion
from reasoning.io.transport import Transport
from reasoning.serving import completion as client_completion
from reasoning.serving.model_calls import ModelCalls
from storage.ledger.charges import ChargedTo
from storage.ledger.money import format_usd
from storage.ledger.rows import Deployment, Model
from storage.progress import OnProgress, Progress

if TYPE_CHECKING:
    from reasoning.serving.routes import Arm
    from storage.ledger.ledger import Ledger

SECONDS = 120.0
"""How long an answer may take, from connecting to its last byte: a server may load its model first."""

AT_ONCE = 4
"""Questions of an evaluation that are asked at the same time: more would measure the queue of a small server."""

BUSY = frozenset({429, 503})
"""Statuses of a request that the server did not begin: it is sent again."""
_ATTEMPTS, _FIRST_PAUSE = 8, 0.2  # seconds; doubled each time, half a minute in all

Messages = Sequence[Mapping[str, Any]]
OnAnswer = Callable[[int, Completion | None], None]
"""Told each answer by the number of its question; None where it was not asked, because of an interrupt."""


class Asker:
    """Connections to one server. `ask` may be called by several threads."""

    def __init__(self, config: Config, sampling: Sampling, wait: Callable[[float], None] = time.sleep) -> None:
        self._secrets = config.secrets
        self._calls = ModelCalls(config, time.time)
        self._transport = Transport()
        self._sampling = sampling
        self._wait = wait

    def ask(self, arm: Arm, messages: Messages, *, stream: bool = False) -> client_completion.Completion:
        """One answer. Raises `CallFailed`. A server that is busy is asked again."""
        target = self._calls.target(arm)
        body = client_completion.chat_body(
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

    def _post(self, url: str, headers: Any, body: bytes) -> client_completion.Completion:
        return client_completion.read_completion(*self._transport.post(url, headers, body, SECONDS))

    def _stream(self, url: str, headers: Any, body: bytes) -> client_completion.Completion:
        answer = StreamedCompletion()
        with self._transport.stream(url, headers, body, SECONDS) as (status, chunks):
            if status != 200:
                return client_completion.read_completion(status, b"".join(chunks))
            for chunk in chunks:
                answer.feed(chunk)
        return answer.completion()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()


def ask_all(
    config: Config,
    model: Model,
    conversations: Iterable[Messages],
    sampling: Sampling,
    *,
    concurrency: int = CONCURRENCY,
    on_answer: OnAnswer | None = None,
) -> list[Completion]:
    """Ask a registered model every conversation; answers in their order, those that failed with their `error` set."""
    return ask_arm(config, arm_of(model), conversations, sampling, concurrency=concurrency, on_answer=on_answer)


def ask_arm(
    config: Config,
    arm: Arm,
    conversations: Iterable[Messages],
    sampling: Sampling,
    *,
    concurrency: int = CONCURRENCY,
    on_answer: OnAnswer | None = None,
) -> list[Completion]:
    """`ask_all` for any server that speaks OpenAI's chat completions."""
    asker, answers = Asker(config, sampling), dict[int, Completion]()
    tell = on_answer or (lambda at, answer: None)
    with closing(asker), ThreadPoolExecutor(concurrency, thread_name_prefix="ask_all") as pool:
        asked = {pool.submit(_ask, asker, arm, messages): at for at, messages in enumerate(conversations)}
        try:
            for future in as_completed(asked):
                at = asked[future]
                answers[at] = future.result()
                tell(at, answers[at])
        except BaseException:  # an interrupt: the rest is not asked
            for future in [future for future in asked if future.cancel()]:
                tell(asked[future], None)
            raise
    return [answers[at] for at in sorted(answers)]


def ask_charged(
    config: Config,
    ledger: Ledger,
    deployment: Deployment,
    model: Model,
    conversations: Sequence[Messages],
    sampling: Sampling,
    *,
    progress: OnProgress | None = None,
    now: datetime | None = None,
) -> list[Completion]:
    """`ask_all` for an evaluation: charged, for these questions are not in the decision log, and with confidence.

    What the tokens can cost at most is charged before, and the difference given back after the last answer. Raises
    BudgetExceeded, and then nothing was asked.
    """
    ledger.update(Deployment, deployment.id, last_request_at=now or datetime.now(UTC), now=now)
    done = 0
    with charged_at_most(ledger, model, deployment.id, conversations, sampling.max_tokens, now=now) as costs:

        def note(at: int, answer: Completion | None) -> None:
            nonlocal done
            costs[at] = Decimal(0) if answer is None else counted_usd(model, answer.input_tokens, answer.output_tokens)
            if answer is not None and progress:
                done += 1
                progress(Progress(done, len(conversations), "answers"))

        answers = ask_all(config, model, conversations, sampling, concurrency=AT_ONCE, on_answer=note)
    return [_with_confidence(answer, sampling) for answer in answers]


def counted_usd(model: Model, input_tokens: int | None, output_tokens: int | None) -> Decimal | None:
    """What an answer cost; None where its server did not count its tokens, or it failed."""
    if input_tokens is None or output_tokens is None:
        return None
    return tokens_usd(model, input_tokens, output_tokens)


@contextmanager
def charged_at_most(
    ledger: Ledger,
    model: Model,
    deployment_id: str | None,
    conversations: Sequence[Messages],
    max_tokens: int,
    *,
    now: datetime | None,
) -> Iterator[dict[int, Decimal | None]]:
    """Charge what these questions can cost at most; at the end of the block give back what they did not cost.

    Gives a mapping for what each cost, by its number. One that is not there, or None, keeps its most: what a server
    charges for it is not known. Raises BudgetExceeded before the block.
    """
    most = most_usd(model, conversations, max_tokens)
    what = f"{len(conversations)} questions to {model.name}"
    of = ChargedTo(decision_type=model.decision_type, model_id=model.id, deployment_id=deployment_id)
    reservation = ledger.reserve(most, purpose=what, decision_type=model.decision_type, model=model.id, now=now)
    ledger.settle(reservation, most, kind="tokens", what=f"tokens of {what}, at most", of=of, now=now)
    costs: dict[int, Decimal | None] = {}
    try:
        yield costs
    finally:
        spent = Decimal(0)
        for at, messages in enumerate(conversations):
            cost = costs.get(at)
            spent += most_usd(model, [messages], max_tokens) if cost is None else cost
        if spent != most:
            ledger.charge(
                "adjustment",
                spent - most,
                key=f"asked:{reservation.id}",
                what=f"tokens of {what}: they cost {format_usd(spent)}, charged was {format_usd(most)} at most",
                of=of,
                now=now,
            )


def _ask(asker: Asker, arm: Arm, messages: Messages) -> Completion:
    began = time.perf_counter()
    try:
        answer = asker.ask(arm, messages)
    except CallFailed as error:
        return Completion("", None, None, None, None, None, error=str(error))
    return Completion(
        text=answer.text,
        confidence=None,
        latency_ms=(time.perf_counter() - began) * 1000,
        input_tokens=answer.input_tokens,
        output_tokens=answer.output_tokens,
        finish_reason=answer.finish_reason,
        tokens=tuple(answer.tokens),
        token_logprobs=tuple(answer.token_logprobs),
    )


def _with_confidence(answer: Completion, sampling: Sampling) -> Completion:
    if sampling.answer_format is None:
        return answer
    read = client_completion.Completion(answer.text, answer.tokens, answer.token_logprobs)
    return replace(answer, confidence=client_completion.measure_confidence(sampling.answer_format, read))
