"""Order questions by how much a label of them would teach.

The value of a question is the sum of what is known of it:

* both sides answered, and not the same;
* feedback called the answer wrong;
* how unsure the model was, or a small model of the labels so far (TF-IDF and logistic regression of the words, of who
  spoke in which order, or of both: what is best on labels that it was not made of): the entropy of its probabilities,
  and the probability that it gives to answers other than the fallback's;
* how few labels its slice has: the questions of one agent that were answered alike.

"Uncertainty sampling" is of Lewis and Gale, "A Sequential Algorithm for Training Text Classifiers", 1994.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quality.dataset.label_policy import LabelPolicy
from quality.labelling.questions import Question, Questions
from reasoning.decision_types import DecisionType

LEAST_LABELS = 20
"""Below so many labels no model is made of them."""
_TEXT = 500
_TURNS = 6
_SLICE_WEIGHT = 0.5

Floats = NDArray[np.float64]


def order_questions(
    questions: Questions,
    kind: DecisionType,
    policy: LabelPolicy,
    *,
    limit: int,
    random_share: float,
    second_share: float,
) -> list[Question]:
    """The next `limit` questions: of the random share, for a second opinion, and the others by value, mixed evenly."""
    second = _marked(questions.second[: round(limit * second_share)], "second")
    drawn = _marked(questions.reserved[: round((limit - len(second)) * random_share)], "random")
    by_value = _by_value(questions, kind, policy, limit - len(second) - len(drawn))
    if missing := limit - len(second) - len(drawn) - len(by_value):
        drawn += _marked(questions.reserved[len(drawn) : len(drawn) + missing], "random")
    return _mix(_marked(by_value, "queue"), drawn, second)


def _marked(questions: Sequence[Question], draw: Any) -> list[Question]:
    for question in questions:
        question.draw = draw
    return list(questions)


def _mix(*lists: Sequence[Question]) -> list[Question]:
    """The lists as one, each of them spread evenly over it."""
    placed = [((index + 0.5) / len(each), question) for each in lists for index, question in enumerate(each)]
    return [question for _, question in sorted(placed, key=lambda pair: pair[0])]


def _by_value(questions: Questions, kind: DecisionType, policy: LabelPolicy, limit: int) -> list[Question]:
    pool = questions.pool
    if not pool or limit <= 0:
        return []
    values = np.zeros(len(pool))
    for index, question in enumerate(pool):
        question.why = []
        if question.original and question.candidate and not _same(kind, question.original, question.candidate):
            values[index] += 1
            question.why.append("the two answers differ")
        if _is_negative(question, policy):
            values[index] += 1
            question.why.append("negative feedback")
        if question.confidence is not None:
            values[index] += 1 - question.confidence
            if question.confidence < 0.7:
                question.why.append(f"the model was {question.confidence:.0%} sure")
    values += _learned(questions, kind)
    slices = [_slice(kind, question) for question in pool]
    labelled = Counter(_slice(kind, question) for question in questions.labelled)
    chosen: list[Question] = []
    free = np.ones(len(pool), dtype=bool)
    numbers = np.array([list(dict.fromkeys(slices)).index(each) for each in slices])
    counts = np.array([labelled[each] for each in dict.fromkeys(slices)], dtype=float)
    for _ in range(min(limit, len(pool))):  # one after the other: each choice makes its slice less rare
        scores = np.where(free, values + _SLICE_WEIGHT / (1 + counts[numbers]), -math.inf)
        best = int(np.argmax(scores))
        free[best] = False
        if counts[numbers[best]] == 0:
            pool[best].why.append("no label yet of this agent and answer")
        counts[numbers[best]] += 1
        chosen.append(pool[best])
    return chosen


def _learned(questions: Questions, kind: DecisionType) -> Floats:
    """How unsure a small model of the labels is of each question of the pool, and how it differs from the answer."""
    pool = questions.pool
    nothing = np.zeros(len(pool))
    labelled = [question for question in questions.labelled if question.label is not None]
    if not kind.labels or len(labelled) < LEAST_LABELS:  # plans and code are not classes
        return nothing
    classes = [_class(kind, question.label) for question in labelled]
    if len(set(classes)) < 2:
        return nothing
    views = {each: [each(question) for question in labelled] for each in (_text, _order_of_speakers, _both)}
    best = max(views, key=lambda each: _cross_validated(views[each], classes))
    model = _small_model().fit(views[best], classes)
    probabilities = model.predict_proba([best(question) for question in pool])
    entropy = -(probabilities * np.log(np.clip(probabilities, 1e-12, 1))).sum(axis=1) / math.log(len(model.classes_))
    columns = {name: column for column, name in enumerate(model.classes_)}
    served = [columns.get(_class(kind, question.served)) for question in pool]
    doubts = np.array([1 - row[at] if at is not None else 0.5 for row, at in zip(probabilities, served, strict=True)])
    for question, doubt in zip(pool, doubts, strict=True):
        if doubt > 0.6:
            question.why.append("earlier labels speak against the answer")
    return np.asarray(entropy + doubts, dtype=np.float64)


def _small_model() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return make_pipeline(
        TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), max_features=50_000, token_pattern=r"\S+"),  # noqa: S106 - a pattern
        LogisticRegression(class_weight="balanced", max_iter=200),
    )


def _cross_validated(texts: Sequence[str], classes: Sequence[str]) -> float:
    """Balanced accuracy of the small model on labels that it was not made of. 0 where a class is too rare."""
    from sklearn.model_selection import cross_val_score

    folds = min(3, *Counter(classes).values())
    if folds < 2 or not any(texts):
        return 0.0
    scores = cross_val_score(_small_model(), list(texts), list(classes), scoring="balanced_accuracy", cv=folds)
    return float(scores.mean())


def _text(question: Question) -> str:
    """The end of what was asked: the latest messages and the question."""
    return str(question.messages[-1]["content"])[-_TEXT:] if question.messages else ""


def _both(question: Question) -> str:
    return f"{_text(question)} {_order_of_speakers(question)}"


def _order_of_speakers(question: Question) -> str:
    """The latest lines of a transcript as words, by who spoke: the last speaker, one that the question names, another.

    In conversations that may say more of whether to answer than the words do.
    """
    lines = str(question.messages[-1]["content"]).splitlines() if question.messages else []
    speakers = [line.partition(": ")[0] for line in lines if ": " in line and not line.startswith(" ")]
    if not speakers:
        return ""
    named, last = lines[-1], speakers[-1]
    parts = ["ego" if name in named else "same" if name == last else "else" for name in speakers[-_TURNS:]]
    places = [f"{part}at{number}" for number, part in enumerate(reversed(parts))]
    chains = ["then".join(parts[-length:]) + "end" for length in range(2, len(parts) + 1)]
    return " ".join([*places, *chains])


def _slice(kind: DecisionType, question: Question) -> tuple[str | None, str]:
    return question.agent_id, _class(kind, question.served) if kind.labels else ""


def _class(kind: DecisionType, decision: dict[str, Any] | None) -> str:
    return "" if decision is None else kind.form.answer_class(decision)


def _same(kind: DecisionType, first: dict[str, Any], second: dict[str, Any]) -> bool:
    return _class(kind, first) == _class(kind, second)


def _is_negative(question: Question, policy: LabelPolicy) -> bool:
    tests = {
        ">=": lambda value, bound: value >= bound,
        "<=": lambda value, bound: value <= bound,
        ">": lambda value, bound: value > bound,
        "<": lambda value, bound: value < bound,
    }
    return any(
        rule.metric in question.feedback and not tests[rule.comparison](question.feedback[rule.metric], rule.value)
        for rule in policy.outcomes
    )
