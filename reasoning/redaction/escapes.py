"""Text with its escapes resolved, and the way back to where each character stood.

A secret in a tool call is written `DB_PASSWORD=\\"hunter2\\"\\n`, or with three backslashes where JSON stands in
JSON. Here every escape becomes the one character that it means, whatever the depth, so that rules see
`DB_PASSWORD="hunter2"`. What is found is then replaced where it stands in the original, between the escapes: JSON
stays JSON.
"""

from __future__ import annotations

import re
from bisect import bisect_right

# A quotation mark inside a string inside a string is not the one that ends the outer string: each depth has its own.
QUOTES = '"' + "".join(chr(0xE001 + depth) for depth in range(12))

_ESCAPE = re.compile(
    r"\\++(?:u[0-9a-fA-F]{4}(?:\\++u[dD][c-fC-F][0-9a-fA-F]{2})?|x[0-9a-fA-F]{2}|[\"'nrtbf/\n])?|%(?:40|3[ADad]|2[026BFbf])"
)
_PLAIN = {"n": "\n", "r": "\n", "t": "\t", "b": " ", "f": " ", "\n": " "}
# One character for one, so that offsets stay: other blanks, dashes and digits, and what is not valid Unicode.
_SAME = (
    dict.fromkeys((160, 5760, *range(8192, 8203), 8239, 8287, 12288), " ")
    | dict.fromkeys((173, 8208, 8209, 8210, 8211, 8212, 8213, 8722, 65112, 65123, 65293), "-")
    | {zero + digit: str(digit) for zero in (0x660, 0x6F0, 0x966, 0xFF10) for digit in range(10)}
    | {0xFF20: "@", 0xFE6B: "@", 0xFF1A: ":", 0xFF1D: "=", 0xFF0E: ".", 0xFF0B: "+", 0x201C: '"', 0x201D: '"'}
    | {0x2018: "'", 0x2019: "'"}
    | dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
    | dict.fromkeys(range(0xE001, 0xE00D), "\ufffd")
)

Segments = tuple[list[int], list[int]]


def resolve_escapes(text: str) -> tuple[str, Segments | None]:
    """`text` as rules read it, and where its pieces begin there and in `text` (None: every character where it was)."""
    if "\\" not in text and "%" not in text:
        return (text if text.isascii() else text.translate(_SAME)), None
    # An escape of UTF-16 may leave half a pair, so what is put together is translated at the end.
    pieces: list[str] = []
    here: list[int] = [0]
    there: list[int] = [0]
    length = end = 0
    for match in _ESCAPE.finditer(text):
        start = match.start()
        if start > end:
            here.append(length)
            there.append(end)
            pieces.append(text[end:start].translate(_SAME) if not text.isascii() else text[end:start])
            length += start - end
        here.append(length)
        there.append(start)
        pieces.append(_meaning(match[0]))
        length += 1
        end = match.end()
    here.append(length)
    there.append(end)
    pieces.append(text[end:] if text.isascii() else text[end:].translate(_SAME))
    return "".join(pieces), (here, there)


def locate(offset: int, segments: Segments | None) -> int:
    """Where in the text a character of the resolved text begins."""
    if segments is None:
        return offset
    here, there = segments
    piece = bisect_right(here, offset) - 1
    return there[piece] + offset - here[piece]


def written(quote: str) -> str:
    """A quotation mark of `QUOTES` as it is written: with the backslashes of its depth."""
    return "\\" * ((1 << QUOTES.index(quote)) - 1) + '"'


def _meaning(escape: str) -> str:
    if escape[0] == "%":  # of URLs
        return chr(int(escape[1:], 16))
    letters = escape.lstrip("\\")
    if not letters:
        return "\\"
    first = letters[0]
    if first == '"':
        count = len(escape) - 1
        depth = 0
        while count >> depth & 1:
            depth += 1
        return QUOTES[min(depth, len(QUOTES) - 1)]
    if first in "ux":
        codes = [int(code, 16) for code in letters[1:].replace("\\", "").split("u")]
        code = codes[0]
        if len(codes) == 2 and 0xD800 <= code < 0xDC00:
            code = 0x10000 + ((code - 0xD800) << 10) + (codes[1] - 0xDC00)
        elif len(codes) == 2:
            return "\ufffd"
        return "\ufffd" if 0xD800 <= code < 0xE00D else chr(code).translate(_SAME)
    return _PLAIN.get(first, first)
