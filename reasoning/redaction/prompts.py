"""A prompt as custom models see it: redacted in the same way when they are trained, evaluated and served.

`redact_prompt` is the one function for all three, so that a model is asked the bytes that it has learned from.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from reasoning.errors import Unredactable
from reasoning.records import Message
from reasoning.redaction.escapes import QUOTES, resolve_escapes
from reasoning.redaction.placeholders import MAX_NUMBER, PLACEHOLDER, RedactedPrompt, placeholder
from reasoning.redaction.redact import Finding, find_private, replace_findings

CACHE_BYTES = 8 << 20
"""Of findings in message contents that were seen lately. No text is kept."""
INLINE_CHARACTERS = 8 << 10
"""So many that were not seen before are redacted in some 4 ms."""
_INLINE_TOTAL = 256 << 10  # characters: their digests alone take 1 ms
_CACHED_FROM = 256  # characters: of a shorter text the findings take no longer than its digest

_NOTHING: dict[Any, str] = {}
_NO_COUNTS: Counter[str] = Counter()
_UNQUOTE = str.maketrans(dict.fromkeys(QUOTES, '"'))


def redact_prompt(messages: Sequence[Message], *, region: str = "US") -> RedactedPrompt:
    """`messages` with every value that is private replaced by a placeholder of its own, as `[EMAIL_1]`.

    Values are numbered by kind in the order of the prompt; equal ones have one number. Numbers of placeholders that
    the prompt already has are left out. `region` (ISO 3166) is how a phone number without a country code is read.
    Raises `Unredactable`. The findings of a content that was seen before come from a cache.
    """
    literal = frozenset(_literals([message["content"] for message in messages]))
    found = [find_cached(message["content"], region) for message in messages]
    if not any(found):  # of most prompts; every decision pays for this, so that the empty parts are shared
        return RedactedPrompt([{**message} for message in messages], _NOTHING, literal, _NOTHING, _NO_COUNTS)
    numbering = _Numbering(literal)
    redacted: list[Message] = [
        {**message, "content": numbering.replace(message["content"], findings)}
        for message, findings in zip(messages, found, strict=True)
    ]
    return numbering.finish(redacted)


def redact_answer(prompt: RedactedPrompt, answer: str, *, region: str = "US") -> tuple[str, Counter[str]]:
    """An answer to `prompt` with the placeholders of the prompt, and its counts by kind.

    What the prompt does not have gets numbers of its own. Raises `Unredactable`.
    """
    numbering = _Numbering(prompt.literal | frozenset(_literals([answer])), prompt)
    text = numbering.replace(answer, find_cached(answer, region))
    return text, numbering.counts


class _Numbering:
    """Gives values their placeholders."""

    def __init__(self, literal: frozenset[str], prompt: RedactedPrompt | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self._literal = literal
        self._names: dict[tuple[str, str], str] = dict(prompt.numbers) if prompt else {}
        self._originals: dict[str, str | None] = dict(prompt.originals) if prompt else {}
        self._last: dict[str, int] = {}  # numbers given, by kind
        for kind, _ in self._names:
            self._last[kind] = self._last.get(kind, 0) + 1

    def replace(self, text: str, found: Sequence[Finding]) -> str:
        if not found:
            return text
        names = iter([self._name(text[finding.start : finding.end], finding.kind) for finding in found])
        self.counts.update(finding.kind for finding in found)
        return replace_findings(text, found, lambda kind: next(names))

    def finish(self, messages: list[Message]) -> RedactedPrompt:
        return RedactedPrompt(messages, self._originals, self._literal, self._names, self.counts)

    def _name(self, value: str, kind: str) -> str:
        # What is written with escapes means another text in another place, so that it is not put back.
        escaped = "\\" in value
        key = kind, resolve_escapes(value)[0].translate(_UNQUOTE) if escaped else value
        name = self._names.get(key)
        while name is None:
            number = self._last[kind] = self._last.get(kind, 0) + 1
            if number > MAX_NUMBER:
                raise Unredactable(f"more than {MAX_NUMBER} values of the kind {kind}")
            candidate = placeholder(kind, number)
            if candidate not in self._literal and candidate not in self._originals:
                name = self._names[key] = candidate
                self._originals[name] = None
        if not escaped:
            self._originals[name] = value
        return name


def _literals(texts: Iterator[str] | Sequence[str]) -> Iterator[str]:
    for text in texts:
        if "[" in text:
            yield from PLACEHOLDER.findall(text)


def find_cached(text: str, region: str) -> tuple[Finding, ...]:
    """`find_private`, from the cache where the text was seen lately. Raises `Unredactable`."""
    if len(text) < _CACHED_FROM:
        return _find_checked(text, region)
    return _cache.get(text, region, _find_checked)


def takes_long(texts: Sequence[str], region: str) -> bool:
    """Does redacting these take more than a few milliseconds, so that an event loop should not wait for it?"""
    total = sum(map(len, texts))
    if total <= INLINE_CHARACTERS:
        return False
    return total > _INLINE_TOTAL or (
        sum(len(text) for text in texts if not is_cached(text, region)) > INLINE_CHARACTERS
    )


def is_cached(text: str, region: str) -> bool:
    """Would `find_cached` take no longer than a digest of the text?"""
    return len(text) < _CACHED_FROM or _cache.has(text, region)


def _find_checked(text: str, region: str) -> tuple[Finding, ...]:
    found = find_private(text, region)
    if found and find_private(replace_findings(text, found, lambda kind: placeholder(kind, 1)), region):
        raise Unredactable("redaction finds something again in what it has cleaned")
    return found


class FindingsCache:
    """Findings by the digest of a text, for threads; the least recently used go above `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self.bytes = 0
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, tuple[Finding, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, text: str, region: str, find: Callable[[str, str], tuple[Finding, ...]]) -> tuple[Finding, ...]:
        key = _digest(text, region)
        with self._lock:
            if (found := self._entries.get(key)) is not None:
                self._entries.move_to_end(key)
                return found
        found = find(text, region)
        with self._lock:
            if key not in self._entries:
                self._entries[key] = found
                self.bytes += _size(found)
            while self.bytes > self._max_bytes:
                self.bytes -= _size(self._entries.popitem(last=False)[1])
        return found

    def has(self, text: str, region: str) -> bool:
        with self._lock:
            return _digest(text, region) in self._entries


def _digest(text: str, region: str) -> bytes:
    # SHA-256, because processors have instructions for it: half the time of BLAKE2 in Python. 160 bits are enough.
    return hashlib.sha256(f"{region} {text}".encode("utf-8", "surrogatepass")).digest()[:20]


def _size(found: tuple[Finding, ...]) -> int:
    return 250 + 160 * len(found)  # of a key with its place in the dictionary, and of a finding with its numbers


_cache = FindingsCache(CACHE_BYTES)


def _new_cache() -> None:
    global _cache
    _cache = FindingsCache(CACHE_BYTES)


os.register_at_fork(after_in_child=_new_cache)  # another thread may have held its lock
