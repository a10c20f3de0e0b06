"""Where personal data and secrets stand in a text, and the text with each replaced by its kind.

Rules read the text with its escapes resolved (`reasoning.redaction.escapes`), so that what stands in JSON, or in JSON
in JSON, is seen as it was meant; the replacement goes between the escapes, so that JSON stays JSON. Names of people
stay: they carry the turn-taking that is learned.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import phonenumbers
import re2

from reasoning.redaction.credentials import Span, find_credentials
from reasoning.redaction.escapes import QUOTES, locate, resolve_escapes, written
from reasoning.redaction.personal import find_personal
from reasoning.redaction.placeholders import KINDS, PLACEHOLDER, placeholder
from reasoning.redaction.wallets import SEED_HINT, find_seed_phrases, find_wallet_keys

__all__ = ["KINDS", "REDACTION_VERSION", "Finding", "find_private", "redact", "replace_findings"]

# Part of a dataset's configuration hash: change it with any rule.
REDACTION_VERSION = f"3+phonenumbers-{phonenumbers.__version__}"

_KEY_BEGIN = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_KEY_END = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_KEY_BODY = re.compile(r"(?:[A-Za-z0-9+/=\s:,.]|\\+[nr])*+")
_BLOCK_SCALAR = re.compile(
    r"(?i)(?:password|passwd|secret|token|api_?key|private_?key|passphrase|mnemonic)[\"']?: ?[|>][+-]?\s*$"
)

# Nearly all lines of a chat have nothing that could be anything, and are done with one search.
_WORTH_A_LOOK = re2.compile(
    r"[0-9][^\n]?[0-9]|[@\x{ff20}]|::|[\p{Nd}][\p{Nd}]|[A-Za-z0-9_.:~+/=-]{16}|(?i:pass|pwd|\bpw\b|secret|token|"
    r"key|credential|mnemonic|phrase|"
    r"auth|cookie|mysql|maria|identified|sshpass|\blogin\b|redis-cli|ldap|\bpin\b|\bcv[vc]|parole|contrase|senha|"
    r"kennwort|clave|://)|\\[ux]"
)
_NUMBER = re.compile(r"-?[0-9][0-9.eE+-]*")
_ENCODED = re.compile(r"[A-Za-z0-9+/_-]{300,}+")
_CACHED = 2_000  # characters: a longer line is seldom met again, and takes memory


class Finding(NamedTuple):
    """What is to be replaced, from `start` to `end`, and by what: a placeholder of its kind, between two `quote`."""

    start: int
    end: int
    kind: str
    quote: str = ""


def redact(text: str, *, region: str = "US") -> tuple[str, Counter[str]]:
    """`text` with each finding replaced by its kind, as `[EMAIL]` (see `KINDS`), and counts by kind.

    Takes time in proportion to the length, whatever the text. See `find_private`.
    """
    found = find_private(text, region)
    return replace_findings(text, found, placeholder), Counter(finding.kind for finding in found)


def replace_findings(text: str, found: Iterable[Finding], name: Callable[[str], str]) -> str:
    """`text` with every finding replaced by the placeholder that `name` gives for its kind."""
    pieces, done = [], 0
    for start, end, kind, quote in found:
        pieces += [text[done:start], quote, name(kind), quote]
        done = end
    return "".join([*pieces, text[done:]]) if pieces else text


def find_private(text: str, region: str = "US") -> tuple[Finding, ...]:
    """Where personal data and secrets stand in `text`, in order and without overlaps.

    `region` (ISO 3166) is how a phone number without a country code is read. A number in JSON is replaced by a string.
    Loopback, unspecified and multicast addresses stay, since they name no one. In a text whose findings were replaced
    nothing more is found.
    """
    edited = _Edited(text)
    if "-----BEGIN" in text:
        edited.replace(_find_private_keys(text))
    if _finds(SEED_HINT, text):
        edited.replace_until_stable(lambda view: list(find_seed_phrases(view)))
    if "\n" in text and ("|" in text or ">" in text):
        edited.replace(_find_block_scalars(edited.text))
    edited.replace(_find_in_lines(edited.text, region))
    return tuple(edited.found)


def _find_in_lines(text: str, region: str) -> Iterator[Finding]:
    at = 0
    for line in text.split("\n"):
        if len(line) >= 4:
            for start, end, kind, quote in (_find_in_line if len(line) <= _CACHED else _find_in_line.__wrapped__)(
                line, region
            ):
                yield Finding(at + start, at + end, kind, quote)
        at += len(line) + 1


# A transcript is logged again with every turn, so most lines have been seen a moment ago.
@lru_cache(maxsize=32_768)
def _find_in_line(line: str, region: str) -> tuple[Finding, ...]:
    if _finds(_WORTH_A_LOOK, line):

        def find(view: str) -> list[Span]:
            # Nobody's number stands inside an encoded picture.
            plain = view if len(view) < 500 else _ENCODED.sub(lambda match: " " * len(match[0]), view)
            return [*find_credentials(view), *find_wallet_keys(plain), *find_personal(plain, region)]

        edited = _Edited(line)
        edited.replace_until_stable(find)
        return tuple(edited.found)
    if len(line) >= 50:
        edited = _Edited(line)
        edited.replace_until_stable(lambda view: list(find_seed_phrases(view)))
        return tuple(edited.found)
    return ()


def _finds(pattern: re2._Regexp, text: str) -> bool:
    try:
        return pattern.search(text) is not None
    except UnicodeEncodeError:  # half of a pair of UTF-16: what cannot be excluded is looked at
        return True


class _Edited:
    """A text with findings replaced, and where they stood in the original."""

    def __init__(self, original: str) -> None:
        self.text = original
        self.found: list[Finding] = []
        self._original = original

    def replace_until_stable(self, find: Callable[[str], list[Span]]) -> None:
        """Replace what `find` finds in the text with its escapes resolved, again and again.

        A replacement changes what stands beside it, so that a second look may find more. Each takes something away.
        """
        for _ in range(8):
            view, segments = resolve_escapes(self.text)
            spans = _without_overlaps(find(view))
            if not spans:
                break
            self.replace(
                Finding(
                    locate(span.start, segments), locate(span.end, segments), span.kind, _quote_of_number(view, span)
                )
                for span in spans
            )

    def replace(self, spans: Iterable[Finding]) -> None:
        """Replace more; offsets are of the text as it is now. What touches a placeholder takes all of it."""
        new = list(spans)
        if not new:
            return
        old, places = self.found, list(self._places())
        found: list[Finding] = []
        number = 0
        for span in new:
            while number < len(old) and places[number][1] <= span.start:
                found.append(old[number])
                number += 1
            first = number
            while number < len(old) and places[number][0] < span.end:
                number += 1
            start = span.start + _shift(old, places, first)
            end = span.end + _shift(old, places, number)
            quote = span.quote
            if number > first:
                if places[first][0] < span.start:
                    start = old[first].start
                if places[number - 1][1] > span.end:
                    end = old[number - 1].end
                if (start, end) == (old[first].start, old[first].end):
                    quote = quote or old[first].quote
            if found and start < found[-1].end:  # both touch the same placeholder
                start = found.pop().start
            found.append(Finding(start, end, span.kind, quote))
        self.found = [*found, *old[number:]]
        self.text = replace_findings(self._original, self.found, placeholder)

    def _places(self) -> Iterator[tuple[int, int]]:
        """Where the placeholders stand in the text."""
        longer = 0
        for start, end, kind, quote in self.found:
            length = len(placeholder(kind)) + 2 * len(quote)
            yield start + longer, start + longer + length
            longer += length - (end - start)


def _shift(found: list[Finding], places: list[tuple[int, int]], number: int) -> int:
    """How far back the original is behind the first `number` placeholders."""
    return found[number - 1].end - places[number - 1][1] if number else 0


def _without_overlaps(spans: list[Span]) -> list[Span]:
    """Of spans that overlap the first found stays; in the order of the text."""
    if len(spans) < 2:
        return spans
    ranked = sorted(enumerate(spans), key=lambda item: (item[1].start, item[0]))
    kept: list[tuple[int, Span]] = []
    for rank, span in ranked:
        while kept and kept[-1][1].end > span.start and kept[-1][0] > rank:
            kept.pop()
        if not kept or kept[-1][1].end <= span.start:
            kept.append((rank, span))
    return [span for _, span in kept]


def _quote_of_number(view: str, span: Span) -> str:
    """What a bare number of JSON must stand in when it becomes text: the quotation marks of its depth, else nothing."""
    if not _NUMBER.fullmatch(view, span.start, span.end):
        return ""
    after = view[span.end : span.end + 40].lstrip()[:1]
    if after and after not in ",}]":
        return ""
    before = view[max(0, span.start - 400) : span.start].rstrip()
    if before.endswith(":"):
        key = before[:-1].rstrip()[-1:]
        return written(key) if key and key in QUOTES else ""
    if not before.endswith(("[", ",")) or not after:
        return ""
    inner = before.rstrip("0123456789.,eE+- \n")[-1:]
    if inner == "[" or inner in QUOTES or inner in "}]":
        marks = [mark for mark in before if mark in QUOTES][-1:] or [
            mark for mark in view[span.end : span.end + 400] if mark in QUOTES
        ]
        return written(marks[0]) if marks else '"'
    return ""


def _find_private_keys(text: str) -> Iterator[Finding]:
    """Keys in PEM, also with escaped line ends; one that does not end goes as far as it looks like one."""
    last_end = text.rfind("-----END")
    begin = _KEY_BEGIN.search(text)
    while begin is not None:
        end = _KEY_END.search(text, begin.end()) if begin.end() <= last_end else None
        if end is None:
            last_end = -1
        after = end.end() if end is not None else _KEY_BODY.match(text, begin.end()).end()  # type: ignore[union-attr]
        yield Finding(begin.start(), after, "secret")
        begin = _KEY_BEGIN.search(text, after)


def _find_block_scalars(text: str) -> Iterator[Finding]:
    """What stands under `password: |` in YAML, as far as it is indented."""
    lines = text.split("\n")
    at, under = 0, -1
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if under >= 0 and indent > under:
            if line.strip() and not PLACEHOLDER.search(line):
                yield Finding(at + min(under + 2, len(line)), at + len(line), "secret")
        else:
            under = -1
            if number + 1 < len(lines) and line.endswith(("|", ">", "-", "+")) and _BLOCK_SCALAR.search(line[-60:]):
                under = indent
        at += len(line) + 1
