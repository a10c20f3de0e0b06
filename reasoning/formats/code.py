"""An explanation and one fenced code block.

::

    system  You write code.                                             or the instruction of a declared type
            Answer with a short explanation and exactly one fenced code block.
    user    Language: <language>                                        only when given
            Context:                                                    only when given, its lines
              <context>                                                 indented by two spaces
            Task: <prompt>                                              further lines indented by two spaces

Coding tools write their own prompts (what the gateway logs of them is in `gateway.coding.turns`). An answer to one of
these that is not one block of code is a turn (`reasoning.formats.turn`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from reasoning.errors import InvalidContext, UnparseableAnswer
from reasoning.formats import turn
from reasoning.formats.conversation import read_text
from reasoning.formats.fields import shorten, text_field
from reasoning.formats.markup import check_length, whole_json_object
from reasoning.formats.port import TEXT_SCHEMA, AnswerForm, Context, Decision, Parameters, Schema
from reasoning.formats.thoughts import drop_leading_thoughts, drop_thoughts_around
from reasoning.formats.transcript import clean_text, indent_lines
from reasoning.records import Message

_FENCE_RUN = re.compile(r"^ {0,3}(`{3,})", re.MULTILINE)


class CodeForm(AnswerForm):
    """`{"code", "explanation", "language"}`; in a coding tool's conversation a turn as well."""

    name = "code"
    settings = ()
    optional_settings = ("instruction",)
    tier = "large"
    max_tokens = 4096
    temperature = 0.2
    max_characters = 131_072
    # A product over hundreds of tokens would say nothing but the length.
    confidence = "mean"

    def render(self, parameters: Parameters, context: Context) -> list[Message]:
        return [
            {"role": "system", "content": _system(parameters)},
            {"role": "user", "content": _render_task(context)},
        ]

    def parse(self, parameters: Parameters, completion: str, context: Context | None = None) -> Decision:
        return parse_code(completion)

    def parse_reply(self, parameters: Parameters, completion: str, messages: Sequence[Mapping[str, Any]]) -> Decision:
        """As `AnswerForm.parse_reply`: a conversation that `render` did not write is a coding tool's."""
        if messages and messages[0]["content"] == _system(parameters):
            return parse_code(completion)
        found = turn.parse_turn(completion)
        if not found["tool_calls"]:
            with contextlib.suppress(UnparseableAnswer):
                return parse_code(completion)
        return found

    def normalize(self, parameters: Parameters, decision: Decision | str, context: Context | None = None) -> Decision:
        if isinstance(decision, str):
            return parse_code(decision)
        return turn.normalize_turn(decision) if "tool_calls" in decision else normalize_code(decision)

    def format(self, parameters: Parameters, decision: Decision) -> str:
        return turn.format_turn(decision) if "tool_calls" in decision else format_code(decision)

    def answer_class(self, decision: Decision) -> str:
        """The tool calls or the code; else all of it."""
        code = decision.get("code")
        if not decision.get("tool_calls") and isinstance(code, str):
            return code
        return turn.FORM.answer_class(decision)

    def decision_schema(self, parameters: Parameters) -> Schema:
        return {
            "type": "object",
            "required": ["code"],
            "properties": {"code": TEXT_SCHEMA, "explanation": TEXT_SCHEMA, "language": TEXT_SCHEMA},
        }

    def context_schema(self, parameters: Parameters) -> Schema:
        return {
            "type": "object",
            "required": ["prompt"],
            "properties": {"prompt": TEXT_SCHEMA, "language": TEXT_SCHEMA, "context": TEXT_SCHEMA},
        }

    def describe(self, parameters: Parameters) -> str:
        return f'{{"code": "…", "explanation"?, "language"?}} or {turn.FORM.describe(parameters)}'

    def sample_decisions(self, parameters: Parameters) -> list[Decision]:
        return [{"code": "a", "explanation": "b", "language": "c"}]


FORM = CodeForm()


def parse_code(completion: str) -> Decision:
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


def normalize_code(decision: Decision) -> Decision:
    """A code decision in its one form: all three keys; the language is one word or empty."""
    code, language = decision.get("code"), decision.get("language") or ""
    if not isinstance(code, str) or not code.strip():
        raise UnparseableAnswer("no code")
    if not isinstance(language, str) or "`" in language or len(language.split()) > 1:
        raise UnparseableAnswer(f"language {shorten(language)} is not one word")
    explanation = _without_thoughts(text_field(decision, "explanation"), "explanation")
    return {"code": clean_text(code), "explanation": explanation, "language": clean_text(language).strip()}


def format_code(decision: Decision) -> str:
    """Explanation and fenced block of a normalized code decision; the fence is longer than any run of backticks."""
    longest = max((len(run) for run in re.findall("`+", decision["explanation"] + "\n" + decision["code"])), default=0)
    fence = "`" * max(3, longest + 1)
    explanation = f"{decision['explanation']}\n\n" if decision["explanation"] else ""
    return f"{explanation}{fence}{decision['language']}\n{decision['code']}\n{fence}"


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


def _without_thoughts(text: str, field: str) -> str:
    """A text of a decision without thoughts. Raises `UnparseableAnswer` where taking them out leaves others."""
    found = drop_thoughts_around(drop_leading_thoughts(text), ()).strip()
    if found != text and drop_thoughts_around(drop_leading_thoughts(found), ()).strip() != found:
        raise UnparseableAnswer(f"{field}: marks of thoughts that do not match")
    return found


def _system(parameters: Parameters) -> str:
    instruction = clean_text(parameters.instruction) or "You write code."
    return f"{instruction}\nAnswer with a short explanation and exactly one fenced code block."


def _render_task(context: Context) -> str:
    lines = []
    if context.get("language"):
        lines.append(f"Language: {' '.join(read_text(context, 'language').split())}")
    if context.get("context"):
        lines.append(f"Context:\n  {indent_lines(read_text(context, 'context'))}")
    prompt = read_text(context, "prompt")
    if not prompt.strip():
        raise InvalidContext('context["prompt"]: is empty')
    lines.append(f"Task: {indent_lines(prompt)}")
    return clean_text("\n".join(lines))
