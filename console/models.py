"""The models of each decision type: state, cost, the last evaluation with intervals, and examples of both sides."""

from __future__ import annotations

from typing import Any

import orjson

import storage
from console.request import Request, Response, render
from provider.lifecycle.status import model_status
from reasoning.config import load_config
from reasoning.decision_types import DecisionType
from storage.ledger.ledger import open_ledger
from storage.ledger.lives import last_evaluation

_EXAMPLES = 5
_DIFFERENT = """
SELECT decision_id::VARCHAR, ts, messages[-1].content, demonstration, original_decision, custom_decision, custom_model
FROM labelled_decisions
WHERE decision_type = $decision_type AND demonstration IS NOT NULL AND original_decision IS NOT NULL
      AND custom_decision IS NOT NULL
ORDER BY ts DESC LIMIT 2000
"""


def page(request: Request, decision_type: str = "") -> Response:
    """All models; below a decision type, where the model and the fallback were right alone."""
    if decision_type:
        kind = load_config(request.data).decision_types.get(decision_type)
        wins, losses = ([], []) if kind is None else examples(request, kind)
        return render("examples.html", decision_type=decision_type, wins=wins, losses=losses, limit=_EXAMPLES)
    rows = model_status(request.data, now=request.now)
    with open_ledger(request.data) as ledger:
        evaluations = {row["model_id"]: _evaluation(last_evaluation(ledger, row["model_id"])) for row in rows}
    by_type: dict[str, list[dict[str, Any]]] = {}
    for row in reversed(rows):
        by_type.setdefault(row["decision_type"] or "", []).append(row)
    return render("models.html", visitor=request.visitor, by_type=by_type, evaluations=evaluations)


def _evaluation(row: Any) -> dict[str, Any] | None:
    """What the page shows of an evaluation: each metric with the interval of each source, and the verdict."""
    if row is None:
        return None
    content = row.content
    sources = content.get("sources") or {}
    metrics = list(dict.fromkeys(name for each in sources.values() for name in each.get("metrics") or {}))
    return {
        "id": row.id,
        "rows": content.get("rows"),
        "episodes": content.get("episodes"),
        "primary": content.get("primary"),
        "verdict": (content.get("about") or {}).get("verdict") or {},
        "notes": content.get("notes") or [],
        "metrics": [
            {
                "name": metric,
                "sources": {name: each["metrics"].get(metric) for name, each in sources.items() if each.get("metrics")},
            }
            for metric in metrics
        ],
        "costs": {
            name: {key: each.get(key) for key in ("latency_p50_ms", "latency_p95_ms", "cost_per_1000_usd", "failed")}
            for name, each in sources.items()
        },
    }


def examples(request: Request, kind: DecisionType) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Labelled decisions that only the model, and that only the fallback, answered right; the latest of each."""

    def fetch(log: Any) -> list[tuple[Any, ...]]:
        return list(log.execute(_DIFFERENT, {"decision_type": kind.name}).fetchall())

    wins: list[dict[str, Any]] = []
    losses: list[dict[str, Any]] = []
    for decision_id, ts, asked, label, original, custom, model in storage.read(request.data, fetch):
        right, ours, theirs = (kind.form.answer_class(orjson.loads(each)) for each in (label, custom, original))
        row = {"decision_id": decision_id, "ts": ts, "asked": asked, "model": model}
        row |= {"right": right, "candidate": ours, "fallback": theirs}
        if ours == right != theirs and len(wins) < _EXAMPLES:
            wins.append(row)
        elif theirs == right != ours and len(losses) < _EXAMPLES:
            losses.append(row)
    return wins, losses
