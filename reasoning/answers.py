"""The answer formats: completion → decision and back. Never a default: what is no answer raises `UnparseableAnswer`.

Three formats. `label` and `plan` are XML `<response>` elements, or a JSON object of the same keys; `code` is an
explanation and one fenced code block (CommonMark 0.31, section 4.5), or a JSON object. Chatter around an answer, a
`<think>` block before it, a code fence around it, entities and CDATA are accepted, since models write them.

Coding tools ask for something else: a *turn*, which is text and calls of the tools on offer. In a completion each call
is `<tool_call>`, JSON of its name and arguments, `</tool_call>`, the form that Hermes and Qwen models are trained on.

For every decision d that `normalize_*` returns, parsing its formatted answer gives d again.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from reasoning.errors import UnparseableAnswer
from reasoning.transcript import clean_text

_THINK = re.compile(r"\A(?:\s*<think>.*?</think>)+", re.DOTALL | re.IGNORECASE)
_THINKING = re.compile(r"\A(?:\s*<think>(?:.*?</think>)?)+", re.DOTALL | re.IGNORECASE)  # even if it never ends
_RESPONSE = re.compile(r"<response\b[^>]*>(.*?)</response\s*>", re.DOTALL | re.IGNORECASE)
# What `format_label` and a model taught by it write, with nothing in it that needs the general parser's care.
PLAIN_LABEL = re.compile(
    r"<response>(?:<reasoning>(?P<reasoning>[^<&]*)</reasoning>)?<action>(?P<action>[^<&]*)</action></response>"
)
_CDATA = re.compile(r"<!\[CDATA\[(.*?)\]\]>", re.DOTALL)
_FENCE_RUN = re.compile(r"^ {0,3}(`{3,})", re.MULTILINE)
_CALL = re.compile(r"^[ \t]*<tool_call>(.*?)</tool_call>[ \t]*$\n?", re.MULTILINE | re.DOTALL)
_CALL_BEGIN = re.compile(r"^[ \t]*<tool_call>", re.MULTILINE)


def parse_label(completion: str, labels: Sequence[str]) -> dict[str, Any]:
    """`{"action", "reasoning"?}` of a completion. The action is one of `labels`, in their spelling."""
    plain = PLAIN_LABEL.fullmatch(completion)
    fields = plain.groupdict() if plain else _fields(completion, ("action", "reasoning"), required="action")
    return normalize_label(fields, labels)


def parse_plan(completion: str) -> dict[str, Any]:
    """`{"thought", "actions", "providers", "text"}` of a completion; the two lists in order, maybe empty."""
    return normalize_plan(_fields(completion, ("thought", "actions", "providers", "text"), required="actions"))


def parse_code(completion: str) -> dict[str, Any]:
    """`{"code", "explanation", "language"}` of a completion that has exactly one fenced code block.

    The block is the one with the longest fence, so that shorter fences may stand inside it and in the explanation.
    """
    text = _THINK.sub("", completion).strip()
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(text)
        if isinstance(found, dict):
            return normalize_code(found)
    lengths = [len(run) for run in _FENCE_RUN.findall(text)]
    if not lengths:
        raise UnparseableAnswer("no fenced code block")
    fence = "`" * max(lengths)
    closed = rf"^ {{0,3}}{fence}(?!`)([^`\n]*)\n(?:(.*?)\n)?? {{0,3}}{fence}[ \t\r]*$"
    blocks = list(re.finditer(closed, text, re.MULTILINE | re.DOTALL))
    if len(blocks) != 1:
        raise UnparseableAnswer(f"{len(blocks)} closed code blocks, not one")
    block = blocks[0]
    explanation = f"{text[: block.start()].strip()}\n\n{text[block.end() :].strip()}"
    language = block[1].split()[0] if block[1].split() else ""
    return normalize_code({"code": block[2] or "", "explanation": explanation, "language": language})


def parse_turn(completion: str) -> dict[str, Any]:
    """`{"text", "tool_calls"}` of a completion; a call is `{"name", "arguments"}`. A call that is cut is an error."""
    text = _THINK.sub("", completion)
    calls = []
    for body in _CALL.findall(text):
        try:
            calls.append(orjson.loads(body))
        except orjson.JSONDecodeError:
            raise UnparseableAnswer("a <tool_call> that holds no JSON") from None
    return normalize_turn({"text": _CALL.sub("", text), "tool_calls": calls})


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


def format_turn(decision: dict[str, Any]) -> str:
    """Text, then the calls."""
    calls = [format_call(call["name"], call["arguments"]) for call in decision["tool_calls"]]
    return "\n".join([decision["text"], *calls] if decision["text"] else calls)


def format_call(name: str, arguments: Any) -> str:
    """One `<tool_call>`. No `<` is left in its JSON, so that nothing in it can be taken for a tag."""
    try:
        body = orjson.dumps({"name": name, "arguments": arguments}).decode().replace("<", "\\u003c")
    except TypeError as error:  # a lone surrogate, or what is no JSON at all
        raise UnparseableAnswer(f"the call of {_short(name)} cannot be written as JSON: {error}") from None
    return f"<tool_call>\n{body}\n</tool_call>"


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
        "actions": _names(decision, "actions"),
        "providers": _names(decision, "providers"),
        "text": _text(decision, "text"),
    }


def normalize_code(decision: dict[str, Any]) -> dict[str, Any]:
    """A code decision in its one form: all three keys; the language is one word or empty."""
    code, language = decision.get("code"), decision.get("language") or ""
    if not isinstance(code, str) or not code.strip():
        raise UnparseableAnswer("no code")
    if not isinstance(language, str) or "`" in language or len(language.split()) > 1:
        raise UnparseableAnswer(f"language {_short(language)} is not one word")
    explanation = _THINKING.sub("", _text(decision, "explanation")).strip()
    return {"code": clean_text(code), "explanation": explanation, "language": clean_text(language).strip()}


def normalize_turn(decision: dict[str, Any]) -> dict[str, Any]:
    """A turn in its one form: both keys; one of them holds something."""
    text, calls = _THINKING.sub("", _text(decision, "text")).strip(), decision.get("tool_calls") or []
    if not isinstance(calls, list | tuple):
        raise UnparseableAnswer("tool_calls is a list of calls")
    if _CALL_BEGIN.search(text):
        raise UnparseableAnswer("the text has a <tool_call> in it that is none")
    found = []
    for call in calls:
        name, arguments = (call.get("name"), call.get("arguments")) if isinstance(call, dict) else (None, None)
        if not isinstance(name, str) or not name.strip():
            raise UnparseableAnswer("a tool call has a name")
        if not isinstance(arguments, dict):
            raise UnparseableAnswer(f"the arguments of {_short(name)} are an object")
        found.append({"name": name, "arguments": arguments})
    if not text and not found:
        raise UnparseableAnswer("neither text nor a tool call")
    return {"text": text, "tool_calls": found}


def _fields(completion: str, names: tuple[str, ...], *, required: str) -> dict[str, Any]:
    """The named fields of the answer: of its last `<response>` element, or of its first JSON object having them."""
    text = _THINK.sub("", completion)
    xml = text
    if "<![CDATA[" in text:
        import html

        xml = _CDATA.sub(lambda section: html.escape(section[1], quote=False), text)
    responses = _RESPONSE.findall(xml)
    if responses:
        found = {name: _tag(responses[-1], name) for name in names}
        if found[required] is None:
            raise UnparseableAnswer(f"the <response> has no <{required}>")
        return found
    for candidate in _json_objects(text):
        if required in candidate:
            return {name: candidate.get(name) for name in names}
    raise UnparseableAnswer("neither a complete <response> element nor a JSON object")


def _tag(xml: str, name: str) -> str | None:
    import html  # its table of entities costs every agent's start, and plain answers do not need it

    full, empty = _tag_patterns(name)
    found = {html.unescape(value).strip() for value in full.findall(xml)}
    if len(found) > 1:
        raise UnparseableAnswer(f"<{name}> is there more than once, with different contents")
    return found.pop() if found else ("" if empty.search(xml) else None)


@functools.cache
def _tag_patterns(name: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    return re.compile(rf"<{name}\s*>(.*?)</{name}\s*>", re.S | re.I), re.compile(rf"<{name}\s*/>", re.I)


def _json_objects(text: str) -> Iterator[dict[str, Any]]:
    decoder = json.JSONDecoder()
    at = text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            yield value
        at = text.find("{", end)


def _element(name: str, text: str) -> str:
    import html

    return f"<{name}>{html.escape(text, quote=False)}</{name}>"


def _text(decision: dict[str, Any], name: str) -> str:
    value = decision.get(name)
    if value is not None and not isinstance(value, str):
        raise UnparseableAnswer(f"{name} is text, not {type(value).__name__}")
    return clean_text(value or "").strip()


def _names(decision: dict[str, Any], name: str) -> list[str]:
    value = decision.get(name)
    if value is None:
        return []
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise UnparseableAnswer(f"{name} is a list of names")
    names = [clean_text(item).strip() for item in value]
    for item in names:
        if not item or "," in item or len(item.splitlines()) != 1:
            raise UnparseableAnswer(f"{name}: {_short(item)} is no name (one line, no comma, not empty)")
    return names


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
