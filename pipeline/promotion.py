"""Traffic for a model that earned it: the route, and what it replaces."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import MissingStep
from pipeline.evaluation import choose_confidence, dataset_of
from pipeline.life import Move, MoveOptions, experiment_of, move_model, read_lives
from pipeline.models import find_dataset, find_deployment, take_down
from pipeline.parameters import PromoteSettings
from pipeline.selection import find_model
from pipeline.verdicts import last_verdict
from provider.clock import clock_of
from provider.endpoint.arms import arm_of
from provider.providers import arm_address, capabilities_of
from quality.dataset.manifest import read_manifest
from reasoning.serving.routes import Arm, Route
from storage.ledger.ledger import open_ledger
from storage.ledger.lives import Serving, served_models
from storage.ledger.rows import Deployment, DeploymentState, Model, ModelState, required

if TYPE_CHECKING:
    from quality.evaluation.promotion import PromotionDecision
    from storage.ledger.ledger import Ledger

log = logging.getLogger(__name__)

_STATES: Mapping[str, ModelState] = {
    "live": ModelState.PROMOTED,
    "canary": ModelState.CANARY,
    "shadow": ModelState.SHADOW,
}


def promote_model(
    data: Path,
    model: str,
    settings: PromoteSettings | None = None,
    *,
    now: datetime | None = None,
) -> Route:
    """Publish the route of a deployed model (its id, or a decision type; `pipeline.selection`); returns the route.

    In `shadow` mode the model answers all decisions in the background and serves none; a `canary` serves a small share
    beside the incumbent, which keeps the rest. When it is `live`, the incumbent is undeployed. Called again with a
    greater weight, an episode that was the model's stays the model's. Raises `MissingStep` unless the model is ready
    and its newest evaluation says promote; `force` does without the latter.
    """
    settings = settings or PromoteSettings()
    when = clock_of(now)()
    with open_ledger(data) as ledger:
        row = find_model(data, ledger, model, "promote --force" if settings.force else "promote")
        name = required(row.decision_type, f"the decision type of model {row.id}")
        deployment = find_deployment(ledger, row.id, DeploymentState.READY)
        if deployment is None:
            raise MissingStep(f"model {row.id} is not deployed: `reasoning deploy {row.id}` first")
        verdict = last_verdict(ledger, row.id)
        if not settings.force:
            _require_approval(row.id, verdict)
        minimum = settings.min_confidence
        if minimum == "auto":
            threshold = choose_confidence(data, row.id, now=now)
            log.info("model %s: %s", row.id, threshold.describe())
            minimum = threshold.chosen.min_confidence
        settings = replace(settings, min_confidence=minimum)
        why = verdict.why if verdict and verdict.promote else "forced"
        moved = give_traffic(data, ledger, row, deployment, settings, why=why, now=when)
    for other in moved.replaced:
        take_down(data, other, why=f"replaced by {row.id}", now=now)
    assert moved.route is not None, name
    return moved.route


def give_traffic(
    data: Path,
    ledger: Ledger,
    model: Model,
    deployment: Deployment,
    settings: PromoteSettings,
    *,
    why: str,
    now: datetime,
) -> Move:
    """Move a deployed model to the state of `settings.mode`, asked as the settings say."""
    serving = _serving(data, ledger, model, deployment, settings)
    return move_model(
        data, ledger, model.id, _STATES[settings.mode], why=why, now=now, options=MoveOptions(serving=serving)
    )


def _require_approval(model_id: str, verdict: PromotionDecision | None) -> None:
    """Raise `MissingStep` unless the newest evaluation of a model says promote."""
    if verdict is None:
        raise MissingStep(
            f"model {model_id} was never evaluated: `reasoning evaluate {model_id}` first, or insist with --force"
        )
    if not verdict.promote:
        raise MissingStep(f"model {model_id} did not earn it: {verdict.why}. Insist with --force")


def reject_model(
    data: Path, model_id: str, *, why: str, numbers: dict[str, Any] | None = None, now: datetime | None = None
) -> None:
    """Take a model's traffic, undeploy it, and remember why."""
    with open_ledger(data) as ledger:
        move_model(data, ledger, model_id, ModelState.REJECTED, why=why, numbers=numbers, now=clock_of(now)())
    take_down(data, model_id, why=why, now=now)


def _serving(data: Path, ledger: Ledger, model: Model, deployment: Deployment, settings: PromoteSettings) -> Serving:
    """How the model is asked. The draw of an episode stays the same while a model lives, and from the incumbent on."""
    if not capabilities_of(model.provider).starts_servers:
        if model.logprobs == "none" and float(settings.min_confidence) > 0:
            raise MissingStep(
                f"the server of {model.name} gives no log-probabilities, so min_confidence would refuse every answer: "
                "promote it without"
            )
        custom = arm_of(model)
    else:
        url, logprobs = arm_address(data, deployment.provider)
        custom = Arm(
            name="custom",
            source="custom",
            model=deployment.served_name,
            base_url=url,
            logprobs=logprobs,
            config_hash=read_manifest(find_dataset(data, dataset_of(data, ledger, model))).config_hash,
        )
    name = required(model.decision_type, f"the decision type of model {model.id}")
    known = {each.model_id: each.serving.salt for each in served_models(ledger, name)}
    incumbent = read_lives(ledger, name).incumbent
    inherited = incumbent.serving.salt if incumbent is not None and settings.mode != "live" else ""
    return Serving(
        arm=asdict(custom),
        weight=settings.weight,
        canary_weight=settings.canary_weight,
        deadline_ms=settings.deadline_ms,
        min_confidence=float(settings.min_confidence),  # "auto" was replaced by what was chosen
        shadow_original=settings.shadow_original,
        salt=known.get(model.id) or inherited or experiment_of(name, model.id),
    )
