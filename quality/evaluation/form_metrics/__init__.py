"""The metrics of an answer form: a module here, named like the form, with its `METRICS` (`FormMetrics`).

A form without one is judged by `exact_match` alone.
"""

from __future__ import annotations

import importlib
import importlib.util

from quality.evaluation.form_metrics.rows import FormMetrics, measure_exact_match

EXACT_MATCH = FormMetrics(primary="exact_match", measure=measure_exact_match)


def get_metrics(form: str) -> FormMetrics:
    """The metrics of an answer form."""
    name = f"{__name__}.{form}"
    if importlib.util.find_spec(name) is None:
        return EXACT_MATCH
    found: FormMetrics = importlib.import_module(name).METRICS
    return found
