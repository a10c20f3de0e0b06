"""Metrics of turns: the same calls with the same arguments, and the same tools in whatever order."""

from __future__ import annotations

from typing import Any

from quality.evaluation import metrics
from quality.evaluation.form_metrics.rows import FormMetrics, Metric, Rows, measure_exact_match


def measure(rows: Rows) -> dict[str, Metric]:
    """`exact_match`, and `set_f1` of the names of the tools that are called."""
    return measure_exact_match(rows) | {
        "set_f1": rows.mean_of(
            [
                0.0 if answer.decision is None else metrics.set_f1(_tools(label), _tools(answer.decision))
                for label, answer in rows.pairs
            ]
        )
    }


def _tools(decision: dict[str, Any]) -> list[str]:
    return [call["name"] for call in decision.get("tool_calls") or ()]


METRICS = FormMetrics(primary="exact_match", measure=measure)
