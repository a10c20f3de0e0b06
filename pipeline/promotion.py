"""Traffic for a model that earned it: the route, and what it replaces."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import MissingStep
from pipeline.evaluation import choose_confidence, dataset_of
from pipeline.models import find_dataset, find_deployment, take_down
from pipeline.parameters import PromoteSettings
from pipeline.selection import find_model
from pipeline.verdicts import last_verdict
from provider.clock import clock_of
from provider.endpoint.arms import arm_of
from provider.lifecycle.routes import publish_route
from provider.providers import arm_address
from quality.dataset.export import read_manifest
from reasoning.errors import ReasoningError
from reasoning.serving.routes import Arm, Route, Routes, format_routes
from storage.layout import Layout
from storage.ledger.ledger import open_ledger
from storage.ledger.lives import Promotion, decide_promotion, drop_promotions, mark_published, promotions
from storage.ledger.rows import ENDPOINT, Deployment, Model, ModelState, required

if TYPE_CHECKING:
    from quality.evaluation.promotion import Verdict
    from storage.ledger.ledger import Ledger

log = logging.getLogger(__name__)


def promote_model(
    data: Path,
    model: str,
    settings: PromoteSettings | None = None,
    *,
    now: datetime | None = None,
) -> Route:
    """Publish the route of a deployed model (its id, or a decision type; `pipeline.selection`); returns the route.

    In `shadow` mode the model answers all decisions in the background and serves none. Called again with a greater
    weight, an episode that was the model's stays the model's. The model that it replaces is undeployed. Raises
    `MissingStep` unless the model is ready and its newest evaluation says promote; `force` does without the latter.
    """
    settings = settings or PromoteSettings()
    force, mode = settings.force, settings.mode
    when = clock_of(now)()
    with open_ledger(data) as ledger:
        row = find_model(data, ledger, model, "promote --force" if force else "promote")
        name = required(row.decision_type, f"the decision type of model {row.id}")
        deployment = find_deployment(ledger, row.id, "ready")
        if deployment is None:
            raise MissingStep(f"model {row.id} is not deployed: `reasoning deploy {row.id}` first")
        verdict = last_verdict(ledger, row.id)
        if not force:
            _require_approval(row.id, verdict)
        minimum = settings.min_confidence
        if minimum == "auto":
            threshold = choose_confidence(data, row.id, now=now)
            log.info("model %s: %s", row.id, threshold.describe())
            minimum = threshold.chosen.min_confidence
        route = _route(data, ledger, row, deployment, settings, minimum)
        promotion = Promotion(
            decision_type=name,
            model_id=row.id,
            routes=format_routes(Routes(issued_at=when, expires_at=when, routes={name: route})).decode(),
            decided_at=when,
            published_at=None,
        )
        why = verdict.why if verdict and verdict.promote else "forced"
        _publish(data, ledger, row, promotion, route, why=why if mode == "live" else None)
        replaced = []
        if mode == "live":
            replaced = [
                other.id
                for other in ledger.find(Model, decision_type=row.decision_type, state=ModelState.PROMOTED)
                if other.id != row.id
            ]
    for other in replaced:
        take_down(data, other, why=f"replaced by {row.id}", now=now)
    return route


def _publish(data: Path, ledger: Ledger, model: Model, promotion: Promotion, route: Route, *, why: str | None) -> None:
    """Decide on a promotion, and write its route. With `why` the model is promoted by it (not in the shadow).

    One transaction decides it. The routes file is written from the ledger: here, or by the guard's next tick where this
    process dies first. Where it cannot be written, all is as before.
    """
    name, when = promotion.decision_type, promotion.decided_at
    before = next((other for other in promotions(ledger) if other.decision_type == name), None)
    with ledger.transaction():
        decide_promotion(ledger, promotion)
        if why is not None:
            ledger.transition(Model, model.id, ModelState.PROMOTED, why=why, now=when)
    try:
        publish_route(Layout(data).routes, name, route, now=when)
    except (ReasoningError, OSError) as error:
        with ledger.transaction():
            drop_promotions(ledger, decision_type=name)
            if before is not None:  # the routes file still has it, and is written from it again
                decide_promotion(ledger, before)
            ledger.transition(Model, model.id, model.state, why=str(error), now=when)
        raise
    mark_published(ledger, promotion, now=when)


def _require_approval(model_id: str, verdict: Verdict | None) -> None:
    """Raise `MissingStep` unless the newest evaluation of a model says promote."""
    if verdict is None:
        raise MissingStep(
            f"model {model_id} was never evaluated: `reasoning evaluate {model_id}` first, or insist with --force"
        )
    if not verdict.promote:
        raise MissingStep(f"model {model_id} did not earn it: {verdict.why}. Insist with --force")


def reject_model(data: Path, model_id: str, *, why: str, now: datetime | None = None) -> None:
    """Undeploy a model that did not earn its traffic, and remember why."""
    take_down(data, model_id, why=why, now=now)
    with open_ledger(data) as ledger:
        ledger.transition(Model, model_id, ModelState.REJECTED, why=why, now=clock_of(now)())


def _route(
    data: Path,
    ledger: Ledger,
    model: Model,
    deployment: Deployment,
    settings: PromoteSettings,
    min_confidence: float,
) -> Route:
    mode = settings.mode
    share = settings.weight if mode == "live" else 1.0
    if model.provider == ENDPOINT:
        if model.logprobs == "none" and min_confidence > 0:
            raise MissingStep(
                f"the server of {model.name} gives no log-probabilities, so min_confidence would refuse every answer: "
                "promote it without"
            )
        custom = arm_of(model, weight=share, mode=mode)
    else:
        url, logprobs = arm_address(data, deployment.provider)
        custom = Arm(
            name="custom",
            source="custom",
            weight=share,
            mode=mode,
            model=deployment.served_name,
            base_url=url,
            logprobs=logprobs,
            config_hash=read_manifest(find_dataset(data, dataset_of(data, ledger, model))).config_hash,
        )
    original = Arm(name="original", source="original", weight=1.0 if mode == "shadow" else 1.0 - share)
    # The salt goes with the model, not with the weight: the draw of an episode stays the same as the weight grows.
    experiment = f"{model.decision_type}-{model.id}"
    shadow = Arm(name="original-shadow", source="original", mode="shadow")
    return Route(
        arms=(custom, original, shadow) if settings.shadow_original else (custom, original),
        deadline_ms=settings.deadline_ms,
        min_confidence=min_confidence,
        experiment=experiment,
        salt=experiment,
    )
