"""Reading what a model wrote in XML, JSON and Markdown, in time that grows with its length and not faster.

The inputs are hostile: a chat member chooses the words that a model quotes. So no pattern here may backtrack, and what
is malformed is an error that names it, never a guess.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from reasoning.errors import UnparseableAnswer

MAX_TEXT = 2 << 20
"""Characters of a completion where nothing says how long it may be; a longer one is no answer."""

_TAG = re.compile(r"<(?P<end>/?)(?P<name>[A-Za-z_][\w.:-]{0,127})(?:\s[^<>]*|/)?>")
_RESPONSE = re.compile(r"<(?P<end>/?)response(?=[\s>/])[^<>]*>", re.IGNORECASE)
_RESPONSE_BEGUN = re.compile(r"<response(?=[\s>/]|\Z)", re.IGNORECASE)
_FENCE = re.compile(r"[ \t]{0,80}(?P<run>`{3,}|~{3,})(?P<info>[^\n]*)")
_JSON_BEGIN = re.compile(r'\{\s*["}]')
_JSON_BEGUN = re.compile(r'\{\s*"[^"\\\n]{0,200}"\s*:')
_LIST_MARKS = "[], \t\r\n"
_LIST_BEGIN = "[ \t\r\n"
_DECODER = json.JSONDecoder(object_pairs_hook=lambda pairs: _unique(pairs))


class Element(NamedTuple):
    """An element: its name in lower case, where it begins, where its content starts and ends, and where it ends."""

    name: str
    begin: int
    start: int
    stop: int
    end: int


def check_length(text: str, limit: int = MAX_TEXT) -> None:
    """Raises `UnparseableAnswer` for a text of more than `limit` characters."""
    if len(text) > limit:
        raise UnparseableAnswer(f"the completion is too long: {len(text)} characters; at most {limit} are read")


def escape_cdata(xml: str) -> str:
    """The text with its CDATA sections as escaped text. Raises `UnparseableAnswer` where one does not end."""
    import html

    parts, at = [], 0
    while (begin := xml.find("<![CDATA[", at)) >= 0:
        end = xml.find("]]>", begin)
        if end < 0:
            raise UnparseableAnswer("a CDATA section was begun and not ended")
        parts += [xml[at:begin], html.escape(xml[begin + 9 : end], quote=False)]
        at = end + 3
    return "".join([*parts, xml[at:]])


def find_response(xml: str) -> Element | None:
    """The last `<response>` element, or None where there is none.

    Raises `UnparseableAnswer` where elements are begun and not ended, ended and not begun, or one is in another: then
    one of them is a draft or a quotation, and nothing says which.
    """
    found: Element | None = None
    begun: re.Match[str] | None = None
    last = 0
    for tag in _RESPONSE.finditer(xml):
        last = tag.end()
        if tag.group().endswith("/>"):
            continue
        if bool(tag["end"]) == (begun is None):
            raise UnparseableAnswer("a <response> inside another, or its end without its begin")
        if begun is not None:
            found = Element("response", begun.start(), begun.end(), tag.start(), tag.end())
        begun = None if tag["end"] else tag
    if begun is not None or _RESPONSE_BEGUN.search(xml, last):
        raise UnparseableAnswer("a <response> was begun and not ended")
    return found


def child_elements(xml: str, start: int, end: int) -> tuple[list[Element], list[str], list[str]]:
    """The elements directly in a part of a text; names of tags there that are begun and not ended; names only ended.

    What is inside a child is not looked at. `<name/>` is a child without content.
    """
    tags = list(_TAG.finditer(xml, start, end))
    ended: dict[int, int] = {}
    open_by_name: dict[str, list[int]] = {}
    for i, tag in enumerate(tags):
        name = tag["name"].lower()
        if tag["end"]:
            if stack := open_by_name.get(name):
                ended[stack.pop()] = i
        elif not tag.group().endswith("/>"):
            open_by_name.setdefault(name, []).append(i)
    children, begun, stray = [], [], []
    i = 0
    while i < len(tags):
        tag, name = tags[i], tags[i]["name"].lower()
        if tag["end"]:
            stray.append(name)
        elif tag.group().endswith("/>"):
            children.append(Element(name, tag.start(), tag.end(), tag.end(), tag.end()))
        elif i in ended:
            closing = tags[ended[i]]
            children.append(Element(name, tag.start(), tag.end(), closing.start(), closing.end()))
            i = ended[i]
        else:
            begun.append(name)
        i += 1
    return children, begun, stray


def json_objects(text: str, start: int = 0) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Begin, end and value of the JSON objects in a text, outermost ones only.

    Raises `UnparseableAnswer` for one that is begun and not ended or malformed (what is inside it would pass for an
    answer), for one with a key twice, and where looking for them takes more work than a few times the text's length.
    """
    work, most, size = 0, 8 * len(text) + 4096, len(text.rstrip())
    while (begin := _JSON_BEGIN.search(text, start)) is not None:
        at = begin.start()
        try:
            value, end = _DECODER.raw_decode(text, at)
        except RecursionError:
            raise UnparseableAnswer("JSON that is nested too deeply") from None
        except json.JSONDecodeError as error:
            reached = len(text) if error.msg.startswith("Unterminated string") else error.pos
            if reached >= size or _JSON_BEGUN.match(text, at):
                raise UnparseableAnswer("a JSON object was begun and not ended, or is malformed") from None
            work += reached - at + reached // 64  # the error counts the lines before it
            start = at + 1
        except ValueError:  # a number of more digits than Python reads
            raise UnparseableAnswer("JSON with a number that is too long") from None
        else:
            work += end - at
            start = end
            yield at, end, value
        if work > most:
            raise UnparseableAnswer("too many braces that are no JSON")


def is_in_open_list(text: str, spans: Sequence[tuple[int, int]], chosen: int) -> bool:
    """Is one of the JSON objects at `spans` in a list that does not end, or that holds something else than objects?

    `spans` are begin and end of all objects in the text from the first on; `chosen` is the index of the one.
    """
    depth, at, first = 0, 0, 0  # of the lists that are open; `first` object of the outermost
    for i, (begin, end) in enumerate([*spans, (len(text), len(text))]):
        between = text[at:begin]
        for j, mark in enumerate(between if depth else ""):
            depth += (mark == "[") - (mark == "]")
            if not depth or mark not in _LIST_MARKS:
                if depth and first <= chosen < i:
                    return True
                depth, between = 0, between[j + 1 :]
                break
        if not depth:
            run = between[len(between.rstrip(_LIST_BEGIN)) :]
            depth, first = run.count("["), i
        at = end
    return depth > 0 and first <= chosen < len(spans)


def whole_json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is, or None. Raises `UnparseableAnswer` when it has a key twice."""
    text = text.strip()
    if not text.startswith("{") or not text.endswith("}"):
        return None
    try:
        value, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return value if end == len(text) else None


def is_quoted_in_sentence(text: str, begin: int, end: int) -> bool:
    """Do words stand on the same line both before and after a part of a text? Then a sentence mentions that part."""
    before = text[max(text.rfind("\n", 0, begin) + 1, begin - 400) : begin]
    after = text[end : end + 400].split("\n", 1)[0]
    return any(map(str.isalnum, before)) and any(map(str.isalnum, after))


def closed_fences(text: str) -> list[tuple[int, int]]:
    """Begin and end of the fenced code blocks in a text, in order (CommonMark 0.31, section 4.5; any indentation).

    A fence that is never closed is no block.
    """
    if "```" not in text and "~~~" not in text:
        return []
    runs = [(line.start("run"), line["run"], line["info"], line.end()) for line in _fence_lines(text)]
    last_close = {"`": 0, "~": 0}  # the longest closing run from here on, so that an unclosed fence costs one look
    longest: list[dict[str, int]] = []
    for _, run, info, _ in reversed(runs):
        if not info.strip():
            last_close = last_close | {run[0]: max(last_close[run[0]], len(run))}
        longest.append(last_close)
    longest.reverse()
    spans: list[tuple[int, int]] = []
    opened: tuple[int, str] | None = None
    for i, (at, run, info, end) in enumerate(runs):
        if opened is None:
            if may_open_fence(run, info) and i + 1 < len(runs) and longest[i + 1][run[0]] >= len(run):
                opened = at, run
        elif run[0] == opened[1][0] and len(run) >= len(opened[1]) and not info.strip():
            spans.append((opened[0], end))
            opened = None
    return spans


def may_open_fence(run: str, info: str) -> bool:
    """May a line with this run of backticks or tildes, and this behind it, begin a block? Not with a tag behind it."""
    return not ((run[0] == "`" and "`" in info) or "<" in info or "[" in info)


def _fence_lines(text: str) -> Iterator[re.Match[str]]:
    at = 0
    while at <= len(text):
        if line := _FENCE.match(text, at):
            yield line
        newline = text.find("\n", at)
        if newline < 0:
            return
        at = newline + 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found and found[key] != value:
            raise UnparseableAnswer(f"the key {key[:60]!r} is there more than once, with different values")
        found[key] = value
    return found
