"""Thoughts and tool calls in a text that comes in pieces: what `reasoning.formats.turns` does for a whole text.

A piece is handed on as soon as nothing that comes can change what it is. Held back are only the beginnings of marks,
lines that may be fences, calls, and what follows a mark of a call in a code block until the block has an end.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from gateway.errors import ModelAnswerError
from reasoning.errors import UnparseableAnswer
from reasoning.formats.markup import may_open_fence
from reasoning.formats.thoughts import MARK, drop_thoughts_around
from reasoning.formats.turns import CALL_MARK, CALL_MARKS, CLOSE, OPEN, read_function, split_calls

_THOUGHT_MARKS = (
    *("<think", "</think", "<thoughts", "</thoughts", "<scratchpad", "</scratchpad", "<reflection", "</reflection"),
    *("<seed:think", "</seed:think", "<thinking", "</thinking", "<mm:think", "</mm:think", "[think]"),
    *("[/think]", "◁think▷", "◁/think▷", "<|start_thinking|>", "<|end_thinking|>", "<|inner_prefix|>"),
    *("<|inner_suffix|>", "<|think|>", "<unused94>", "<unused95>", "<|channel", "<channel|>"),
)
_HELD = 1000
_BLANKS = re.compile(r"\s*")
_LONGEST_MARK = 200  # of a mark with its attributes
_MARKS = tuple({mark[:n] for mark in (*CALL_MARKS, *_THOUGHT_MARKS) for n in range(1, len(mark) + 1)})
_BEGINNINGS = frozenset(_MARKS)
_FENCE = re.compile(r"[ \t]*(?P<run>`{3,}|~{3,})(?P<info>[^\n]*)")
_FENCE_MARKS = "`~"
_NO_MATCH = "a mark of a call in code blocks that do not match"
_MAYBE_FENCE = re.compile(r"[ \t]*(?:[`~][^\n]*)?\Z")
_IN_CALL = re.compile(r'"|\\|</tool_call>')

Piece = str | dict[str, Any]


class ThinkingFilter:
    """Takes the thoughts at the beginning out of a text that comes in pieces.

    `thinks_first`: the text is expected to begin within a thought, and is held back until that ends.
    """

    def __init__(self, *, thinks_first: bool = False) -> None:
        self._held = ""
        self._unmarked: list[str] | None = [] if thinks_first else None  # all of it, until the end of a thought
        self._blanks: list[str] = []  # what follows `_held` as long as all of it is blank
        self._state = "inside" if thinks_first else "start"  # start -> inside -> after -> text

    def feed(self, text: str) -> str:
        if self._state == "text" or not text:
            return text
        if self._unmarked is not None:
            self._unmarked.append(text)
        self._blanks.append(text)
        if self._state != "inside" and not self._held and not text.strip():
            return ""  # looked at once, however many come
        held, at = self._held + "".join(self._blanks), 0
        self._blanks.clear()
        while True:
            if self._state == "inside":
                mark = next((found for found in MARK.finditer(held, at) if found.lastgroup == "close"), None)
                if mark is None:
                    self._held = held[max(at, len(held) - _LONGEST_MARK) :]
                    return ""
                self._state, at, self._unmarked = "after", mark.end(), None
                continue
            begin = at + len(found.group()) if (found := _BLANKS.match(held, at)) else at
            mark = MARK.match(held, begin)
            if mark is not None:
                self._state, at = "inside" if mark.lastgroup == "open" else "after", mark.end()
                continue
            self._held = held[at:]
            if begin == len(held):
                self._blanks, self._held = [self._held], ""
                return ""
            if len(held) - begin < _LONGEST_MARK and _may_become_thought(held[begin:]):
                return ""
            if self._state == "after":
                self._held = self._held.lstrip("\n")
            return self._pass()

    def finish(self) -> str:
        """What was held back. Raises `ModelAnswerError` for a thought that does not end."""
        if self._unmarked is not None:  # no thought at all
            self._state = "text"
            return "".join(self._unmarked)
        if self._state == "inside":
            raise ModelAnswerError("empty", "the answer ends inside a thought")
        return self._pass()

    def _pass(self) -> str:
        self._state = "text"
        text, self._held = self._held + "".join(self._blanks), ""
        self._blanks.clear()
        return text


def _may_become_thought(start: str) -> bool:
    """Is a text the beginning of a mark of a thought, or one without its end?"""
    lower = start.lower()
    if any(mark.startswith(lower) for mark in _THOUGHT_MARKS):
        return True
    begun = any(lower.startswith(mark) for mark in _THOUGHT_MARKS if mark[0] == "<" and mark[-1] != ">")
    return begun and ">" not in lower.removeprefix("<|channel|>")


_INDENT = 64
"""Blanks at a line's beginning that are held back until it is known whether they indent a call."""


class CallFilter:
    """Takes the `<tool_call>`s outside fenced code blocks out of a text that comes in pieces.

    Raises `ModelAnswerError` for any other mark of a call or of a thought there. Without `calls` a mark of a call is
    text.
    """

    def __init__(self, *, calls: bool = True) -> None:
        self._calls = calls
        self._rest = ""  # not looked at to its end
        self._waiting: list[str] = []  # what came behind `_rest` and is not looked at yet
        self._patience = 0  # so many characters without a line's end have to come until `_rest` is looked at again
        self._begins_line = True  # with `_rest`
        self._line = ""  # the end of what was handed on of the line
        self._fence = ""  # the run of the block that is open
        self._in_fence = ""  # a mark of a thought in that block, which is none if the block is never closed
        self._after_mark: list[str] | None = None  # what followed a mark inside the block
        self._fences_after_mark = False
        self._behind_call = False  # nothing but blanks came behind a call on its line
        # A run of backticks or tildes stands on a line with a call. It is no fence, but without the call it would be.
        self._is_fence_moved = False
        self._call: _CallBody | None = None

    def feed(self, text: str) -> list[Piece]:
        """Pieces of text, and calls as a chat stream's `function`."""
        self._waiting.append(text)
        self._patience -= len(text)
        if self._patience > 0 and "\n" not in text:
            return []
        self._join()
        found: list[Piece] = []
        while self._rest and self._step(found):
            pass
        # A long line that is held back is looked at again when it has grown by half: linear in all.
        self._patience = len(self._rest) // 2 if len(self._rest) > _HELD else 0
        return found

    def _join(self) -> None:
        self._rest += "".join(self._waiting)
        self._waiting.clear()

    @property
    def in_call(self) -> bool:
        """Has a call begun and not ended?"""
        return self._call is not None

    def finish(self) -> list[Piece]:
        if self._call is not None:
            raise ModelAnswerError("tool_arguments", "a <tool_call> without an end")
        self._join()
        found: list[Piece] = []
        if self._fence and self._begins_line and (fence := _FENCE.fullmatch(self._rest)) and self._is_fence(fence):
            self._take(self._rest, found)  # the text's last line closes the block
        rest = "".join(self._after_mark or []) + self._rest
        self._rest, self._after_mark = "", None
        if self._fence and self._fences_after_mark:
            raise ModelAnswerError("tool_arguments", _NO_MATCH)
        _refuse_thought(self._in_fence + self._line + rest)  # a block that is never closed is none
        try:
            pieces = split_calls(rest) if self._calls else [rest]  # a block that is never closed is none
            return found + [_function(piece) if not isinstance(piece, str) else piece for piece in pieces if piece]
        except UnparseableAnswer as error:
            raise ModelAnswerError("tool_arguments", str(error)) from None

    def _step(self, found: list[Piece]) -> bool:
        """Take one line, or a part of it, or of a call. False when more of the text is needed."""
        if self._call is not None:
            self._rest = self._call.feed(self._rest)
            if not self._call.done:
                return False
            found.append(self._call.read())
            self._call, self._begins_line, self._line = None, False, ""  # a fence begins a line of the whole text
            self._behind_call = True
            return True
        newline = self._rest.find("\n")
        line = self._rest if newline < 0 else self._rest[: newline + 1]
        if self._behind_call and line.strip():
            self._behind_call = False
            self._is_fence_moved = self._is_fence_moved or line.lstrip()[0] in _FENCE_MARKS
        if newline < 0 and self._begins_line and _MAYBE_FENCE.match(line):
            return False
        if self._begins_line and (fence := _FENCE.match(line.rstrip("\n"))) and self._is_fence(fence):
            self._take(line, found)
            return True
        if self._after_mark is not None:
            return newline >= 0 and self._take(line, found)
        return self._take_text(line, newline >= 0, found)

    def _is_fence(self, fence: re.Match[str]) -> bool:
        run, info = fence["run"], fence["info"].strip()
        if not self._fence:
            if not may_open_fence(run, info):
                return False
            self._fence, self._in_fence = run, ""
            return True
        if run[0] == self._fence[0] and len(run) >= len(self._fence) and not info:
            self._fence = self._in_fence = ""
            return True
        self._fences_after_mark = self._fences_after_mark or self._after_mark is not None
        return False

    def _take(self, line: str, found: list[Piece]) -> bool:
        """A line that is text for certain, or is held back with what follows a mark in a code block."""
        self._note_thought(line)
        self._rest, self._begins_line, self._line = self._rest[len(line) :], True, ""
        if self._after_mark is None:
            found.append(line)
            return True
        self._after_mark.append(line)
        if not self._fence:
            if self._is_fence_moved:
                raise ModelAnswerError("tool_arguments", _NO_MATCH)
            found.append("".join(self._after_mark))
            self._after_mark, self._fences_after_mark = None, False
        return True

    def _take_text(self, line: str, whole: bool, found: list[Piece]) -> bool:
        """A line that is no fence, up to the first mark of a call in it."""
        mark = CALL_MARK.search(line) if self._calls else None
        if self._fence and mark is not None:
            self._after_mark = []
            return whole and self._take(line, found)
        if mark is None:
            if not whole and not self._fence and self._begins_line and line.isspace() and len(line) <= _INDENT:
                return False  # the blanks before a call on its line are not text
            if not whole and not self._fence and MARK.search(line):
                return False  # what stands around a mark of a thought says whether it is one
            return self._emit(line if whole else line[: len(line) - _beginning_at_end(line)], found) and whole
        if not line.startswith(OPEN, mark.start()):
            if not whole and OPEN.startswith(line[mark.start() :]):
                self._emit(line[: mark.start()], found)
                return False
            raise ModelAnswerError("tool_arguments", f"{mark.group()!r} is no call: one begins with {OPEN}")
        before = line[: mark.start()]
        self._is_fence_moved = self._is_fence_moved or (self._line + before).lstrip()[:1] in (*_FENCE_MARKS,)
        if before.strip() or not self._begins_line:
            self._emit(before, found)
            before = ""
        self._rest = self._rest[len(before) + len(OPEN) :]
        self._call = _CallBody()
        return True

    def _note_thought(self, text: str) -> None:
        if self._fence and not self._in_fence and (mark := MARK.search(self._line + text)):
            self._in_fence = mark.group()

    def _emit(self, text: str, found: list[Piece]) -> bool:
        """Hand on the beginning of `_rest`. False when it is empty."""
        if not text:
            return False
        if not self._fence:
            _refuse_thought(self._line + text)
        self._note_thought(text)
        found.append(text)
        self._rest = self._rest[len(text) :]
        self._begins_line = text.endswith("\n")
        self._line = "" if self._begins_line else (self._line + text)[-_LONGEST_MARK:]
        return True


class _CallBody:
    """The body of a `<tool_call>` as it comes; its end is the first end tag outside the strings of its JSON."""

    def __init__(self) -> None:
        self.done = False
        self._parts: list[str] = []
        self._in_string = False

    def feed(self, text: str) -> str:
        """What of the text is not of the body: behind its end, or a part of what may be its end."""
        at = 0
        while found := _IN_CALL.search(text, at):
            if found.group() == CLOSE and not self._in_string:
                self._parts.append(text[: found.start()])
                self.done = True
                return text[found.end() :]
            if found.group() == "\\":
                if found.end() == len(text):
                    break  # what it escapes is still to come
                at = found.end() + 1
                continue
            if found.group() == '"':
                self._in_string = not self._in_string
            at = found.end() if found.group() != CLOSE else found.start() + 1
        keep = max(at, len(text) - len(CLOSE) + 1)
        if text[at:].endswith("\\"):
            keep = min(keep, len(text) - 1)
        self._parts.append(text[:keep])
        return text[keep:]

    def read(self) -> dict[str, Any]:
        try:
            return _function(orjson.loads("".join(self._parts)))
        except orjson.JSONDecodeError:
            raise ModelAnswerError("tool_arguments", "a <tool_call> that holds no JSON") from None


def _function(call: Any) -> dict[str, Any]:
    try:
        name, arguments = read_function(call)
    except UnparseableAnswer as error:
        raise ModelAnswerError("tool_arguments", str(error)) from None
    return {"name": name, "arguments": arguments}


def _refuse_thought(text: str) -> None:
    """Raises `ModelAnswerError` for a line with a thought in it: what was said before it has gone out already."""
    if (mark := MARK.search(text)) is None:
        return
    try:
        found = drop_thoughts_around(text, ())
    except UnparseableAnswer:
        found = ""
    if found != text:
        reason = "unmarked_thought" if mark.lastgroup == "close" else "malformed_stream"
        raise ModelAnswerError(reason, "a thought in the middle of the answer")


def _beginning_at_end(line: str) -> int:
    """How many characters at the end of a line may be the beginning of a mark."""
    tail = line[-_LONGEST_MARK:].lower()
    at = max(tail.rfind("<"), tail.rfind("["), tail.rfind("◁"))
    if at < 0:
        return 0
    tail = tail[at:]
    held = tail in _BEGINNINGS or (tail[0] == "<" and _may_become_thought(tail))
    return len(tail) + (line[: len(line) - len(tail)][-1:] == "`") if held else 0
