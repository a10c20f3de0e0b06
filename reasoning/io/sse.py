"""Server-sent events (WHATWG HTML, section 9.2): a decoder that does not care where its chunks are cut, and a streamed
chat completion read with it.

Lines end in LF, CR or CRLF; a byte order mark before the first one and comments are skipped; several `data:` lines are
one value, joined by LF; an event that no blank line ends is not dispatched.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from reasoning.errors import CallFailed, OversizedEvent
from reasoning.io.bounded import load_bounded
from reasoning.serving.completion import Completion, read_finish_reason, read_logprobs, read_usage

MAX_EVENT_BYTES = 8 << 20
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One dispatched event. `event` is "message" where the stream named none."""

    event: str
    data: bytes


class EventDecoder:
    """Feed it chunks of bytes; it returns the events that they complete. Each byte is looked at once."""

    def __init__(self, max_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._begin: bytes | None = b""  # of the stream, as long as it may be a byte order mark
        self._after_cr = False
        self._line: list[bytes] = []  # pieces of the line that has no end yet
        self._line_size = 0
        self._event = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[Event]:
        """Raises `OversizedEvent` when one event outgrows `max_bytes`: an endless one must not fill memory."""
        if self._begin is not None:
            chunk = self._begin + chunk
            if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
                self._begin = chunk
                return []
            self._begin, chunk = None, chunk.removeprefix(_BOM)
        if not chunk:
            return []
        if self._after_cr:  # the CR has ended its line; this LF is its second half
            chunk = chunk.removeprefix(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        lines = _LINE_END.split(chunk) if b"\r" in chunk else chunk.split(b"\n")
        self._line.append(lines[0])
        self._line_size += len(lines[0])
        events = []
        if len(lines) > 1:
            lines[0] = b"".join(self._line)
            last = lines.pop()
            self._line, self._line_size = [last], len(last)
            for line in lines:
                if event := self._end_line(line):
                    events.append(event)
        if self.pending > self._max_bytes:
            raise OversizedEvent(f"an event of more than {self._max_bytes} bytes")
        return events

    @property
    def pending(self) -> int:
        """Bytes of the event that has no end yet."""
        return self._size + self._line_size

    def _end_line(self, line: bytes) -> Event | None:
        if not line:
            data, self._data, self._size = self._data, [], 0
            name, self._event = self._event, b""
            if not data:
                return None
            value = data[0] if len(data) == 1 else b"\n".join(data)
            return Event(name.decode("utf-8", "replace") if name else "message", value)
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._size += len(value) + 1
        elif field == b"event":
            self._event = value
        return None


class StreamedCompletion:
    """Feed it bytes; it gives the new text, and in the end the completion."""

    def __init__(self) -> None:
        self._decoder = EventDecoder()
        self._done = False  # nothing after [DONE] counts
        self._texts: list[str] = []
        self._tokens: list[str] = []
        self._logprobs: list[float | None] = []
        self._usage: tuple[int | None, int | None] = None, None
        self._finished = False
        self._finish_reason: str | None = None

    def feed(self, chunk: bytes) -> str:
        """The text that `chunk` completes, maybe none. Raises `CallFailed` for an error event, or what is no event."""
        try:
            events = self._decoder.feed(chunk)
        except OversizedEvent as error:
            raise CallFailed("provider_error", str(error)) from None
        return "".join([self._read(event) for event in events])

    def completion(self) -> Completion:
        """All of it. Raises `CallFailed` when the stream ended before the answer did."""
        if not self._finished:
            raise CallFailed("provider_error", "the stream ended before the answer did")
        return self.so_far()

    def so_far(self) -> Completion:
        """What came until now."""
        return Completion("".join(self._texts), self._tokens, self._logprobs, *self._usage, self._finish_reason)

    def _read(self, sent: Event) -> str:
        if self._done:
            return ""
        if sent.data.strip() == b"[DONE]":
            self._done = self._finished = True
            return ""
        try:
            event = load_bounded(sent.data)
            if event.get("error") or sent.event == "error":
                raise CallFailed("provider_error", f"error in the stream: {event.get('error', event)}")
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
