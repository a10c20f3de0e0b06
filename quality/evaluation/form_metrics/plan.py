"""Metrics of plans: the same actions in the same order, the same set of actions, and their order."""

from __future__ import annotations

from quality.evaluation import metrics
from quality.evaluation.form_metrics.rows import FormMetrics, Metric, Rows


def measure(rows: Rows) -> dict[str, Metric]:
    """`exact_match`, `set_f1` and `order`."""
    plans = [(label["actions"], None if a.decision is None else a.decision["actions"]) for label, a in rows.pairs]
    return {
        "exact_match": rows.mean_of([wanted == given for wanted, given in plans]),
        "set_f1": rows.mean_of([0.0 if given is None else metrics.set_f1(wanted, given) for wanted, given in plans]),
        "order": rows.mean_of(
            [None if given is None else metrics.order_agreement(wanted, given) for wanted, given in plans]
        ),
    }


METRICS = FormMetrics(primary="exact_match", measure=measure)
