"""The live test of each model that has traffic: its difference to what it replaces, with the confidence sequence."""

from __future__ import annotations

from typing import Any

from console.request import Request, Response, render
from pipeline.errors import MissingStep
from pipeline.experiment import report_experiment
from pipeline.reports import evaluation_rows
from quality.errors import EvaluationError
from reasoning.config import load_config


def page(request: Request) -> Response:
    """The page."""
    reports: list[dict[str, Any]] = []
    without: list[tuple[str, str]] = []
    for name in sorted(load_config(request.data).decision_types):
        try:
            report = report_experiment(request.data, name, now=request.now)
        except (MissingStep, EvaluationError) as error:
            without.append((name, str(error)))
            continue
        reports.append({"report": report, "table": evaluation_rows(report.evaluation) if report.evaluation else []})
    return render("experiments.html", visitor=request.visitor, reports=reports, without=without)
