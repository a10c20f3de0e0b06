"""Known tokens, found anywhere in a text that would go upstream, also glued to other text and in other encodings.

Of a token only its beginning, its length and its digest are kept. A token of which the settings have the digest alone
is known once it was presented.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

_BEGINNING = 4  # characters: too few to help anybody, enough to look at few places only
_DEEP = 4 << 10
"""Bytes: in a longer text an encoding within an encoding is not looked for."""
_MOST = 4  # encodings within one another
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{20,}+")
_HEX = re.compile(rb"[0-9A-Fa-f]{32,}+")
_STANDARD = bytes.maketrans(b"-_", b"+/")


class TokenMark(NamedTuple):
    """What is known of a token."""

    beginning: bytes
    length: int
    sha256: bytes


def mark_token(token: str) -> TokenMark:
    """The mark by which `KnownTokens` finds a token."""
    raw = token.encode()
    return TokenMark(raw[:_BEGINNING], len(raw), hashlib.sha256(raw).digest())


class KnownTokens:
    """The tokens of one gateway: its own, and those that it uses upstream."""

    def __init__(self, marks: Iterator[TokenMark] | list[TokenMark]) -> None:
        self._marks = set(marks)

    def add(self, token: str) -> bool:
        """Know another one. False where it was known."""
        mark = mark_token(token)
        if mark in self._marks:
            return False
        self._marks.add(mark)
        return True

    def is_in(self, text: bytes) -> bool:
        """Is a known token anywhere in `text`: as it is, or percent-encoded, in Base64 or in hexadecimal digits?

        Up to four encodings within one another in a text of up to 4 KB, one in a longer text.
        """
        return any(self._stands_in(decoded) for decoded in _decodings(text, _MOST if len(text) <= _DEEP else 1))

    def _stands_in(self, text: bytes) -> bool:
        for beginning, length, digest in self._marks:
            at = text.find(beginning)
            while at >= 0:
                if hashlib.sha256(text[at : at + length]).digest() == digest:
                    return True
                at = text.find(beginning, at + 1)
        return False


def _decodings(text: bytes, depth: int) -> Iterator[bytes]:
    yield text
    if not depth:
        return
    if b"%" in text and (decoded := unquote_to_bytes(text)) != text:
        yield from _decodings(decoded, depth - 1)
    for found in _BASE64.finditer(text):
        run = found[0].translate(_STANDARD)
        for skipped in range(4):  # where it begins is not known when it is glued to something
            part = run[skipped:]
            part = part[: len(part) - (len(part) % 4 == 1)]
            yield from _decodings(binascii.a2b_base64(part + b"=" * (-len(part) % 4)), depth - 1)
    for found in _HEX.finditer(text):
        for skipped in range(2):
            part = found[0][skipped:]
            yield from _decodings(binascii.a2b_hex(part[: len(part) // 2 * 2]), depth - 1)
