"""Metrics of code: whether its tests passed where they were run, else its similarity to the label."""

from __future__ import annotations

from quality.evaluation import metrics
from quality.evaluation.form_metrics.rows import FormMetrics, Metric, Rows


def measure(rows: Rows) -> dict[str, Metric]:
    """`similarity`, and `passed` where tests were run."""
    found = {
        "similarity": rows.mean_of(
            [
                0.0
                if answer.decision is None
                else metrics.code_similarity(rows.answer_class(label), rows.answer_class(answer.decision))
                for label, answer in rows.pairs
            ]
        )
    }
    if any(answer.passed is not None for _, answer in rows.pairs):
        found["passed"] = rows.mean_of([answer.passed for _, answer in rows.pairs])
    return found


METRICS = FormMetrics(primary="similarity", measure=measure, better_primary="passed")
