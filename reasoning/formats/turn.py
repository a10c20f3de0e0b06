"""Text, calls of the tools on offer, or both: one turn of an agent or a coding tool (`reasoning.formats.turns`).

A declared type of this form offers the tools of its context::

    Tools:
    {"name":"…","description":"…","parameters":{…}}      one line of JSON a tool, in the order given
    Answer with text, with calls of tools, or with both. Write each call so, on lines of its own:
    <tool_call>
    {"name":"NAME","arguments":{…}}
    </tool_call>
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from reasoning.errors import InvalidContext, UnparseableAnswer
from reasoning.formats.conversation import conversation_schema, render_conversation
from reasoning.formats.port import TEXT_SCHEMA, AnswerForm, Context, Decision, Parameters, Schema, canonical_json
from reasoning.formats.transcript import clean_text
from reasoning.formats.turns import format_turn as format_turn
from reasoning.formats.turns import normalize_turn as normalize_turn
from reasoning.formats.turns import parse_turn as parse_turn
from reasoning.records import Message

_OBJECT: Schema = {"type": "object"}
_HOW = """Answer with text, with calls of tools, or with both. Write each call so, on lines of its own:
<tool_call>
{"name":"NAME","arguments":{…}}
</tool_call>"""


class TurnForm(AnswerForm):
    """`{"text", "tool_calls": [{"name", "arguments"}, …]}`."""

    name = "turn"
    tier = "large"
    max_tokens = 4096
    temperature = 0.2
    max_characters = 131_072
    confidence = "mean"

    def render(self, parameters: Parameters, context: Context) -> list[Message]:
        lines = [orjson.dumps(tool).decode() for tool in read_tools(context)]
        return render_conversation(parameters, context, "\n".join(["Tools:", *lines, _HOW]))

    def parse(self, parameters: Parameters, completion: str, context: Context | None = None) -> Decision:
        found = parse_turn(completion)
        return found if context is None else _check_tools(found, self.allowed_actions(context))

    def normalize(self, parameters: Parameters, decision: Decision | str, context: Context | None = None) -> Decision:
        found = parse_turn(decision) if isinstance(decision, str) else normalize_turn(decision)
        try:
            known = None if context is None else self.allowed_actions(context)
        except InvalidContext:  # then no model was asked, and nobody knows its tools
            return found
        return found if known is None else _check_tools(found, known)

    def format(self, parameters: Parameters, decision: Decision) -> str:
        return format_turn(decision)

    def answer_class(self, decision: Decision) -> str:
        """The calls; the whole turn where there are none."""
        return canonical_json(decision.get("tool_calls") or decision)

    def decision_schema(self, parameters: Parameters) -> Schema:
        call = {
            "type": "object",
            "required": ["name", "arguments"],
            "properties": {"name": TEXT_SCHEMA, "arguments": _OBJECT},
        }
        calls = {"type": "array", "items": call}
        return {
            "type": "object",
            "properties": {"text": TEXT_SCHEMA, "tool_calls": calls},
            "anyOf": [{"required": ["text"]}, {"required": ["tool_calls"]}],
        }

    def context_schema(self, parameters: Parameters) -> Schema:
        properties = {"name": TEXT_SCHEMA, "description": TEXT_SCHEMA, "parameters": _OBJECT}
        tool = {"type": "object", "required": ["name"], "properties": properties}
        return conversation_schema(tools={"type": "array", "minItems": 1, "items": tool})

    def describe(self, parameters: Parameters) -> str:
        return '{"text": "…", "tool_calls": […]}'

    def allowed_actions(self, context: Context) -> list[str]:
        return [str(tool["name"]) for tool in read_tools(context)]

    def choices(self, context: Context) -> Context:
        return {"tools": [{"name": tool["name"]} for tool in context["tools"]]}

    def sample_decisions(self, parameters: Parameters) -> list[Decision]:
        return [{"text": "a", "tool_calls": [{"name": "b", "arguments": {}}]}]


FORM = TurnForm()


def read_tools(context: Context) -> list[dict[str, Any]]:
    """Name, description and parameters (a JSON schema) of the context's tools. Raises `InvalidContext`."""
    raw = context.get("tools")
    if isinstance(raw, str) or not isinstance(raw, list | tuple) or not raw:
        raise InvalidContext(
            'context["tools"]: a list of {"name", "description", "parameters"} with at least one tool is needed'
        )
    found = []
    for i, tool in enumerate(raw):
        name = tool.get("name") if isinstance(tool, Mapping) else None
        if not isinstance(name, str) or not name.strip() or len(name.splitlines()) != 1:
            raise InvalidContext(f'context["tools"][{i}]["name"]: one line of text is needed')
        description, parameters = tool.get("description") or "", tool.get("parameters") or {}
        if not isinstance(description, str):
            raise InvalidContext(f'context["tools"][{i}]["description"]: text is needed')
        kept = {"name": clean_text(name).strip(), "description": clean_text(description), "parameters": parameters}
        try:
            orjson.dumps(kept)
        except TypeError as error:
            raise InvalidContext(f'context["tools"][{i}]["parameters"]: {error}') from None
        found.append(kept)
    return found


def _check_tools(turn: Decision, names: Sequence[str]) -> Decision:
    """The turn. Raises `UnparseableAnswer` for a call of a tool that is not in `names`."""
    for call in turn["tool_calls"]:
        if call["name"] not in names:
            shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
            raise UnparseableAnswer(f"tool {call['name']!r:.80} is not among those of the context: {shown}")
    return turn
