"""Reading the named fields of an answer: a `<response>` element, or a JSON object of the same keys.

Chatter around an answer, thoughts before it, a code fence around it, entities and CDATA are accepted, because models
write them. What a completion holds beside its answer may be a draft, or a quotation of somebody who wants another
answer. So:

* nothing before the last end of a thought counts, and a thought that does not end leaves no answer
  (`reasoning.formats.thoughts`);
* the last complete answer wins, an element or an object;
* an element, object or list of objects that is begun and not ended, or malformed, is an error wherever it stands, and
  so is an answer in the middle of a sentence;
* a field is a direct child of its element: what is quoted inside another field is not one.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from reasoning.errors import UnparseableAnswer
from reasoning.formats.action_lists import read_xml_names
from reasoning.formats.markup import (
    check_length,
    child_elements,
    escape_cdata,
    find_response,
    is_in_open_list,
    is_quoted_in_sentence,
    json_objects,
    whole_json_object,
)
from reasoning.formats.thoughts import drop_thoughts
from reasoning.formats.transcript import clean_text

_RESPONSE_BEGIN = re.compile(r"<response\b", re.IGNORECASE)


def read_fields(
    completion: str, names: tuple[str, ...], *, required: str, lists: Collection[str] = ()
) -> dict[str, Any]:
    """The named fields of the answer: of the last `<response>` element or JSON object that has the `required` one.

    A field is None where it is missing. Those in `lists` are lists of names where they come from XML. Raises
    `UnparseableAnswer`.
    """
    check_length(completion)
    if (whole := whole_json_object(completion)) is not None and required in whole:
        return {name: whole.get(name) for name in names}
    text = escape_cdata(_drop_thoughts(completion))
    response = find_response(text)
    objects = list(json_objects(text, response.end if response else 0))
    last = max((i for i, (_, _, value) in enumerate(objects) if required in value), default=None)
    if last is not None:
        begin, end, value = objects[last]
        if is_in_open_list(text, [(begin, end) for begin, end, _ in objects], last):
            raise UnparseableAnswer("a JSON list was begun and not ended, or is malformed")
        _check_own(text, begin, end)
        return {name: value.get(name) for name in names}
    if response is None:
        raise UnparseableAnswer("neither a complete <response> element nor a JSON object")
    _check_own(text, response.begin, response.end)
    return _xml_fields(text[response.start : response.stop], names, required, lists)


def _drop_thoughts(completion: str) -> str:
    """The completion without its thoughts. In an element that is the only one and ends it, marks are data."""
    begins = list(_RESPONSE_BEGIN.finditer(completion))
    if len(begins) != 1 or completion.rstrip()[-11:].lower() != "</response>":
        return drop_thoughts(completion)
    at = begins[0].start()
    return drop_thoughts(completion[:at]) + completion[at:]


def _check_own(text: str, begin: int, end: int) -> None:
    if is_quoted_in_sentence(text, begin, end):
        raise UnparseableAnswer("the answer stands in the middle of a sentence, which may only mention it")


def _xml_fields(xml: str, names: tuple[str, ...], required: str, lists: Collection[str]) -> dict[str, Any]:
    """The fields of a `<response>`: those of its direct children that are named so."""
    import html  # its table of entities costs every agent's start, and plain answers do not need it

    children, begun, stray = child_elements(xml, 0, len(xml))
    if broken := [name for name in (*begun, *stray) if name in names]:
        raise UnparseableAnswer(f"<{broken[0]}> is begun and not ended, or ended and not begun")
    found: dict[str, Any] = dict.fromkeys(names)
    for child in children:
        if child.name not in names:
            continue
        content = xml[child.start : child.stop]
        value = read_xml_names(content, child.name) if child.name in lists else html.unescape(content).strip()
        if found[child.name] not in (None, value):
            raise UnparseableAnswer(f"<{child.name}> is there more than once, with different contents")
        found[child.name] = value
    if found[required] is None:
        raise UnparseableAnswer(f"the <response> has no <{required}>")
    if required in lists:
        item = required.removesuffix("s")
        _check_beside([xml[child.start : child.stop] for child in children if child.name == item], found, required)
    return found


def _check_beside(beside: list[str], found: dict[str, Any], field: str) -> None:
    """Elements of one item beside the list must say what it says: nobody knows which of the two is meant."""
    item = field.removesuffix("s")
    if beside and read_xml_names("".join(f"<{item}>{each}</{item}>" for each in beside), field) != found[field]:
        raise UnparseableAnswer(f"<{item}> elements beside <{field}> that are not the same")


def element(name: str, text: str) -> str:
    """An XML element with `text` in it, escaped."""
    import html

    return f"<{name}>{html.escape(text, quote=False)}</{name}>"


def text_field(decision: dict[str, Any], name: str) -> str:
    """A text of a decision, stripped; empty where it is missing. Raises `UnparseableAnswer` for another value."""
    value = decision.get(name)
    if value is not None and not isinstance(value, str):
        raise UnparseableAnswer(f"{name} is text, not {type(value).__name__}")
    return clean_text(value or "").strip()


def shorten(value: Any) -> str:
    """A value as an error message shows it: at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
