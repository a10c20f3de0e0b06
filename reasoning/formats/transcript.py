"""A conversation as text that no message can forge: one line a message, `Speaker: text`.

Further lines of a text are indented by two spaces, whatever its line separators were. A speaker's name holds no line
break and no colon (it becomes `_`), so the first `: ` of a line always ends the name.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from reasoning.errors import InvalidContext


def clean_text(text: str) -> str:
    """`text` with lone surrogates, which UTF-8 cannot hold, as the characters of their escapes (`\\ud83d`)."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


@functools.lru_cache(maxsize=4096)
def clean_name(name: str) -> str:
    """A speaker's name as a transcript shows it."""
    return clean_text(" ".join(name.split()).replace(":", "_"))


def indent_lines(text: str) -> str:
    """`text` with all but its first line indented by two spaces. Every line separator of Unicode becomes a newline."""
    return "\n  ".join(str.splitlines(clean_text(text)))


def render_transcript(messages: Sequence[Any], *, limit: int | None = None) -> str:
    """The last `limit` messages (`{"speaker", "text"}`), one line each.

    Raises `InvalidContext` naming the message that lacks a speaker or a text, or when there is none at all.
    """
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise InvalidContext('context["messages"]: a list of {"speaker", "text"} with at least one message is needed')
    start = max(len(messages) - limit, 0) if limit else 0
    try:
        shown = messages[start:]
        names = [clean_name(message["speaker"]) for message in shown]
        texts = [message["text"] for message in shown]
        if not all(names) or len(("\0".join(texts) + "\0").splitlines()) > 1:  # one look in C: most texts have one line
            names, texts = _read_messages(messages, start)
    except (KeyError, IndexError, TypeError, AttributeError):
        names, texts = _read_messages(messages, start)
    return clean_text("\n".join([f"{name}: {text}" for name, text in zip(names, texts, strict=True)]))


def _read_messages(messages: Sequence[Any], start: int) -> tuple[list[str], list[str]]:
    """Names and indented texts of the messages from `start` on, one by one, to name the one that is wrong."""
    names, texts = [], []
    for i in range(start, len(messages)):
        message = messages[i]
        try:
            name = clean_name(message["speaker"])
            texts.append(indent_lines(message["text"]))
        except (KeyError, IndexError, TypeError, AttributeError):
            raise InvalidContext(
                f'context["messages"][{i}]: needs the keys "speaker" and "text", both of them text'
            ) from None
        if not name:
            raise InvalidContext(f'context["messages"][{i}]["speaker"]: is empty')
        names.append(name)
    return names, texts
