"""Actions of the context in the order in which they run, with a thought, providers and a text.

The system message lists the actions between the instruction and the form::

    Actions:
    - <name>: <description>              one line an action, in the order given
    Answer with XML and nothing else:
    <response>...</response>
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence

from reasoning.errors import InvalidContext, UnparseableAnswer
from reasoning.formats.action_lists import read_names
from reasoning.formats.conversation import conversation_schema, render_conversation
from reasoning.formats.fields import element, read_fields, text_field
from reasoning.formats.port import (
    TEXT_SCHEMA,
    AnswerForm,
    Context,
    Decision,
    Parameters,
    Schema,
    canonical_json,
)
from reasoning.formats.transcript import clean_text
from reasoning.records import Message

_BEGIN = re.compile(r"(?P<xml><actions\s{0,8}>)|(?P<json>\"actions\"\s{0,8}:\s{0,8})", re.IGNORECASE)
_XML_END = re.compile(r"</actions", re.IGNORECASE)
_DECODER = json.JSONDecoder()
_FORM = (
    "<response><thought>why</thought><actions>NAME, NAME</actions><providers></providers>"
    "<text>your words</text></response>"
)
_NAMES_SCHEMA: Schema = {"type": "array", "items": TEXT_SCHEMA}
_ACTIONS_SCHEMA: Schema = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["name"],
        "properties": {"name": TEXT_SCHEMA, "description": TEXT_SCHEMA},
    },
}


class PlanForm(AnswerForm):
    """`{"thought", "actions", "providers", "text"}`."""

    name = "plan"
    tier = "medium"
    max_tokens = 2048
    temperature = 0.3

    def render(self, parameters: Parameters, context: Context) -> list[Message]:
        return render_conversation(parameters, context, _how(tuple(read_actions(context))))

    def parse(self, parameters: Parameters, completion: str, context: Context | None = None) -> Decision:
        plan = parse_plan(completion)
        return plan if context is None else check_actions(plan, self.allowed_actions(context))

    def normalize(self, parameters: Parameters, decision: Decision | str, context: Context | None = None) -> Decision:
        """As `AnswerForm.normalize`. Where the context has no actions that can be read, any are taken."""
        plan = parse_plan(decision) if isinstance(decision, str) else normalize_plan(decision)
        if context is None:
            return plan
        try:
            known = self.allowed_actions(context)
        except (InvalidContext, AttributeError, TypeError):  # then no model was asked, and nobody knows its actions
            return plan
        return check_actions(plan, known)

    def format(self, parameters: Parameters, decision: Decision) -> str:
        return format_plan(decision)

    def answer_class(self, decision: Decision) -> str:
        actions = decision.get("actions")
        return ", ".join(map(str, actions)) if isinstance(actions, list) else canonical_json(decision)

    def decision_schema(self, parameters: Parameters) -> Schema:
        return {
            "type": "object",
            "required": ["actions"],
            "properties": {
                "thought": TEXT_SCHEMA,
                "actions": _NAMES_SCHEMA,
                "providers": _NAMES_SCHEMA,
                "text": TEXT_SCHEMA,
            },
        }

    def context_schema(self, parameters: Parameters) -> Schema:
        return conversation_schema(actions=_ACTIONS_SCHEMA)

    def describe(self, parameters: Parameters) -> str:
        return '{"actions": ["NAME", …], "thought"?, "providers"?, "text"?}'

    def deciding_span(self, completion: str) -> tuple[int, int] | None:
        """The value of `actions` that the parser takes: the last one."""
        if not (begins := list(_BEGIN.finditer(completion))):
            return None
        begin = begins[-1]
        if begin.lastgroup == "xml":
            end = _XML_END.search(completion, begin.end())
            return (begin.end(), end.start()) if end else None
        try:
            return begin.end(), _DECODER.raw_decode(completion, begin.end())[1]
        except (ValueError, RecursionError):
            return None

    def allowed_actions(self, context: Context) -> list[str]:
        return [name for name, _ in read_actions(context)]

    def choices(self, context: Context) -> Context:
        return {"actions": [{"name": action["name"]} for action in context["actions"]]}

    def sample_decisions(self, parameters: Parameters) -> list[Decision]:
        return [{"thought": "a", "actions": ["B"], "providers": ["C"], "text": "d"}]


FORM = PlanForm()


def parse_plan(completion: str) -> Decision:
    """`{"thought", "actions", "providers", "text"}` of a completion; the two lists in order, maybe empty."""
    names = ("thought", "actions", "providers", "text")
    return normalize_plan(read_fields(completion, names, required="actions", lists=("actions", "providers")))


def normalize_plan(decision: Decision) -> Decision:
    """A plan in its one form: all four keys, names stripped."""
    if decision.get("actions") is None:
        raise UnparseableAnswer("no actions: a plan has a list of them, maybe an empty one")
    return {
        "thought": text_field(decision, "thought"),
        "actions": read_names(decision["actions"], "actions"),
        "providers": read_names(decision.get("providers"), "providers"),
        "text": text_field(decision, "text"),
    }


def format_plan(decision: Decision) -> str:
    """The XML of a normalized plan."""
    parts = (
        element("thought", decision["thought"]),
        element("actions", ", ".join(decision["actions"])),
        element("providers", ", ".join(decision["providers"])),
        element("text", decision["text"]),
    )
    return f"<response>{''.join(parts)}</response>"


def check_actions(plan: Decision, actions: Sequence[str]) -> Decision:
    """The plan with its actions spelled as in `actions`. Raises `UnparseableAnswer` for one that is not there."""
    exact = set(actions)
    known = {name.casefold(): name for name in reversed(actions)}
    if unknown := [name for name in plan["actions"] if name not in exact and name.casefold() not in known]:
        shown = ", ".join(actions[:20]) + (", …" if len(actions) > 20 else "")
        raise UnparseableAnswer(f"action {unknown[0]!r:.80} is not among those of the context: {shown}")
    return plan | {"actions": [name if name in exact else known[name.casefold()] for name in plan["actions"]]}


def read_actions(context: Context) -> list[tuple[str, str]]:
    """Name and one-line description of the context's actions. Raises `InvalidContext`."""
    raw = context.get("actions")
    if isinstance(raw, str) or not isinstance(raw, list | tuple) or not raw:
        raise InvalidContext('context["actions"]: a list of {"name", "description"} with at least one action is needed')
    found = []
    for i, action in enumerate(raw):
        name = action.get("name") if isinstance(action, Mapping) else None
        if not isinstance(name, str) or not name.strip() or {",", ":"} & set(name) or len(name.splitlines()) != 1:
            raise InvalidContext(f'context["actions"][{i}]["name"]: one line without comma and colon is needed')
        description = action.get("description") or ""
        if not isinstance(description, str):
            raise InvalidContext(f'context["actions"][{i}]["description"]: text is needed')
        found.append((clean_text(name).strip(), clean_text(" ".join(description.split()))))
    return found


@functools.lru_cache(maxsize=256)
def _how(actions: tuple[tuple[str, str], ...]) -> str:
    lines = [f"- {name}: {description}" for name, description in actions]
    return "\n".join(["Actions:", *lines, "Answer with XML and nothing else:", _FORM])
