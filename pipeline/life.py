"""The life of a model: a state machine in the ledger that one function moves. Routes follow the states.

A decision type has at most one incumbent (promoted or degraded) and one challenger (shadow or canary). The cycle, the
guard's live test and people all call `move_model`. One transaction changes the states, their reasons, and the type's
route as the ledger has it; then the routes file is written. Where the process dies in between, the guard's next tick
writes it. `docs/concepts/life-of-a-model.md` has the diagram.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from pipeline.errors import ModelMoved
from provider.lifecycle.routes import forget_paused, keep_models, publish_route, restore_route
from provider.providers import capabilities_of
from reasoning.errors import ReasoningError
from reasoning.serving.routes import Arm, Route, Routes, format_routes
from storage.layout import Layout
from storage.ledger.lives import (
    Promotion,
    ServedModel,
    Serving,
    decide_promotion,
    drop_promotions,
    drop_serving,
    mark_published,
    promotions,
    restart_test,
    save_serving,
    served_models,
)
from storage.ledger.rows import (
    CHALLENGER_STATES,
    INCUMBENT_STATES,
    ROUTED_STATES,
    Deployment,
    DeploymentState,
    Model,
    ModelState,
    required,
)

if TYPE_CHECKING:
    from storage.ledger.ledger import Ledger

CUSTOM, INCUMBENT, ORIGINAL = "custom", "incumbent", "original"
"""Names of arms. The model that an experiment is named after is `custom`; the one beside it is `incumbent`."""

REPLACED_BY = "replaced by"
"""How the reason begins that the ledger has for an incumbent or a challenger whose place another model took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lives:
    """Who answers for a decision type, besides the fallback."""

    challenger: ServedModel | None
    incumbent: ServedModel | None
    challenger_state: ModelState | None
    incumbent_state: ModelState | None

    @property
    def challenger_share(self) -> float:
        """The challenger's share of the questions."""
        in_canary = self.challenger is not None and self.challenger_state == ModelState.CANARY
        return self.challenger.serving.canary_weight if self.challenger is not None and in_canary else 0.0

    @property
    def incumbent_share(self) -> float:
        """The incumbent's share: of what the challenger leaves, so that its odds against the fallback do not change."""
        if self.incumbent is None:
            return 0.0
        serving = self.incumbent.serving
        own = serving.weight if self.incumbent_state == ModelState.PROMOTED else serving.canary_weight
        return own * (1.0 - self.challenger_share)

    @property
    def original_share(self) -> float:
        """What is left for the fallback."""
        return max(1.0 - (self.challenger_share + self.incumbent_share), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveOptions:
    """How a model is moved.

    `serving` is how it is asked from now on; None: as before. `expected` are the states that it may be in; None: any.
    With `renew` all routes get a lease, as a person expects; the guard does that by itself.
    """

    serving: Serving | None = None
    expected: Collection[ModelState] | None = None
    renew: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What a move did: the type's route after it, None without a model, and the models that it took the traffic of."""

    route: Route | None
    replaced: tuple[str, ...] = ()


def read_lives(ledger: Ledger, decision_type: str) -> Lives:
    """Who answers for a decision type by the ledger."""
    states = {row.id: row.state for row in ledger.find(Model, decision_type=decision_type, state=ROUTED_STATES)}
    served = [each for each in served_models(ledger, decision_type) if each.model_id in states]
    found = {
        group: next((each for each in reversed(served) if states[each.model_id] in group), None)
        for group in (CHALLENGER_STATES, INCUMBENT_STATES)
    }
    challenger, incumbent = found[CHALLENGER_STATES], found[INCUMBENT_STATES]
    return Lives(
        challenger=challenger,
        incumbent=incumbent,
        challenger_state=None if challenger is None else states[challenger.model_id],
        incumbent_state=None if incumbent is None else states[incumbent.model_id],
    )


def move_model(
    data: Path,
    ledger: Ledger,
    model_id: str,
    to: ModelState,
    *,
    why: str,
    now: datetime,
    numbers: dict[str, Any] | None = None,
    options: MoveOptions | None = None,
) -> Move:
    """Move a model to a state, its reason and figures with it, and publish the route that follows.

    A new incumbent takes the place of the one before, a new challenger that of the other challenger: those are
    `trained` again. Raises ModelMoved where the state is none of the expected ones, because somebody else was faster,
    and IllegalTransition for a step that there is not. Where a route that gives traffic cannot be published, all is as
    before; one that takes traffic away stays decided, and the guard publishes it.
    """
    options = options or MoveOptions()
    before = ledger.get(Model, model_id)
    name = required(before.decision_type, f"the decision type of model {model_id}")
    with ledger.transaction():
        before = ledger.get(Model, model_id)
        if options.expected is not None and before.state not in options.expected:
            raise ModelMoved(f"model {model_id} is {before.state} by now: `reasoning models history {model_id}` tells")
        kept = _keep(ledger, name)
        replaced = _make_room(ledger, before, to, now=now)
        figures = None if numbers is None else orjson.dumps(numbers).decode()
        ledger.transition(Model, model_id, to, why=why, numbers=figures, now=now)
        _save_serving(ledger, before, to, options.serving, now=now)
        route = derive_route(ledger, name)
        promotion = _decide(ledger, name, model_id, route, now=now)
    gains = to in ROUTED_STATES and to != ModelState.DEGRADED
    try:
        _publish(data, ledger, promotion, route, now=now, renew=options.renew)
    except (ReasoningError, OSError) as error:
        if gains:
            _undo(ledger, kept, promotion, why=str(error), now=now)
        raise
    return Move(route=route, replaced=tuple(replaced))


def derive_route(ledger: Ledger, decision_type: str) -> Route | None:
    """The route of a decision type that follows from the states of its models; None where none has traffic.

    The challenger has the first part of the draw, so that its episodes stay its own when its share grows.
    """
    lives = read_lives(ledger, decision_type)
    lead = lives.challenger or lives.incumbent
    if lead is None:
        return None
    served = [each for each in (lives.challenger, lives.incumbent) if each is not None]
    arms = []
    if lives.challenger is not None:
        in_shadow = lives.challenger_state == ModelState.SHADOW
        arm = replace(_arm_of(ledger, lives.challenger), name=CUSTOM)
        share = lives.challenger_share
        arms.append(replace(arm, mode="shadow", weight=1.0) if in_shadow else replace(arm, mode="live", weight=share))
    if lives.incumbent is not None:
        own = INCUMBENT if lives.challenger is not None else CUSTOM
        arm = _arm_of(ledger, lives.incumbent)
        arms.append(replace(arm, name=own, mode="live", weight=lives.incumbent_share))
    arms.append(Arm(name=ORIGINAL, source="original", weight=lives.original_share))
    if any(each.serving.shadow_original for each in served):
        arms.append(Arm(name="original-shadow", source="original", mode="shadow"))
    return Route(
        arms=tuple(arms),
        deadline_ms=max(each.serving.deadline_ms for each in served),
        min_confidence=max(each.serving.min_confidence for each in served),
        experiment=experiment_of(decision_type, lead.model_id),
        salt=lead.serving.salt,
    )


def experiment_of(decision_type: str, model_id: str) -> str:
    """The experiment in which a model is the arm `custom`."""
    return f"{decision_type}-{model_id}"


def _arm_of(ledger: Ledger, served: ServedModel) -> Arm:
    """Its arm; a model that was deployed anew is asked by its new name."""
    arm = Arm(**served.serving.arm)
    if not capabilities_of(ledger.get(Model, served.model_id).provider).starts_servers:
        return arm
    ready = ledger.find(Deployment, model_id=served.model_id, state=DeploymentState.READY)
    name = ready[-1].served_name if ready else None
    return replace(arm, model=name) if name else arm


def _make_room(ledger: Ledger, model: Model, to: ModelState, *, now: datetime) -> list[str]:
    """End the model in the place that `model` takes; how it was served is kept, for a rollback.

    Where the incumbent changes, tests against it begin anew.
    """
    group = _group_of(to)
    others = [row for row in ledger.find(Model, decision_type=model.decision_type) if row.id != model.id]
    replaced = [row.id for row in others if row.state in group]
    served = {each.model_id: each.serving for each in served_models(ledger, model.decision_type)}
    for other in replaced:
        kept = orjson.dumps({"serving": asdict(served[other])}).decode() if other in served else None
        ledger.transition(Model, other, ModelState.TRAINED, why=f"{REPLACED_BY} {model.id}", numbers=kept, now=now)
        drop_serving(ledger, other)
    if INCUMBENT_STATES in (group, _group_of(model.state)):
        for row in others:
            if row.state in CHALLENGER_STATES and row.id not in replaced:
                restart_test(ledger, row.id, now=now)
    return replaced


def _group_of(state: ModelState) -> tuple[ModelState, ...]:
    return INCUMBENT_STATES if state in INCUMBENT_STATES else CHALLENGER_STATES if state in CHALLENGER_STATES else ()


def _save_serving(ledger: Ledger, model: Model, to: ModelState, serving: Serving | None, *, now: datetime) -> None:
    """How the model is asked. Its test begins anew where its share or its settings change."""
    name = required(model.decision_type, f"the decision type of model {model.id}")
    known = next((each for each in served_models(ledger, name) if each.model_id == model.id), None)
    if to not in ROUTED_STATES:
        drop_serving(ledger, model.id)
        return
    wanted = serving if serving is not None or known is None else known.serving
    if wanted is None:
        raise ModelMoved(f"model {model.id} has no route to go on with: `reasoning promote {model.id}` makes one")
    if known is None or known.serving != wanted or model.state != to:
        save_serving(ledger, model.id, name, wanted, now=now)


def _decide(ledger: Ledger, name: str, model_id: str, route: Route | None, *, now: datetime) -> Promotion:
    routes = {name: route} if route is not None else {}
    lives = read_lives(ledger, name)
    lead = lives.incumbent or lives.challenger
    promotion = Promotion(
        decision_type=name,
        model_id=model_id if lead is None else lead.model_id,
        routes=format_routes(Routes(issued_at=now, expires_at=now, routes=routes)).decode(),
        decided_at=now,
        published_at=None,
    )
    decide_promotion(ledger, promotion)
    return promotion


def _publish(
    data: Path, ledger: Ledger, promotion: Promotion, route: Route | None, *, now: datetime, renew: bool
) -> None:
    path, name = Layout(data).routes, promotion.decision_type
    if route is None:
        keep_models(path, lambda decision_type, _: decision_type != name, now=now)
    elif renew:
        publish_route(path, name, route, now=now)
    else:
        restore_route(path, name, route, now=now)
    forget_paused(path, name, now=now)
    with ledger.transaction():
        published = mark_published(ledger, promotion, now=now)
        if route is None and published in promotions(ledger):
            drop_promotions(ledger, decision_type=name)


@dataclass(frozen=True, slots=True)
class _Kept:
    """How a decision type stood before a move."""

    models: list[Model]
    served: list[ServedModel]
    promotion: Promotion | None


def _keep(ledger: Ledger, name: str) -> _Kept:
    return _Kept(
        ledger.find(Model, decision_type=name),
        served_models(ledger, name),
        next((each for each in promotions(ledger) if each.decision_type == name), None),
    )


def _undo(ledger: Ledger, kept: _Kept, promotion: Promotion, *, why: str, now: datetime) -> None:
    """Put everything back, unless somebody else moved the type on meanwhile."""
    name = promotion.decision_type
    with ledger.transaction():
        if promotion not in promotions(ledger):
            return
        for model in kept.models:
            ledger.transition(Model, model.id, model.state, why=f"undone: {why}", now=now)
            drop_serving(ledger, model.id)
        for served in kept.served:
            save_serving(ledger, served.model_id, name, served.serving, now=served.since)
        drop_promotions(ledger, decision_type=name)
        if kept.promotion is not None:  # the routes file still has it, and is written from it again
            decide_promotion(ledger, kept.promotion)
