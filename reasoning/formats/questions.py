"""Answers to typed questions about one state (`reasoning.questions`): `{"<question>": <value>, ...}`.

::

    system  Answer every question about the state with one of its options.
                                                                        an empty line
            Question "<name>" (choice|boolean|score): <text>            one block a question
            - <option as JSON>: <description>
                                                                        an empty line
            Answer with one JSON object and nothing else:
            {"answers": {"<name>": <option>, ...}}
    user    <the state: text as it is, messages as a transcript, all else as JSON>

The values are text for a choice, a boolean, or the number of a score's level. A label may answer some of the questions;
what a model says must answer all of them. It does not change within a schema version: a model is asked what it was
taught.
"""

from __future__ import annotations

import functools
import math
import random
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from reasoning.errors import InvalidContext, UnparseableAnswer
from reasoning.formats.fields import read_fields
from reasoning.formats.port import AnswerForm, Context, Decision, Order, Parameters, Schema, canonical_json
from reasoning.formats.transcript import clean_text, render_transcript
from reasoning.questions import Option, Probabilities, TypedQuestion, normalize_answers
from reasoning.records import Message

_BEGIN = re.compile(r'\{\s{0,8}"answers"\s{0,8}:\s{0,8}\{')
_VALUE = re.compile(r'\s{0,8}:\s{0,8}("(?:[^"\\]|\\.)*+"|true|false|[0-9]+)(?=\s{0,8}[,}])')
_HEAD = "Answer every question about the state with one of its options."
_TAIL = "Answer with one JSON object and nothing else:"
_MAX_TOP = 20
"""Servers tell no more alternatives of a token."""


class QuestionsForm(AnswerForm):
    """`{"<question>": value}`; see the module."""

    name = "questions"
    settings = ("questions",)
    temperature = 0.0
    declarable = False

    def render(self, parameters: Parameters, context: Context) -> list[Message]:
        system = render_questions(parameters.questions)
        return [{"role": "system", "content": system}, {"role": "user", "content": render_state(context)}]

    def reorder(self, parameters: Parameters, messages: Sequence[Message], order: Order) -> list[Message]:
        """The same prompt with the options of every choice and boolean in another order; levels stay in theirs."""
        questions = tuple(_in_order(question, order, number) for number, question in enumerate(parameters.questions))
        first: Message = {"role": "system", "content": render_questions(questions)}
        return [first, *messages[1:]]

    def parse(self, parameters: Parameters, completion: str, context: Context | None = None) -> Decision:
        fields = read_fields(completion, ("answers",), required="answers")
        return normalize_answers(parameters.questions, fields["answers"])

    def normalize(self, parameters: Parameters, decision: Decision | str, context: Context | None = None) -> Decision:
        """As `AnswerForm.normalize`. Takes `{"answers": {...}}` too, and of a single question its bare value."""
        names = [question.name for question in parameters.questions]
        if isinstance(decision, str):
            if len(names) != 1 or "{" in decision:
                return self.parse(parameters, decision)
            decision = {names[0]: decision}
        inner = decision.get("answers") if len(decision) == 1 else None
        return normalize_answers(parameters.questions, inner if isinstance(inner, Mapping) else decision)

    def check_complete(self, parameters: Parameters, decision: Decision) -> None:
        if missing := [question.name for question in parameters.questions if question.name not in decision]:
            raise UnparseableAnswer(f"answers: {missing[0]!r:.60} is not answered")

    def format(self, parameters: Parameters, decision: Decision) -> str:
        return orjson.dumps({"answers": decision}).decode()

    def agrees(self, label: Decision, decision: Decision) -> bool:
        """Does a decision answer as the label does whatever the label answers?"""
        return all(name in decision and decision[name] == value for name, value in label.items())

    def decision_schema(self, parameters: Parameters) -> Schema:
        return {
            "type": "object",
            "required": [question.name for question in parameters.questions],
            "properties": {q.name: {"enum": [q.value(key) for key in q.keys]} for q in parameters.questions},
        }

    def context_schema(self, parameters: Parameters) -> Schema:
        state = {"description": "text, an object, or a list"}
        return {"type": "object", "required": ["state"], "properties": {"state": state}}

    def describe(self, parameters: Parameters) -> str:
        return f"{{{', '.join(f'{q.name}: {q.describe()}' for q in parameters.questions)}}}"

    def deciding_span(self, completion: str) -> tuple[int, int] | None:
        """The object of the answers: its tokens say all that is decided, each other token is certain."""
        found = list(_BEGIN.finditer(completion))
        return (found[-1].end() - 1, completion.rfind("}")) if found else None

    def top_logprobs(self, parameters: Parameters) -> int:
        return min(_MAX_TOP, max(len(question.options) for question in parameters.questions))

    def probabilities(
        self,
        parameters: Parameters,
        tokens: Sequence[str],
        logprobs: Sequence[float | None],
        alternatives: Sequence[Mapping[str, float]],
    ) -> Probabilities | None:
        """Of every question that can be read: the probability of each option; see `_read_options`."""
        text = "".join(tokens)
        if not (begins := list(_BEGIN.finditer(text))) or len(alternatives) != len(tokens) != 0:
            return None
        starts, at = [], 0
        for token in tokens:
            starts.append(at)
            at += len(token)
        found: Probabilities = {}
        for question in parameters.questions:
            where = _find_value(text, begins[-1].end(), question)
            if where is not None and (read := _read_options(question, where, text, starts, logprobs, alternatives)):
                found[question.name] = read
        return found or None

    def sample_decisions(self, parameters: Parameters) -> list[Decision]:
        first = {question.name: question.value(question.keys[0]) for question in parameters.questions}
        return [first, {question.name: question.value(question.keys[-1]) for question in parameters.questions}]


FORM = QuestionsForm()


@functools.lru_cache(maxsize=1024)
def render_questions(questions: tuple[TypedQuestion, ...]) -> str:
    """The system message: the only place where questions become text, for serving, training and evaluation."""
    shown = ", ".join(f"{_json(question.name)}: <option>" for question in questions)
    blocks = "\n\n".join(_block(question) for question in questions)
    return clean_text(f'{_HEAD}\n\n{blocks}\n\n{_TAIL}\n{{"answers": {{{shown}}}}}')


def render_state(context: Context) -> str:
    """The user message. Raises `InvalidContext`."""
    if "state" not in context:
        raise InvalidContext('context["state"]: is missing; give text, an object or a list')
    state = context["state"]
    if isinstance(state, str):
        if not state.strip():
            raise InvalidContext('context["state"]: is empty')
        return clean_text(state)
    if isinstance(state, list) and state and all(_is_message(item) for item in state):
        return render_transcript([{"speaker": _speaker(item), "text": _text(item)} for item in state])
    if not isinstance(state, Mapping | list | tuple) or not state:
        raise InvalidContext(f'context["state"]: text, an object or a list is needed, not {type(state).__name__}')
    try:
        return clean_text(orjson.dumps(state).decode())
    except TypeError:
        return _json_of_odd(state)


def _json_of_odd(state: Any) -> str:
    """JSON of a state that orjson does not take: surrogates, or keys that are not text. Raises `InvalidContext`."""
    try:
        return clean_text(canonical_json(state))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidContext(f'context["state"]: is not JSON: {error}') from None


def _is_message(item: Any) -> bool:
    return isinstance(item, Mapping) and isinstance(_speaker(item), str) and isinstance(_text(item), str)


def _speaker(item: Mapping[str, Any]) -> Any:
    return item.get("speaker", item.get("role"))


def _text(item: Mapping[str, Any]) -> Any:
    return item.get("text", item.get("content"))


def _block(question: TypedQuestion) -> str:
    options = "\n".join(_option_line(question, option) for option in question.options)
    return f"Question {_json(question.name)} ({question.kind}): {_indent(question.text)}".rstrip() + f"\n{options}"


def _option_line(question: TypedQuestion, option: Option) -> str:
    said = f"- {_json(question.value(option.key))}"
    return f"{said}: {_indent(option.description)}" if option.description else said


def _indent(text: str) -> str:
    return "\n  ".join(text.splitlines())


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _in_order(question: TypedQuestion, order: Order, number: int) -> TypedQuestion:
    if question.kind == "score" or order == "declared":
        return question
    options = list(question.options)
    if order == "reversed":
        options.reverse()
    else:
        random.Random(f"{order}/{number}").shuffle(options)
    return TypedQuestion(question.kind, tuple(options), question.text, question.name)


def _find_value(text: str, start: int, question: TypedQuestion) -> tuple[int, int] | None:
    """Where the value of a question stands in the answers' object that begins at `start`."""
    name, values = _json(question.name), set(_written(question).values())
    at = text.find(name, start)
    while at >= 0:
        match = _VALUE.match(text, at + len(name))
        if match and match[1] in values:
            return match.span(1)
        at = text.find(name, at + 1)
    return None


@functools.lru_cache(maxsize=512)
def _written(question: TypedQuestion) -> dict[str, str]:
    """The JSON of every option's value by its key."""
    return {key: _json(question.value(key)) for key in question.keys}


def _read_options(
    question: TypedQuestion,
    where: tuple[int, int],
    text: str,
    starts: Sequence[int],
    logprobs: Sequence[float | None],
    alternatives: Sequence[Mapping[str, float]],
) -> dict[str, float] | None:
    """The probability of each option of a question whose value stands at `where`.

    The value's own is that of the tokens that spell it. The rest is shared among the other options by the alternatives
    of the first token at which options differ; an alternative that several of them begin with is shared equally.
    """
    start, end = where
    written = _written(question)
    chosen = next(key for key in question.keys if written[key] == text[start:end])
    common = _common_prefix(list(written.values()))
    spelled = range(max(bisect_right(starts, start) - 1, 0), bisect_left(starts, end))
    spelling = [i for i in spelled if starts[i] + _length(starts, i, text) > start]
    total = 0.0
    for i in spelling:
        if (p := logprobs[i]) is None:
            return None
        total += p
    own = min(math.exp(total), 1.0)
    deciding = next(i for i in spelling if starts[i] + _length(starts, i, text) > min(start + common, end - 1))
    weights = dict.fromkeys(question.keys, 0.0)
    before = text[start : starts[deciding]] if starts[deciding] > start else ""
    lead = text[starts[deciding] : start] if starts[deciding] < start else ""
    for token, logprob in alternatives[deciding].items():
        if not token.startswith(lead) or logprob is None or not math.isfinite(logprob):
            continue
        said = before + token[len(lead) :]
        matching = [
            key for key, value in written.items() if said and (value.startswith(said) or said.startswith(value))
        ]
        for key in matching:
            weights[key] += math.exp(logprob) / len(matching)
    weights[chosen] = 0.0
    others, left = sum(weights.values()), 1.0 - own
    if others <= 0:
        count = len(question.keys) - 1
        return {key: own if key == chosen else left / count for key in question.keys} if count else {chosen: 1.0}
    return {key: own if key == chosen else left * weights[key] / others for key in question.keys}


def _length(starts: Sequence[int], i: int, text: str) -> int:
    return (starts[i + 1] if i + 1 < len(starts) else len(text)) - starts[i]


def _common_prefix(texts: Sequence[str]) -> int:
    first, last = min(texts), max(texts)
    for at, (a, b) in enumerate(zip(first, last, strict=False)):
        if a != b:
            return at
    return min(len(first), len(last))
