"""A streamed chat completion, read from server-sent events (WHATWG HTML, section 9.2) as they come."""

from __future__ import annotations

import orjson

from reasoning.completion import Completion, read_finish_reason, read_logprobs, read_usage
from reasoning.errors import CallFailed


class StreamedCompletion:
    """Feed it bytes; it gives the new text, and in the end the completion."""

    def __init__(self) -> None:
        self._rest = b""
        self._texts: list[str] = []
        self._tokens: list[str] = []
        self._logprobs: list[float | None] = []
        self._usage: tuple[int | None, int | None] = None, None
        self._finished = False
        self._finish_reason: str | None = None

    def feed(self, chunk: bytes) -> str:
        """The text that `chunk` completes, maybe none. Raises `CallFailed` for an error event, or what is no event."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return "".join([self._read(line.strip()) for line in lines])

    def completion(self) -> Completion:
        """All of it. Raises `CallFailed` when the stream ended before the answer did."""
        if not self._finished:
            raise CallFailed("provider_error", "the stream ended before the answer did")
        return self.so_far()

    def so_far(self) -> Completion:
        """What came until now."""
        return Completion("".join(self._texts), self._tokens, self._logprobs, *self._usage, self._finish_reason)

    def _read(self, line: bytes) -> str:
        if not line.startswith(b"data:"):
            return ""  # a comment, an event name, or the blank line between events
        data = line[5:].strip()
        if data == b"[DONE]":
            self._finished = True
            return ""
        try:
            event = orjson.loads(data)
            if event.get("error"):
                raise CallFailed("provider_error", f"error in the stream: {event['error']}")
            if event.get("usage"):
                self._usage = read_usage(event["usage"])
            if not event["choices"]:
                return ""
            choice = event["choices"][0]
            text = choice["delta"].get("content")
            tokens, logprobs = read_logprobs(choice.get("logprobs"))
            reason = read_finish_reason(choice)
        except CallFailed:
            raise
        except Exception as error:  # whatever a server says, the agent goes on
            raise CallFailed("provider_error", f"not a chat chunk: {type(error).__name__}: {error}") from None
        self._finish_reason = self._finish_reason or reason
        self._finished = self._finished or reason is not None
        text = text if isinstance(text, str) else ""
        self._texts.append(text)
        self._tokens += tokens
        self._logprobs += logprobs
        return text
