"""The rows of a dataset as examples: a conversation, and what was answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from learners.answers import ParsedAnswer, parse_answer
from learners.errors import DatasetError
from learners.transcript import Transcript, message_text, parse_transcript

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a dataset: the conversation before the last assistant message, and that answer."""

    transcript: Transcript
    answer: ParsedAnswer


def read_examples(path: Path) -> list[Example]:
    """Read conversational JSONL, one `{"messages": [...]}` a line, the last assistant message being the answer.

    Raises:
        DatasetError: a line is no such object; says the file and the line.
    """

    def read(row: dict[str, Any], messages: list[dict[str, Any]], last: int) -> Example:
        transcript = parse_transcript(messages[:last], row.get("tools") or ())
        return Example(transcript, parse_answer(message_text(messages[last])))

    return read_rows(path, read)


def read_rows(path: Path, read: Callable[[dict[str, Any], list[dict[str, Any]], int], T]) -> list[T]:
    """`read(row, messages, number of the last assistant message)` of every row of conversational JSONL.

    Raises:
        DatasetError: a line is no such object, or `read` cannot use it; says the file and the line.
    """
    found = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read {path.name}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            messages = row["messages"]
            last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
            found.append(read(row, messages, last))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                f'{path.name}, line {number}: needs {{"messages": [{{"role", "content"}}...]}} and an assistant answer '
                f"({type(error).__name__}: {error})"
            ) from error
    if not found:
        raise DatasetError(f"{path.name} has no examples")
    return found
