"""Rows of a fine-tuning file: are they what the service takes, and what it will not misread?

The SDK's own check passes unknown keys, a missing role, two assistants in a row, mixed formats, a weight of 2 and NaN
(tried with 3.1.1); the service then rejects the file after the upload, or trains on it wrongly.
Formats: Together's documentation of fine-tuning data, 2026.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from provider.errors import InvalidDataset

MAX_CHARACTERS = 131_072
"""Longest row, in characters of its texts: about 32k tokens of English, what the smallest tier can read."""

_FORMATS = {
    "conversation": {"messages", "tools", "weight"},
    "instruction": {"prompt", "completion", "weight"},
    "text": {"text", "weight"},
    "preference": {"input", "preferred_output", "non_preferred_output"},
}
_MESSAGE_KEYS = {
    "system": {"role", "content", "weight"},
    "user": {"role", "content", "weight"},
    "assistant": {"role", "content", "weight", "tool_calls", "reasoning"},
    "tool": {"role", "content", "weight", "tool_call_id", "name"},
}


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """A file whose every row is good."""

    path: Path
    format: str
    rows: int
    bytes: int
    sha256: str


class _Problem(Exception):
    pass


def check_rows(path: Path | str, *, max_characters: int = MAX_CHARACTERS) -> CheckedFile:
    """Read a JSONL file through and vouch for it. Raises InvalidDataset naming the file and the line."""
    path = Path(path)
    digest, size, rows, format_of_file = hashlib.sha256(), 0, 0, ""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                digest.update(line)
                size += len(line)
                try:
                    format_of_row = _check_row(line, first=number == 1, max_characters=max_characters)
                    if format_of_file and format_of_row != format_of_file:
                        _fail(f"is {format_of_row} data in a file of {format_of_file} data; a file has one format")
                except _Problem as problem:
                    raise InvalidDataset(f"{path}, line {number}: {problem}") from None
                format_of_file, rows = format_of_row, number
    except OSError as error:
        raise InvalidDataset(f"{path}: {error.strerror}") from None
    if not rows:
        raise InvalidDataset(f"{path} is empty")
    return CheckedFile(path, format_of_file, rows, size, digest.hexdigest())


def _fail(problem: str) -> NoReturn:
    raise _Problem(problem)


def _check_row(line: bytes, *, first: bool, max_characters: int) -> str:
    if first and line.startswith(b"\xef\xbb\xbf"):
        _fail("starts with a byte order mark; write the file as plain UTF-8")
    try:
        text = line.decode()
        row = json.loads(text, parse_constant=lambda name: _fail(f"{name} is not JSON"), object_pairs_hook=_object)
    except UnicodeDecodeError:
        _fail("is not UTF-8")
    except json.JSONDecodeError as error:
        _fail(f"is not JSON ({error.msg} at character {error.pos})")
    if not isinstance(row, dict):
        _fail("is not a JSON object")
    if len(text) > max_characters and (length := _length(row)) > max_characters:
        _fail(f"has {length:,} characters; the longest row that can be learned from has {max_characters:,}")
    name = next((name for name, keys in _FORMATS.items() if row.keys() & (keys - {"weight", "tools"})), None)
    if name is None:
        _fail("has neither messages, nor prompt and completion, nor text")
    if unknown := row.keys() - _FORMATS[name]:
        _fail(f"has a key that the service rejects: {', '.join(sorted(unknown))}")
    if "weight" in row:
        _check_number(row["weight"], "weight")
    if name == "conversation":
        _check_conversation(row["messages"], "messages", needs_answer=True)
        _expect_list(row.get("tools", []), "tools")
    elif name == "instruction":
        _check_text(row.get("prompt"), "prompt")
        _check_text(row.get("completion"), "completion")
    elif name == "text":
        _check_text(row.get("text"), "text")
    else:
        given = row.get("input")
        _check_conversation(
            given.get("messages") if isinstance(given, dict) else None, "input.messages", needs_answer=False
        )
        for key in ("preferred_output", "non_preferred_output"):
            output = row.get(key)
            if not isinstance(output, list) or len(output) != 1 or not isinstance(output[0], dict):
                _fail(f"{key} must be a list of one assistant message")
            if output[0].get("role") != "assistant":
                _fail(f"{key} must be a list of one assistant message")
            _check_message(output[0], f"{key}[0]")
    return name


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        _fail("has a key twice in one object")
    return found


def _check_conversation(messages: Any, place: str, *, needs_answer: bool) -> None:
    _expect_list(messages, place)
    if not messages:
        _fail(f"{place} is empty")
    before = None
    for index, message in enumerate(messages):
        here = f"{place}[{index}]"
        role = _check_message(message, here)
        if role == "system" and index:
            _fail(f"{here}: a system message can only be the first")
        if role == "tool" and before not in ("assistant", "tool"):
            _fail(f"{here}: a tool message answers an assistant, not {before or 'nobody'}")
        if role == "user" and before not in (None, "system", "assistant"):
            _fail(f"{here}: {before} is followed by user; roles alternate")
        if role == "assistant" and before not in ("user", "tool"):
            _fail(f"{here}: {before or 'nobody'} is followed by assistant; roles alternate")
        before = role
    if needs_answer and before != "assistant":
        _fail(f"{place} ends with {before}; the assistant's answer is what is learned, so it comes last")
    if not needs_answer and before not in ("user", "tool"):
        _fail(f"{place} ends with {before}; the outputs answer a user or a tool")


def _check_message(message: Any, place: str) -> str:
    if not isinstance(message, dict):
        _fail(f"{place} is not an object")
    role = message.get("role")
    if role not in _MESSAGE_KEYS:
        _fail(f"{place}.role is {role!r}; use one of {', '.join(_MESSAGE_KEYS)}")
    if unknown := message.keys() - _MESSAGE_KEYS[role]:
        _fail(f"{place} has a key that the service rejects: {', '.join(sorted(unknown))}")
    if "weight" in message and (type(message["weight"]) is not int or message["weight"] not in (0, 1)):
        _fail(f"{place}.weight is {message['weight']!r}; it is 0 or 1")
    if "tool_calls" in message:
        _expect_list(message["tool_calls"], f"{place}.tool_calls")
    if not (role == "assistant" and message.get("tool_calls") and message.get("content") is None):
        _check_text(message.get("content"), f"{place}.content", may_be_empty=role in ("tool", "system"))
    return str(role)


def _check_text(value: Any, place: str, *, may_be_empty: bool = False) -> None:
    if not isinstance(value, str):
        _fail(f"{place} is {'missing' if value is None else 'not text'}")
    if not value.strip() and not may_be_empty:
        _fail(f"{place} is empty")


def _check_number(value: Any, place: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        _fail(f"{place} is {value!r}; it must be a number from 0")


def _expect_list(value: Any, place: str) -> None:
    if not isinstance(value, list):
        _fail(f"{place} is {'missing' if value is None else 'not a list'}")


def _length(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(_length(child) for child in children)
