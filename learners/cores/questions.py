"""Typed questions about one state: a classifier each, of the same transcript.

A row may answer some of the questions; a classifier learns from the rows that answer its own. What it learns does not
depend on the order in which a prompt shows the options: it sees the state alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from learners.artifact import Parts
from learners.cores.choice import ChoiceModel
from learners.errors import DatasetError
from learners.transcript import Transcript

Fit = Callable[[list[Transcript], list[str], list[Transcript], list[str]], tuple[ChoiceModel, dict[str, float]]]


@dataclass(frozen=True, slots=True)
class OptionProbabilities:
    """What is answered to one question: the value as JSON, and the log-probability (natural) of every option."""

    name: str
    value: str
    log_probabilities: dict[str, float]


class QuestionsModel:
    """A classifier for each question, by its name. Their classes are the options' values as JSON."""

    def __init__(self, heads: dict[str, ChoiceModel]) -> None:
        self.heads = heads

    @classmethod
    def from_parts(cls, parts: Parts) -> QuestionsModel:
        """The model whose `parts` these are."""
        names = parts.values["questions"]
        return cls({name: ChoiceModel.from_parts(parts.get(f"question{i}")) for i, name in enumerate(names)})

    def parts(self) -> Parts:
        """What an artifact keeps of it."""
        parts = Parts({"questions": list(self.heads)})
        for i, head in enumerate(self.heads.values()):
            parts.put(f"question{i}", head.parts())
        return parts

    def decide(self, transcript: Transcript) -> list[OptionProbabilities]:
        """An answer to every question, in the order of their names."""
        found = []
        for name, head in self.heads.items():
            log_p = head.log_probabilities(transcript)
            value = head.classes[int(np.argmax(log_p + head.offsets))]
            found.append(OptionProbabilities(name, value, dict(zip(head.classes, map(float, log_p), strict=True))))
        return found


def fit_questions(
    train: Sequence[Transcript],
    answers: Sequence[str],
    validation: Sequence[Transcript],
    validation_answers: Sequence[str],
    fit: Fit,
) -> tuple[QuestionsModel, dict[str, float]]:
    """Fit a classifier for each question with `fit`. `answers` are JSON objects, values by question.

    Returns the model, and the mean of each metric over the questions. Raises `DatasetError`.
    """
    rows, held_out = [_values(text) for text in answers], [_values(text) for text in validation_answers]
    names = sorted({name for row in rows for name in row})
    if not names:
        raise DatasetError("no row answers a question")
    heads: dict[str, ChoiceModel] = {}
    measured: list[dict[str, float]] = []
    for name in names:
        known = [i for i, row in enumerate(rows) if name in row]
        unseen = [i for i, row in enumerate(held_out) if name in row]
        heads[name], metrics = fit(
            [train[i] for i in known],
            [rows[i][name] for i in known],
            [validation[i] for i in unseen],
            [held_out[i][name] for i in unseen],
        )
        measured.append(metrics)
    shared = set.intersection(*(set(metrics) for metrics in measured))
    return QuestionsModel(heads), {key: float(np.mean([m[key] for m in measured])) for key in sorted(shared)}


def write_answers(answers: Sequence[OptionProbabilities]) -> tuple[list[str], list[float], list[dict[str, float]]]:
    """The completion as tokens, the log-probability of each, and the alternatives of each: every value is one token."""
    tokens, log_probabilities = ['{"answers":{'], [0.0]
    alternatives: list[dict[str, float]] = [{}]
    for number, answer in enumerate(answers):
        name = json.dumps(answer.name, ensure_ascii=False)
        tokens += [f"{',' if number else ''}{name}:", answer.value]
        log_probabilities += [0.0, answer.log_probabilities[answer.value]]
        alternatives += [{}, answer.log_probabilities]
    return [*tokens, "}}"], [*log_probabilities, 0.0], [*alternatives, {}]


def _values(answers: str) -> dict[str, str]:
    return {name: json.dumps(value, ensure_ascii=False) for name, value in json.loads(answers).items()}
