"""What there is to learn from: the log by type with its readiness, the labellers' agreement, and the datasets."""

from __future__ import annotations

from console.request import Request, Response, render
from quality.dataset.manifest import read_manifest
from quality.dataset.statistics import summarize_log
from quality.labelling.agreement import measure_agreement
from reasoning.config import load_config
from storage.layout import Layout

_DATASETS = 50


def page(request: Request) -> Response:
    """The page."""
    types = load_config(request.data).decision_types
    log = summarize_log(request.data, now=request.now)
    agreements = {
        each.decision_type: found
        for each in log
        if each.decision_type in types and (found := measure_agreement(request.data, types[each.decision_type])).shared
    }
    paths = sorted(Layout(request.data).datasets.glob("*/*/manifest.json"), key=lambda path: -path.stat().st_mtime)
    datasets = [read_manifest(path.parent) for path in paths[:_DATASETS]]
    return render("data.html", visitor=request.visitor, log=log, agreements=agreements, datasets=datasets)
