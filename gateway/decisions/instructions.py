"""Instructions without what varies in them: numbers and UUIDs.

A system prompt of 28 KB comes with every request, with another time of day in it. Masking all of it takes 130 us, so a
text is compared with one that was masked before: where they differ in a few words, only these are masked.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from dataclasses import dataclass

_REFERENCES = 16
_SHORT = 2048
"""So short a text is masked as fast as it is compared."""
_DIGITS = b"0123456789"
_BLANKED = bytes(code if code in _DIGITS else 32 for code in range(256))
"""A table for `bytes.translate` that leaves the digits: a regular expression takes a hundred times as long."""
_NUMBER = re.compile(r"[0-9]+")
_UUID_MIDDLE = re.compile(rb"-(?<=[0-9a-f]{8}-)[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-(?=[0-9a-f]{12})")
_BLOCK = 4096
_LONGEST_DIFFERENCE = 2048
_LONGEST_WORD = 100


@dataclass(frozen=True, slots=True)
class Masked:
    """`digest` is that of the text without what varies, `numbers` are the numbers in it, in their order."""

    digest: str
    numbers: str


@dataclass(frozen=True, slots=True)
class _Reference:
    text: str
    digest: str
    numbers: tuple[str, ...]
    starts: tuple[int, ...]
    masked: Masked


class Instructions:
    """Remembers what it masked, the latest first."""

    def __init__(self) -> None:
        self._references: list[_Reference] = []

    def mask(self, text: str) -> Masked:
        """The instructions `text` without what varies in them."""
        if len(text) < _SHORT:
            return _masked(text).masked
        for at, reference in enumerate(self._references):
            if (found := _by_difference(reference, text)) is not None:
                if at:
                    self._references.insert(0, self._references.pop(at))
                return found
        reference = _masked(text)
        self._references.insert(0, reference)
        del self._references[_REFERENCES:]
        return reference.masked


def _masked(text: str) -> _Reference:
    matches = list(_NUMBER.finditer(text))
    digest = hashlib.sha256(_without_what_varies(text)).hexdigest()
    numbers = tuple(match.group() for match in matches)
    return _Reference(
        text, digest, numbers, tuple(match.start() for match in matches), Masked(digest, " ".join(numbers))
    )


def _without_what_varies(text: str) -> bytes:
    kept, at = [], 0
    raw = text.encode("utf-8", "surrogatepass")
    for middle in _UUID_MIDDLE.finditer(raw):
        kept.append(raw[at : max(middle.start() - 8, at)])
        at = middle.end() + 12
    return b"".join([*kept, raw[at:]]).translate(None, _DIGITS)


def _by_difference(reference: _Reference, text: str) -> Masked | None:
    """What `text` is masked to, where it differs from `reference` in few words, and only in what varies."""
    old = reference.text
    if old == text:
        return reference.masked
    if abs(len(old) - len(text)) > _LONGEST_DIFFERENCE:
        return None
    begin = _common_start(old, text)
    shared = min(len(old), len(text)) - begin
    end = min(_common_end(old, text), shared)
    # A number or a UUID has no blank in it: between blanks, both texts are whole words.
    first, after = max(begin - _LONGEST_WORD, 0), len(old) - end
    begin = max(old.rfind(blank, first, begin) for blank in " \n")
    blanks = [at for blank in " \n" if (at := old.find(blank, after, after + _LONGEST_WORD)) >= 0]
    if begin < 0 or not blanks:
        return None
    end = len(old) - min(blanks)
    before, now = old[begin : len(old) - end], text[begin : len(text) - end]
    if max(len(before), len(now)) > _LONGEST_DIFFERENCE or _without_what_varies(before) != _without_what_varies(now):
        return None
    head = bisect_left(reference.starts, begin)
    tail = bisect_left(reference.starts, len(old) - end)
    numbers = now.encode("utf-8", "surrogatepass").translate(_BLANKED).split()
    middle = [number.decode() for number in numbers]
    return Masked(reference.digest, " ".join([*reference.numbers[:head], *middle, *reference.numbers[tail:]]))


def _common_start(a: str, b: str) -> int:
    """How many characters two texts begin with in common: by blocks, then by halves."""
    at, limit = 0, min(len(a), len(b))
    while at + _BLOCK <= limit and a[at : at + _BLOCK] == b[at : at + _BLOCK]:
        at += _BLOCK
    low, high = min(at, limit), min(at + _BLOCK, limit)
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _common_end(a: str, b: str) -> int:
    at, limit = 0, min(len(a), len(b))
    while at + _BLOCK <= limit and a[len(a) - at - _BLOCK : len(a) - at] == b[len(b) - at - _BLOCK : len(b) - at]:
        at += _BLOCK
    low, high = min(at, limit), min(at + _BLOCK, limit)
    while low < high:
        middle = (low + high + 1) // 2
        if a[len(a) - middle : len(a) - low] == b[len(b) - middle : len(b) - low]:
            low = middle
        else:
            high = middle - 1
    return low
