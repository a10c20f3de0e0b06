"""The names in a plan's `actions` and `providers`, in every form in which models write such a list.

elizaOS's prompts ask for `A, B`; its models also write an element an action, with a name and parameters in it, a JSON
list, lines, or parameters behind a name. Read are the forms of which it is clear what they name. Everything else raises
`UnparseableAnswer`: half a list would be learned as a whole one.
"""

from __future__ import annotations

import json
import re
from typing import Any

from reasoning.errors import UnparseableAnswer
from reasoning.formats.markup import Element, child_elements
from reasoning.formats.transcript import clean_text

_NAME_KEYS = ("name", "action", "actionName")
_NOT_IN_NAMES = re.compile(r"[<>{}\"=]|\A[\[`'*•]|\A-\s|\A\d{1,3}[.)]\s")
_LONGEST_NAME = 200
_BULLET = re.compile(r"\A(?:[-*•]|\d{1,3}[.)])[ \t]+")
_DECODER = json.JSONDecoder()


def read_names(value: Any, field: str) -> list[str]:
    """The names in a value of a field of a decision: a list of names or of objects with a name, or a list as text."""
    if value is None:
        return []
    if isinstance(value, str):
        return _check(_of_text(value, field), field)
    if not isinstance(value, list | tuple):
        raise UnparseableAnswer(f"{field} is a list of names, not {type(value).__name__}")
    return _check([_of_item(item, field) for item in value], field)


def read_xml_names(xml: str, field: str) -> list[str]:
    """The names in the content of an element, before its entities are read."""
    children, begun, stray = child_elements(xml, 0, len(xml))
    if not children and not begun and not stray:
        return read_names(_unescape(xml).strip(), field)
    item = field.removesuffix("s")
    if stray or any(name != item for name in begun):
        raise UnparseableAnswer(f"{field}: <{(stray or begun)[0]}> is begun or ended alone in the list")
    outside = _outside(xml, children)
    rest = _unescape(re.sub(rf"<{item}\b[^<>]*>", "", outside, flags=re.I)).strip().strip(",").strip()
    if all(child.name in (item, "name", "params") for child in children) and not rest.replace(",", "").strip():
        # `<name>` alone is what is left of an `<action>` that was not ended; `<params>` belong to the one before.
        named = [child for child in children if child.name != "params"]
        names = [_of_element(xml, child, item, field) for child in named]
        if len(begun) > sum(child.name == "name" for child in children) or not names:
            raise UnparseableAnswer(f"{field}: <{item}> is begun and not ended")
        return _check(names, field)
    names = [] if begun else read_names(rest, field)
    known = {name.casefold() for name in names} | {"params"}
    if not names or any(child.name.casefold() not in known for child in children):
        raise UnparseableAnswer(f"{field}: names and elements are mixed in the list")
    return names


def _of_element(xml: str, element: Element, item: str, field: str) -> str:
    """The name in `<name>…</name>`, or in `<action>` with a name or as its text, with or without parameters."""
    inside = xml[element.start : element.stop]
    children, begun, stray = child_elements(inside, 0, len(inside))
    if begun or stray:
        raise UnparseableAnswer(f"{field}: <{(begun or stray)[0]}> is begun or ended alone in <{element.name}>")
    found = [inside[child.start : child.stop] for child in children if child.name == "name"]
    if element.name == item and len(found) == 1 and "<" not in found[0]:
        return _unescape(found[0]).strip()
    if found or any(child.name != "params" for child in children):
        raise UnparseableAnswer(f"{field}: <{element.name}> has not one name")
    return _one(_unescape(_outside(inside, children)).strip(), field)


def _outside(xml: str, children: list[Element]) -> str:
    """The text that is in none of the children, each of which leaves a blank."""
    parts, at = [], 0
    for child in children:
        parts.append(xml[at : child.begin])
        at = child.end
    return " ".join([*parts, xml[at:]])


def _of_item(item: Any, field: str) -> str:
    if isinstance(item, dict):
        names = [item[key] for key in _NAME_KEYS if item.get(key) is not None]
        if len(names) != 1 or not isinstance(names[0], str):
            raise UnparseableAnswer(f"{field}: an object without one name")
        return names[0]
    if not isinstance(item, str):
        raise UnparseableAnswer(f"{field} is a list of names")
    return item if "{" not in item else _one(item, field)


def _one(text: str, field: str) -> str:
    names = _of_text(text, field)
    if len(names) != 1:
        raise UnparseableAnswer(f"{field}: one name is needed, not {len(names)}")
    return names[0]


def _of_text(text: str, field: str) -> list[str]:
    text = text.strip()
    if text.startswith(("[", "{")):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            if not (text.startswith("[") and text.endswith("]")) or any(mark in text for mark in "\"'{}"):
                return _quoted_list(text, field)
            return [part.strip() for part in text[1:-1].split(",") if part.strip()]
        return [_of_item(item, field) for item in (value if isinstance(value, list) else [value])]
    return [name for part in _split(text, field) if (name := _unquote(_BULLET.sub("", part.strip(), count=1)))]


def _quoted_list(text: str, field: str) -> list[str]:
    """`['A', 'B']`, as Python writes a list."""
    names = [part.strip() for part in text[1:-1].split(",")]
    if text.startswith("[") and text.endswith("]") and all(re.fullmatch(r"'[^'\"]*'", name) for name in names):
        return [name[1:-1] for name in names]
    raise UnparseableAnswer(f"{field}: a list in brackets that is none")


def _split(text: str, field: str) -> list[str]:
    """Parts at commas, or lines where there is no comma; an object of parameters behind a name is left out."""
    parts: list[str] = []
    part, at, after = "", 0, False
    for found in re.finditer(r"[,\n{]", text):
        if found.start() < at:
            continue  # within the parameters that were read
        if after and text[at : found.start()].strip():
            raise UnparseableAnswer(f"{field}: something behind the parameters of a name")
        part += text[at : found.start()]
        at = found.end()
        if found.group() == "{":
            if after or not part.strip():
                raise UnparseableAnswer(f"{field}: parameters without a name")
            at, after = _skip_object(text, found.start(), field), True
        elif part.strip():
            parts.append(part)
            part, after = "", False
    if after and text[at:].strip():
        raise UnparseableAnswer(f"{field}: something behind the parameters of a name")
    return [*parts, part + text[at:]]


def _skip_object(text: str, at: int, field: str) -> int:
    try:
        return _DECODER.raw_decode(text, at)[1]
    except (ValueError, RecursionError):
        raise UnparseableAnswer(f"{field}: parameters that are no JSON") from None


def _unquote(name: str) -> str:
    name = name.strip()
    for quote in ('"', "'", "`", "**"):
        if len(name) > 2 * len(quote) and name.startswith(quote) and name.endswith(quote):
            return name[len(quote) : -len(quote)].strip()
    return name


def _check(names: list[str], field: str) -> list[str]:
    names = [clean_text(name).strip() for name in names]
    for name in names:
        if not name or "," in name or len(name.splitlines()) != 1 or _is_markup(name):
            shown = repr(name) if len(name) <= 60 else f"{name[:57]!r}..."
            raise UnparseableAnswer(f"{field}: {shown} is no name (one line, no comma, no markup, not empty)")
    return names


def _is_markup(name: str) -> bool:
    return len(name) > _LONGEST_NAME or ("]" in name and "[" not in name) or bool(_NOT_IN_NAMES.search(name))


def _unescape(xml: str) -> str:
    import html  # its table of entities costs every agent's start, and plain answers do not need it

    return html.unescape(xml)
