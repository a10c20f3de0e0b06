"""Placeholders of redacted values, and the way back from a model's answer to the values.

The first e-mail address of a prompt is `[EMAIL_1]`, another one `[EMAIL_2]`, wherever they are repeated. The number is
what makes a copy of a placeholder in an answer mean one value. Standard library only: the clients import it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from reasoning.errors import UnparseableAnswer
from reasoning.formats.markup import closed_fences
from reasoning.io.bounded import load_bounded
from reasoning.records import Message

KINDS = ("secret", "email", "iban", "card", "ssn", "ip", "phone")

_NAMES = "|".join(kind.upper() for kind in KINDS)
# Without a number it is of a model that was trained before there were numbers, or an index in code: `packet[IP]`.
PLACEHOLDER = re.compile(rf"\[(?:{_NAMES})(?:_[0-9]{{1,6}})?\]")
_INDEXED = re.compile(r"[\w\])]")
_BEGINS = frozenset(
    f"[{kind.upper()}_"[:length] for kind in KINDS for length in range(1, len(kind) + 3)
)  # of "[EMAIL_12]" all but the digits and what follows
_MAX_DIGITS = 6
MAX_NUMBER = 10**_MAX_DIGITS - 1
_HELD = 2 + max(map(len, KINDS)) + _MAX_DIGITS  # the longest text that may become a placeholder
# What an answer says. The rest of a decision acts.
_SPOKEN = frozenset({"thought", "reasoning", "text", "explanation"})
_JSON_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"')


def placeholder(kind: str, number: int | None = None) -> str:
    """`[EMAIL]`, or `[EMAIL_2]` with a number."""
    return f"[{kind.upper()}]" if number is None else f"[{kind.upper()}_{number}]"


@dataclass(frozen=True, slots=True)
class RedactedPrompt:
    """What a model is asked, and what its placeholders stand for. Made by `reasoning.redaction.prompts`.

    `originals` has the value of every placeholder, None where it cannot be put back (it stood there with escapes, whose
    meaning depends on the place). `literal` are the placeholders that the prompt itself already had. `numbers` names
    the placeholder of every value, by kind. `counts` are findings by kind.
    """

    messages: list[Message]
    originals: Mapping[str, str | None] = field(default_factory=dict, repr=False)
    literal: frozenset[str] = frozenset()
    numbers: Mapping[tuple[str, str], str] = field(default_factory=dict, repr=False)
    counts: Counter[str] = field(default_factory=Counter)

    def restore_text(self, text: str) -> tuple[str, list[str]]:
        """`text` with the values of its placeholders, and the placeholders of which no value is known."""
        unknown: list[str] = []
        return (self._replace(text, 0, unknown) if "[" in text else text), unknown

    def restore_decision(self, decision: dict[str, Any]) -> dict[str, Any]:
        """A decision with the values of its placeholders.

        Raises `UnparseableAnswer` for a placeholder without a value in anything that acts (actions, parameters,
        arguments, code). In what is only said (`thought`, `reasoning`, `text`, `explanation`) it stays, but for fenced
        blocks of code. Within a text that is JSON itself, values are written as JSON needs them, to any depth.
        """
        unknown: list[str] = []
        restored: dict[str, Any] = {}
        for key, value in decision.items():
            if key in _SPOKEN:
                restored[key] = self.restore_said(value) if isinstance(value, str) else self._restore(value, [])
            else:
                restored[key] = self._restore(value, unknown)
        if unknown:
            raise UnparseableAnswer(unknown_placeholder(unknown[0]))
        return restored

    def restore_said(self, text: str) -> str:
        """What an answer says, with the values of its placeholders.

        Raises `UnparseableAnswer` for a placeholder without a value in a fenced block of code; elsewhere it stays.
        """
        restored, unknown = self.restore_text(text)
        if unknown:
            self.check_code(text)
        return restored

    def check_code(self, text: str) -> None:
        """Raises `UnparseableAnswer` for a placeholder without a value in a fenced block of code."""
        fences = closed_fences(text)
        for found in self._placeholders(text) if fences else ():
            inside = any(start <= found.start() < end for start, end in fences)
            if inside and self.originals.get(found[0]) is None:
                raise UnparseableAnswer(unknown_placeholder(found[0]))

    def _replace(self, text: str, start: int, unknown: list[str], *, json: bool = False) -> str:
        """`text` from `start` on with the values of its placeholders, in `json` as in a JSON string. Those without a
        value are added to `unknown`. What stands before `start` only tells an index in code from a placeholder."""
        pieces, done = [], start
        for found in self._placeholders(text):
            value = self.originals.get(found[0])
            if value is None:
                unknown.append(found[0])
                continue
            pieces += [text[done : found.start()], orjson.dumps(value).decode()[1:-1] if json else value]
            done = found.end()
        return "".join([*pieces, text[done:]])

    def _placeholders(self, text: str) -> Iterator[re.Match[str]]:
        for found in PLACEHOLDER.finditer(text):
            if found[0] in self.literal:
                continue
            if not found[0][-2].isdigit() and _INDEXED.match(text, found.start() - 1, found.start()):
                continue
            yield found

    def _restore(self, value: Any, unknown: list[str]) -> Any:
        if isinstance(value, str):
            if "[" in value and value.lstrip().startswith(("{", "[")) and _is_json(value):
                return _JSON_STRING.sub(lambda found: self._restore_json_string(found[0], unknown), value)
            text, missing = self.restore_text(value)
            unknown += missing
            return text
        if isinstance(value, list):
            return [self._restore(item, unknown) for item in value]
        if isinstance(value, dict):
            return {self._restore(key, unknown): self._restore(item, unknown) for key, item in value.items()}
        return value

    def _restore_json_string(self, written: str, unknown: list[str]) -> str:
        value = orjson.loads(written)
        restored = self._restore(value, unknown)
        return written if restored == value else orjson.dumps(restored).decode()


def _is_json(text: str) -> bool:
    try:
        load_bounded(text.encode())
    except ValueError:  # also half of a pair of UTF-16
        return False
    return True


def unknown_placeholder(found: str) -> str:
    """The error about a placeholder that stands for nothing."""
    return f"the answer acts on {found}, which stands for no value of this prompt that could be put back"


class StreamRestorer:
    """Puts values back into a text that comes in pieces. It holds back only what may become a placeholder.

    With `json` the text is that of a JSON document, and values are written as in its strings. `unknown` are the
    placeholders so far of which no value is known; they stay.
    """

    __slots__ = ("_json", "_last", "_prompt", "_tail", "unknown")

    def __init__(self, prompt: RedactedPrompt, *, json: bool = False) -> None:
        self.unknown: list[str] = []
        self._prompt = prompt
        self._json = json
        self._tail = ""
        self._last = ""  # the character before, which tells an index in code from a placeholder

    def feed(self, text: str) -> str:
        """The next piece of the restored text."""
        if text and not self._tail and "[" not in text:
            self._last = text[-1]
            return text
        text = self._tail + text
        held = _held_back(text)
        self._tail = text[len(text) - held :]
        return self._restore(text[: len(text) - held])

    def finish(self) -> str:
        """What was held back to the end."""
        tail, self._tail = self._tail, ""
        return self._restore(tail)

    def _restore(self, text: str) -> str:
        if not text:
            return ""
        last, self._last = self._last, text[-1]
        if "[" not in text:
            return text
        return self._prompt._replace(last + text, len(last), self.unknown, json=self._json)


def _held_back(text: str) -> int:
    """How many characters at the end of `text` may become a placeholder."""
    begin = text.rfind("[", max(0, len(text) - _HELD))
    if begin < 0:
        return 0
    tail = text[begin:].rstrip("0123456789")
    digits = len(text) - begin - len(tail)
    if tail in _BEGINS and digits <= _MAX_DIGITS and (not digits or tail[-1] == "_"):
        return len(text) - begin
    # `[EMAIL` may also end without a number.
    return len(text) - begin if not digits and tail[1:].lower() in KINDS else 0
