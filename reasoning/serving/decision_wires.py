"""The two wires of decision models: OpenAI's `/v1/decisions` and TypeSafe's `/v1/systemone`.

A wire reads a request as a state with typed questions and writes one, and reads and writes the answers. What cannot be
a question of ours (an image, a box in one, options that are the same text, more than a limit allows) is `Unaskable`:
only the model that the client meant can answer it.

Names of questions that a request leaves out are their numbers, `q1`, `q2`. The answers carry the probability of every
option; `confidence` is that of the answer, the largest one. A score is the mean level, from 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from reasoning.errors import InvalidQuestions, UnparseableAnswer
from reasoning.io.bounded import load_bounded
from reasoning.questions import (
    Probabilities,
    QuestionSet,
    TypedQuestion,
    Value,
    boolean,
    choice,
    expected_score,
    normalize_probabilities,
    question_set,
    score,
)

_IMAGES = frozenset({"image", "input_image", "image_url"})
_KNOWN = frozenset(
    (
        *("model", "state", "input", "questions", "metadata", "user", "safety_identifier", "session_id", "trace"),
        *("prompt_cache_key", "prompt_cache_options", "service_tier", "store", "provider", "models", "route"),
    )
)
"""Fields of a request that are read, or that change no answer. Any other one may be a part of what is asked."""


class Unaskable(Exception):
    """A request that our models cannot answer. The message says why."""


@dataclass(frozen=True, slots=True)
class DecisionRequest:
    """A request: the state, the questions, and per question of ours (in the client's order) what the client wrote."""

    model: str
    state: Any
    questions: QuestionSet
    raw: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class DecisionResponse:
    """Answers by question, without those that were refused; the probabilities, and the tokens where they were told."""

    model: str
    answers: dict[str, Value]
    probabilities: Probabilities
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class DecisionWire:
    """One way to ask typed questions over HTTP. `path` is below the server's URL. `read_request` raises `Unaskable`."""

    name: str
    path: str
    read_request: Callable[[Mapping[str, Any]], DecisionRequest]
    write_request: Callable[[str, Any, QuestionSet], dict[str, Any]]
    parse_response: Callable[[bytes, QuestionSet, Sequence[str]], DecisionResponse]
    write_response: Callable[[DecisionRequest, DecisionResponse], dict[str, Any]]

    def read_response(self, body: bytes, asked: QuestionSet, names: Sequence[str] | None = None) -> DecisionResponse:
        """The answers in a response's body. `names` are those of the questions in the request's order, if another.

        Raises `UnparseableAnswer` for what is no answer to the questions.
        """
        try:
            return self.parse_response(body, asked, names or [question.name for question in asked.questions])
        except (Unaskable, LookupError, TypeError, ValueError, AttributeError) as error:
            raise UnparseableAnswer(f"not a response to these questions: {error}") from None


def get_wire(name: str) -> DecisionWire:
    """The wire called `name`. Raises `InvalidQuestions`."""
    if name not in WIRES:
        raise InvalidQuestions(f"wire: {name!r} is not known; known: {', '.join(WIRES)}")
    return WIRES[name]


# --- TypeSafe -----------------------------------------------------------------------------------------------------


def _read_systemone(request: Mapping[str, Any]) -> DecisionRequest:
    asked = request.get("questions")
    if not isinstance(asked, Mapping):
        raise Unaskable("questions: an object is needed")
    raw = {str(name): _object(question) for name, question in asked.items()}
    return _request(request, request.get("state"), {name: _systemone_question(each) for name, each in raw.items()}, raw)


def _systemone_question(question: Mapping[str, Any]) -> TypedQuestion:
    kind, criteria = question.get("type"), question.get("criteria")
    text = _text(question.get("instructions"))
    if kind == "noul":
        said = _object(criteria) if criteria is not None else {}
        return boolean(text, true=_text(said.get("true")), false=_text(said.get("false")))
    if kind == "choice" and isinstance(criteria, Mapping):
        return choice({str(name): _text(about) for name, about in criteria.items()}, text)
    if kind == "score" and isinstance(criteria, list):
        return score([_text(level) for level in criteria], text)
    raise Unaskable(f"a question of the type {kind!r:.60} with these criteria")


def _write_systemone(model: str, state: Any, asked: QuestionSet) -> dict[str, Any]:
    questions: dict[str, Any] = {}
    for question in asked.questions:
        about = {option.key: option.description or None for option in question.options}
        written: dict[str, Any] = {"type": "noul" if question.kind == "boolean" else question.kind}
        if question.text:
            written["instructions"] = question.text
        if question.kind == "score":
            written["criteria"] = [option.description for option in question.options]
        elif question.kind == "choice" or any(about.values()):
            written["criteria"] = about
        questions[question.name] = written
    return {"model": model, "state": state, "questions": questions}


def _read_systemone_answers(body: bytes, asked: QuestionSet, names: Sequence[str]) -> DecisionResponse:
    found = _load(body)
    answers = found.get("answers")
    if not isinstance(answers, Mapping):
        raise UnparseableAnswer("the response has no answers")
    told: dict[str, dict[str, float]] = {}
    for question in asked.questions:
        answer = answers.get(question.name)
        if not isinstance(answer, Mapping) or answer.get("type") == "refusal":
            continue
        told[question.name] = (
            _of_noul(answer.get("noul")) if question.kind == "boolean" else _object(answer.get("probabilities"))
        )
    return _response(found, asked, told)


def _write_systemone_answers(request: DecisionRequest, response: DecisionResponse) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    by_name = {question.name: question for question in request.questions.questions}
    for name, raw in request.raw.items():
        question, told = by_name[name], response.probabilities.get(name)
        if told is None:
            continue
        if question.kind == "boolean":
            answers[name] = {"type": "noul", "noul": told["true"]}
            continue
        common = {"confidence": max(told.values()), "probabilities": told}
        if question.kind == "choice":
            ordered = {str(key): told[str(key)] for key in raw["criteria"]}  # as the client wrote them
            chosen = response.answers[name]
            answers[name] = {"type": "choice", "choice": chosen, **common, "probabilities": ordered}
        else:
            legend = {str(level): words for level, words in enumerate(raw["criteria"])}
            answers[name] = {"type": "score", "score": expected_score(told), "legend": legend, **common}
    usage = {"input_tokens": response.input_tokens or 0, "output_tokens": response.output_tokens or 0}
    return {"model": response.model, "answers": answers, "usage": usage}


# --- OpenAI -------------------------------------------------------------------------------------------------------


def _read_decisions(request: Mapping[str, Any]) -> DecisionRequest:
    asked = request.get("questions")
    if not isinstance(asked, list):
        raise Unaskable("questions: a list is needed")
    raw: dict[str, Mapping[str, Any]] = {}
    for number, each in enumerate(asked, 1):
        question = _object(each)
        name = question.get("name")
        name = f"q{number}" if name is None else str(name)
        if name in raw:
            raise Unaskable(f"two questions are called {name!r:.60}")
        raw[name] = question
    questions = {name: _decisions_question(question) for name, question in raw.items()}
    return _request(request, _decisions_state(request.get("input")), questions, raw)


def _decisions_question(question: Mapping[str, Any]) -> TypedQuestion:
    kind, text = question.get("type"), _text(question.get("instructions"))
    if kind == "predicate":
        return boolean(text)
    if kind == "choice" and isinstance(choices := question.get("choices"), list):
        rows = [_object(each) for each in choices]
        options = {_choice_key(row.get("value")): _text(row.get("description")) for row in rows}
        if len(options) != len(rows):
            raise Unaskable("two choices are the same text")
        return choice(options, text)
    if kind == "score" and isinstance(levels := question.get("levels"), list):
        return score([_level(_object(each)) for each in levels], text)
    raise Unaskable(f"a question of the type {kind!r:.60} with these options")


def _choice_key(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        raise Unaskable("a choice that is neither text nor a boolean")
    return value


def _level(level: Mapping[str, Any]) -> str:
    if "label" not in level:
        raise Unaskable("a level without a label")
    label, about = _text(level["label"]), _text(level.get("description"))
    return f"{label}: {about}" if about else label


def _decisions_state(given: Any) -> Any:
    if isinstance(given, str):
        return given
    if not isinstance(given, list) or not given:
        raise Unaskable("input: text or a list of items is needed")
    return [_item(_object(item)) for item in given]


def _item(item: Mapping[str, Any]) -> dict[str, str]:
    kind = item.get("type", "message")
    if kind == "message":
        return {"role": str(item.get("role") or "user"), "content": _text(item.get("content"))}
    if kind in ("function_call", "custom_tool_call"):
        said = _text(item.get("arguments", item.get("input")))
        return {"role": "assistant", "content": f"{item.get('name')}({said})"}
    if kind in ("function_call_output", "custom_tool_call_output"):
        return {"role": "tool", "content": _text(item.get("output"))}
    raise Unaskable(f"an item of the type {kind!r:.60}")


def _write_decisions(model: str, state: Any, asked: QuestionSet) -> dict[str, Any]:
    questions: list[dict[str, Any]] = []
    for question in asked.questions:
        written: dict[str, Any] = {"name": question.name, "instructions": question.text or question.name}
        if question.kind == "boolean":
            said = [f"{o.key.capitalize()}: {o.description}" for o in question.options if o.description]
            written |= {"type": "predicate", "instructions": "\n".join([written["instructions"], *said])}
        elif question.kind == "choice":
            options = [
                {"value": o.key} | ({"description": o.description} if o.description else {}) for o in question.options
            ]
            written |= {"type": "choice", "choices": options}
        else:
            written |= {"type": "score", "levels": [{"label": option.description} for option in question.options]}
        questions.append(written)
    return {"model": model, "input": state if isinstance(state, str) else _dump(state), "questions": questions}


def _read_decisions_answers(body: bytes, asked: QuestionSet, names: Sequence[str]) -> DecisionResponse:
    found = _load(body)
    answers = found.get("answers")
    if not isinstance(answers, list) or len(answers) != len(names):
        raise UnparseableAnswer(f"the response has not {len(names)} answers")
    by_name = {question.name: question for question in asked.questions}
    told: dict[str, dict[str, float]] = {}
    for name, each in zip(names, answers, strict=True):  # in the order of the questions
        answer = _object(each)
        if answer.get("type") == "refusal":
            continue
        if by_name[name].kind == "boolean":
            told[name] = _of_noul(answer.get("probability"))
            continue
        rows = [_object(row) for row in answer.get("probabilities") or ()]
        told[name] = {_option_key(row.get("value")): row["probability"] for row in rows if "probability" in row}
    return _response(found, asked, told)


def _write_decisions_answers(request: DecisionRequest, response: DecisionResponse) -> dict[str, Any]:
    by_name = {question.name: question for question in request.questions.questions}
    answers: list[dict[str, Any]] = []
    for name, raw in request.raw.items():
        question, told = by_name[name], response.probabilities.get(name)
        base = {"name": raw.get("name")}
        if told is None:
            answers.append({"type": "refusal", **base})
            continue
        if question.kind == "boolean":
            answers.append({"type": "predicate", **base, "probability": told["true"]})
            continue
        base |= {"type": question.kind, "confidence": max(told.values())}
        if question.kind == "choice":
            values = [row["value"] for row in raw["choices"]]
            rows = [{"value": value, "probability": told[_choice_key(value)]} for value in values]
            chosen = next(value for value in values if _choice_key(value) == response.answers[name])
            answers.append({**base, "choice": chosen, "probabilities": rows})
        else:
            labels = [level["label"] for level in raw["levels"]]
            rows = [{"value": i, "label": label, "probability": told[str(i)]} for i, label in enumerate(labels)]
            answers.append({**base, "score": expected_score(told), "probabilities": rows})
    usage = {
        "input_tokens": response.input_tokens or 0,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": response.output_tokens or 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": (response.input_tokens or 0) + (response.output_tokens or 0),
    }
    return {"model": response.model, "answers": answers, "usage": usage}


# --- both ---------------------------------------------------------------------------------------------------------


def _request(
    request: Mapping[str, Any], state: Any, questions: dict[str, TypedQuestion], raw: Mapping[str, Mapping[str, Any]]
) -> DecisionRequest:
    if unknown := [name for name in request.keys() - _KNOWN if request[name]]:
        raise Unaskable(f"{min(unknown)!r:.60} is more than a state and questions")
    model = request.get("model")
    if not isinstance(model, str):
        raise Unaskable("model: text is needed")
    try:
        return DecisionRequest(model, state, question_set(questions), raw)
    except InvalidQuestions as error:
        raise Unaskable(str(error)) from None


def _response(found: Mapping[str, Any], asked: QuestionSet, told: dict[str, dict[str, float]]) -> DecisionResponse:
    """A response by its probabilities: the likeliest option is the answer."""
    probabilities = normalize_probabilities(asked.questions, told) or {}
    if unread := told.keys() - probabilities.keys():
        raise UnparseableAnswer(f"{min(unread)}: no probabilities of its options")
    if not probabilities:
        raise UnparseableAnswer("every question was refused")
    answers: dict[str, Value] = {}
    for question in asked.questions:
        if (own := probabilities.get(question.name)) is not None:
            answers[question.name] = question.value(max(own, key=lambda key: own[key]))
    usage = _object(found.get("usage") or {})
    cached, thought = (
        (usage.get(name) or {}).get(field) if isinstance(usage.get(name) or {}, Mapping) else None
        for name, field in (("input_tokens_details", "cached_tokens"), ("output_tokens_details", "reasoning_tokens"))
    )
    tokens = (_count(each) for each in (usage.get("input_tokens"), usage.get("output_tokens"), cached, thought))
    return DecisionResponse(str(found.get("model") or ""), answers, probabilities, *tokens)


def _of_noul(value: Any) -> dict[str, float]:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
        raise UnparseableAnswer(f"the probability {value!r:.40} is not a number from 0 to 1")
    return {"true": float(value), "false": 1.0 - value}


def _option_key(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _text(value: Any) -> str:
    """Instructions, a description or content as text; JSON as it is written. Raises `Unaskable` for an image."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, Mapping) and "type" in part for part in value):
        return "\n".join(_part(part) for part in value)
    return _dump(value)


def _part(part: Mapping[str, Any]) -> str:
    kind = str(part.get("type"))
    if kind in _IMAGES:
        raise Unaskable("there is an image")
    for name in ("text", "refusal"):
        if isinstance(part.get(name), str):
            return str(part[name])
    return _dump({name: value for name, value in part.items() if name != "type"})


def _dump(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError as error:
        raise Unaskable(f"not JSON: {error}") from None


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise Unaskable(f"an object is needed, not {type(value).__name__}")
    return dict(value)


def _load(body: bytes) -> dict[str, Any]:
    try:
        found = load_bounded(body)
    except ValueError as error:
        raise UnparseableAnswer(f"the response is not JSON, or too much of it: {error}") from None
    if not isinstance(found, dict):
        raise UnparseableAnswer("the response is not an object")
    return found


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


SYSTEM_ONE = DecisionWire(
    "systemone",
    "/v1/systemone",
    _read_systemone,
    _write_systemone,
    _read_systemone_answers,
    _write_systemone_answers,
)
DECISIONS = DecisionWire(
    "decisions",
    "/v1/decisions",
    _read_decisions,
    _write_decisions,
    _read_decisions_answers,
    _write_decisions_answers,
)
WIRES = {wire.name: wire for wire in (SYSTEM_ONE, DECISIONS)}
