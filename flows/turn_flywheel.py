"""One turn of the flywheel."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from prefect import flow
from prefect.logging import get_run_logger
from pydantic import Field

from reasoning.config import load_config
from reasoning.errors import ReasoningError
from tasks import model_tasks
from tasks.errors import FlowError
from tasks.exclusive import taking_turns
from tasks.promotion import LIVE_WEIGHT
from tasks.runs import DataFolder, DecisionTypeName, IfBusy, Moment, data_folder, skipped, utc
from tasks.turn import Turn, TurnPolicy, Verbs
from tasks.turn import turn_flywheel as take_turn

VERBS = Verbs(
    export=model_tasks.export,
    fine_tune=model_tasks.fine_tune,
    deploy=model_tasks.deploy,
    evaluate=model_tasks.evaluate,
    promote=model_tasks.promote,
    reject=model_tasks.reject,
)
Share = Annotated[float, Field(gt=0, le=1)]


@flow(name="turn_flywheel")
async def turn_flywheel(
    decision_type: DecisionTypeName | None = None,
    data: DataFolder = None,
    min_new_decisions: Annotated[int, Field(ge=1)] = 200,
    cool_down_hours: Annotated[float, Field(ge=0)] = 20,
    weight: Share = LIVE_WEIGHT,
    canary_weight: Share | None = 0.1,
    shadow_original: bool = False,
    force: bool = False,
    anyway: bool = False,
    now: Moment = None,
    if_busy: IfBusy = "wait",
) -> list[Turn]:
    """Where enough was learned since last time: export, fine-tune, deploy, evaluate, then promote or drop. A turn that
    was cut short is taken up where it stands; a canary that answered well gets its full weight.

    Args:
        decision_type: Empty: every decision type, one after the other.
        data: The data folder. Empty: REASONING_DATA, or `data` in reasoning.toml, where the worker runs.
        min_new_decisions: Labelled decisions since the last turn that make another one due.
        cool_down_hours: Between the end of a turn and the beginning of the next.
        weight: Share of the decisions that a promoted model gets in the end; the rest is the original's.
        canary_weight: Share that it gets first. Empty: the whole at once.
        shadow_original: Let the original answer in the background what the model serves, to compare them. Not where it
            costs money.
        force: Begin a turn even if none is due.
        anyway: Train even a model that is certain to be refused afterwards.
        now: The time it is held to be, for replays. Empty: the time of the machine.
        if_busy: When another run turns the same decision type: wait for it, or leave that type out.
    """
    folder = data_folder(data)
    policy = TurnPolicy(
        min_new_decisions=min_new_decisions,
        cool_down=timedelta(hours=cool_down_hours),
        weight=weight,
        canary_weight=canary_weight,
        shadow_original=shadow_original,
        anyway=anyway,
    )
    turns, errors = [], []
    for name in [decision_type.replace("-", "_")] if decision_type else load_config(folder).decision_types:
        with taking_turns(folder, f"turn_flywheel-{name}", if_busy) as ours:
            if not ours:
                continue
            try:
                turns.append(take_turn(folder, name, policy=policy, verbs=VERBS, force=force, now=utc(now)))
            except ReasoningError as error:  # one type's trouble must not keep the others waiting
                get_run_logger().error("%s: %s", name, error)
                errors.append(f"{name}: {error}")
    model_tasks.tell(turns)
    if errors:
        raise FlowError("; ".join(errors))
    return turns or skipped("turn_flywheel")
