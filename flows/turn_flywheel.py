"""One cycle of the flywheel."""

from __future__ import annotations

from prefect import flow
from prefect.logging import get_run_logger

from pipeline.cycle import Verbs, run_cycle
from pipeline.errors import FlowError
from pipeline.exclusive import exclusive_run
from pipeline.parameters import CycleSettings
from reasoning.config import load_config
from reasoning.errors import ReasoningError
from storage.ledger.lives import CycleRow
from tasks import model_tasks
from tasks.parameters import with_settings
from tasks.runs import DataFolder, DecisionTypeName, IfBusy, Moment, data_folder, skipped, utc

VERBS = Verbs(
    export=model_tasks.export,
    fine_tune=model_tasks.fine_tune,
    deploy=model_tasks.deploy,
    evaluate=model_tasks.evaluate,
    promote=model_tasks.promote,
    reject=model_tasks.reject,
)


@flow(name="turn_flywheel")
@with_settings
async def turn_flywheel(
    decision_type: DecisionTypeName | None = None,
    data: DataFolder = None,
    *,
    settings: CycleSettings,
    now: Moment = None,
    if_busy: IfBusy = "wait",
) -> list[CycleRow]:
    """Run a cycle where one is due: export, fine-tune, deploy, evaluate, then promote or drop. Every decision type,
    one after the other, where none is given. A cycle that was cut short goes on where it stopped; a canary that
    answered well gets its full weight."""
    folder = data_folder(data)
    cycles, errors = [], []
    for name in [decision_type.replace("-", "_")] if decision_type else load_config(folder).decision_types:
        with exclusive_run(folder, f"turn_flywheel-{name}", if_busy) as ours:
            if not ours:
                continue
            try:
                cycles.append(run_cycle(folder, name, settings, verbs=VERBS, now=utc(now)))
            except ReasoningError as error:  # one type's trouble must not keep the others waiting
                get_run_logger().error("%s: %s", name, error)
                errors.append(f"{name}: {error}")
    model_tasks.tell(cycles)
    if errors:
        raise FlowError("; ".join(errors))
    return cycles or skipped("turn_flywheel")
