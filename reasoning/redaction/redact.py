"""Personal data and secrets are replaced by their kind before anything is learned from them.

Rules read the text with its escapes resolved (`reasoning.redaction.escapes`), so that what stands in JSON, or in JSON
in JSON, is seen as it was meant; the replacement goes between the escapes, so that JSON stays JSON. Names of people
stay: they carry the turn-taking that is learned.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import lru_cache

import phonenumbers
import re2

from reasoning.redaction.credentials import Span, find_credentials
from reasoning.redaction.escapes import QUOTES, Segments, locate, resolve_escapes, written
from reasoning.redaction.personal import find_personal
from reasoning.redaction.wallets import SEED_HINT, find_seed_phrases, find_wallet_keys

# Part of a dataset's configuration hash: change it with any rule.
REDACTION_VERSION = f"2+phonenumbers-{phonenumbers.__version__}"
KINDS = ("secret", "email", "iban", "card", "ssn", "ip", "phone")

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

Found = tuple[tuple[str, int], ...]


def redact(text: str, *, region: str = "US") -> tuple[str, Counter[str]]:
    """`text` with each finding replaced by its kind, as `[EMAIL]` (see `KINDS`), and counts by kind.

    `region` (ISO 3166) is how a phone number without a country code is read. A number in JSON is replaced by a string.
    Loopback, unspecified and multicast addresses stay, since they name no one. Redacting twice changes nothing more.
    Takes time in proportion to the length, whatever the text.
    """
    counts: Counter[str] = Counter()
    if "-----BEGIN" in text:
        text = _redact_private_keys(text, counts)
    if _finds(SEED_HINT, text):
        text = _replace_until_stable(text, lambda view: list(find_seed_phrases(view)), counts)
    lines = text.split("\n")
    if len(lines) > 1 and ("|" in text or ">" in text):
        _redact_block_scalars(lines, counts)
    for number, line in enumerate(lines):
        if len(line) < 4:
            continue
        clean, found = (_redact_line if len(line) <= _CACHED else _redact_line.__wrapped__)(line, region)
        if found:
            lines[number] = clean
            for kind, count in found:
                counts[kind] += count
    return "\n".join(lines), counts


# A transcript is logged again with every turn, so most lines have been seen a moment ago.
@lru_cache(maxsize=32_768)
def _redact_line(line: str, region: str) -> tuple[str, Found]:
    counts: Counter[str] = Counter()
    if _finds(_WORTH_A_LOOK, line):

        def find(view: str) -> list[Span]:
            # Nobody's number stands inside an encoded picture.
            plain = view if len(view) < 500 else _ENCODED.sub(lambda match: " " * len(match[0]), view)
            return [*find_credentials(view), *find_wallet_keys(plain), *find_personal(plain, region)]

        return _replace_until_stable(line, find, counts), tuple(counts.items())
    if len(line) >= 50:
        line = _replace_until_stable(line, lambda view: list(find_seed_phrases(view)), counts)
    return line, tuple(counts.items())


def _finds(pattern: re2._Regexp, text: str) -> bool:
    try:
        return pattern.search(text) is not None
    except UnicodeEncodeError:  # half of a pair of UTF-16: what cannot be excluded is looked at
        return True


def _replace_until_stable(text: str, find: Callable[[str], list[Span]], counts: Counter[str]) -> str:
    # A replacement changes what stands beside it, so that a second look may find more. Each takes something away.
    for _ in range(8):
        view, segments = resolve_escapes(text)
        spans = _without_overlaps(find(view))
        if not spans:
            break
        text = _replace(text, view, segments, spans, counts)
    return text


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


def _replace(text: str, view: str, segments: Segments | None, spans: list[Span], counts: Counter[str]) -> str:
    pieces, done = [], 0
    for span in spans:
        start, end = locate(span.start, segments), locate(span.end, segments)
        quote = _quote_of_number(view, span)
        pieces += [text[done:start], quote, f"[{span.kind.upper()}]", quote]
        done = end
        counts[span.kind] += 1
    return "".join([*pieces, text[done:]])


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


def _redact_private_keys(text: str, counts: Counter[str]) -> str:
    """Keys in PEM, also with escaped line ends; one that does not end goes as far as it looks like one."""
    pieces, done, last_end = [], 0, text.rfind("-----END")
    begin = _KEY_BEGIN.search(text)
    while begin is not None:
        end = _KEY_END.search(text, begin.end()) if begin.end() <= last_end else None
        if end is None:
            last_end = -1
        after = end.end() if end is not None else _KEY_BODY.match(text, begin.end()).end()  # type: ignore[union-attr]
        pieces += [text[done : begin.start()], "[SECRET]"]
        counts["secret"] += 1
        done = after
        begin = _KEY_BEGIN.search(text, done)
    return "".join([*pieces, text[done:]])


def _redact_block_scalars(lines: list[str], counts: Counter[str]) -> None:
    """What stands under `password: |` in YAML, as far as it is indented."""
    for number, line in enumerate(lines[:-1]):
        if not line.endswith(("|", ">", "-", "+")) or not _BLOCK_SCALAR.search(line[-60:]):
            continue
        indent = len(line) - len(line.lstrip())
        following = number + 1
        while following < len(lines) and (len(lines[following]) - len(lines[following].lstrip()) > indent):
            if "[SECRET]" not in lines[following]:
                lines[following] = lines[following][: indent + 2] + "[SECRET]"
                counts["secret"] += 1
            following += 1
