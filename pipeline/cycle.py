"""One cycle of the flywheel: export, fine-tune, deploy, evaluate, then promote or drop.

Where a cycle stands is in the ledger, written after every step. A cycle that was killed goes on from there, and because
every step is idempotent by itself, a step that was cut short is done again at no further cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import storage
from pipeline.cycle_plan import (
    CyclePlan,
    Step,
    holding,
    known_jobs,
    look_ahead,
    make_plan,
    read_holdout,
    serving_steps,
    training_step,
)
from pipeline.errors import NotWorthIt
from pipeline.evaluation import evaluate_model
from pipeline.live_proof import prove_models
from pipeline.models import at_work, deploy, export, find_dataset, fine_tune
from pipeline.parameters import DEFAULT_CANARY, CycleSettings, EvaluateSettings, PromoteSettings
from pipeline.promotion import promote_model, reject_model
from pipeline.triggers import Due, find_due
from pipeline.verdicts import read_verdict
from provider.clock import clock_of
from provider.errors import FineTuneFailed
from quality.dataset.manifest import Manifest, read_manifest
from quality.errors import DatasetRejected, InsufficientData
from quality.evaluation.evaluate import Evaluation
from quality.settings import ExportSettings
from reasoning.config import load_config
from reasoning.decision_types import get_decision_type
from reasoning.serving.routes import Route
from storage.ledger.ledger import open_ledger
from storage.ledger.lives import CycleOutcome, CycleRow, read_cycle, save_cycle
from storage.ledger.money import format_usd
from storage.ledger.rows import CHALLENGER_STATES, INCUMBENT_STATES, Deployment, FineTuneJob, Model, required


@dataclass(frozen=True, slots=True)
class Verbs:
    """What the steps are done with: the plain functions, or the same as Prefect tasks."""

    export: Callable[..., Manifest] = export
    fine_tune: Callable[..., FineTuneJob] = fine_tune
    deploy: Callable[..., Deployment] = deploy
    evaluate: Callable[..., Evaluation] = evaluate_model
    promote: Callable[..., Route] = promote_model
    reject: Callable[..., None] = reject_model


def run_cycle(
    data: Path,
    decision_type: str,
    settings: CycleSettings | None = None,
    *,
    verbs: Verbs | None = None,
    now: datetime | None = None,
) -> CycleRow:
    """Continue the cycle that is under way, begin one that is due (or any, with `force`), or judge a canary.

    Before its first cent the budgets must carry the whole cycle, and what is left of that is held to its end
    (`pipeline.cycle_plan`). For one process at a time (`pipeline.exclusive.exclusive_run`). What stops a cycle for now
    (no capacity, a budget used up, an unreachable provider) is raised and leaves it under way; the next call tries
    again from there.
    """
    settings, verbs = settings or CycleSettings(), verbs or Verbs()
    decision_type = get_decision_type(decision_type, load_config(data)).name
    with holding(data, decision_type, now=now):
        return _take(data, decision_type, settings, verbs, now=now)


def _take(data: Path, decision_type: str, settings: CycleSettings, verbs: Verbs, *, now: datetime | None) -> CycleRow:
    clock = clock_of(now)
    cycle = last_cycle(data, decision_type)
    if cycle is not None and cycle.outcome == CycleOutcome.CANARY:
        cycle = _see_to_canary(data, cycle, settings, verbs, clock())
        if not settings.force:
            return cycle
    if cycle is None or cycle.outcome != CycleOutcome.UNDER_WAY:
        due = find_due(data, decision_type, cycle, settings, now=clock())
        if due.trigger is None:
            return replace(cycle or CycleRow(decision_type=decision_type), outcome=CycleOutcome.NOT_DUE, why=due.why)
        cycle = CycleRow(decision_type=decision_type, started_at=clock().isoformat(), due=due.why)
        try:
            manifest = verbs.export(data, decision_type, ExportSettings(since=due.since), now=now)
        except (InsufficientData, DatasetRejected) as error:
            return _end(data, cycle, CycleOutcome.NOT_ENOUGH_DATA, str(error), clock())
        cycle = _save(data, replace(cycle, dataset_id=manifest.dataset_id))
    assert cycle.dataset_id is not None
    if cycle.model_id is None:
        try:
            # Here the money of the whole cycle is held; what is left of it at the end is given back by `holding`.
            job = verbs.fine_tune(data, cycle.dataset_id, anyway=settings.anyway, now=now)
        except NotWorthIt as error:
            return _end(data, cycle, CycleOutcome.NOT_ENOUGH_DATA, str(error), clock())
        except FineTuneFailed as error:
            return _end(data, cycle, CycleOutcome.FAILED, str(error), clock())
        cycle = _save(data, replace(cycle, job_id=job.id, model_id=job.model_id))
    assert cycle.model_id is not None
    if cycle.evaluation_id is None:
        deployment = verbs.deploy(data, cycle.model_id, now=now)
        cycle = _save(data, replace(cycle, deployment_id=deployment.id))
        price = EvaluateSettings(max_usd_per_1000=settings.max_usd_per_1000, any_price=settings.any_price)
        evaluation = verbs.evaluate(data, cycle.model_id, price, now=now)
        demote_incumbent(data, evaluation, verbs.reject, now=now)
        cycle = _save(data, replace(cycle, evaluation_id=evaluation.evaluation_id))
    assert cycle.evaluation_id is not None
    with open_ledger(data) as ledger:
        verdict = read_verdict(ledger, cycle.evaluation_id)
    if not verdict.promote:
        verbs.reject(data, cycle.model_id, why=verdict.why, now=now)
        return _end(data, cycle, CycleOutcome.REJECTED, verdict.why, clock())
    verbs.deploy(data, cycle.model_id, now=now)  # the guard may have stopped it, if this cycle was interrupted for long
    canary = bool(settings.canary_weight)
    share = PromoteSettings(
        weight=settings.weight,
        mode="canary" if canary else "live",
        canary_weight=settings.canary_weight or DEFAULT_CANARY,
        shadow_original=settings.shadow_original,
    )
    verbs.promote(data, cycle.model_id, share, now=now)
    return _end(data, cycle, CycleOutcome.CANARY if canary else CycleOutcome.PROMOTED, verdict.why, clock())


def demote_incumbent(
    data: Path, evaluation: Evaluation, reject: Callable[..., None] = reject_model, *, now: datetime | None = None
) -> None:
    """Take the traffic of an incumbent that an evaluation puts below the fallback, by the whole interval.

    Only labels that are not the fallback's own answers can show that.
    """
    model_id, found = evaluation.about.get("incumbent_model_id"), evaluation.difference("incumbent", "original")
    if model_id is None or found is None or not evaluation.independent or found.high >= 0:
        return
    with open_ledger(data) as ledger:
        if ledger.get(Model, model_id).state not in INCUMBENT_STATES:
            return
    numbers = {"evaluation_id": evaluation.evaluation_id, "value": found.value, "low": found.low, "high": found.high}
    interval = f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    why = f"worse than the fallback on the holdout: {evaluation.primary} {interval}"
    reject(data, model_id, why=why, numbers=numbers, now=now)


def plan_cycle(
    data: Path,
    decision_type: str,
    settings: CycleSettings | None = None,
    *,
    tier: str | None = None,
    now: datetime | None = None,
) -> CyclePlan:
    """What `run_cycle` would do and cost, and all that stands in the way; spends nothing and uploads nothing.

    The dataset is exported (which is local, and the same again) to tell what its holdout can prove.
    """
    settings, clock = settings or CycleSettings(), clock_of(now)
    config = load_config(data)
    kind = get_decision_type(decision_type, config)
    cycle = last_cycle(data, kind.name)
    if cycle is not None and cycle.outcome == CycleOutcome.CANARY:
        cycle = _canary_ended(data, cycle) or cycle
    under_way = cycle is not None and cycle.outcome == CycleOutcome.UNDER_WAY
    blocked: list[str] = []
    notes: list[str] = []
    folder: Path | None = None
    due: Due | None = None
    if cycle is not None and cycle.outcome == CycleOutcome.CANARY and not settings.force:
        blocked.append("a canary has the traffic: its verdict comes first (--force begins a cycle beside it)")
    elif not under_way:
        due = find_due(data, kind.name, cycle, settings, now=clock())
        if due.trigger is None:
            blocked.append(f"not due: {due.why} (--force)")
        else:
            notes.append(f"due: {due.why}")
    if cycle is not None and under_way and cycle.dataset_id:
        folder = find_dataset(data, cycle.dataset_id)
    else:
        try:
            since = None if due is None else due.since
            notes += [f"learns from {since.isoformat()} on"] if since else []
            folder = export(data, kind.name, ExportSettings(since=since), now=now).path
        except (InsufficientData, DatasetRejected) as error:
            blocked.append(str(error))
    with at_work(data) as (provider, ledger):
        base = provider.base_model(tier or kind.tier)
        model_id = cycle.model_id if cycle is not None and under_way else None
        sent, least = provider.training_parameters, provider.capabilities.minimum_training_usd
        name = None if folder is None else read_manifest(folder).dataset_id
        if name is not None and model_id is None and (jobs := known_jobs(provider, ledger, name, base, sent)):
            model_id = jobs[-1].model_id  # it may run already, and then it costs nothing more
        holdout = None if folder is None else read_holdout(data, folder, kind.name)
        steps = serving_steps(ledger, kind.name, base, model_id=model_id, holdout=holdout)
        if folder is not None and name is not None:
            steps.insert(0, training_step(provider, ledger, name, base, None, again=False))
            refusals, found = look_ahead(data, folder, kind.name, steps, now=clock())
            notes += found
            blocked += [f"{each} (--anyway)" for each in refusals if not settings.anyway]
            notes.append(f"dataset {name}")
        else:
            steps.insert(0, Step("training", least, Decimal(0), f"{base.name}, at least"))
        notes.append(f"once promoted, a model on {base.hardware} costs {format_usd(base.hourly_usd * 24)} a day")
        return make_plan(ledger, kind.name, steps, blocked, notes, now=clock())


def why_no_cycle(
    data: Path, decision_type: str, settings: CycleSettings | None = None, *, now: datetime | None = None
) -> str | None:
    """Why no cycle of a decision type would begin now; None where one is due. Exports nothing."""
    last = last_cycle(data, decision_type)
    if last is not None and last.outcome == CycleOutcome.UNDER_WAY:
        return f"one is under way since {last.started_at}: `reasoning cycle {decision_type}` goes on with it"
    if last is not None and last.outcome == CycleOutcome.CANARY:
        return "a canary has traffic: its live test comes first"
    due = find_due(data, decision_type, last, settings or CycleSettings(), now=clock_of(now)())
    return due.why if due.trigger is None else None


def last_cycle(data: Path, decision_type: str) -> CycleRow | None:
    """Where the cycle of a decision type stands, or how the last one ended; None before the first."""
    with open_ledger(data) as ledger:
        return read_cycle(ledger, decision_type)


def _see_to_canary(data: Path, cycle: CycleRow, settings: CycleSettings, verbs: Verbs, now: datetime) -> CycleRow:
    """Withdraw a canary that failed to answer, else do what its live test says; the guard does the latter as well."""
    model_id = required(cycle.model_id, f"the model of the cycle of {cycle.decision_type}")
    if (ended := _canary_ended(data, cycle)) is not None:
        return _save(data, ended)
    asked, failed = _canary_answers(data, cycle, now)
    if asked >= settings.canary_requests and failed > settings.max_failed_share * asked:
        said = f"the canary failed to answer {failed} of {asked} questions"
        verbs.reject(data, model_id, why=said, now=now)
        return _end(data, cycle, CycleOutcome.REJECTED, said, now)
    found = [each for each in prove_models(data, cycle.decision_type, now=now) if each.model_id == model_id]
    if (ended := _canary_ended(data, cycle)) is not None:
        return _save(data, ended)
    said = found[0].reason if found else "its live test has not begun"
    return replace(cycle, why=f"the canary was asked {asked} questions: {said}")


def _canary_ended(data: Path, cycle: CycleRow) -> CycleRow | None:
    """The end of a cycle whose canary is live or lost its traffic, whoever decided that and when; None while it is one.

    The cool-down counts from then. Nothing is saved.
    """
    model_id = required(cycle.model_id, f"the model of the cycle of {cycle.decision_type}")
    with open_ledger(data) as ledger:
        state = ledger.get(Model, model_id).state
        last = next(reversed(ledger.history(Model, model_id)), None)
    if state in CHALLENGER_STATES:
        return None
    outcome = CycleOutcome.PROMOTED if state in INCUMBENT_STATES else CycleOutcome.REJECTED
    why, at = (str(state), cycle.finished_at) if last is None else (last.why or str(state), last.ts.isoformat())
    return replace(cycle, outcome=outcome, why=why, finished_at=at)


def _canary_answers(data: Path, cycle: CycleRow, now: datetime) -> tuple[int, int]:
    """Answers of the cycle's model since it got its traffic, and how many of them the original had to stand in for."""
    since = datetime.fromisoformat(cycle.finished_at or now.isoformat())
    query = """
        SELECT count(*), count(*) FILTER (NOT valid OR fallback_reason IN ('timeout', 'provider_error', 'unparseable'))
        FROM decisions
        WHERE decision_type = ? AND source = 'custom' AND experiment = ? AND date >= ? AND ts >= ?
    """
    experiment = f"{cycle.decision_type}-{cycle.model_id}"
    ((asked, failed),) = storage.sql(data, query, [cycle.decision_type, experiment, since.date(), since]).rows
    return asked, failed


def _end(data: Path, cycle: CycleRow, outcome: CycleOutcome, why: str, now: datetime) -> CycleRow:
    return _save(data, replace(cycle, outcome=outcome, why=why, finished_at=now.isoformat()))


def _save(data: Path, cycle: CycleRow) -> CycleRow:
    with open_ledger(data) as ledger:
        save_cycle(ledger, cycle)
    return cycle
