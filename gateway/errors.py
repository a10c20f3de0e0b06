"""Errors of the gateway.

::

    ReasoningError
    └── GatewayError
        ├── GatewayConfigError     a setting of the gateway is missing or wrong (names the key and the mend)
        ├── BadRequest             the body of a request is not what the route takes (names the key)
        ├── RequestRefused         the request may not pass (status, type and message for the client)
        ├── Untranslatable         a request that only its own provider can answer (`.reason`, one word for the metrics)
        ├── ModelAnswerError       the coding model's answer is no answer (`.reason`)
        └── UpstreamError          an upstream gave no answer at all
            ├── UpstreamUnreachable    no connection: nothing was sent
            └── UpstreamTimeout        connected, then silent for too long
"""

from __future__ import annotations

from reasoning.errors import ReasoningError

_OF_WHOLE_ANSWERS = frozenset(
    {"content_filter", "cut", "tool_choice", "tool_arguments", "empty", "too_long", "unmarked_thought"}
)


class GatewayError(ReasoningError):
    """Base of the gateway's errors."""


class GatewayConfigError(GatewayError):
    """A setting of the gateway is missing or wrong."""


class BadRequest(GatewayError):
    """The body of a request is not what the route takes."""


class RequestRefused(GatewayError):
    """The request may not pass. `type` is Anthropic's name for the kind of error; every protocol shapes its own
    body."""

    def __init__(self, status: int, type: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.message = message


class Untranslatable(GatewayError):
    """The request holds something that the chat API of a custom model cannot express."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class ModelAnswerError(GatewayError):
    """What the custom model sent is not an answer that may be passed on.

    `whole` says that it is an answer, from a server that does what it should: only its contents will not do.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.whole = reason in _OF_WHOLE_ANSWERS


class UpstreamError(GatewayError):
    """An upstream gave no answer."""


class UpstreamUnreachable(UpstreamError):
    """No connection could be made, so nothing was sent."""


class UpstreamTimeout(UpstreamError):
    """The upstream was connected to, and then silent for too long."""
