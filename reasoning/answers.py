"""The answer formats: completion → decision and back. Never a default: what is no answer raises `UnparseableAnswer`.

Three formats. `label` and `plan` are XML `<response>` elements, or a JSON object of the same keys; `code` is an
explanation and one fenced code block (CommonMark 0.31, section 4.5), or a JSON object. Chatter around an answer,
thoughts before it, a code fence around it, entities and CDATA are accepted, because models write them.

What a completion holds beside its answer may be a draft, or a quotation of somebody who wants another answer. So:

* nothing before the last end of a thought counts, and a thought that does not end leaves no answer
  (`reasoning.thoughts`);
* the last complete answer wins, an element or an object;
* an element or object that is begun and not ended, or malformed, is an error wherever it stands, and so is an answer in
  the middle of a sentence;
* a field is a direct child of its element: what is quoted inside another field is not one.

Coding tools ask for something else: a *turn*, which is text and calls of the tools on offer (`reasoning.turns`).

For every decision d that `normalize_*` returns, parsing its formatted answer gives d again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from reasoning.action_lists import read_names, read_xml_names
from reasoning.errors import UnparseableAnswer
from reasoning.markup import (
    check_length,
    child_elements,
    escape_cdata,
    find_response,
    is_quoted_in_sentence,
    json_objects,
    whole_json_object,
)
from reasoning.thoughts import drop_leading_thoughts, drop_thoughts, drop_thoughts_around
from reasoning.transcript import clean_text
from reasoning.turns import format_call as format_call
from reasoning.turns import format_turn as format_turn
from reasoning.turns import normalize_turn as normalize_turn
from reasoning.turns import parse_turn as parse_turn

# What `format_label` and a model taught by it write, with nothing in it that needs the general parser's care.
PLAIN_LABEL = re.compile(
    r"<response>(?:<reasoning>(?P<reasoning>[^<&]*)</reasoning>)?<action>(?P<action>[^<&]*)</action></response>"
)
_FENCE_RUN = re.compile(r"^ {0,3}(`{3,})", re.MULTILINE)
_RESPONSE_BEGIN = re.compile(r"<response\b", re.IGNORECASE)
_LONGEST_LABEL = 200
_XML_LISTS = ("actions", "providers")


def parse_label(completion: str, labels: Sequence[str]) -> dict[str, Any]:
    """`{"action", "reasoning"?}` of a completion. The action is one of `labels`, in their spelling."""
    plain = PLAIN_LABEL.fullmatch(completion)
    fields = plain.groupdict() if plain else _fields(completion, ("action", "reasoning"), required="action")
    return normalize_label(fields | {"action": _bare(fields["action"], labels)}, labels)


def parse_plan(completion: str) -> dict[str, Any]:
    """`{"thought", "actions", "providers", "text"}` of a completion; the two lists in order, maybe empty."""
    return normalize_plan(_fields(completion, ("thought", "actions", "providers", "text"), required="actions"))


def parse_code(completion: str) -> dict[str, Any]:
    """`{"code", "explanation", "language"}` of a completion that has exactly one fenced code block.

    The block is the one with the longest fence, so that shorter fences may stand inside it and in the explanation.
    """
    check_length(completion)
    text = drop_leading_thoughts(completion).strip()
    if (found := whole_json_object(text)) is not None:
        return normalize_code(found)
    # Marks of thoughts inside a block are code; outside they end a thought, with whatever blocks were drafted in it.
    blocks = _code_blocks(text)
    rest = drop_thoughts_around(text, [(begin, end) for begin, end, _, _ in blocks])
    if len(rest) < len(text):
        text = rest.strip()
        blocks = _code_blocks(text)
    if len(blocks) != 1:
        raise UnparseableAnswer(f"{len(blocks)} closed code blocks, not one")
    begin, end, info, code = blocks[0]
    explanation = f"{text[:begin].strip()}\n\n{text[end:].strip()}"
    return normalize_code({"code": code, "explanation": explanation, "language": (info.split() or [""])[0]})


def format_label(decision: dict[str, Any]) -> str:
    """The XML of a normalized label decision."""
    reasoning = _element("reasoning", decision["reasoning"]) if "reasoning" in decision else ""
    return f"<response>{reasoning}{_element('action', decision['action'])}</response>"


def format_plan(decision: dict[str, Any]) -> str:
    """The XML of a normalized plan."""
    parts = (
        _element("thought", decision["thought"]),
        _element("actions", ", ".join(decision["actions"])),
        _element("providers", ", ".join(decision["providers"])),
        _element("text", decision["text"]),
    )
    return f"<response>{''.join(parts)}</response>"


def format_code(decision: dict[str, Any]) -> str:
    """Explanation and fenced block of a normalized code decision; the fence is longer than any run of backticks."""
    longest = max((len(run) for run in re.findall("`+", decision["explanation"] + "\n" + decision["code"])), default=0)
    fence = "`" * max(3, longest + 1)
    explanation = f"{decision['explanation']}\n\n" if decision["explanation"] else ""
    return f"{explanation}{fence}{decision['language']}\n{decision['code']}\n{fence}"


def normalize_label(decision: dict[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """A label decision in its one form: the action as declared, the reasoning stripped, or absent when empty."""
    action = decision.get("action")
    if not isinstance(action, str) or action not in labels:
        spelling = {label.casefold(): label for label in labels}
        if not isinstance(action, str) or action.strip().casefold() not in spelling:
            raise UnparseableAnswer(f"action {_short(action)} is none of {', '.join(labels)}")
        action = spelling[action.strip().casefold()]
    reasoning = _text(decision, "reasoning")
    return {"action": action, "reasoning": reasoning} if reasoning else {"action": action}


def normalize_plan(decision: dict[str, Any]) -> dict[str, Any]:
    """A plan in its one form: all four keys, names stripped."""
    if decision.get("actions") is None:
        raise UnparseableAnswer("no actions: a plan has a list of them, maybe an empty one")
    return {
        "thought": _text(decision, "thought"),
        "actions": read_names(decision["actions"], "actions"),
        "providers": read_names(decision.get("providers"), "providers"),
        "text": _text(decision, "text"),
    }


def normalize_code(decision: dict[str, Any]) -> dict[str, Any]:
    """A code decision in its one form: all three keys; the language is one word or empty."""
    code, language = decision.get("code"), decision.get("language") or ""
    if not isinstance(code, str) or not code.strip():
        raise UnparseableAnswer("no code")
    if not isinstance(language, str) or "`" in language or len(language.split()) > 1:
        raise UnparseableAnswer(f"language {_short(language)} is not one word")
    explanation = _without_thoughts(_text(decision, "explanation"), "explanation")
    return {"code": clean_text(code), "explanation": explanation, "language": clean_text(language).strip()}


def _without_thoughts(text: str, field: str) -> str:
    """A text of a decision without thoughts. Raises `UnparseableAnswer` where taking them out leaves others."""
    found = drop_thoughts_around(drop_leading_thoughts(text), ()).strip()
    if found != text and drop_thoughts_around(drop_leading_thoughts(found), ()).strip() != found:
        raise UnparseableAnswer(f"{field}: marks of thoughts that do not match")
    return found


def _code_blocks(text: str) -> list[tuple[int, int, str, str]]:
    """Begin, end, info string and content of the blocks with the longest fence in a text.

    Raises `UnparseableAnswer` for a fence of that length that is not closed, or that another begins inside.
    """
    longest = max(map(len, _FENCE_RUN.findall(text)), default=0)
    if not longest:
        raise UnparseableAnswer("no fenced code block")
    blocks: list[tuple[int, int, str, str]] = []
    opened: tuple[int, int, str] | None = None
    for run in _FENCE_RUN.finditer(text):
        if len(run[1]) < longest:
            continue
        newline = text.find("\n", run.end())
        end = len(text) if newline < 0 else newline
        info = text[run.end() : end]
        if opened is None:
            if "`" not in info:
                opened = run.start(), end + 1, info
        elif info.strip(" \t\r"):
            raise UnparseableAnswer("a code block begins inside another: the first one was not closed")
        else:
            blocks.append((opened[0], end, opened[2], text[opened[1] : max(run.start() - 1, opened[1])]))
            opened = None
    if opened is not None:
        raise UnparseableAnswer("a code block was begun and not closed")
    return blocks


def _fields(completion: str, names: tuple[str, ...], *, required: str) -> dict[str, Any]:
    """The named fields of the answer: of the last `<response>` element or JSON object that has them."""
    check_length(completion)
    if (whole := whole_json_object(completion)) is not None and required in whole:
        return {name: whole.get(name) for name in names}
    text = escape_cdata(_drop_thoughts(completion))
    response = find_response(text)
    found = None
    for begin, end, value in json_objects(text, response.end if response else 0):
        if required in value:
            found = begin, end, value
    if found is not None:
        _check_own(text, found[0], found[1])
        return {name: found[2].get(name) for name in names}
    if response is None:
        raise UnparseableAnswer("neither a complete <response> element nor a JSON object")
    _check_own(text, response.begin, response.end)
    return _xml_fields(text[response.start : response.stop], names, required)


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


def _xml_fields(xml: str, names: tuple[str, ...], required: str) -> dict[str, Any]:
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
        value = read_xml_names(content, child.name) if child.name in _XML_LISTS else html.unescape(content).strip()
        if found[child.name] not in (None, value):
            raise UnparseableAnswer(f"<{child.name}> is there more than once, with different contents")
        found[child.name] = value
    if found[required] is None:
        raise UnparseableAnswer(f"the <response> has no <{required}>")
    if required == "actions":
        _check_beside([xml[child.start : child.stop] for child in children if child.name == "action"], found)
    return found


def _check_beside(beside: list[str], plan: dict[str, Any]) -> None:
    """`<action>` elements beside the list must say what it says: nobody knows which of two lists is meant."""
    if (
        beside
        and read_xml_names("".join(f"<action>{action}</action>" for action in beside), "actions") != plan["actions"]
    ):
        raise UnparseableAnswer("<action> elements beside <actions> that are not the same")


def _bare(action: Any, labels: Sequence[str]) -> Any:
    """A label without the period, quotation marks or Markdown emphasis that models put around one word."""
    if not isinstance(action, str) or len(action) > _LONGEST_LABEL or action in labels:
        return action
    if action.strip().casefold() in map(str.casefold, labels):
        return action
    return action.strip().removesuffix(".").strip("\"'`*").removesuffix(".")


def _element(name: str, text: str) -> str:
    import html

    return f"<{name}>{html.escape(text, quote=False)}</{name}>"


def _text(decision: dict[str, Any], name: str) -> str:
    value = decision.get(name)
    if value is not None and not isinstance(value, str):
        raise UnparseableAnswer(f"{name} is text, not {type(value).__name__}")
    return clean_text(value or "").strip()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
