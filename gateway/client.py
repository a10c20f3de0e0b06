"""The decision client of the gateway: that of `reasoning`, with the gateway's recorder for its disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from gateway.decisions.owners import Owners
from gateway.ops.record import Recorder
from reasoning.client import Answer, AsyncDecisionClient
from reasoning.config import Config
from reasoning.core import Attempt
from reasoning.decision_types import DecisionType
from reasoning.io.spool import SegmentWriter
from reasoning.questions import TypedQuestion
from reasoning.records import Decision, Feedback

_accept: ContextVar[Callable[[dict[str, Any]], bool] | None] = ContextVar("accept", default=None)
"""Of the decision under way: may a model's decision be served?"""


class _QueuedWriter(SegmentWriter):
    """Takes records in the event loop for the recorder to write. `last` tells of the latest of them."""

    def __init__(self, config: Config, recorder: Recorder, *, decisions: bool) -> None:
        super().__init__(config.spool)
        self._recorder = recorder
        self._decisions = decisions
        self.last: asyncio.Future[bool] | None = None

    def write(self, record: Decision | Feedback) -> bool:
        size = 1000
        if isinstance(record, Decision):
            if not self._decisions:
                return True
            size += sum(len(message["content"]) for message in record.messages) + len(record.completion or "")
        self.last = self._recorder.submit(lambda: [record], size)
        return True


class GatewayClient(AsyncDecisionClient):
    """An answer comes when its record is written, or the recorder waits no longer. Without `decisions` only feedback is
    put on record."""

    def __init__(self, config: Config, recorder: Recorder, owners: Owners, *, decisions: bool) -> None:
        super().__init__(config=config, agent_id=config.agent_id or "gateway")
        self._core.make_id = lambda question: owners.make_id(question.ts, question.tags.get("key", ""))
        self._writer = self._core.writer = _QueuedWriter(config, recorder, decisions=decisions)

    async def decide(self, *args: Any, accept: Callable[[dict[str, Any]], bool] | None = None, **ids: Any) -> Answer:
        """As `AsyncDecisionClient.decide`. A model's decision that `accept` refuses is not served: `needs_text`."""
        token = _accept.set(accept)
        try:
            answer = await super().decide(*args, **ids)
        finally:
            _accept.reset(token)
        if self._writer.last is not None:  # nothing was awaited since it was submitted
            await self._writer.last
        return answer

    def question_type(self, questions: Mapping[str, TypedQuestion], name: str) -> DecisionType:
        """The decision type of typed questions, kept for training. Raises `InvalidQuestions`."""
        return self._core.question_type(questions, name)

    def _before_serving(self, attempt: Attempt) -> None:
        accept = _accept.get()
        if accept is not None and attempt.fallback_reason is None and not accept(attempt.decision or {}):
            attempt.fallback_reason = "needs_text"

    async def feedback(self, *args: Any, **about: Any) -> bool:
        """As `AsyncDecisionClient.feedback`; False also where it is not certain that it was written."""
        return await super().feedback(*args, **about) and self._writer.last is not None and await self._writer.last
