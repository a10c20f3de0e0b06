"""A coding tool's turn: text, and calls of the tools on offer.

In a completion each call is `<tool_call>`, JSON of its name and arguments, `</tool_call>`: the form that Hermes and
Qwen models are trained on. A call counts wherever it stands outside a fenced code block. Any other mark of a call
outside one, of whatever model, makes the completion unparseable: a tool's user must never be shown markup in the place
of an action.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from reasoning.errors import UnparseableAnswer
from reasoning.formats.markup import check_length, closed_fences
from reasoning.formats.thoughts import drop_leading_thoughts, drop_thoughts_around, is_inside
from reasoning.formats.transcript import clean_text

OPEN, CLOSE = "<tool_call>", "</tool_call>"
CALL_MARKS = (
    *("<tool_call", "</tool_call", "<|tool_call", "<function=", "<function_call", "<minimax:tool_call"),
    *("<invoke name=", "<antml:invoke", "<antml:function_calls"),
    *("<｜tool▁call", "<|python_tag|>", "[tool_calls]", "<｜dsml｜"),
)
"""How calls begin or end in completions of models whose server did not read them; in lower case."""
CALL_MARK = re.compile("|".join(map(re.escape, CALL_MARKS)), re.IGNORECASE)
_BLANKS = re.compile(r"\s*")
_DECODER = json.JSONDecoder()


def parse_turn(completion: str) -> dict[str, Any]:
    """`{"text", "tool_calls"}` of a completion; a call is `{"name", "arguments"}`. A call that is cut is an error."""
    check_length(completion)
    text = drop_leading_thoughts(completion)
    text = drop_thoughts_around(text, closed_fences(text))
    pieces = split_calls(text)
    said = "".join(piece for piece in pieces if isinstance(piece, str))
    return normalize_turn({"text": said, "tool_calls": [piece for piece in pieces if not isinstance(piece, str)]})


def split_calls(text: str) -> list[str | dict[str, Any]]:
    """Text and calls in their order. Raises `UnparseableAnswer` for a mark of a call that is no whole call."""
    if CALL_MARK.search(text) is None:
        return [text]
    fences = closed_fences(text)
    ends = [end for _, end in fences]
    pieces: list[str | dict[str, Any]] = []
    at = 0
    for mark in CALL_MARK.finditer(text):
        if mark.start() < at or is_inside(mark.start(), fences, ends):
            continue
        if not text.startswith(OPEN, mark.start()):
            raise UnparseableAnswer(f"{_short(mark.group())} is no call: one begins with {OPEN}")
        call, end = _read_call(text, mark.start() + len(OPEN))
        pieces += [text[at : mark.start()], call]
        at = end
    return [*pieces, text[at:]]


def format_turn(decision: dict[str, Any]) -> str:
    """Text, then the calls."""
    calls = [format_call(call["name"], call["arguments"]) for call in decision["tool_calls"]]
    return "\n".join([decision["text"], *calls] if decision["text"] else calls)


def format_call(name: str, arguments: Any) -> str:
    """One `<tool_call>`. No `<` is left in its JSON, so that nothing in it can be taken for a tag."""
    try:
        body = orjson.dumps({"name": name, "arguments": arguments}).decode().replace("<", "\\u003c")
    except TypeError as error:  # a lone surrogate, or what is no JSON at all
        raise UnparseableAnswer(f"the call of {_short(name)} cannot be written as JSON: {error}") from None
    return f"<tool_call>\n{body}\n</tool_call>"


def normalize_turn(decision: dict[str, Any]) -> dict[str, Any]:
    """A turn in its one form: both keys; one of them holds something."""
    text, calls = decision.get("text"), decision.get("tool_calls") or []
    if text is not None and not isinstance(text, str):
        raise UnparseableAnswer(f"text is text, not {type(text).__name__}")
    text = _without_thoughts(clean_text(text or "").strip())
    if not isinstance(calls, list | tuple):
        raise UnparseableAnswer("tool_calls is a list of calls")
    check_no_calls(text)
    found = []
    for call in calls:
        name, arguments = read_function(call)
        found.append({"name": name, "arguments": arguments})
    if not text and not found:
        raise UnparseableAnswer("neither text nor a tool call")
    return {"text": text, "tool_calls": found}


def read_function(call: Any) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a call. Raises `UnparseableAnswer`."""
    name, arguments = (call.get("name"), call.get("arguments")) if isinstance(call, dict) else (None, None)
    if not isinstance(name, str) or not name.strip():
        raise UnparseableAnswer("a tool call has a name")
    if not isinstance(arguments, dict):
        raise UnparseableAnswer(f"the arguments of {_short(name)} are an object")
    return name, arguments


def check_no_calls(text: str) -> None:
    """Raises `UnparseableAnswer` for a text with a mark of a call outside a fenced code block."""
    if len(pieces := split_calls(text)) > 1:
        raise UnparseableAnswer(f"the text has a call in it: {_short(pieces[1])}")


def _without_thoughts(text: str) -> str:
    for _ in range(2):
        found = drop_leading_thoughts(text)
        found = drop_thoughts_around(found, closed_fences(found)).strip()
        if found == text:
            return text
        text = found
    raise UnparseableAnswer("text: marks of thoughts that do not match")


def _read_call(text: str, at: int) -> tuple[Any, int]:
    """The JSON of a call whose body begins at `at`, and the place after its end tag."""
    begin = _blanks_end(text, at)
    try:
        end = _DECODER.raw_decode(text, begin)[1]
        call = orjson.loads(text[begin:end])
    except (ValueError, RecursionError):
        raise UnparseableAnswer("a <tool_call> that holds no JSON, or not all of it") from None
    closing = _blanks_end(text, end)
    if not text.startswith(CLOSE, closing):
        raise UnparseableAnswer("a <tool_call> without its end, or with more in it than JSON")
    return call, closing + len(CLOSE)


def _blanks_end(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    return found.end() if found else at


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
