"""How right each source of answers is on the same labelled rows, with intervals, and how much better than another.

Rows of one episode are not independent, so intervals come from leaving out one episode at a time
(`quality.evaluation.intervals`), and a difference is that of two sources on the rows that both answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from quality.errors import EvaluationError
from quality.evaluation import metrics
from quality.evaluation.answers import Label as Label
from quality.evaluation.answers import SourceAnswer as SourceAnswer
from quality.evaluation.form_metrics import get_metrics
from quality.evaluation.form_metrics.rows import Metric, Rows
from quality.evaluation.intervals import Estimate as Estimate
from quality.evaluation.intervals import in_chunks, jackknife, leave_out
from quality.evaluation.objectives import Objective
from reasoning.decision_types import DecisionType, get_decision_type
from reasoning.errors import UnparseableAnswer
from reasoning.ids import uuid7

FEW_EPISODES = 20


@dataclass(frozen=True, slots=True)
class SourceResult:
    """One source: its metrics (None where undefined), how often it failed, its latency (ms) and its cost (USD)."""

    rows: int
    failed: int
    metrics: dict[str, Estimate | None]
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    cost_per_1000_usd: float | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Sources of answers on the same labelled rows.

    `differences["a - b"]` holds, per metric, a's value less b's. `independent` is False when the labels are the
    original's own answers, so that they cannot show anything to be better than it. `notes` is to be read with the
    figures.
    """

    evaluation_id: str
    decision_type: str
    created_at: str
    rows: int
    episodes: int
    label_sources: dict[str, int]
    independent: bool
    primary: str
    sources: dict[str, SourceResult]
    differences: dict[str, dict[str, Estimate | None]]
    notes: list[str]
    about: dict[str, Any] = field(default_factory=dict)

    def difference(self, source: str, other: str, metric: str | None = None) -> Estimate | None:
        """`source` less `other`, in `metric` (the primary one by default)."""
        return self.differences.get(f"{source} - {other}", {}).get(metric or self.primary)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def evaluate(
    decision_type: str | DecisionType,
    labels: Sequence[Label],
    answers: Mapping[str, Sequence[SourceAnswer | None]],
    *,
    objective: Objective | None = None,
    now: datetime | None = None,
    about: dict[str, Any] | None = None,
) -> Evaluation:
    """Compare the sources in `answers` (None where a source was not asked) on the rows of `labels`.

    Rows that are labelled by the original logic's own answer are left out as long as others are there.
    The primary metric is that of `objective`. `about` is kept with the result (model, dataset). Raises
    `EvaluationError`.
    """
    kind = get_decision_type(decision_type) if isinstance(decision_type, str) else decision_type
    _check_rows(kind, labels, answers)
    kept, independent, notes = _choose_rows(labels)
    labels = [labels[i] for i in kept]
    answers = {source: [given[i] for i in kept] for source, given in answers.items()}
    for source, given in answers.items():
        if all(answer is None for answer in given):
            raise EvaluationError(f"{source!r} answered none of the {len(labels)} labelled rows")

    names = sorted({label.episode for label in labels})
    position = {name: i for i, name in enumerate(names)}
    episode = np.array([position[label.episode] for label in labels])
    if len(names) < FEW_EPISODES:
        notes.append(f"Only {len(names)} episodes: the intervals are rough. {FEW_EPISODES} are needed.")

    objective = objective or Objective()
    exam = _Exam(kind, labels, answers, episode, leave_out(len(names)), objective)
    sources = {source: _summarize(given, exam.estimates(source)) for source, given in answers.items()}
    notes += exam.notes_on_pairs()
    form = get_metrics(kind.answer)
    better = form.better_primary
    primary = better if better and all(better in found.metrics for found in sources.values()) else form.primary
    primary = objective.metric_of(kind) or primary
    now = now or datetime.now(UTC)
    evaluation = Evaluation(
        evaluation_id=str(uuid7(now)),
        decision_type=kind.name,
        created_at=now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        rows=len(labels),
        episodes=len(names),
        label_sources=dict(sorted(Counter(label.source for label in labels).items())),
        independent=independent,
        primary=primary,
        sources=sources,
        differences=exam.differences(),
        notes=notes,
        about=about or {},
    )
    notes += _wins_of_the_original(evaluation, form.less_is_better)
    return evaluation


def _choose_rows(labels: Sequence[Label]) -> tuple[list[int], bool, list[str]]:
    """The rows to compare on, whether their labels are independent of the original, and what to say of it."""
    kept = [i for i, label in enumerate(labels) if label.source != "original"]
    if not kept:
        note = "All labels are the original logic's own answers: agreement with it is measured, not quality."
        return list(range(len(labels))), False, [note]
    left_out = len(labels) - len(kept)
    return kept, True, [f"{left_out} rows labelled by the original logic itself are left out."] if left_out else []


class _Exam:
    """The sources' metrics, each with its values without one group of episodes each (`intervals.leave_out`)."""

    def __init__(
        self,
        kind: DecisionType,
        labels: Sequence[Label],
        answers: Mapping[str, Sequence[SourceAnswer | None]],
        episode: np.ndarray,
        weights: np.ndarray,
        objective: Objective,
    ) -> None:
        self._kind, self._labels, self._answers = kind, labels, answers
        self._episode, self._weights, self._objective = episode, weights, objective
        self._asked = {source: np.array([a is not None for a in given]) for source, given in answers.items()}
        self._found: dict[tuple[str, bytes], dict[str, np.ndarray]] = {}

    def _values(self, source: str, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Of the rows that are True: per metric its value, then those without each group."""
        key = (source, rows.tobytes())
        if key not in self._found:
            given = [answer if row else None for answer, row in zip(self._answers[source], rows, strict=True)]
            rows_given = _rows(self._kind, self._labels, given, self._episode, self._weights.shape[1])
            measures = _measure(rows_given, self._objective)
            self._found[key] = in_chunks(measures, self._weights)
        return self._found[key]

    def _estimate(self, values: np.ndarray, *rows: np.ndarray) -> Estimate | None:
        """The estimate from values of these rows."""
        used = np.unique(self._episode[np.logical_or.reduce(rows)])
        counted = (self._weights[1:, used] == 0).any(axis=1)
        return jackknife(values, counted, unit=len(used) / int(np.logical_or.reduce(rows).sum()))

    def _common(self, a: str, b: str) -> tuple[np.ndarray, np.ndarray]:
        """The rows that both answered; each source's own where there are none, as in an A/B test."""
        both = self._asked[a] & self._asked[b]
        return (both, both) if both.any() else (self._asked[a], self._asked[b])

    def estimates(self, source: str) -> dict[str, Estimate | None]:
        """The source's metrics on all rows that it answered."""
        rows = self._asked[source]
        return {m: self._estimate(values, rows) for m, values in self._values(source, rows).items()}

    def differences(self) -> dict[str, dict[str, Estimate | None]]:
        """Per pair of sources and metric that both have, the one's value less the other's."""
        found: dict[str, dict[str, Estimate | None]] = {}
        for a in self._answers:
            for b in self._answers:
                if a != b:
                    rows_a, rows_b = self._common(a, b)
                    ours, theirs = self._values(a, rows_a), self._values(b, rows_b)
                    found[f"{a} - {b}"] = {
                        m: self._estimate(ours[m] - theirs[m], rows_a, rows_b) for m in ours if m in theirs
                    }
        return found

    def notes_on_pairs(self) -> list[str]:
        """Where a source answered only some of the rows that others did: what is missing."""
        most = max(int(asked.sum()) for asked in self._asked.values())
        return [
            f"{source} answered {int(asked.sum())} of {most} rows: differences to it are of those rows only."
            for source, asked in self._asked.items()
            if (asked & np.logical_or.reduce([o for s, o in self._asked.items() if s != source] or [asked])).any()
            and asked.sum() < most
        ]


def _check_rows(
    kind: DecisionType, labels: Sequence[Label], answers: Mapping[str, Sequence[SourceAnswer | None]]
) -> None:
    """Raise `EvaluationError` unless every label is a decision, and every source has an answer, or None, to each."""
    for number, label in enumerate(labels):
        try:
            kind.normalize(label.decision)
        except UnparseableAnswer as error:
            raise EvaluationError(f"label {number} is no decision of {kind.name}: {error}") from None
    for source, given in answers.items():
        if len(given) != len(labels):
            raise EvaluationError(f"{source!r} has {len(given)} answers to {len(labels)} labels")
    if not labels or not answers:
        raise EvaluationError("nothing to evaluate: at least one labelled row and one source of answers are needed")


def _summarize(answers: Sequence[SourceAnswer | None], estimates: dict[str, Estimate | None]) -> SourceResult:
    known = [answer for answer in answers if answer is not None]
    costs = [answer.cost_usd for answer in known if answer.cost_usd is not None]
    return SourceResult(
        rows=len(known),
        failed=sum(answer.decision is None for answer in known),
        metrics=estimates,
        latency_p50_ms=metrics.percentile([answer.latency_ms for answer in known], 50),
        latency_p95_ms=metrics.percentile([answer.latency_ms for answer in known], 95),
        cost_per_1000_usd=1000 * sum(costs) / len(costs) if costs else None,
    )


def score(
    kind: DecisionType,
    labels: Sequence[Label],
    answers: Sequence[SourceAnswer | None],
    objective: Objective | None = None,
) -> dict[str, float]:
    """The metrics of one source, without intervals; NaN where undefined."""
    once = np.zeros(len(labels), dtype=int)
    measures = _measure(_rows(kind, labels, answers, once, 1), objective or Objective())
    return {metric: float(compute(np.ones((1, 1)))[0]) for metric, compute in measures.items()}


def is_right(kind: DecisionType, label: dict[str, Any], decision: dict[str, Any] | None) -> bool:
    """Is a decision the same answer as the label? (For code: the same text.)"""
    return decision is not None and kind.form.agrees(label, decision)


def _wins_of_the_original(evaluation: Evaluation, less_is_better: Collection[str]) -> list[str]:
    """A simple rule is often hard to beat: say so where it is."""
    notes = []
    for source in evaluation.sources:
        if source == "original" or "original" not in evaluation.sources:
            continue
        for metric, estimate in evaluation.differences[f"{source} - original"].items():
            # Of errors less is better.
            if estimate and (estimate.high < 0 if metric not in less_is_better else estimate.low > 0):
                notes.append(
                    f"The original wins over {source} in {metric}: "
                    f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]."
                )
    return notes


def _rows(
    kind: DecisionType,
    labels: Sequence[Label],
    answers: Sequence[SourceAnswer | None],
    episode: np.ndarray,
    episodes: int,
) -> Rows:
    asked = [i for i, answer in enumerate(answers) if answer is not None]
    pairs = [(labels[i].decision, answer) for i in asked if (answer := answers[i]) is not None]
    weight = np.array([answer.weight for _, answer in pairs])
    return Rows(kind, pairs, episode[asked], episodes, weight)


def _measure(rows: Rows, objective: Objective) -> dict[str, Metric]:
    """The metrics of the answer form, and `utility` where the objective has costs: less the mean cost of an answer."""
    found = get_metrics(rows.type.answer).measure(rows)
    if objective.costs:
        names = rows.type.labels
        costs = dict(zip(names, objective.cost_table(names), strict=True))
        found["utility"] = rows.mean_of(
            [
                -float(
                    costs[rows.answer_class(label)][
                        -1 if answer.decision is None else names.index(rows.answer_class(answer.decision))
                    ]
                )
                for label, answer in rows.pairs
            ]
        )
    return found
