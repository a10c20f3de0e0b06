"""One answered question of another system, whatever its file looked like, and reading such files line by line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from pipeline.errors import ImportRefused
from reasoning.formats.turns import format_turn
from reasoning.records import Message

LONGEST_LINE = 64 << 20
"""Bytes. A longer line is no record of anybody."""


@dataclass(slots=True, kw_only=True)
class Item:
    """A question and its answer. `key` names it within its source, the same at every import.

    `ts` None: the source does not tell; `right` is the answer that the source says was right. `cost_usd` is what the
    source itself says. `lacks` names what was asked beside the messages and is not in the source.
    """

    key: str
    name: str
    messages: list[Message]
    answer: str
    ts: datetime | None = None
    model: str | None = None
    episode: str | None = None
    agent: str | None = None
    subjects: list[str] = field(default_factory=list)
    right: str | None = None
    latency_ms: float | None = None
    cost_usd: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    lacks: str = ""


@dataclass(slots=True)
class Skipped:
    """What of a source became no item, counted by reason."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, reason: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1


def read_item(read: Callable[[], Item | None], skipped: Skipped, otherwise: str) -> Item | None:
    """What `read` makes of one row. A row that holds anything else than its format says is skipped by itself."""
    try:
        item = read()
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        otherwise, item = "malformed", None
    if item is None:
        skipped.add(otherwise)
    return item


def find_files(path: Path, *suffixes: str) -> list[Path]:
    """The file itself, or all files with one of the suffixes below a folder. Raises `ImportRefused` where none is."""
    if path.is_file():
        return [path]
    found = sorted(each for each in path.rglob("*") if each.suffix in suffixes and each.is_file())
    if not found:
        what = "there is no such file or folder" if not path.exists() else f"it holds no {' or '.join(suffixes)} file"
        raise ImportRefused(f"{path}: {what}; give the file that was exported, or the folder of the sessions")
    return found


def read_objects(path: Path, skipped: Skipped) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file: one a line, or one list of them (or an object that holds the list as `data`)."""
    with path.open("rb") as file:
        start = file.read(1 << 12).lstrip()
        file.seek(0)
        if start.startswith(b"[") or (start.startswith(b"{") and b"\n" in start.rstrip() and not _is_line(start)):
            yield from _objects_of(_load(file.read(), path), skipped)
            return
        for line in file:
            if not line.strip():
                continue
            if len(line) > LONGEST_LINE:
                skipped.add("line too long")
                continue
            try:
                yield from _objects_of(orjson.loads(line), skipped)
            except orjson.JSONDecodeError:
                skipped.add("not JSON")


def _is_line(start: bytes) -> bool:
    """Is the first line of a file a JSON object by itself?"""
    try:
        return isinstance(orjson.loads(start.split(b"\n", 1)[0]), dict)
    except orjson.JSONDecodeError:
        return False


def _load(content: bytes, path: Path) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ImportRefused(f"{path}: not JSON: {error}; give JSON, or one JSON object a line") from None


def _objects_of(value: Any, skipped: Skipped) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict) and isinstance(value.get("data"), list) and "messages" not in value:
        value = value["data"]
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, dict):
            yield each
        else:
            skipped.add("not an object")


def parse_time(value: Any) -> datetime | None:
    """RFC 3339, or a number: seconds, milliseconds or nanoseconds since 1970. None for anything else."""
    try:
        if isinstance(value, str) and not value.isdigit():
            moment = datetime.fromisoformat(value)
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        number = float(value)
        for limit, unit in ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3)):
            if number >= limit:
                return datetime.fromtimestamp(number / unit, UTC)
        return datetime.fromtimestamp(number, UTC) if number > 0 else None
    except (ValueError, TypeError, OverflowError, OSError):
        return None


def number_or_none(value: Any) -> float | None:
    """A finite number that is not negative, also as text."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if 0 <= found < 1e15 else None


def count_or_none(value: Any) -> int | None:
    """A count of tokens."""
    found = number_or_none(value)
    return None if found is None else int(found)


def text_of(content: Any) -> str:
    """The text of a message's content: text, or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list):
        return "" if content is None else orjson.dumps(content, option=orjson.OPT_SORT_KEYS).decode()
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping):
            found = part.get("text", part.get("content"))
            texts.append(found if isinstance(found, str) else text_of(found) if found else f"[{part.get('type')}]")
    return "\n".join(texts)


def read_messages(value: Any) -> list[Message]:
    """A conversation as chat messages: a list of them, an object that holds one, or text. Calls stand in the text."""
    if isinstance(value, str):
        with_json = value.lstrip()[:1] in ("[", "{")
        try:
            return read_messages(orjson.loads(value)) if with_json else [{"role": "user", "content": value}]
        except orjson.JSONDecodeError:
            return [{"role": "user", "content": value}]
    if isinstance(value, Mapping):
        inner = value.get("messages", value.get("input"))
        if inner is not None:
            return read_messages(inner)
        value = [value] if "role" in value else [{"role": "user", "content": value}]
    if not isinstance(value, list):
        return []
    found: list[Message] = []
    for each in value:
        if not isinstance(each, Mapping):
            continue
        role = str(each.get("role") or "user").lower()
        role = {"human": "user", "ai": "assistant", "model": "assistant", "developer": "system"}.get(role, role)
        content = answer_of(each) if role == "assistant" else text_of(each.get("content", each.get("parts")))
        if role not in ("system", "assistant"):
            role = "user"
        found.append({"role": role, "content": content})
    return found


def answer_of(message: Any) -> str:
    """What an assistant's message says, its calls of tools as a completion has them. Empty for none."""
    if isinstance(message, list):
        return answer_of(message[-1]) if message else ""
    if not isinstance(message, Mapping):
        return "" if message is None else text_of(message)
    for key in ("choices", "output", "messages"):
        if isinstance(message.get(key), list) and message[key]:
            return answer_of(message[key][0] if key == "choices" else message[key])
    if isinstance(message.get("message"), Mapping):
        return answer_of(message["message"])
    calls = [call for each in message.get("tool_calls") or () if (call := _call(each)) is not None]
    text = text_of(message.get("content", message.get("parts", message.get("completion"))))
    if not text and not calls and "role" not in message:
        return orjson.dumps(message, option=orjson.OPT_SORT_KEYS).decode()
    return format_turn({"text": text, "tool_calls": calls}) if calls else text


def _call(each: Any) -> dict[str, Any] | None:
    function = each.get("function", each) if isinstance(each, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return None
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = orjson.loads(arguments)
        except orjson.JSONDecodeError:
            arguments = {"arguments": arguments}
    return {"name": function["name"], "arguments": arguments}
