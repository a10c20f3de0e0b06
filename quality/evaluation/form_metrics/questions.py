"""Metrics of typed questions: all answers right, the share of right ones, that of each question, and calibration.

A label may answer only some of the questions: the others are not judged.
"""

from __future__ import annotations

from typing import Any

from quality.evaluation.form_metrics.rows import FormMetrics, Metric, Rows, measure_calibration, measure_exact_match

_MOST_QUESTIONS = 30
"""A set of more has no metric for each question."""


def measure(rows: Rows) -> dict[str, Metric]:
    """`exact_match`, `accuracy`, `accuracy_<question>` of several; of answers with a confidence `brier` and `ece`."""
    found = measure_exact_match(rows)
    found["accuracy"] = rows.mean_of([_share(label, answer.decision) for label, answer in rows.pairs])
    questions = rows.type.questions
    if 1 < len(questions) <= _MOST_QUESTIONS:
        for question in questions:
            found[f"accuracy_{question.name}"] = rows.mean_of(
                [_right(question.name, label, answer.decision) for label, answer in rows.pairs]
            )
    right = [a.decision is not None and rows.type.form.agrees(label, a.decision) for label, a in rows.pairs]
    return found | measure_calibration(rows, right)


def _right(name: str, label: dict[str, Any], decision: dict[str, Any] | None) -> bool | None:
    """None where the label does not say."""
    if name not in label:
        return None
    return decision is not None and decision.get(name) == label[name]


def _share(label: dict[str, Any], decision: dict[str, Any] | None) -> float:
    return sum(bool(_right(name, label, decision)) for name in label) / len(label)


METRICS = FormMetrics(primary="exact_match", measure=measure, less_is_better=frozenset(("brier", "ece")))
