"""Server-sent events as both companies' streams write them. They are read by `reasoning.io.sse`."""

from __future__ import annotations

from typing import Any

import orjson


def encode_event(event: str, data: Any) -> bytes:
    """One event as Anthropic's streams have it: an `event:` line and one `data:` line of JSON."""
    return b"event: %b\ndata: %b\n\n" % (event.encode(), orjson.dumps(data))


def encode_data(data: Any) -> bytes:
    """One event as OpenAI's streams have it: only `data:`."""
    return b"data: %b\n\n" % orjson.dumps(data)


DONE = b"data: [DONE]\n\n"
