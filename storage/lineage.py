"""Where a decision came from: its route, the model that answered, the dataset and evaluation behind that model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reasoning.errors import RoutesError
from reasoning.serving.routes import read_routes
from storage.layout import Layout
from storage.ledger.ledger import Ledger, open_ledger
from storage.ledger.lives import last_evaluation
from storage.ledger.rows import Deployment, FineTuneJob, Model, UploadedDataset
from storage.log.search import read_decision


def decision_in_full(data: Path, decision_id: str) -> dict[str, Any]:
    """A decision with everything that is known of it (`read_decision`), and `lineage`. Raises `NoSuchDecision`."""
    row = read_decision(data, decision_id)
    return row | {"lineage": _lineage(data, row)}


def _lineage(data: Path, row: dict[str, Any]) -> dict[str, Any]:
    """`route`, `model`, `dataset` and `evaluation`; a part that is not known is None."""
    route = {name: row.get(name) for name in ("experiment", "arm", "arm_probability", "config_hash", "fallback_reason")}
    route["still_routed"] = _is_routed(data, row)
    found: dict[str, Any] = {"route": route, "model": None, "dataset": None, "evaluation": None}
    # The fallback's row names no model of ours; what was asked beside it may.
    name = row.get("model") or next((each["model"] for each in row["other_answers"] if each.get("model")), None)
    if name is None:
        return found
    with open_ledger(data) as ledger:
        if (model := _model_of(ledger, name)) is None:
            return found
        found["model"] = {
            "model_id": model.id,
            "asked_as": name,
            "state": model.state.value,
            "base_model": model.base_model,
            "trained_at": model.created_at,
        }
        for upload in ledger.find(UploadedDataset, id=model.upload_id) if model.upload_id else ():
            found["dataset"] = {
                "dataset_id": upload.dataset,
                "train_rows": upload.train_rows,
                "validation_rows": upload.validation_rows,
            }
        for job in ledger.find(FineTuneJob, id=model.job_id) if model.job_id else ():
            found["model"] |= {"job_id": job.id, "price_usd": job.price_usd}
        if (evaluation := last_evaluation(ledger, model.id)) is not None:
            verdict = (evaluation.content.get("about") or {}).get("verdict") or {}
            found["evaluation"] = {
                "evaluation_id": evaluation.id,
                "rows": evaluation.content.get("rows"),
                "primary": evaluation.content.get("primary"),
                **verdict,
            }
    return found


def _model_of(ledger: Ledger, served_name: str) -> Model | None:
    """The model behind the name that a decision's row has: that of its deployment, or its own."""
    for deployment in ledger.find(Deployment, served_name=served_name):
        if deployment.model_id and (found := ledger.find(Model, id=deployment.model_id)):
            return found[0]
    return next(iter(ledger.find(Model, name=served_name) or ledger.find(Model, output_name=served_name)), None)


def _is_routed(data: Path, row: dict[str, Any]) -> bool:
    """Whether the route of its type has this arm's model now."""
    try:
        route = read_routes(Layout(data).routes).routes.get(row["decision_type"])
    except (FileNotFoundError, RoutesError):
        return False
    return route is not None and any(arm.model and arm.model == row.get("model") for arm in route.arms)
