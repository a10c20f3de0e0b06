"""Rows of a fine-tuning file: the one check that the export and the upload share.

Together's service rejects unknown keys and mixed formats; SDK 3.1.1's `check_file` lets them pass, and also roles that
do not alternate, weights other than 0 and 1, NaN and lone surrogates. The service reports them after the upload, or
trains on them wrongly, so every row is held to its rules here. A dataset has the conversational format without tools:
https://docs.together.ai/docs/fine-tuning/data-preparation
"""

from __future__ import annotations

import json
from typing import Any

import orjson

MAX_CHARACTERS = 131_072
"""Longest row, in characters of its contents: about 32k tokens of English, what the smallest tier can read."""

_MESSAGE_KEYS = frozenset({"role", "content", "weight"})
_ROLES = ("system", "user", "assistant")


def find_line_fault(line: bytes, *, is_first: bool = False, max_characters: int = MAX_CHARACTERS) -> str | None:
    """What makes a line of a `.jsonl` file unfit for training, or None. `is_first`: the line begins the file."""
    if is_first and line.startswith(b"\xef\xbb\xbf"):
        return "it starts with a byte order mark; write the file as plain UTF-8"
    if (row := _read_plain(line)) is not None:
        return find_row_fault(row, max_characters=max_characters)
    try:
        row = json.loads(line.decode(), parse_constant=_reject_constant, object_pairs_hook=_unique_keys)
    except UnicodeDecodeError:
        return "it is not UTF-8"
    except json.JSONDecodeError as error:
        return f"it is not JSON ({error.msg} at character {error.pos})"
    except RecursionError:
        return "it is nested too deeply"
    except ValueError as error:  # of the two hooks, and integers of more digits than Python reads
        return str(error)
    return find_row_fault(row, max_characters=max_characters)


def _read_plain(line: bytes) -> Any:
    """The value of a line that `orjson` would write just so, as those of an export: it has no key twice and no NaN."""
    try:
        row = orjson.loads(line)
        return row if orjson.dumps(row) == line.rstrip(b"\n") else None
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return None


def find_row_fault(row: Any, *, max_characters: int | None = MAX_CHARACTERS) -> str | None:
    """What makes a row unfit for training, or None. A row is what a line of the file parses to."""
    if not isinstance(row, dict):
        return "the line is not an object"
    if set(row) != {"messages"}:
        return f"keys are {_show(sorted(map(str, row)))}, only 'messages' is allowed"
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        return "'messages' is not a list of at least one message"
    expected: tuple[str, ...] = ("system", "user")
    for number, message in enumerate(messages):
        fault = _find_message_fault(message)
        if fault is not None:
            return f"message {number}: {fault}"
        role = message["role"]
        if role not in expected:
            return f"message {number}: role is '{role}', expected {' or '.join(expected)}"
        expected = ("assistant",) if role == "user" else ("user",)
    if messages[-1]["role"] != "assistant":
        return "the last message is not the assistant's"
    if messages[-1].get("weight", 1) == 0:
        return "the last message has weight 0, so there is nothing to learn"
    if max_characters is not None and (length := row_length(row)) > max_characters:
        return f"the row has {length:,} characters, at most {max_characters:,} are allowed"
    return None


def row_length(row: dict[str, Any]) -> int:
    """Characters of the contents of a row's messages."""
    return sum(len(message["content"]) for message in row["messages"])


def _find_message_fault(message: Any) -> str | None:
    if not isinstance(message, dict):
        return "not an object"
    if unknown := set(message) - _MESSAGE_KEYS:
        return f"unknown keys {_show(sorted(map(str, unknown)))}"
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        return f"role {_show(role)} is not one of {', '.join(_ROLES)}"
    if not isinstance(content, str):
        return "content is not text"
    if not content.strip():
        return "content is empty"
    try:
        content.encode()
    except UnicodeEncodeError:
        return "content is not valid Unicode (a lone surrogate)"
    if "weight" in message:
        weight = message["weight"]
        if type(weight) is not int or weight not in (0, 1):
            return f"weight {_show(weight)} is not 0 or 1"
        if role != "assistant":
            return "weight on a message that is not the assistant's"
    return None


def _show(value: Any) -> str:
    """`value` as it may stand in a log: plain ASCII, and short."""
    shown = ascii(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found
