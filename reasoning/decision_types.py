"""Decision types: what is asked (context → messages), and what an answer is (completion → decision).

The one renderer makes the messages for serving *and* for training. Its shape, which does not change within a schema
version (transcript lines: `reasoning.transcript`):

``label`` and ``plan``::

    system  You are <agent name>.                                       line 1, nothing else on it
            <instruction>                                               may have several lines
            Actions:                                                    plan only: then one line an action,
            - <name>: <description>                                     in the order given
            Answer with XML and nothing else:
            <response>...</response>                                    the format
    user    <speaker>: <text>                                           one line a message,
              <further lines of the text, indented by two spaces>
            <speaker>: <text>
                                                                        an empty line
            <question>                                                  one line, to the end

``code``::

    system  You write code.
            Answer with a short explanation and exactly one fenced code block.
    user    Language: <language>                                        only when given
            Context:                                                    only when given, its lines
              <context>                                                 indented by two spaces
            Task: <prompt>                                              further lines indented by two spaces

Coding tools write their own prompts; what the gateway logs of them is in `gateway.turns`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from reasoning import answers, turns
from reasoning.errors import InvalidContext, UnknownDecisionType, UnparseableAnswer
from reasoning.records import Message
from reasoning.transcript import clean_name, clean_text, indent_lines, render_transcript

Tier = Literal["small", "medium", "large"]
AnswerFormat = Literal["label", "plan", "code"]
Context = Mapping[str, Any]

TIER_THINKING: dict[Tier, bool | None] = {"small": False, "medium": False, "large": None}
"""May the models of a tier think before they answer? None: nothing is said of it.

The first models of `small` and `medium` (Qwen3.5) think unless they are told not to, and what they are taught holds no
thoughts; those of `large` do not think.
"""

CODE_SYSTEM = "You write code.\nAnswer with a short explanation and exactly one fenced code block."


@dataclass(frozen=True, slots=True)
class DecisionType:
    """One kind of decision. `max_messages` is how many of the latest messages a prompt shows.

    `thinking` switches a model's thoughts before its answer off or on; None leaves that to the model. `stop` are texts
    at which a model's answer is cut.
    """

    name: str
    tier: Tier
    answer: AnswerFormat
    max_tokens: int
    temperature: float
    labels: tuple[str, ...] = ()
    instruction: str = ""
    question: str = ""
    max_messages: int = 50
    thinking: bool | None = None
    stop: tuple[str, ...] = ()

    @property
    def request_fields(self) -> dict[str, Any]:
        """What a request says beside messages, length and temperature: the same wherever a model of the type is asked.

        Thinking is switched in both ways that servers know: Together's `reasoning`, and the argument of the chat
        template that Qwen and vLLM read.
        """
        fields: dict[str, Any] = {}
        if self.thinking is not None:
            fields["reasoning"] = {"enabled": self.thinking}
            fields["chat_template_kwargs"] = {"enable_thinking": self.thinking}
        if self.stop:
            fields["stop"] = list(self.stop)
        return fields

    def render(self, context: Context) -> list[Message]:
        """The messages that a model is asked. Raises `InvalidContext` naming the key that is missing or wrong."""
        if not isinstance(context, Mapping):
            raise InvalidContext(f"context: an object is needed, not {type(context).__name__}")
        system, user = _render_code(context) if self.answer == "code" else self._render_conversation(context)
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]

    def parse(self, completion: str, context: Context | None = None) -> dict[str, Any]:
        """The decision in a completion. Raises `UnparseableAnswer`.

        With the context of a plan, its actions must be among those of the context, whose spelling they get.
        """
        if self.answer == "label":
            return answers.parse_label(completion, self.labels)
        if self.answer == "code":
            return answers.parse_code(completion)
        plan = answers.parse_plan(completion)
        return plan if context is None else _check_actions(plan, [name for name, _ in _actions(context)])

    def parse_reply(self, completion: str, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The decision in an answer to `messages`, whoever wrote these. Raises `UnparseableAnswer`.

        For code, a conversation that `render` did not write is a coding tool's. An answer to it that is not one block
        of code is a turn: `{"text", "tool_calls"}`.
        """
        if self.answer != "code" or (messages and messages[0]["content"] == CODE_SYSTEM):
            return self.parse(completion)
        turn = turns.parse_turn(completion)
        if not turn["tool_calls"]:
            with contextlib.suppress(UnparseableAnswer):
                return answers.parse_code(completion)
        return turn

    def normalize(self, decision: dict[str, Any] | str, context: Context | None = None) -> dict[str, Any]:
        """A decision, as anyone may write it, in the one form that `parse` gives. Raises `UnparseableAnswer`.

        Text alone is the action of a label type; any other text is read as a completion is. The actions of a plan
        must be among those of the context, where it has any that can be read.
        """
        found = self._normalize(decision)
        if self.answer != "plan" or context is None:
            return found
        try:
            known = [name for name, _ in _actions(context)]
        except (InvalidContext, AttributeError, TypeError):  # then no model was asked, and nobody knows its actions
            return found
        return _check_actions(found, known)

    def _normalize(self, decision: dict[str, Any] | str) -> dict[str, Any]:
        if isinstance(decision, str):
            if self.answer != "label" or {"<", "{"} & set(decision):
                return self.parse(decision)
            decision = {"action": decision}
        if not isinstance(decision, dict):
            raise UnparseableAnswer(f"a decision is an object, not {type(decision).__name__}")
        if self.answer == "label":
            return answers.normalize_label(decision, self.labels)
        if self.answer == "plan":
            return answers.normalize_plan(decision)
        return turns.normalize_turn(decision) if "tool_calls" in decision else answers.normalize_code(decision)

    def format_answer(self, decision: dict[str, Any] | str) -> str:
        """The completion that says `decision`: what a model is taught. Raises `UnparseableAnswer`."""
        decision = self.normalize(decision)
        if self.answer == "label":
            return answers.format_label(decision)
        if self.answer == "plan":
            return answers.format_plan(decision)
        return turns.format_turn(decision) if "tool_calls" in decision else answers.format_code(decision)

    def sample_answers(self) -> list[str]:
        """Answers as this type writes them: what is in all of them belongs to its form."""
        if self.answer == "label":
            return [self.format_answer({"action": label, "reasoning": "because"}) for label in self.labels]
        if self.answer == "plan":
            return [self.format_answer({"thought": "a", "actions": ["B"], "providers": ["C"], "text": "d"})]
        return [self.format_answer({"code": "a", "explanation": "b", "language": "c"})]

    def _render_conversation(self, context: Context) -> tuple[str, str]:
        agent_name = clean_name(_text(context, "agent_name"))
        if not agent_name:
            raise InvalidContext('context["agent_name"]: is empty')
        actions = tuple(_actions(context)) if self.answer == "plan" else ()
        system = _system(self.instruction, agent_name, actions, self.labels)
        transcript = render_transcript(context.get("messages", ()), limit=self.max_messages)
        question = clean_text(self.question.replace("{agent_name}", agent_name))
        return system, f"{transcript}\n\n{question}"


@functools.lru_cache(maxsize=256)
def _system(instruction: str, agent_name: str, actions: tuple[tuple[str, str], ...], labels: tuple[str, ...]) -> str:
    """The system message of a plan that has `actions`, else of a label type."""
    lines = [f"You are {agent_name}.", clean_text(instruction.replace("{agent_name}", agent_name))]
    if actions:
        lines += ["Actions:", *(f"- {name}: {description}" for name, description in actions)]
        form = "<thought>why</thought><actions>NAME, NAME</actions><providers></providers><text>your words</text>"
    else:
        form = f"<reasoning>optional, one sentence</reasoning><action>{'|'.join(labels)}</action>"
    return "\n".join([*lines, "Answer with XML and nothing else:", f"<response>{form}</response>"])


def _render_code(context: Context) -> tuple[str, str]:
    lines = []
    if context.get("language"):
        lines.append(f"Language: {' '.join(_text(context, 'language').split())}")
    if context.get("context"):
        lines.append(f"Context:\n  {indent_lines(_text(context, 'context'))}")
    prompt = _text(context, "prompt")
    if not prompt.strip():
        raise InvalidContext('context["prompt"]: is empty')
    lines.append(f"Task: {indent_lines(prompt)}")
    return CODE_SYSTEM, clean_text("\n".join(lines))


def _check_actions(plan: dict[str, Any], actions: Sequence[str]) -> dict[str, Any]:
    """The plan with its actions spelled as in `actions`. Raises `UnparseableAnswer` for one that is not there."""
    exact = set(actions)
    known = {name.casefold(): name for name in reversed(actions)}
    if unknown := [name for name in plan["actions"] if name not in exact and name.casefold() not in known]:
        shown = ", ".join(actions[:20]) + (", …" if len(actions) > 20 else "")
        raise UnparseableAnswer(f"action {unknown[0]!r:.80} is not among those of the context: {shown}")
    return plan | {"actions": [name if name in exact else known[name.casefold()] for name in plan["actions"]]}


def _actions(context: Context) -> list[tuple[str, str]]:
    """Name and one-line description of the context's actions."""
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


def _text(context: Context, key: str) -> str:
    value = context.get(key)
    if not isinstance(value, str):
        raise InvalidContext(f'context["{key}"]: text is needed, not {type(value).__name__}')
    return value


DECISION_TYPES: dict[str, DecisionType] = {
    "should_respond": DecisionType(
        name="should_respond",
        tier="small",
        answer="label",
        max_tokens=512,
        temperature=0.1,
        labels=("RESPOND", "IGNORE", "STOP"),
        instruction="Decide whether you answer the last message of the conversation.\n"
        "RESPOND: answer it. IGNORE: stay silent. STOP: leave, because you were asked to be quiet.",
        question="Should {agent_name} respond to the last message?",
        thinking=TIER_THINKING["small"],
    ),
    "planning": DecisionType(
        name="planning",
        tier="medium",
        answer="plan",
        max_tokens=2048,
        temperature=0.3,
        instruction="Choose the actions that do what the last message asks for, in the order in which they run.",
        question="Which actions should {agent_name} take?",
        thinking=TIER_THINKING["medium"],
    ),
    "coding": DecisionType(name="coding", tier="large", answer="code", max_tokens=4096, temperature=0.2),
}


class DeclaredTypes(Protocol):
    """What declares decision types: a `reasoning.config.Config`."""

    @property
    def decision_types(self) -> Mapping[str, DecisionType]:
        """The types by name, the built-in ones included."""


def get_decision_type(name: str, config: DeclaredTypes | None = None) -> DecisionType:
    """The type called `name`: one that `config` declares, else a built-in. Raises `UnknownDecisionType`."""
    known = DECISION_TYPES if config is None else config.decision_types
    if name not in known:
        raise UnknownDecisionType(
            f"{name!r} is no decision type; known are {', '.join(known)}. "
            f"Declare it as [decision_types.{name}] in reasoning.toml"
        )
    return known[name]


def check_demonstration(value: Any, types: Sequence[DecisionType], context: Context | None = None) -> None:
    """Raises `UnparseableAnswer`, with the allowed values, where `value` is an answer of none of the types.

    `context` is the decision's, where it is known, for the actions of a plan. Text is no demonstration.
    """
    if not isinstance(value, dict):
        raise UnparseableAnswer(f"the right answer is an object, not {type(value).__name__}; {_allowed(types)}")
    reasons = []
    for each in types:
        try:
            normal = each.normalize(value, context)
        except UnparseableAnswer as error:
            reasons.append(str(error))
            continue
        required = {"label": "action", "plan": "actions", "code": "code"}[each.answer]
        if required in value or "tool_calls" in normal:
            return
        reasons.append(f"{required}: is missing")
    raise UnparseableAnswer(f"{'; '.join(dict.fromkeys(reasons))[:400]}. {_allowed(types)}")


def _allowed(types: Sequence[DecisionType]) -> str:
    forms = {
        "plan": '{"actions": ["NAME", …], "thought"?, "providers"?, "text"?}',
        "code": '{"code": "…", "explanation"?, "language"?} or {"text": "…", "tool_calls": […]}',
    }
    shown = [forms.get(each.answer) or f'{{"action": "{"|".join(each.labels)}"}}' for each in types]
    return f"Allowed: {'; '.join(f'{each.name}: {form}' for each, form in zip(types, shown, strict=True))}"
