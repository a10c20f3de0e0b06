"""Reading JSON of others: what it may cost is bounded before it is parsed.

Parsing holds the interpreter, in a thread as well: 6 MB of empty lists took 1.6 s and 500 MB. So a text is measured
first, by its bytes and by the number of its values, which is estimated from above by counting what separates values.
"""

from __future__ import annotations

from typing import Any

import orjson

MAX_BYTES = 8 << 20
MAX_VALUES = 200_000
"""About 30 ms and 50 MB. Twelve values a token, as its probabilities have, are those of 16,000 tokens."""
MAX_DEPTH = 200
"""What is nested deeper cannot be written again (orjson's own limit is 254), and passes on unread."""
_SMALL_BYTES = 64 << 10


class TooLarge(ValueError):
    """A JSON text is larger, or has more values, than is parsed."""


def count_values(text: bytes, start: int = 0, end: int | None = None) -> int:
    """An upper bound of the JSON values in a text: what separates values inside of its strings counts as well."""
    return sum(text.count(mark, start, end) for mark in (b",", b"[", b"{", b":"))


def load_bounded(text: bytes) -> Any:
    """The value of a JSON text. Raises `TooLarge` and `orjson.JSONDecodeError`, both of them `ValueError`s."""
    if len(text) > _SMALL_BYTES:
        if len(text) > MAX_BYTES:
            raise TooLarge(f"{len(text)} bytes of JSON; at most {MAX_BYTES} are read")
        if (values := count_values(text)) > MAX_VALUES:
            raise TooLarge(f"up to {values} values of JSON; at most {MAX_VALUES} are read")
    return orjson.loads(text)


def is_deep(value: dict[str, Any]) -> bool:
    """Is more than `MAX_DEPTH` within one another, which cannot be written as JSON again?"""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        children: list[Any] = []
        for parent in level:
            for child in parent.values() if isinstance(parent, dict) else parent:
                if isinstance(child, (dict, list)) and child:
                    children.append(child)
        if not children:
            return False
        level = children
    return True
