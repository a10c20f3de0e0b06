"""Coding answers piece by piece. The original is the fallback until the first piece, and not afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any, NoReturn

from reasoning.core import Answer, Attempt, ClientCore, Question
from reasoning.errors import CallFailed, StreamInterrupted, UnparseableAnswer
from reasoning.fallback import Usage, collecting, split_result
from reasoning.io.sse import StreamedCompletion
from reasoning.io.transport_port import AsyncPort, SyncPort
from reasoning.redaction.placeholders import StreamRestorer
from reasoning.serving.model_calls import failed_status
from reasoning.serving.routes import Arm

_END: Any = object()
"""After the last piece."""


class _Stream:
    """What does not depend on how one waits."""

    def __init__(self, core: ClientCore, question: Question) -> None:
        self._core = core
        self._question = question
        self._streamed = StreamedCompletion()
        self._begun = False
        self._asked = False
        self._restorer: StreamRestorer | None = None
        self._answer: Answer | None = None

    @property
    def answer(self) -> Answer:
        """The whole answer. RuntimeError until the stream was read to its end."""
        if self._answer is None:
            raise RuntimeError("a stream has its answer once it was read to its end")
        return self._answer

    def _give_back(self) -> None:
        """The agent closes a stream that it has not read: the call that was reserved for it is not made."""
        question = self._question
        if not self._asked and question.asks_model and question.arm is not None:
            self._asked = True
            self._core.calls.release(question.arm)

    def _feed(self, chunk: bytes) -> str:
        text = self._streamed.feed(chunk)
        if self._question.redacted is not None:
            self._restorer = self._restorer or StreamRestorer(self._question.redacted)
            text = self._restorer.feed(text)
        self._begun = self._begun or bool(text)
        return text

    def _held_back(self) -> str:
        """The end of the text, where it might have been the beginning of a placeholder."""
        text = self._restorer.finish() if self._restorer else ""
        self._begun = self._begun or bool(text)
        return text

    def _end(self, arm: Arm, started: float) -> None:
        """Judge the whole text. Once pieces of it are out there is no way back."""
        attempt = self._core.judge(self._question, arm, self._streamed.completion(), started)
        if not self._begun:
            self._core.serve_custom(self._question, attempt)  # nothing was said, so the original answers
            return
        if attempt.fallback_reason == "low_confidence":
            attempt.fallback_reason = None
        if attempt.valid and not self._has_said(attempt):
            attempt.decision, attempt.valid, attempt.fallback_reason = None, False, "unparseable"
            attempt.error = "a private value would need escapes where the stream has put it back"
        if attempt.fallback_reason is not None:
            self._core.record_custom(self._question, attempt, served=True)
            raise StreamInterrupted(f"the text is complete, but no answer: {attempt.error}")
        self._answer = self._core.serve_custom(self._question, attempt)

    def _has_said(self, attempt: Attempt) -> bool:
        """Does the text with its values mean the decision? In JSON a value may need escapes, which comes out late."""
        redacted, completion = self._question.redacted, attempt.completion
        if redacted is None or completion is None or "[" not in completion.text:
            return True
        text, _ = redacted.restore_text(completion.text)
        try:
            return (
                text == completion.text or self._question.type.parse(text, self._question.context) == attempt.decision
            )
        except UnparseableAnswer:
            return False

    def _fail(self, arm: Arm, error: CallFailed, started: float) -> None:
        """The call failed: the original's turn, or too late for that."""
        attempt = self._core.judge(self._question, arm, error, started)
        if not self._begun:
            self._core.serve_custom(self._question, attempt)
            return
        self._interrupt(attempt)

    def _interrupt(self, attempt: Attempt) -> NoReturn:
        attempt.completion = self._streamed.so_far()
        self._core.record_custom(self._question, attempt, served=True)
        raise StreamInterrupted(f"the text breaks off here: {attempt.error}") from None

    def _abandon(self, arm: Arm, started: float) -> None:
        """The agent reads no further, or was cancelled: that says nothing about the model."""
        self._core.calls.release(arm)
        self._core.count("streams", "abandoned")
        if self._begun:
            attempt = Attempt(arm, (time.perf_counter() - started) * 1000, self._streamed.so_far())
            attempt.error = "abandoned: the agent read no further"
            self._core.record_custom(self._question, attempt, served=True)

    def _serve_original(self, result: Any, started: float, calls: list[Usage]) -> str:
        """Record the fallback's decision. Its text."""
        result, usage = split_result(result, calls)
        if isinstance(result, str):
            self._serve_text(result, started, [usage])
            return result
        self._answer = self._core.serve_original(self._question, result, started, [usage])
        try:
            return self._question.type.format_answer(result)
        except UnparseableAnswer:  # the fallback's answer passes as it is
            return str(result)

    def _abandon_original(self, pieces: list[str], started: float, calls: list[Usage]) -> None:
        """The agent stops reading the fallback's stream."""
        self._core.count("streams", "abandoned")
        self._core.record_abandoned_original(self._question, "".join(pieces), started, calls)

    def _serve_text(self, text: str, started: float, calls: list[Usage]) -> None:
        """Record what an original that streams itself has said."""
        try:
            decision: Any = self._question.type.parse(text)
        except UnparseableAnswer:
            decision = text
        self._answer = self._core.serve_original(self._question, decision, started, calls)


class CodingStream(_Stream):
    """Iterate it for the pieces of the text; after the last one `answer` is there.

    An original that is a generator function streams as well.
    """

    def __init__(
        self, core: ClientCore, transport: Callable[[], SyncPort], question: Question, original: Callable[[Any], Any]
    ) -> None:
        super().__init__(core, question)
        self._pieces = self._run(transport, original)

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def close(self) -> None:
        """Read no further."""
        self._give_back()
        self._pieces.close()

    def _run(self, transport: Callable[[], SyncPort], original: Callable[[Any], Any]) -> Generator[str, None, None]:
        question, arm, self._asked = self._question, self._question.arm, True
        if question.asks_model and arm is not None:
            started = time.perf_counter()
            try:
                request = self._core.request(question, arm, stream=True)
                with transport().stream(*request) as (status, chunks):
                    if status != 200:
                        raise failed_status(status, b"".join(chunks))
                    for chunk in chunks:
                        if text := self._feed(chunk):
                            yield text
                if text := self._held_back():
                    yield text
                self._end(arm, started)
            except CallFailed as error:
                self._fail(arm, error, started)
            except StreamInterrupted:
                raise
            except BaseException:
                self._abandon(arm, started)
                raise
        if self._answer is None:
            yield from self._ask_original(original)

    def _ask_original(self, original: Callable[[Any], Any]) -> Generator[str, None, None]:
        started, calls = time.perf_counter(), list[Usage]()
        try:
            with collecting(calls):
                result: Any = original(self._question.context)
            if isinstance(result, Iterator):
                pieces: list[str] = []
                try:
                    while (piece := _next(result, calls)) is not _END:
                        pieces.append(piece)
                        yield piece
                except GeneratorExit:
                    try:
                        if isinstance(result, Generator):
                            result.close()  # first, since a `fallback_call` reports when it ends
                    finally:
                        self._abandon_original(pieces, started, calls)
                    raise
                self._serve_text("".join(pieces), started, calls)
                return
        except Exception as error:
            self._core.record_original_error(self._question, self._question.arm, error, started, calls)
            raise
        yield self._serve_original(result, started, calls)


class AsyncCodingStream(_Stream):
    """The same with `async for`. An original that is an async generator function streams as well."""

    def __init__(
        self,
        core: ClientCore,
        transport: Callable[[], AsyncPort],
        question: Question,
        original: Callable[[Any], Awaitable[Any] | Any],
    ) -> None:
        super().__init__(core, question)
        self._pieces = self._run(transport, original)

    def __aiter__(self) -> AsyncIterator[str]:
        return self._pieces

    async def aclose(self) -> None:
        """Read no further."""
        self._give_back()
        await self._pieces.aclose()

    async def _run(
        self, transport: Callable[[], AsyncPort], original: Callable[[Any], Awaitable[Any] | Any]
    ) -> AsyncGenerator[str, None]:
        question, arm, self._asked = self._question, self._question.arm, True
        if question.asks_model and arm is not None:
            started = time.perf_counter()
            try:
                if self._core.redacts_long(question):
                    await asyncio.to_thread(self._core.redact, question)
                request = self._core.request(question, arm, stream=True)
                async with transport().astream(*request) as (status, chunks):
                    if status != 200:
                        raise failed_status(status, b"".join([chunk async for chunk in chunks]))
                    async for chunk in chunks:
                        if text := self._feed(chunk):
                            yield text
                if text := self._held_back():
                    yield text
                self._end(arm, started)
            except CallFailed as error:
                self._fail(arm, error, started)
            except StreamInterrupted:
                raise
            except BaseException:
                self._abandon(arm, started)
                raise
        if self._answer is None:
            async with contextlib.aclosing(self._ask_original(original)) as pieces:  # not left to the collector
                async for text in pieces:
                    yield text

    async def _ask_original(self, original: Callable[[Any], Awaitable[Any] | Any]) -> AsyncGenerator[str, None]:
        started, calls = time.perf_counter(), list[Usage]()
        try:
            with collecting(calls):
                result: Any = original(self._question.context)
                if inspect.isawaitable(result):
                    result = await result
            if isinstance(result, AsyncIterator):
                pieces: list[str] = []
                try:
                    while (piece := await _anext(result, calls)) is not _END:
                        pieces.append(piece)
                        yield piece
                except GeneratorExit:
                    try:
                        if isinstance(result, AsyncGenerator):
                            await result.aclose()
                    finally:
                        self._abandon_original(pieces, started, calls)
                    raise
                self._serve_text("".join(pieces), started, calls)
                return
        except Exception as error:
            self._core.record_original_error(self._question, self._question.arm, error, started, calls)
            raise
        yield self._serve_original(result, started, calls)


def _next(pieces: Iterator[str], calls: list[Usage]) -> Any:
    """The next piece of a fallback's stream, `_END` after its last.

    A generator runs in its consumer's context, so what it reports is collected for each piece anew.
    """
    with collecting(calls):
        return next(pieces, _END)


async def _anext(pieces: AsyncIterator[str], calls: list[Usage]) -> Any:
    """`_next` of an asynchronous stream."""
    with collecting(calls):
        return await anext(pieces, _END)
