"""Less traffic for a model: demote it, or roll a decision type back to the model before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from pipeline.errors import MissingStep
from pipeline.life import REPLACED_BY, MoveOptions, move_model, read_lives
from pipeline.models import deploy, take_down
from pipeline.parameters import DemoteSettings, PromoteSettings, RollbackSettings
from pipeline.promotion import give_traffic
from pipeline.selection import find_model
from provider.clock import Now, clock_of
from provider.errors import ProviderError
from reasoning.config import load_config
from reasoning.decision_types import get_decision_type
from reasoning.errors import ReasoningError
from storage.ledger.ledger import open_ledger
from storage.ledger.rows import INCUMBENT_STATES, ROUTED_STATES, Model, ModelState, Transition, required
from storage.progress import OnProgress

if TYPE_CHECKING:
    from reasoning.serving.routes import Route
    from storage.ledger.ledger import Ledger

_STATES: Mapping[str, ModelState] = {
    "degraded": ModelState.DEGRADED,
    "shadow": ModelState.SHADOW,
    "rejected": ModelState.REJECTED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Demotion:
    """What `demote_model` did. `route` is the type's route after it, None where no model has traffic any more."""

    model_id: str
    from_state: str
    to_state: str
    route: Route | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """What `roll_back` did. `answering` is the model that has the traffic after it, None: the fallback alone."""

    decision_type: str
    withdrawn: str | None
    restored: str | None
    answering: str | None
    route: Route | None


def demote_model(
    data: Path, model: str, settings: DemoteSettings | None = None, *, now: datetime | None = None
) -> Demotion:
    """Take traffic from a model (its id, or a decision type for the model that has most of it).

    `degraded` leaves an incumbent the canary's share until it is proven again, `shadow` lets a model answer in the
    background only, `rejected` takes all of its traffic and undeploys it. Raises `MissingStep` where the model has no
    traffic or cannot take that step, and ModelMoved where somebody else moved it meanwhile.
    """
    settings, when = settings or DemoteSettings(), clock_of(now)()
    to = _STATES[settings.to]
    with open_ledger(data) as ledger:
        row = find_model(data, ledger, model, "demote")
        name = required(row.decision_type, f"the decision type of model {row.id}")
        _require_step(ledger, row, to, name)
        route = move_model(
            data, ledger, row.id, to, why=settings.why, now=when, options=MoveOptions(expected=(row.state,))
        ).route
    if to == ModelState.REJECTED:
        take_down(data, row.id, why=settings.why, now=now)
    return Demotion(model_id=row.id, from_state=row.state, to_state=to, route=route)


def _require_step(ledger: Ledger, model: Model, to: ModelState, decision_type: str) -> None:
    """Raise MissingStep where a model cannot be demoted to a state."""
    if model.state not in ROUTED_STATES:
        raise MissingStep(f"no traffic to take: model {model.id} is {model.state}; `reasoning undeploy` ends its cost")
    if to == ModelState.DEGRADED and model.state not in INCUMBENT_STATES:
        raise MissingStep(
            f"model {model.id} is {model.state}: it has no more than the canary's share; "
            "use --to shadow or --to rejected"
        )
    challenger = read_lives(ledger, decision_type).challenger
    if to == ModelState.SHADOW and challenger is not None and challenger.model_id != model.id:
        raise MissingStep(
            f"model {challenger.model_id} is the challenger of {decision_type}, and there is one at a time: "
            f"demote it first, or use --to rejected for {model.id}"
        )


def roll_back(
    data: Path,
    decision_type: str,
    settings: RollbackSettings | None = None,
    *,
    now: Now = None,
    progress: OnProgress | None = None,
) -> Rollback:
    """Undo the last step up of a decision type.

    A challenger is rejected, and the incumbent goes on. Without a challenger the incumbent is rejected, and the model
    that it had replaced is deployed and promoted again; where there is none, the fallback answers. The traffic is taken
    first, so a step that fails (no capacity, a budget) leaves the fallback answering; called again, it goes on from
    there. Raises `MissingStep` where there is nothing to undo.
    """
    settings, clock = settings or RollbackSettings(), clock_of(now)
    name = get_decision_type(decision_type, load_config(data)).name
    with open_ledger(data) as ledger:
        lives = read_lives(ledger, name)
        leaving = lives.challenger or lives.incumbent
        stays = lives.incumbent if lives.challenger is not None else None
        previous = None if stays is not None else previous_incumbent(ledger, name)
        if leaving is None and previous is None:
            raise MissingStep(f"nothing to roll back: no model of {name} has or had traffic")
        route = None
        if leaving is not None:
            route = move_model(data, ledger, leaving.model_id, ModelState.REJECTED, why=settings.why, now=clock()).route
    withdrawn = None if leaving is None else leaving.model_id
    trouble: ProviderError | None = None
    if withdrawn is not None:
        try:
            take_down(data, withdrawn, why=settings.why, now=now, progress=progress)
        except ProviderError as error:  # the guard ends it; what answers comes first
            trouble = error
    answering = None if stays is None else stays.model_id
    if previous is not None:
        route = _restore(data, name, *previous, why=settings.why, now=now, progress=progress)
        answering = previous[0].id
    if trouble is not None:
        raise trouble
    return Rollback(
        decision_type=name,
        withdrawn=withdrawn,
        restored=None if previous is None else previous[0].id,
        answering=answering,
        route=route,
    )


def previous_incumbent(ledger: Ledger, decision_type: str) -> tuple[Model, Transition] | None:
    """The model that was replaced last as the incumbent, and that change; None where there is none."""
    found: list[tuple[Model, Transition]] = []
    for model in ledger.find(Model, decision_type=decision_type, state=ModelState.TRAINED):
        ends = [step for step in ledger.history(Model, model.id) if step.from_state in INCUMBENT_STATES]
        if ends and (ends[-1].why or "").startswith(REPLACED_BY):  # else somebody undeployed it, and meant it
            found.append((model, ends[-1]))
    return max(found, key=lambda each: each[1].id, default=None)


def _restore(
    data: Path, name: str, model: Model, end: Transition, *, why: str, now: Now, progress: OnProgress | None
) -> Route:
    """Deploy a former incumbent and give it the traffic that it had."""
    try:
        deployment = deploy(data, model.id, now=now, progress=progress)
    except ReasoningError as error:
        raise type(error)(
            f"{error}. The fallback answers for {name} meanwhile; `reasoning rollback {name}` tries to bring "
            f"model {model.id} back again"
        ) from error
    with open_ledger(data) as ledger:
        moved = give_traffic(
            data, ledger, model, deployment, _former(end), why=f"rolled back to: {why}", now=clock_of(now)()
        )
    for other in moved.replaced:
        take_down(data, other, why=f"replaced by {model.id}", now=now)
    assert moved.route is not None, name
    return moved.route


def _former(end: Transition) -> PromoteSettings:
    """How an incumbent was served when it was replaced; the defaults where its ledger is older than that was kept."""
    kept: dict[str, Any] = orjson.loads(end.numbers or "{}").get("serving") or {}
    names = ("weight", "canary_weight", "deadline_ms", "min_confidence", "shadow_original")
    return PromoteSettings(**{name: kept[name] for name in names if name in kept}, force=True)
