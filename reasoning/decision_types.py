"""Decision types: what is asked (context → messages), and what an answer is (completion → decision).

How a type is asked and answered is its answer form's (`reasoning.formats`). The one renderer makes the messages for
serving *and* for training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from reasoning.errors import InvalidContext, UnknownDecisionType, UnparseableAnswer
from reasoning.formats import LOADED, get_form
from reasoning.formats.port import AnswerForm
from reasoning.formats.port import Context as Context
from reasoning.questions import QuestionSet, TypedQuestion
from reasoning.records import Message
from reasoning.toml_tables import similar_name

Tier = Literal["small", "medium", "large"]
AnswerFormat = str
"""The name of an answer form."""

TIER_THINKING: dict[Tier, bool | None] = {"small": False, "medium": False, "large": None}
"""May the models of a tier think before they answer? None: nothing is said of it.

The first models of `small` and `medium` (Qwen3.5) think unless they are told not to, and what they are taught holds no
thoughts; those of `large` do not think.
"""


@dataclass(frozen=True, slots=True)
class DecisionType:
    """One kind of decision. `max_messages` is how many of the latest messages a prompt shows.

    `answer` names the answer form (`reasoning.formats`).
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
    questions: tuple[TypedQuestion, ...] = ()

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

    @property
    def form(self) -> AnswerForm:
        """How an answer is written."""
        return LOADED.get(self.answer) or get_form(self.answer)  # a decision asks six times: a call less each

    def render(self, context: Context) -> list[Message]:
        """The messages that a model is asked. Raises `InvalidContext` naming the key that is missing or wrong."""
        if not isinstance(context, Mapping):
            raise InvalidContext(f"context: an object is needed, not {type(context).__name__}")
        return self.form.render(self, context)

    def parse(self, completion: str, context: Context | None = None) -> dict[str, Any]:
        """The decision in a completion. Raises `UnparseableAnswer`.

        With a context the actions in it must be among those of the context, whose spelling they get.
        """
        return self.form.parse(self, completion, context)

    def parse_reply(self, completion: str, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The decision in an answer to `messages`, whoever wrote these. Raises `UnparseableAnswer`.

        For code, a conversation that `render` did not write is a coding tool's. An answer to it that is not one block
        of code is a turn: `{"text", "tool_calls"}`.
        """
        return self.form.parse_reply(self, completion, messages)

    def normalize(self, decision: dict[str, Any] | str, context: Context | None = None) -> dict[str, Any]:
        """A decision, as anyone may write it, in the one form that `parse` gives. Raises `UnparseableAnswer`.

        Text alone is the action of a label type; any other text is read as a completion is. The actions of a plan
        must be among those of the context, where it has any that can be read.
        """
        if not isinstance(decision, (dict, str)):
            raise UnparseableAnswer(f"a decision is an object, not {type(decision).__name__}")
        return self.form.normalize(self, decision, context)

    def format_answer(self, decision: dict[str, Any] | str) -> str:
        """The completion that says `decision`: what a model is taught. Raises `UnparseableAnswer`."""
        return self.form.format(self, self.normalize(decision))

    def sample_answers(self) -> list[str]:
        """Answers as this type writes them: what is in all of them belongs to its form."""
        return [self.format_answer(decision) for decision in self.form.sample_decisions(self)]


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


def questions_type(asked: QuestionSet) -> DecisionType:
    """The decision type of a set of typed questions."""
    longest = sum(len(q.name) + max(map(len, q.keys)) + 8 for q in asked.questions)
    return DecisionType(
        name=asked.type_name,
        tier="small",
        answer="questions",
        max_tokens=32 + longest,  # a token is one character at least
        temperature=0.0,
        thinking=TIER_THINKING["small"],
        questions=asked.questions,
    )


class DeclaredTypes(Protocol):
    """What declares decision types: a `reasoning.config.Config`."""

    @property
    def decision_types(self) -> Mapping[str, DecisionType]:
        """The types by name, the built-in ones included."""


def get_decision_type(name: str, config: DeclaredTypes | None = None) -> DecisionType:
    """The type called `name`: one that `config` declares, else a built-in. Raises `UnknownDecisionType`."""
    known = DECISION_TYPES if config is None else config.decision_types
    if name not in known:
        close = similar_name(name, known)
        hint = f" (did you mean {close}?)" if close else ""
        raise UnknownDecisionType(
            f"unknown decision type {name!r}{hint}; known: {', '.join(known)}. "
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
            each.normalize(value, context)
            return
        except UnparseableAnswer as error:
            reasons.append(str(error))
    raise UnparseableAnswer(f"{'; '.join(dict.fromkeys(reasons))[:400]}. {_allowed(types)}")


def partial_metric(metric: str, value: dict[str, Any], types: Sequence[DecisionType]) -> str:
    """`metric` of a demonstration that is complete; `<metric>.<question>` of one that answers some of several."""
    for each in types:
        names = {question.name for question in each.questions}
        if value.keys() < names:
            return f"{metric}.{'+'.join(sorted(value))}"
    return metric


def _allowed(types: Sequence[DecisionType]) -> str:
    return f"Allowed: {'; '.join(f'{each.name}: {each.form.describe(each)}' for each in types)}"
