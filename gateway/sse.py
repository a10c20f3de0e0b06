"""Server-sent events: an incremental decoder that does not care where the chunks are cut, and an encoder.

The decoder follows the WHATWG "Interpreting an event stream": lines end in LF, CR or CRLF, comments are skipped,
several `data:` lines are one value joined by LF, and an event that no blank line ends is not dispatched.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import orjson

from gateway.errors import ModelAnswerError

MAX_EVENT_BYTES = 32 << 20
_LINE_END = re.compile(rb"\r\n|\n|\r")


class Event(NamedTuple):
    """One dispatched event. `event` is "message" where the stream named none."""

    event: str
    data: bytes


class EventDecoder:
    """Feed it chunks of bytes; it returns the events that they complete."""

    def __init__(self, max_bytes: int = MAX_EVENT_BYTES) -> None:
        self._rest = b""
        self._started = False
        self._event = b""
        self._data: list[bytes] = []
        self._size = 0
        self._max_bytes = max_bytes

    def feed(self, chunk: bytes) -> list[Event]:
        """Raises `ModelAnswerError` when one event outgrows `max_bytes`: an endless one must not fill memory."""
        text = self._rest + chunk
        if not self._started:
            if len(text) < 3 and b"\xef\xbb\xbf".startswith(text):
                self._rest = text
                return []
            text = text.removeprefix(b"\xef\xbb\xbf")
            self._started = True
        if b"\r" in text:
            # A CR at the very end may be half of a CRLF: it stays until the next chunk tells.
            held = text[-1:] == b"\r"
            lines = _LINE_END.split(text[:-1] if held else text)
            self._rest = lines.pop() + (b"\r" if held else b"")
        else:
            lines = text.split(b"\n")
            self._rest = lines.pop()
        events = []
        for line in lines:
            if event := self._line(line):
                events.append(event)
        if self._size + len(self._rest) > self._max_bytes:
            raise ModelAnswerError("malformed_stream", f"an event of more than {self._max_bytes} bytes")
        return events

    def finish(self) -> list[Event]:
        """What a CR at the very end of the stream still completes."""
        return self.feed(b"\n") if self._rest == b"\r" else []

    def _line(self, line: bytes) -> Event | None:
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


def encode_event(event: str, data: Any) -> bytes:
    """One event as Anthropic's streams have it: an `event:` line and one `data:` line of JSON."""
    return b"event: %b\ndata: %b\n\n" % (event.encode(), orjson.dumps(data))


def encode_data(data: Any) -> bytes:
    """One event as OpenAI's streams have it: only `data:`."""
    return b"data: %b\n\n" % orjson.dumps(data)


DONE = b"data: [DONE]\n\n"
