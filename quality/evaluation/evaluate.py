"""How right each source of answers is on the same labelled rows, with intervals, and how much better than another.

Rows of one episode are not independent, so intervals come from a bootstrap over episodes: whole episodes are drawn with
replacement, all sources are computed on the same draws, and differences are taken within a draw (Davison and Hinkley,
Bootstrap Methods and their Application, 1997, section 3.8). Percentiles of 2,000 draws with a fixed seed, 95 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from quality.errors import EvaluationError
from quality.evaluation import metrics
from quality.evaluation.answers import Answer as Answer
from quality.evaluation.answers import Label as Label
from quality.evaluation.form_metrics import get_metrics
from quality.evaluation.form_metrics.rows import Metric, Rows
from quality.settings import RESAMPLES
from reasoning.decision_types import DecisionType, get_decision_type
from reasoning.errors import UnparseableAnswer
from reasoning.ids import uuid7

FEW_EPISODES = 20
_CHUNK = 100


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


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
    resamples: int
    seed: int
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
    answers: Mapping[str, Sequence[Answer | None]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    now: datetime | None = None,
    about: dict[str, Any] | None = None,
) -> Evaluation:
    """Compare the sources in `answers` (None where a source was not asked) on the rows of `labels`.

    Rows that are labelled by the original logic's own answer are left out as long as others are there.
    `about` is kept with the result (model, dataset). Raises `EvaluationError`.
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
        notes.append(f"Only {len(names)} episodes: the intervals are too narrow. {FEW_EPISODES} are needed.")

    measures = {source: _measures(kind, labels, given, episode, len(names)) for source, given in answers.items()}
    points = {source: _compute(found, np.ones((1, len(names)))) for source, found in measures.items()}
    samples = _resample(measures, len(names), resamples, seed)
    sources = {
        source: _summarize(given, {m: _estimate(points[source][m][0], samples[source][m]) for m in points[source]})
        for source, given in answers.items()
    }
    form = get_metrics(kind.answer)
    better = form.better_primary
    primary = better if better and all(better in found for found in points.values()) else form.primary
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
        differences=_differences(points, samples),
        notes=notes,
        resamples=resamples,
        seed=seed,
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


def _differences(
    points: Mapping[str, Mapping[str, np.ndarray]], samples: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, dict[str, Estimate | None]]:
    """Per pair of sources and metric that both have, the one's value less the other's."""
    return {
        f"{a} - {b}": {
            m: _estimate(points[a][m][0] - points[b][m][0], samples[a][m] - samples[b][m])
            for m in points[a]
            if m in points[b]
        }
        for a in points
        for b in points
        if a != b
    }


def _check_rows(kind: DecisionType, labels: Sequence[Label], answers: Mapping[str, Sequence[Answer | None]]) -> None:
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


def _summarize(answers: Sequence[Answer | None], estimates: dict[str, Estimate | None]) -> SourceResult:
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


def score(kind: DecisionType, labels: Sequence[Label], answers: Sequence[Answer | None]) -> dict[str, float]:
    """The metrics of one source, without intervals; NaN where undefined."""
    once = np.zeros(len(labels), dtype=int)
    found = _compute(_measures(kind, labels, answers, once, 1), np.ones((1, 1)))
    return {metric: float(values[0]) for metric, values in found.items()}


def is_right(kind: DecisionType, label: dict[str, Any], decision: dict[str, Any] | None) -> bool:
    """Is a decision the same answer as the label? (For code: the same text.)"""
    return decision is not None and kind.form.answer_class(label) == kind.form.answer_class(decision)


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


def _measures(
    kind: DecisionType, labels: Sequence[Label], answers: Sequence[Answer | None], episode: np.ndarray, episodes: int
) -> dict[str, Metric]:
    asked = [i for i, answer in enumerate(answers) if answer is not None]
    pairs = [(labels[i].decision, answer) for i in asked if (answer := answers[i]) is not None]
    weight = np.array([answer.weight for _, answer in pairs])
    return get_metrics(kind.answer).measure(Rows(kind, pairs, episode[asked], episodes, weight))


def _compute(measures: Mapping[str, Metric], weights: np.ndarray) -> dict[str, np.ndarray]:
    return {metric: compute(weights) for metric, compute in measures.items()}


def _resample(
    measures: Mapping[str, Mapping[str, Metric]], episodes: int, resamples: int, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """Per source and metric its values, one a draw; all of them on the same draws."""
    draws: dict[str, dict[str, list[np.ndarray]]] = {source: {} for source in measures}
    for weights in _draw_weights(episodes, resamples, seed):
        for source, found in measures.items():
            for metric, values in _compute(found, weights).items():
                draws[source].setdefault(metric, []).append(values)
    return {source: {m: np.concatenate(v) for m, v in found.items()} for source, found in draws.items()}


def _draw_weights(episodes: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each episode is drawn, in chunks of draws: (draws x episodes)."""
    generator = np.random.default_rng(seed)
    shares = np.full(episodes, 1 / episodes)
    for start in range(0, resamples, _CHUNK):
        yield generator.multinomial(episodes, shares, size=min(_CHUNK, resamples - start)).astype(float)


def _estimate(value: float, draws: np.ndarray) -> Estimate | None:
    known = draws[~np.isnan(draws)]
    if np.isnan(value) or not len(known):
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return Estimate(round(float(value), 6), round(float(low), 6), round(float(high), 6))
