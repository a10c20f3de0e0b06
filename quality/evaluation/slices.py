"""Where a model is weak: its quality by agent, room size, language, length and day, against what it is to replace.

A slice is compared by the same metric and intervals as the whole evaluation. Among many slices some look bad by
chance, so a slice counts as worse only where its p-value survives Holm's correction over all slices that were tested
(Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
from scipy.special import stdtr

from quality.errors import EvaluationError
from quality.evaluation.answers import Label, SourceAnswer
from quality.evaluation.evaluate import evaluate
from quality.evaluation.intervals import Estimate
from quality.evaluation.objectives import Objective
from reasoning.decision_types import DecisionType

LEAST_ROWS, LEAST_EPISODES = 20, 10
ALPHA = 0.05
_LEAST_LETTERS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Facets:
    """What a row is sliced by. None where it is not known."""

    agent: str | None
    speakers: int | None
    text: str
    ts: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Rows that share a value of a facet. `difference` is that of the model to `against`, by the metric `metric`.

    `p_value` is Holm's, of being no worse than `against`; `is_worse` where that is below 0.05.
    """

    facet: str
    value: str
    rows: int
    episodes: int
    metric: str
    against: str
    quality: Estimate | None
    difference: Estimate
    p_value: float
    is_worse: bool


def find_slices(
    kind: DecisionType,
    labels: Sequence[Label],
    answers: Mapping[str, Sequence[SourceAnswer | None]],
    facets: Sequence[Facets],
    *,
    objective: Objective | None = None,
) -> list[Slice]:
    """The slices of the `candidate` against the incumbent, or the original without one, the worst difference first.

    Slices of fewer than 20 rows or 10 episodes say too little and are left out, and so is a facet of one value.
    """
    against = "incumbent" if "incumbent" in answers else "original"
    if "candidate" not in answers or against not in answers:
        return []
    given = {name: answers[name] for name in ("candidate", against)}
    found: list[Slice] = []
    for facet, values in _facet_values(facets).items():
        groups: dict[str, list[int]] = defaultdict(list)
        for row, value in enumerate(values):
            if value is not None and labels[row].source != "original":
                groups[value].append(row)
        if len(groups) > 1:
            tested = [_slice(kind, labels, given, rows, facet, value, objective) for value, rows in groups.items()]
            found += [each for each in tested if each is not None]
    return sorted(_corrected(found), key=lambda each: each.difference.value)


def describe_worst(slices: Sequence[Slice]) -> str:
    """A sentence on the worst slice."""
    if not slices:
        return f"No slice has {LEAST_ROWS} rows of {LEAST_EPISODES} episodes."
    worse = [each for each in slices if each.is_worse]
    worst = worse[0] if worse else slices[0]
    said = f"{worst.facet} {worst.value}: {worst.metric.replace('_', ' ')} {worst.difference.value:+.3f}"
    interval = f"[{worst.difference.low:+.3f}, {worst.difference.high:+.3f}] to the {worst.against}"
    if not worse:
        return f"No slice of {len(slices)} is proven worse; the lowest is {said} {interval}."
    return f"Worse in {len(worse)} of {len(slices)} slices (Holm); worst is {said} {interval}, p = {worst.p_value:.2g}."


def _slice(
    kind: DecisionType,
    labels: Sequence[Label],
    answers: Mapping[str, Sequence[SourceAnswer | None]],
    rows: Sequence[int],
    facet: str,
    value: str,
    objective: Objective | None,
) -> Slice | None:
    """One slice; None where it is too small, or the metric is not defined in it."""
    both = [row for row in rows if all(given[row] is not None for given in answers.values())]
    episodes = len({labels[row].episode for row in both})
    if len(both) < LEAST_ROWS or episodes < LEAST_EPISODES:
        return None
    part = {name: [given[row] for row in both] for name, given in answers.items()}
    against = next(name for name in part if name != "candidate")
    try:
        found = evaluate(kind, [labels[row] for row in both], part, objective=objective)
    except EvaluationError:
        return None
    difference = found.difference("candidate", against)
    if difference is None:
        return None
    return Slice(
        facet=facet,
        value=value,
        rows=len(both),
        episodes=episodes,
        metric=found.primary,
        against=against,
        quality=found.sources["candidate"].metrics[found.primary],
        difference=difference,
        p_value=_p_worse(difference),
        is_worse=False,
    )


def _p_worse(difference: Estimate) -> float:
    """The p-value of "the model is no worse", by Student's t."""
    if not difference.error:
        return float(difference.value >= 0)
    degrees = difference.df if difference.df is not None else np.inf
    return float(stdtr(degrees, difference.value / difference.error))


def _corrected(slices: Sequence[Slice]) -> list[Slice]:
    """The slices with Holm's p-values."""
    order = sorted(range(len(slices)), key=lambda number: slices[number].p_value)
    corrected: dict[int, Slice] = {}
    highest = 0.0
    for rank, number in enumerate(order):
        highest = max(highest, min(slices[number].p_value * (len(slices) - rank), 1.0))
        corrected[number] = replace(slices[number], p_value=highest, is_worse=highest < ALPHA)
    return [corrected[number] for number in range(len(slices))]


def _facet_values(facets: Sequence[Facets]) -> dict[str, list[str | None]]:
    """Each facet's values, a value a row."""
    lengths = np.array([len(each.text) for each in facets])
    edges = np.quantile(lengths, [1 / 3, 2 / 3]) if len(lengths) else np.zeros(2)
    names = (f"up to {edges[0]:,.0f} characters", f"up to {edges[1]:,.0f} characters", "longer")
    return {
        "agent": [each.agent for each in facets],
        "speakers": [_room(each.speakers) for each in facets],
        "language": detect_languages([each.text for each in facets]),
        "length": [names[int((length > edges).sum())] for length in lengths],
        "day": [f"{each.ts:%Y-%m-%d}" for each in facets],
    }


def _room(speakers: int | None) -> str | None:
    if not speakers:
        return None
    return str(speakers) if speakers < 3 else "3 to 5" if speakers <= 5 else "6 and more"


def detect_languages(texts: Sequence[str]) -> list[str | None]:
    """The language of each text as an ISO 639-1 code; None of a text with fewer than 20 letters."""
    import py3langid

    return [py3langid.classify(text)[0] if sum(map(str.isalpha, text)) >= _LEAST_LETTERS else None for text in texts]
