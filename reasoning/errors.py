"""Errors of the decision client.

::

    ReasoningError
    ├── ConfigError            a setting is missing or wrong (names the key and the mend)
    ├── UnknownDecisionType    no such decision type is declared
    ├── InvalidContext         the context lacks what the type's renderer needs
    ├── InvalidQuestions       typed questions that cannot be asked (names the question)
    ├── UnparseableAnswer      a completion is not an answer of its type
    ├── Unredactable           a text cannot be cleaned of what is private in it
    ├── RecordError            a record cannot be written as it is (names the field)
    ├── CallFailed             a model gave no completion (carries the fallback reason)
    ├── StreamInterrupted      a streamed answer broke off after its first chunk
    ├── OversizedEvent         an event of a stream is larger than one is read
    ├── SegmentError           a segment file cannot be read
    └── RoutesError            routes.json cannot be read

The other packages derive theirs from `ReasoningError` as well, in an `errors` module of their own.
"""

from __future__ import annotations

from typing import Literal

FallbackReason = Literal[
    "disabled",
    "no_route",
    "lease_expired",
    "circuit_open",
    "timeout",
    "provider_error",
    "unparseable",
    "low_confidence",
    "over_budget",
    "needs_text",
]
"""Why a model's answer was not served, as it is recorded."""


class ReasoningError(Exception):
    """Base of every error that this project raises on purpose."""


class ConfigError(ReasoningError):
    """A setting is missing or wrong."""


class UnknownDecisionType(ReasoningError):
    """No such decision type is declared."""


class InvalidContext(ReasoningError):
    """The context lacks what the decision type's renderer needs."""


class InvalidQuestions(ReasoningError):
    """Typed questions that cannot be asked."""


class UnparseableAnswer(ReasoningError):
    """A completion is not an answer of its decision type."""


class Unredactable(ReasoningError):
    """A text cannot be cleaned of what is private in it: the rules find something again in what they have replaced."""


class RecordError(ReasoningError):
    """A record cannot be written as it is."""


class CallFailed(ReasoningError):
    """A model gave no completion. `reason` is the `fallback_reason` to record; `status` the HTTP status, 0 if none."""

    def __init__(self, reason: FallbackReason, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.reason: FallbackReason = reason
        self.status = status


class StreamInterrupted(ReasoningError):
    """A streamed answer broke off, or turned out to be none, after its first chunk was handed out."""


class OversizedEvent(ReasoningError):
    """An event of a stream is larger than one is read."""


class SegmentError(ReasoningError):
    """A segment file cannot be read."""


class RoutesError(ReasoningError):
    """`routes.json` cannot be read."""
