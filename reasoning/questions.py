"""Typed questions about one state: a choice, a yes or no, or a score.

::

    answer = client.ask(
        {"note": "Valve 7 leaks"},
        {
            "urgent": boolean("Does the line have to stop?"),
            "team": choice({"pipes": "faults of fluids", "power": None}, "Who repairs it?"),
            "severity": score(["minor", "major", "dangerous"], "How bad is it?"),
        },
        my_rules,
    )
    answer.decision        # {"severity": 1, "team": "pipes", "urgent": True}
    answer.probabilities   # {"team": {"pipes": 0.96, "power": 0.04}, …}

A set of questions is known by its content: its decision type is called `<name>_<hash>`. Other words make another type,
so answers to the old words are never taken for answers to the new ones. The order of questions and options makes no
difference: both are sorted, and every prompt shows them in that order.
"""

from __future__ import annotations

import enum
import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from reasoning.errors import InvalidQuestions, UnparseableAnswer

Kind = Literal["choice", "boolean", "score"]
Value = str | bool | int
Probabilities = dict[str, dict[str, float]]
"""Per question the probability of every option, by the option's key."""

MAX_QUESTIONS = 400
MAX_OPTIONS = 255
MAX_LEVELS = 100
MAX_TEXT = 65_536
"""Characters of a question with its options."""
TYPE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}_[0-9a-f]{12}")
"""The decision type of a set of questions."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_TRUE, _FALSE = "true", "false"
_WORDS = {"true": True, "yes": True, "false": False, "no": False}


@dataclass(frozen=True, slots=True)
class Option:
    """One possible answer. `key` is its value as text: `true` or `false` of a boolean, a level's number of a score."""

    key: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class TypedQuestion:
    """One question. Make it with `choice`, `boolean` or `score`; its name comes from the mapping that it is put in.

    `text` is what is asked. The options of a score are its levels, the lowest first.
    """

    kind: Kind
    options: tuple[Option, ...]
    text: str = ""
    name: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the options, in their order."""
        return tuple(option.key for option in self.options)

    def value(self, key: str) -> Value:
        """The value that an option's key stands for: text, a boolean, or a number of a level from 0."""
        if self.kind == "boolean":
            return key == _TRUE
        return int(key) if self.kind == "score" else key

    def key(self, value: Any) -> str:
        """The key of the option that `value` names. Raises `UnparseableAnswer` with the allowed values."""
        if isinstance(value, enum.Enum):
            value = value.value
        found = self._find(value)
        if found is None:
            raise UnparseableAnswer(f"{self.name}: {_shorten(value)} is not an option; allowed: {self.describe()}")
        return found

    def describe(self) -> str:
        """The allowed values, as an error message shows them."""
        shown = self.keys if len(self.options) <= 12 else (*self.keys[:12], "…")
        return "|".join(shown)

    def _find(self, value: Any) -> str | None:
        if self.kind == "boolean":
            said = _WORDS.get(value.strip().casefold()) if isinstance(value, str) else value
            return (_TRUE if said else _FALSE) if isinstance(said, bool) else None
        if isinstance(value, bool):
            value = _TRUE if value else _FALSE
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int):
            value = str(value)
        if not isinstance(value, str):
            return None
        if value in self.keys:
            return value
        names = {option.key.casefold(): option.key for option in self.options}
        if self.kind == "score":  # a level may be called by its words
            names = {option.description.casefold(): option.key for option in self.options} | names
        return names.get(value.strip().casefold())


def choice(options: Mapping[Any, str | None] | Iterable[Any], text: str = "") -> TypedQuestion:
    """One of several options: names with descriptions (None without one), a list of names, or an `Enum` class.

    Raises `InvalidQuestions`.
    """
    listed = dict(options) if isinstance(options, Mapping) else dict.fromkeys(options)
    return TypedQuestion("choice", tuple(Option(_key(k), _words(listed[k])) for k in listed), _words(text))


def boolean(text: str = "", *, true: str | None = None, false: str | None = None) -> TypedQuestion:
    """Yes or no. `true` and `false` may say when."""
    return TypedQuestion("boolean", (Option(_TRUE, _words(true)), Option(_FALSE, _words(false))), _words(text))


def score(levels: Iterable[str], text: str = "") -> TypedQuestion:
    """One of ordered levels, the lowest first. The value of an answer is the level's number, from 0."""
    return TypedQuestion("score", tuple(Option(str(i), _words(words)) for i, words in enumerate(levels)), _words(text))


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Questions that are asked of one state. Make it with `question_set`, which checks and sorts them."""

    name: str
    questions: tuple[TypedQuestion, ...]

    @property
    def type_name(self) -> str:
        """The name of the decision type: stable for the same content."""
        return f"{self.name}_{hashlib.sha256(canonical_questions(self.questions)).hexdigest()[:12]}"


def question_set(questions: Mapping[str, TypedQuestion], name: str = "ask") -> QuestionSet:
    """Questions by name, checked. Raises `InvalidQuestions` naming what is wrong."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidQuestions(f"name: {name!r:.60} is not a name; use letters, digits and _, starting with a letter")
    if not isinstance(questions, Mapping) or not 1 <= len(questions) <= MAX_QUESTIONS:
        raise InvalidQuestions(f"questions: a mapping of 1 to {MAX_QUESTIONS} names to questions is needed")
    return QuestionSet(name, tuple(_checked(each, questions[each]) for each in sorted(questions, key=str)))


def canonical_questions(questions: Iterable[TypedQuestion]) -> bytes:
    """The JSON of questions by which they are known and kept."""
    rows = [
        {
            "name": question.name,
            "type": question.kind,
            "text": question.text,
            "options": [[option.key, option.description] for option in question.options],
        }
        for question in questions
    ]
    return orjson.dumps(rows, option=orjson.OPT_SORT_KEYS)


def read_canonical(payload: bytes) -> tuple[TypedQuestion, ...]:
    """The inverse of `canonical_questions`. Raises `InvalidQuestions`."""
    try:
        found = {
            row["name"]: TypedQuestion(row["type"], tuple(Option(*option) for option in row["options"]), row["text"])
            for row in orjson.loads(payload)
        }
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise InvalidQuestions(f"questions: not a set of questions: {type(error).__name__}: {error}") from None
    return question_set(found).questions


def normalize_answers(questions: Iterable[TypedQuestion], answers: Any) -> dict[str, Value]:
    """Answers by question, in one form. A label may answer only some. Raises `UnparseableAnswer`."""
    if not isinstance(answers, Mapping):
        raise UnparseableAnswer(f"answers: an object is needed, not {type(answers).__name__}")
    known = {question.name: question for question in questions}
    if unknown := answers.keys() - known.keys():
        raise UnparseableAnswer(f"answers: {min(map(str, unknown))!r:.60} is not a question; known: {', '.join(known)}")
    if not answers:
        raise UnparseableAnswer(f"answers: at least one is needed; questions: {', '.join(known)}")
    return {name: q.value(q.key(answers[name])) for name, q in known.items() if name in answers}


def normalize_probabilities(questions: Iterable[TypedQuestion], raw: Any) -> Probabilities | None:
    """Probabilities by question and option that sum to 1; None where there are none that can be used.

    A question whose probabilities are unusable (an unknown option, a number outside 0..1, no sum) is left out.
    """
    if not isinstance(raw, Mapping):
        return None
    found: Probabilities = {}
    for question in questions:
        given = raw.get(question.name)
        if not isinstance(given, Mapping):
            continue
        try:
            known = {question.key(key): float(p) for key, p in given.items()}
        except (UnparseableAnswer, TypeError, ValueError):
            continue
        total = sum(known.values())
        if all(math.isfinite(p) and 0 <= p <= 1 for p in known.values()) and total > 0:
            found[question.name] = {key: known.get(key, 0.0) / total for key in question.keys}
    return found or None


def expected_score(probabilities: Mapping[str, float]) -> float:
    """The mean level of a score, from 0, by the probabilities of its levels."""
    return sum(int(level) * p for level, p in probabilities.items())


def _checked(name: str, question: TypedQuestion) -> TypedQuestion:
    """A question under its name, a choice's options sorted. Raises `InvalidQuestions`."""
    if not isinstance(name, str) or not 1 <= len(name) <= 200 or not name.isprintable():
        raise InvalidQuestions(f"questions: {name!r:.60} is not a name; use up to 200 printable characters")
    if not isinstance(question, TypedQuestion):
        raise InvalidQuestions(f"questions: {name}: make it with choice(), boolean() or score()")
    keys, kind = question.keys, question.kind
    limits = {"choice": (1, MAX_OPTIONS), "boolean": (2, 2), "score": (1, MAX_LEVELS)}
    if kind not in limits:
        raise InvalidQuestions(f"questions: {name}: {kind!r:.60} is none of {', '.join(limits)}")
    low, high = limits[kind]
    if not low <= len(keys) <= high:
        raise InvalidQuestions(f"questions: {name}: {len(keys)} options; a {kind} has {low} to {high}")
    if kind == "boolean" and set(keys) != {_TRUE, _FALSE}:
        raise InvalidQuestions(f"questions: {name}: the options of a boolean are true and false")
    if kind == "score" and keys != tuple(map(str, range(len(keys)))):
        raise InvalidQuestions(f"questions: {name}: the levels of a score are numbered from 0")
    if len({key.casefold() for key in keys}) != len(keys):
        raise InvalidQuestions(f"questions: {name}: two options differ by no more than upper and lower case")
    if not all(key.strip() and key.isprintable() for key in keys):
        raise InvalidQuestions(f"questions: {name}: an option is printable text, and not empty")
    size = len(question.text) + sum(len(option.key) + len(option.description) for option in question.options)
    if size > MAX_TEXT:
        raise InvalidQuestions(f"questions: {name}: {size} characters; at most {MAX_TEXT} are allowed")
    options = question.options
    if kind == "choice":
        options = tuple(sorted(options, key=lambda option: option.key))
    return TypedQuestion(kind, options, question.text, name)


def _key(value: Any) -> str:
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, bool):
        return _TRUE if value else _FALSE
    if not isinstance(value, str | int):
        raise InvalidQuestions(f"options: {value!r:.60} is not text")
    return str(value)


def _words(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidQuestions(f"questions: {value!r:.60} is not text")
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
