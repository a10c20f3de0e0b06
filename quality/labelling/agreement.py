"""How far people who labelled the same questions agree: Cohen's kappa of each pair of them, and the conflicts.

Kappa is agreement beyond chance: 1 is always, 0 as often as by chance (Cohen, "A Coefficient of Agreement for Nominal
Scales", 1960).
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson

import storage
from quality.labelling.questions import LABELS
from reasoning.decision_types import DecisionType

if TYPE_CHECKING:
    import duckdb

CONFLICTS_SHOWN = 20

_SHARED = f"""
WITH labels AS ({LABELS})
SELECT request_id, coalesce(author, '') AS author, latest.answer FROM labels
WHERE request_id IN (SELECT request_id FROM labels GROUP BY 1 HAVING count(*) > 1)
ORDER BY request_id, author
"""  # noqa: S608 - a constant


@dataclass(frozen=True, slots=True)
class PairAgreement:
    """Two labellers: of `shared` questions they answered `agreed` alike. `kappa` is None where all answers are one."""

    first: str
    second: str
    shared: int
    agreed: int
    kappa: float | None


@dataclass(frozen=True, slots=True)
class Conflict:
    """A question with different labels: the class of each author's answer."""

    request_id: UUID
    answers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of the questions that several people labelled. `kappa` is the mean of the pairs', weighted by what they share.

    `conflicts` holds the first 20 of `disagreed`.
    """

    shared: int
    disagreed: int
    kappa: float | None
    pairs: list[PairAgreement]
    conflicts: list[Conflict]


def measure_agreement(data: Path, kind: DecisionType) -> Agreement:
    """Compare the labels of all authors on the questions of a decision type. Raises `DataFolderError`."""

    def fetch(log: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
        return log.execute(_SHARED, {"decision_type": kind.name}).fetchall()

    answers: dict[UUID, dict[str, str]] = {}
    for request_id, author, answer in storage.read(data, fetch):
        decision = orjson.loads(answer) if answer else None
        if isinstance(decision, dict):
            answers.setdefault(request_id, {})[author] = kind.form.answer_class(decision)
    return agreement_of(answers)


def agreement_of(answers: Mapping[UUID, Mapping[str, str]]) -> Agreement:
    """The agreement on questions, each with the class of answer that each author gave."""
    shared = {request_id: given for request_id, given in answers.items() if len(given) > 1}
    authors = sorted({author for given in shared.values() for author in given})
    pairs = [pair for first, second in itertools.combinations(authors, 2) if (pair := _pair(shared, first, second))]
    conflicts = [
        Conflict(request_id, dict(given)) for request_id, given in shared.items() if len(set(given.values())) > 1
    ]
    measured = [pair for pair in pairs if pair.kappa is not None]
    weight = sum(pair.shared for pair in measured)
    kappa = sum(pair.shared * (pair.kappa or 0.0) for pair in measured) / weight if weight else None
    return Agreement(
        shared=len(shared),
        disagreed=len(conflicts),
        kappa=None if kappa is None else round(kappa, 4),
        pairs=pairs,
        conflicts=conflicts[:CONFLICTS_SHOWN],
    )


def _pair(shared: Mapping[UUID, Mapping[str, str]], first: str, second: str) -> PairAgreement | None:
    both = [(given[first], given[second]) for given in shared.values() if first in given and second in given]
    if not both:
        return None
    from sklearn.metrics import cohen_kappa_score

    ours, theirs = zip(*both, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one class only: the result is NaN, which is told as None
        kappa = float(cohen_kappa_score(ours, theirs))
    agreed = sum(mine == other for mine, other in both)
    return PairAgreement(first, second, len(both), agreed, None if math.isnan(kappa) else round(kappa, 4))
