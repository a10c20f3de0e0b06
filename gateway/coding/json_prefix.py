"""The arguments of a tool call as they stream, passed on only as far as they are valid JSON.

Client SDKs parse the pieces of a call as they arrive and raise when one of them is broken. `JsonPrefix` therefore holds
back whatever is not yet certain: an escape, a number or a literal without its end.
"""

from __future__ import annotations

import re

from gateway.errors import ModelAnswerError
from reasoning.io.bounded import MAX_DEPTH

_LONGEST_TOKEN = 400
"""Characters that a number, a literal or an escape may be held back for."""
_TOKEN = re.compile(
    r"[ \t\n\r]+|(?P<mark>[{}\[\]:,\"])|"
    r"(?P<scalar>(?:true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)(?=[ \t\n\r,\]}]))"
)
_SCALAR_BEGINNING = re.compile(r"[-+.0-9A-Za-z]+")
_IN_STRING = re.compile(
    r'(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u(?:[0-9a-ce-fA-CE-F][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}|'
    r"[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})))*+"
)
_LONGEST_ESCAPE = 12
_CLOSES = {"}": "{", "]": "["}

# What may come next: an `object` at the start, a `value`, a `key`, and so on; `first_*` allows the end of an empty one.
_MARKS: dict[str, frozenset[str]] = {
    "{": frozenset({"object", "value", "first_value"}),
    "[": frozenset({"value", "first_value"}),
    '"': frozenset({"value", "first_value", "key", "first_key"}),
    ":": frozenset({"colon"}),
    ",": frozenset({"comma"}),
    "}": frozenset({"first_key", "comma"}),
    "]": frozenset({"first_value", "comma"}),
}


class JsonPrefix:
    """Takes a JSON object in pieces; `feed` returns what of it is certain. Takes linear time in all.

    `null` is held back to the end: models write it for a call without arguments.
    """

    __slots__ = ("_expects", "_in_string", "_open", "_rest")

    def __init__(self) -> None:
        self._rest = ""
        self._open: list[str] = []
        self._expects = "object"
        self._in_string = False

    def feed(self, text: str) -> str:
        """Raises `ModelAnswerError` for what no JSON object begins with."""
        held, at = self._rest + text, 0
        if self._expects == "object":
            held = held.lstrip(" \t\n\r")  # some SDKs cannot parse blanks alone
        while at < len(held):
            end = self._string(held, at) if self._in_string else self._token(held, at)
            if end == at:
                break
            at = end
        self._rest = held[at:]
        return held[:at]

    def _string(self, text: str, at: int) -> int:
        found = _IN_STRING.match(text, at)
        end = found.end() if found else at
        if end == len(text):
            return end
        if text[end] == '"':
            self._in_string = False
            self._expects = "colon" if self._expects in ("key", "first_key") else "comma"
            return end + 1
        if text[end] != "\\" or len(text) - end >= _LONGEST_ESCAPE:
            raise _broken()
        return end

    def _token(self, text: str, at: int) -> int:
        found = _TOKEN.match(text, at)
        if found is None:
            beginning = _SCALAR_BEGINNING.match(text, at)
            if beginning is None or beginning.end() != len(text):
                raise _broken()
            return self._hold(text, at)
        if found["mark"]:
            self._mark(found["mark"])
        elif found["scalar"]:
            if self._expects == "object" and found["scalar"] == "null":
                return self._hold(text, at)
            if self._expects not in ("value", "first_value"):
                raise _broken()
            self._expects = "comma"
        return found.end()

    def _hold(self, text: str, at: int) -> int:
        """Keep a scalar that may go on, where one may stand."""
        null = self._expects == "object" and "null".startswith(text[at:].rstrip())
        if len(text) - at > _LONGEST_TOKEN or not (null or self._expects in ("value", "first_value")):
            raise _broken()
        return at

    def _mark(self, mark: str) -> None:
        if self._expects not in _MARKS[mark]:
            raise _broken()
        if mark in "{[":
            self._open.append(mark)
            self._expects = "first_key" if mark == "{" else "first_value"
            if len(self._open) > MAX_DEPTH:
                raise ModelAnswerError("tool_arguments", "nested too deeply")
        elif mark in "}]":
            if self._open[-1] != _CLOSES[mark]:
                raise _broken()
            self._open.pop()
            self._expects = "comma" if self._open else "end"
        elif mark == '"':
            self._in_string = True
        elif mark == ":":
            self._expects = "value"
        else:
            self._expects = "key" if self._open[-1] == "{" else "value"


def _broken() -> ModelAnswerError:
    return ModelAnswerError("tool_arguments", "not a JSON object")
