"""One of the type's labels, with an optional sentence of reasoning.

The system message ends with ``Answer with XML and nothing else:`` and the form; see `reasoning.formats.conversation`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from reasoning.errors import UnparseableAnswer
from reasoning.formats.conversation import conversation_schema, render_conversation
from reasoning.formats.fields import element, read_fields, shorten, text_field
from reasoning.formats.port import (
    TEXT_SCHEMA,
    AnswerForm,
    Context,
    Decision,
    Parameters,
    Schema,
    canonical_json,
)
from reasoning.records import Message

# What `format_label` and a model taught by it write, with nothing in it that needs the general parser's care.
PLAIN_LABEL = re.compile(
    r"<response>(?:<reasoning>(?P<reasoning>[^<&]*)</reasoning>)?<action>(?P<action>[^<&]*)</action></response>"
)
# Where a deciding value begins. Its end is looked for from there, so that the search is linear.
_BEGIN = re.compile(r"(?P<xml><action\s{0,8}>)|(?P<json>\"action\"\s{0,8}:\s{0,8}\")", re.IGNORECASE)
_XML_END = re.compile(r"</action", re.IGNORECASE)
_LONGEST_LABEL = 200


class LabelForm(AnswerForm):
    """`{"action", "reasoning"?}`."""

    name = "label"
    settings = ("labels", "instruction", "question")

    def render(self, parameters: Parameters, context: Context) -> list[Message]:
        return render_conversation(parameters, context, _how(parameters.labels))

    def parse(self, parameters: Parameters, completion: str, context: Context | None = None) -> Decision:
        return parse_label(completion, parameters.labels)

    def normalize(self, parameters: Parameters, decision: Decision | str, context: Context | None = None) -> Decision:
        """As `AnswerForm.normalize`. Text without markup is the action."""
        if isinstance(decision, str):
            if {"<", "{"} & set(decision):
                return self.parse(parameters, decision)
            decision = {"action": decision}
        return normalize_label(decision, parameters.labels)

    def format(self, parameters: Parameters, decision: Decision) -> str:
        return format_label(decision)

    def answer_class(self, decision: Decision) -> str:
        action = decision.get("action")
        return action if isinstance(action, str) else canonical_json(decision)

    def decision_schema(self, parameters: Parameters) -> Schema:
        labels = {"type": "string", "enum": list(parameters.labels)}
        answer = {"type": "object", "required": ["action"], "properties": {"action": labels, "reasoning": TEXT_SCHEMA}}
        return {"oneOf": [labels, answer]}

    def context_schema(self, parameters: Parameters) -> Schema:
        return conversation_schema()

    def describe(self, parameters: Parameters) -> str:
        return f'{{"action": "{"|".join(parameters.labels)}"}}'

    def deciding_span(self, completion: str) -> tuple[int, int] | None:
        """The value of `action` that the parser takes: the last one."""
        if plain := PLAIN_LABEL.fullmatch(completion):
            return plain.span("action")
        if not (begins := list(_BEGIN.finditer(completion))):
            return None
        begin = begins[-1]
        if begin.lastgroup == "xml":
            end = _XML_END.search(completion, begin.end())
            return (begin.end(), end.start()) if end else None
        closing = completion.find('"', begin.end())
        return (begin.end(), closing) if closing >= 0 else None

    def sample_decisions(self, parameters: Parameters) -> list[Decision]:
        return [{"action": label, "reasoning": "because"} for label in parameters.labels]


FORM = LabelForm()


def parse_label(completion: str, labels: Sequence[str]) -> Decision:
    """`{"action", "reasoning"?}` of a completion. The action is one of `labels`, in their spelling."""
    plain = PLAIN_LABEL.fullmatch(completion)
    fields = plain.groupdict() if plain else read_fields(completion, ("action", "reasoning"), required="action")
    return normalize_label(fields | {"action": _bare(fields["action"], labels)}, labels)


def normalize_label(decision: Decision, labels: Sequence[str]) -> Decision:
    """A label decision in its one form: the action as declared, the reasoning stripped, or absent when empty."""
    action = decision.get("action")
    if not isinstance(action, str) or action not in labels:
        spelling = {label.casefold(): label for label in labels}
        if not isinstance(action, str) or action.strip().casefold() not in spelling:
            raise UnparseableAnswer(f"action {shorten(action)} is none of {', '.join(labels)}")
        action = spelling[action.strip().casefold()]
    reasoning = text_field(decision, "reasoning")
    return {"action": action, "reasoning": reasoning} if reasoning else {"action": action}


def format_label(decision: Decision) -> str:
    """The XML of a normalized label decision."""
    reasoning = element("reasoning", decision["reasoning"]) if "reasoning" in decision else ""
    return f"<response>{reasoning}{element('action', decision['action'])}</response>"


@functools.lru_cache(maxsize=256)
def _how(labels: tuple[str, ...]) -> str:
    form = f"<reasoning>optional, one sentence</reasoning><action>{'|'.join(labels)}</action>"
    return f"Answer with XML and nothing else:\n<response>{form}</response>"


def _bare(action: Any, labels: Sequence[str]) -> Any:
    """A label without the period, quotation marks or Markdown emphasis that models put around one word."""
    if not isinstance(action, str) or len(action) > _LONGEST_LABEL or action in labels:
        return action
    if action.strip().casefold() in map(str.casefold, labels):
        return action
    return action.strip().removesuffix(".").strip("\"'`*").removesuffix(".")
