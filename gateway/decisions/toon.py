"""Decisions in TOON (spec 4.x; `toon-format` reads it), as elizaOS asks for them and as models write them.

Models differ from the specification in ways whose meaning is clear, which are mended before it is read:

* a code fence around the document, or a line `TOON` before it;
* list items that are not indented, and lists as YAML writes them, without a length (`actions:`, then `- A`);
* `actions[0]: A`, `actions[1]: B`, where elizaOS's own reader takes the number for an index (the specification: for a
  length).

Anything else that the specification refuses, a list of another length than it says for instance, raises
`UnparseableAnswer`: it may be cut.
"""

from __future__ import annotations

import re
from typing import Any

import toon_format

from reasoning.errors import UnparseableAnswer
from reasoning.formats.markup import check_length
from reasoning.formats.thoughts import drop_thoughts

_MAX_TEXT = 200_000
_INDEXED = re.compile(r"(?P<key>[A-Za-z_]\w{0,63})\[(?P<index>\d{1,4})\]:[ \t]*(?P<value>\S[^\n]*)")
_LIST_HEADER = re.compile(r"[A-Za-z_]\w{0,63}\[\d{1,4}\]:[ \t]*")
_BARE_HEADER = re.compile(r"([A-Za-z_]\w{0,63}):")
_TITLE = re.compile(r"toon:?", re.IGNORECASE)
_FIELDS = ("action", "reasoning", "thought", "actions", "providers", "text")


def read_toon(text: str) -> dict[str, Any]:
    """The fields of a decision in a TOON document. Raises `UnparseableAnswer`."""
    check_length(text, _MAX_TEXT)
    lines = _indent_items(_add_lengths(_document(drop_thoughts(text))))
    lines, indexed = _take_indexed(lines)
    unit = min((len(line) - len(line.lstrip(" ")) for line in lines if line.startswith(" ")), default=2)
    try:
        document = toon_format.decode("\n".join(lines), indent_size=unit, strict=True, parse_int=str, parse_float=str)
    except (ValueError, RecursionError) as error:
        raise UnparseableAnswer(f"no TOON document: {str(error)[:120]}") from None
    if not isinstance(document, dict):
        raise UnparseableAnswer("no TOON document of fields")
    if twice := document.keys() & indexed.keys():
        raise UnparseableAnswer(f"TOON: {min(twice)} is there twice")
    document |= indexed
    decision = {name: _plain(document[name]) for name in _FIELDS if name in document}
    if not decision:
        raise UnparseableAnswer("no TOON document with an action or actions")
    return decision


def _document(text: str) -> list[str]:
    """The lines that say something, without a code fence around them all and without the title `TOON`."""
    lines = _untitled([line.rstrip() for line in text.splitlines() if line.strip()])
    if lines and lines[0].startswith("```"):
        if len(lines) < 2 or lines[-1] != "```":
            raise UnparseableAnswer("a code block was begun and not closed")
        lines = _untitled(lines[1:-1])
    return lines


def _untitled(lines: list[str]) -> list[str]:
    return lines[1:] if lines and _TITLE.fullmatch(lines[0]) else lines


def _add_lengths(lines: list[str]) -> list[str]:
    """The lines with the length in the header of a list of the document that has none."""
    result = list(lines)
    header, indent, length = 0, -1, 0
    for i, line in enumerate(lines):
        depth = len(line) - len(line.lstrip(" "))
        if indent >= 0 and depth == indent and line.startswith("- ", depth):
            length += 1
            result[header] = f"{lines[header][:-1]}[{length}]:"
        elif indent < 0 or depth <= indent:
            indent = -1
        if indent < 0 and _BARE_HEADER.fullmatch(line) and i + 1 < len(lines):
            first = lines[i + 1]
            begin = len(first) - len(first.lstrip(" "))
            if first.startswith("- ", begin):
                header, indent, length = i, begin, 0
    return result


def _indent_items(lines: list[str]) -> list[str]:
    """The lines with the items of a list, and what belongs to them, deeper than its header."""
    result: list[str] = []
    shifted = False
    for line in lines:
        if line.startswith("- ") and result and (shifted or _LIST_HEADER.fullmatch(result[-1])):
            shifted = True
        elif not line.startswith(" "):
            shifted = False
        result.append(f"  {line}" if shifted else line)
    return result


def _take_indexed(lines: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The other lines, and the lists that were written an item a line with its index. Their indices count from 0 or 1.

    One line alone is such a list only with the index 0: `actions[1]: A` is a list of the length 1.
    """
    found: dict[str, list[tuple[int, str]]] = {}
    for line in lines:
        if match := _INDEXED.fullmatch(line):
            found.setdefault(match["key"], []).append((int(match["index"]), match["value"]))
    lists = {}
    for key, items in found.items():
        indices = [index for index, _ in items]
        if len(items) == 1 and indices != [0]:
            continue
        if indices not in (list(range(len(items))), list(range(1, len(items) + 1))):
            raise UnparseableAnswer(f"TOON: the indices of {key} do not count from 0 or 1")
        lists[key] = [_scalar(value) for _, value in items]
    rest = [line for line in lines if not ((match := _INDEXED.fullmatch(line)) and match["key"] in lists)]
    return rest, lists


def _scalar(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        read = toon_format.decode(value)
    except ValueError:
        read = None
    if not isinstance(read, str):
        raise UnparseableAnswer("TOON: a quoted text without its end")
    return read


def _plain(value: Any) -> Any:
    """A value of a field as a decision has it: words that TOON reads as something else are words."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return "" if value == {} else value  # a key without a value is an empty object in TOON
