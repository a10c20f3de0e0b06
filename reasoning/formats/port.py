"""What an answer form is: everything that depends on how an answer to a decision type is written.

A form has no state. What differs between two types of one form (labels, instruction, question) it gets as `Parameters`,
which a `reasoning.decision_types.DecisionType` is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from reasoning.questions import Probabilities, TypedQuestion
from reasoning.records import Message

Context = Mapping[str, Any]
Decision = dict[str, Any]
Schema = dict[str, Any]

TEXT_SCHEMA: Schema = {"type": "string"}

Order = str
"""An order of options: `declared`, `reversed`, or any other text, a seed by which they are shuffled."""


class Parameters(Protocol):
    """What a form may ask of the decision type that uses it."""

    @property
    def name(self) -> str:
        """The type's name."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The answers to choose from."""

    @property
    def instruction(self) -> str:
        """What to decide; may hold `{agent_name}`."""

    @property
    def question(self) -> str:
        """The last line of the prompt; may hold `{agent_name}`."""

    @property
    def max_messages(self) -> int:
        """How many of the latest messages a prompt shows."""

    @property
    def questions(self) -> tuple[TypedQuestion, ...]:
        """The typed questions, of the form `questions`."""


class AnswerForm:
    """One way to write an answer. A module of `reasoning.formats` subclasses it and names its instance `FORM`.

    For every decision d that `normalize` returns, `parse(format(d))` gives d again.
    """

    name: str
    """What `answer` of a decision type says."""

    settings: tuple[str, ...] = ("instruction", "question")
    """What a type declared in reasoning.toml must set, of `labels`, `instruction` and `question`."""
    optional_settings: tuple[str, ...] = ()
    """What it may set as well."""
    tier: Literal["small", "medium", "large"] = "small"
    """The tier of a declared type that names none."""
    max_tokens: int = 256
    """The longest completion of a declared type that says nothing else."""
    temperature: float = 0.1
    """The sampling temperature of a declared type that says nothing else."""
    declarable: bool = True
    """May a type of this form be declared in reasoning.toml?"""
    max_characters: int = 24_000
    """The longest training row that is exported unless the export says otherwise."""

    confidence: Literal["span", "mean"] = "span"
    """How confidence is measured: `span` by the tokens of the deciding span, `mean` by the mean of all tokens."""

    def render(self, parameters: Parameters, context: Context) -> list[Message]:
        """The messages that a model is asked. Raises `InvalidContext` naming the key that is missing or wrong."""
        raise NotImplementedError

    def parse(self, parameters: Parameters, completion: str, context: Context | None = None) -> Decision:
        """The decision in a completion. Raises `UnparseableAnswer`.

        With a context its actions must be among those that the context allows, whose spelling they get.
        """
        raise NotImplementedError

    def parse_reply(self, parameters: Parameters, completion: str, messages: Sequence[Mapping[str, Any]]) -> Decision:
        """The decision in an answer to `messages`, which `render` may not have written. Raises `UnparseableAnswer`."""
        return self.parse(parameters, completion)

    def normalize(self, parameters: Parameters, decision: Decision | str, context: Context | None = None) -> Decision:
        """A decision, as anyone may write it, in the one form that `parse` gives. Raises `UnparseableAnswer`."""
        raise NotImplementedError

    def format(self, parameters: Parameters, decision: Decision) -> str:
        """The completion that says a normalized decision: what a model is taught. Raises `UnparseableAnswer`."""
        raise NotImplementedError

    def answer_class(self, decision: Decision) -> str:
        """What a decision comes down to. Two decisions of one class are the same answer, in whatever words."""
        return canonical_json(decision)

    def agrees(self, label: Decision, decision: Decision) -> bool:
        """Is a decision right where `label` is what was right? A label may say less than a decision does."""
        return self.answer_class(label) == self.answer_class(decision)

    def check_complete(self, parameters: Parameters, decision: Decision) -> None:
        """Raises `UnparseableAnswer` where a model left out what a decision to serve needs; a label may say less."""

    def reorder(self, parameters: Parameters, messages: Sequence[Message], order: Order) -> list[Message]:
        """The same prompt with its options in another order. A form whose prompts have no options changes nothing."""
        return list(messages)

    def top_logprobs(self, parameters: Parameters) -> int:
        """How many alternatives of each token a request asks for."""
        return 1

    def probabilities(
        self,
        parameters: Parameters,
        tokens: Sequence[str],
        logprobs: Sequence[float | None],
        alternatives: Sequence[Mapping[str, float]],
    ) -> Probabilities | None:
        """The probability of every option, by the log-probabilities of a completion. None where a form has no options.

        The three sequences are parallel; `alternatives` has those of each token, by their text.
        """
        return None

    def decision_schema(self, parameters: Parameters) -> Schema:
        """JSON schema of a decision."""
        raise NotImplementedError

    def context_schema(self, parameters: Parameters) -> Schema:
        """JSON schema of a context."""
        raise NotImplementedError

    def describe(self, parameters: Parameters) -> str:
        """A decision as error messages show it, such as `{"action": "RESPOND|IGNORE|STOP"}`."""
        raise NotImplementedError

    def deciding_span(self, completion: str) -> tuple[int, int] | None:
        """Start and end of the value in a completion that decides. None where it cannot be told."""
        return None

    def allowed_actions(self, context: Context) -> list[str] | None:
        """The names of the actions that a context allows, None where the form has none. Raises `InvalidContext`."""
        return None

    def choices(self, context: Context) -> Context | None:
        """The part of a context that `normalize` looks at, to be kept for demonstrations. None where there is none."""
        return None

    def sample_decisions(self, parameters: Parameters) -> list[Decision]:
        """Decisions whose completions differ in all that may differ: what these share belongs to the form."""
        raise NotImplementedError


def canonical_json(value: Any) -> str:
    """JSON with sorted keys."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
