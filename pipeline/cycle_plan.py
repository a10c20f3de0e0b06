"""What a whole cycle costs (training, candidate and incumbent by the hour, evaluation), before its first cent.

A cycle that stops half-way has paid for nothing: a model that is trained and cannot be deployed, or that no verdict can
promote. So all of it is planned, compared with every budget, and held (`Ledger.hold`) before anything is bought.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import NotWorthIt
from pipeline.traffic import questions_per_hour
from provider.clock import Now, clock_of
from provider.endpoint.arms import most_usd
from provider.lifecycle.deployment_state import STARTING_STATES
from provider.lifecycle.fine_tunes import estimate_job
from provider.lifecycle.sharing import attached_to, hourly_part, replica_of_base
from provider.money.metering import hourly_usd
from provider.port import BaseModel, Provider
from provider.serving import load_serving
from quality.dataset.manifest import read_rows
from quality.evaluation.promotion import certain_refusals, foresee, prospect_notes
from reasoning.config import load_config
from reasoning.decision_types import get_decision_type
from storage.errors import BudgetExceeded, LedgerError
from storage.ledger.ledger import Budget, open_ledger
from storage.ledger.money import format_usd
from storage.ledger.reports import ACTIVE_STATES
from storage.ledger.rows import (
    INCUMBENT_STATES,
    DatasetState,
    Deployment,
    DeploymentState,
    FineTuneJob,
    JobState,
    Model,
    UploadedDataset,
)

if TYPE_CHECKING:
    from storage.ledger.ledger import Ledger

HOURS = 1
"""How long a candidate runs before its verdict, at most: up to 25 minutes until it is ready, then the evaluation."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step and what it costs. `hourly_usd` is what is not reserved yet of what it costs an hour while it runs."""

    step: str
    amount_usd: Decimal
    hourly_usd: Decimal
    what: str


@dataclass(frozen=True, slots=True)
class Holdout:
    """The questions that a verdict asks, and how many tokens each answer may have."""

    questions: Sequence[Sequence[Any]]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class BudgetNeed:
    """A budget against the plan. `must_be_usd` is the least that it would have to be, None where it suffices."""

    budget: str
    limit_usd: Decimal
    spent_usd: Decimal
    reserved_usd: Decimal
    needs_usd: Decimal
    must_be_usd: Decimal | None
    set_it: str | None


@dataclass(frozen=True, slots=True)
class CyclePlan:
    """The steps of a cycle with their prices, what they need of every budget, and what stands in the way."""

    decision_type: str
    amount_usd: Decimal
    hourly_usd: Decimal
    steps: list[Step]
    budgets: list[BudgetNeed]
    blocked_by: list[str]
    notes: list[str]

    @property
    def short(self) -> list[BudgetNeed]:
        """The budgets that do not carry it."""
        return [need for need in self.budgets if need.must_be_usd is not None]


def training_step(
    provider: Provider, ledger: Ledger, dataset_id: str, base: BaseModel, parameters: dict[str, Any] | None, again: bool
) -> Step:
    """What the fine-tune costs: nothing where it was done or is reserved, else the provider's estimate.

    Before the dataset is uploaded the provider cannot tell, and it is the least that a job costs.
    """
    sent = {**provider.training_parameters, **(parameters or {})}
    least = provider.capabilities.minimum_training_usd
    rows = ledger.find(UploadedDataset, dataset=dataset_id)
    known = [] if again else known_jobs(provider, ledger, dataset_id, base, sent)
    if known:
        state = known[-1].state
        return Step("training", Decimal(0), Decimal(0), f"job {known[-1].id} is {state}: paid, or reserved, already")
    if rows and rows[-1].state == DatasetState.READY:
        price = estimate_job(provider, rows[-1], base.name, sent)
        return Step("training", price, Decimal(0), f"{base.name}, by the provider's estimate")
    return Step("training", least, Decimal(0), f"{base.name}, at least: estimated when it is uploaded")


def known_jobs(
    provider: Provider, ledger: Ledger, dataset_id: str, base: BaseModel, parameters: Mapping[str, Any]
) -> list[FineTuneJob]:
    """Jobs that `submit_fine_tune` would return instead of paying for another."""
    return ledger.find(
        FineTuneJob,
        provider=provider.name,
        upload_id=[row.id for row in ledger.find(UploadedDataset, dataset=dataset_id)],
        base_model=base.name,
        parameters=json.dumps(dict(parameters), sort_keys=True),
        state=(*ACTIVE_STATES, JobState.COMPLETED),
    )


def _candidate(
    ledger: Ledger, decision_type: str, base: BaseModel, up: list[Deployment], replicas: int
) -> tuple[Decimal, Decimal, str]:
    """What a candidate costs an hour, what of that is more than runs now, and where it runs, in words."""
    if up:
        return hourly_part(ledger, up[-1]), Decimal(0), "runs already"
    rate = base.hourly_usd * replicas
    if base.adapters == 0 or replicas > 1 or not load_serving().of(decision_type).share:
        return rate, rate, f"on {base.hardware}"
    if (replica := replica_of_base(ledger, base.name)) is not None:
        sharers = len(attached_to(ledger, replica.id)) + 1
        room = f"of {replica.max_adapters}" if replica.max_adapters else "of as many as it carries"
        said = f"attached to {replica.name}, which runs already: adapter {sharers} {room}"
        return hourly_usd(replica) / sharers, Decimal(0), said
    room = f"up to {base.adapters} adapters" if base.adapters else "adapters"
    return rate, rate, f"on a new replica on {base.hardware}, which carries {room}"


def serving_steps(
    ledger: Ledger,
    decision_type: str,
    base: BaseModel,
    *,
    model_id: str | None = None,
    replicas: int = 1,
    holdout: Holdout | None = None,
) -> list[Step]:
    """What the verdict costs: the candidate (`model_id`, None: not trained yet) and the incumbent by the hour, and the
    tokens of an incumbent that is paid by them, for the questions of `holdout` (None: there is no dataset yet)."""
    none = Decimal(0)
    up = ledger.find(Deployment, model_id=model_id, state=(*STARTING_STATES, DeploymentState.READY)) if model_id else []
    rate, more, where = _candidate(ledger, decision_type, base, up, replicas)
    by_token: list[Model] = []
    steps = [Step("candidate", rate * HOURS, more, f"{HOURS} hour, {where}")]
    for model in ledger.find(Model, decision_type=decision_type, state=INCUMBENT_STATES):
        if model.id == model_id:
            continue
        for row in ledger.find(Deployment, model_id=model.id, state=(*STARTING_STATES, DeploymentState.READY)):
            rate = hourly_part(ledger, row)
            by_token += [model] if model.input_million_usd is not None else []
            steps.append(Step("incumbent", rate * HOURS, none, f"{HOURS} hour of {model.id}, which runs already"))
    if not by_token or holdout is None:
        steps.append(Step("evaluation", none, none, "its tokens cost nothing: both run by the hour"))
        return steps
    most = sum((most_usd(model, holdout.questions, holdout.max_tokens) for model in by_token), none)
    asked = ", ".join(f"{len(holdout.questions):,} questions to {model.name}" for model in by_token)
    return [*steps, Step("evaluation", most, none, f"tokens of {asked}, at most")]


def read_holdout(data: Path, folder: Path, decision_type: str) -> Holdout:
    """The holdout of a dataset, as it will be asked."""
    config = load_config(data)
    rows = read_rows(folder, "holdout", config=config)
    return Holdout([row.messages for row in rows], get_decision_type(decision_type, config).max_tokens)


def budget_needs(ledger: Ledger, decision_type: str, steps: Sequence[Step], *, now: datetime) -> list[BudgetNeed]:
    """What the steps need of every budget that covers the type. What is held for its cycle already counts as theirs."""
    amount = sum((step.amount_usd for step in steps), Decimal(0))
    hourly = sum((step.hourly_usd for step in steps), Decimal(0))
    held, held_hourly = ledger.held(decision_type, now=now)
    needs = []
    for budget in ledger.budgets(now):
        if budget.decision_type not in (None, decision_type):
            continue
        is_rate = budget.period == "hour"
        wanted = hourly if is_rate else amount
        reserved = budget.reserved_usd - (held_hourly if is_rate else held)
        least = budget.spent_usd + reserved + wanted
        short = bool(wanted) and least > budget.limit_usd
        needs.append(
            BudgetNeed(
                budget=budget.name,
                limit_usd=budget.limit_usd,
                spent_usd=budget.spent_usd,
                reserved_usd=reserved,
                needs_usd=wanted,
                must_be_usd=least if short else None,
                set_it=_set_it(budget, least) if short else None,
            )
        )
    return needs


def _set_it(budget: Budget, limit: Decimal) -> str:
    cents = limit.quantize(Decimal("0.01"), rounding="ROUND_UP")
    of = f" --decision-type {budget.decision_type}" if budget.decision_type else ""
    return f"reasoning costs set-budget {cents} --period {budget.period}{of}"


def make_plan(
    ledger: Ledger, decision_type: str, steps: list[Step], blocked_by: list[str], notes: list[str], *, now: datetime
) -> CyclePlan:
    """The plan of these steps; budgets that do not carry it are added to what blocks it."""
    needs = budget_needs(ledger, decision_type, steps, now=now)
    plan = CyclePlan(
        decision_type=decision_type,
        amount_usd=sum((step.amount_usd for step in steps), Decimal(0)),
        hourly_usd=sum((step.hourly_usd for step in steps), Decimal(0)),
        steps=steps,
        budgets=needs,
        blocked_by=list(blocked_by),
        notes=list(notes),
    )
    if plan.short:
        plan.blocked_by.append(describe_shortage(plan))
    return plan


def describe_shortage(plan: CyclePlan) -> str:
    """Which budgets do not carry a plan, and what they would have to be."""
    parts = " + ".join(f"{step.step} {format_usd(step.amount_usd)}" for step in plan.steps if step.amount_usd)
    short = "; ".join(
        f"the {need.budget} budget is {format_usd(need.limit_usd)} ({format_usd(need.spent_usd)} spent, "
        f"{format_usd(need.reserved_usd)} reserved) and must be at least {format_usd(need.must_be_usd or Decimal(0))}: "
        f"`{need.set_it}`"
        for need in plan.short
    )
    return (
        f"the cycle of {plan.decision_type} needs {format_usd(plan.amount_usd)} ({parts}) and "
        f"{format_usd(plan.hourly_usd)} an hour more than runs now, which the budgets do not carry: {short}"
    )


def hold_cycle(ledger: Ledger, decision_type: str, steps: list[Step], *, now: datetime) -> None:
    """Hold the money of a cycle's steps. Raises `BudgetExceeded`, which says what every budget would have to be."""
    plan = make_plan(ledger, decision_type, steps, [], [], now=now)
    if plan.short:
        raise BudgetExceeded(f"{describe_shortage(plan)}. Nothing was spent")
    ledger.hold(plan.amount_usd, decision_type, hourly_usd=plan.hourly_usd, now=now)


_held_here: set[tuple[Path, str]] = set()


@contextmanager
def holding(data: Path, decision_type: str, *, now: Now = None) -> Iterator[None]:
    """Give back what is still held for the type's cycle at the end of the block, of the outermost one in this process.

    What a killed process holds lapses (`HOLD_TTL`), or is taken over by the next cycle of the type.
    """
    key = (data.absolute(), decision_type)
    if key in _held_here:
        yield
        return
    _held_here.add(key)
    try:
        yield
    finally:
        _held_here.discard(key)
        with suppress(LedgerError), open_ledger(data) as ledger:  # else it lapses; what went wrong is the news
            ledger.release_hold(decision_type, now=clock_of(now)())


def look_ahead(
    data: Path, folder: Path, decision_type: str, steps: Sequence[Step], *, now: datetime
) -> tuple[list[str], list[str]]:
    """Why no model of a dataset can be promoted however good it is, and what makes it harder."""
    prospect = foresee(read_rows(folder, "holdout", config=load_config(data)))
    traffic = questions_per_hour(data, decision_type, now)

    def per_answer(name: str) -> float | None:
        rates = [step.amount_usd / HOURS for step in steps if step.step == name]
        return float(rates[0]) / traffic if rates and traffic else None

    incumbent = per_answer("incumbent")
    tokens = sum(float(step.amount_usd) for step in steps if step.step == "evaluation")
    if tokens and prospect.rows:  # what they cost at most: only that makes a refusal certain
        incumbent = (incumbent or 0.0) + tokens / prospect.rows
    refusals = certain_refusals(prospect, cost_usd=per_answer("candidate"), incumbent_cost_usd=incumbent, priced=True)
    return refusals, prospect_notes(prospect)


def require_worth(refusals: Sequence[str]) -> None:
    """Raise `NotWorthIt` where a model is certain to be refused."""
    if refusals:
        raise NotWorthIt(
            f"a model of this dataset is certain to be refused: {'; '.join(refusals)}. "
            "Nothing was spent; --anyway insists"
        )
