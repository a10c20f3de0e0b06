"""The test of a model that answers live questions, as a report: what it shows, and what would be done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import storage
from pipeline.errors import MissingStep
from pipeline.life import Lives, experiment_of, read_lives
from pipeline.models import find_deployment
from pipeline.traffic import questions_per_hour
from provider.clock import clock_of
from provider.money.metering import hourly_usd
from quality.errors import EvaluationError
from quality.evaluation.evaluate import Evaluation
from quality.evaluation.experiments import evaluate_log
from quality.evaluation.live import LiveDecision, Observations, Stage, decide, path_so_far
from quality.evaluation.observations import Sides, observe
from quality.evaluation.policies import load_policy
from quality.period import first_moment, moment_after
from quality.settings import ExperimentSettings
from reasoning.config import load_config
from reasoning.decision_types import get_decision_type
from storage.ledger.ledger import open_ledger
from storage.ledger.lives import ServedModel, last_evaluation
from storage.ledger.rows import DeploymentState, ModelState

STAGES: Mapping[ModelState, Stage] = {
    ModelState.SHADOW: "shadow",
    ModelState.CANARY: "canary",
    ModelState.DEGRADED: "canary",  # it is proven again as a canary is
    ModelState.PROMOTED: "live",
}
_HALF = 20


@dataclass(frozen=True, slots=True)
class ExperimentReport:
    """`path` is how the difference to the fallback came about (`quality.evaluation.live.path_so_far`).

    `evaluation` compares all that was logged in the same time (None: `nothing_to_compare` says why).
    """

    decision_type: str
    model_id: str
    stage: Stage
    against: str
    since: datetime
    decision: LiveDecision
    path: list[dict[str, Any]]
    evaluation: Evaluation | None
    nothing_to_compare: str | None = None


def report_experiment(
    data: Path, decision_type: str, settings: ExperimentSettings | None = None, *, now: datetime | None = None
) -> ExperimentReport:
    """What the log shows of the model of a decision type that has a route. Changes nothing.

    Without `settings.since` it begins with the first decision of the model. Raises `MissingStep` without a model or a
    decision of it.
    """
    settings = settings or ExperimentSettings()
    config = load_config(data)
    name = get_decision_type(decision_type, config).name
    end = moment_after(settings.until)
    now = min(clock_of(now)(), end) if end else clock_of(now)()
    with open_ledger(data) as ledger:
        lives = read_lives(ledger, name)
    served, state = lives.challenger or lives.incumbent, lives.challenger_state or lives.incumbent_state
    if served is None or state is None:
        raise MissingStep(f"no model of {name} has traffic: give it some by `reasoning promote {name}`")
    since = first_moment(settings.since) or _first_decision(data, name, experiment_of(name, served.model_id))
    if since is None:
        raise MissingStep(f"model {served.model_id} of {name} was asked nothing yet: land the decisions, or wait")
    against: Literal["original", "incumbent"] = "original"
    if lives.challenger is not None and lives.incumbent is not None and state == ModelState.CANARY:
        against = "incumbent"
    stage, sides = STAGES[state], sides_of(lives, served.model_id, against)
    seen, decision = decide_live(data, replace(served, since=since), stage=stage, sides=sides, now=now)
    evaluation, why_not = None, None
    try:
        evaluation = evaluate_log(data, name, replace(settings, until=now), now=now, config=config).evaluation
    except EvaluationError as error:
        why_not = str(error)
    return ExperimentReport(
        decision_type=name,
        model_id=served.model_id,
        stage=stage,
        against=seen.against,
        since=since,
        decision=decision,
        path=path_so_far(seen.difference),
        evaluation=evaluation,
        nothing_to_compare=why_not,
    )


def decide_live(
    data: Path, served: ServedModel, *, stage: Stage, sides: Sides, now: datetime
) -> tuple[Observations, LiveDecision]:
    """What the log shows of a model since its test began, and what is to be done. Changes nothing.

    The policy is that of the type and of the model's newest evaluation. What 1,000 answers cost is the deployment's
    price an hour over the questions of its type an hour, where it has one.
    """
    config, decision_type, model_id = load_config(data), served.decision_type, served.model_id
    kind = get_decision_type(decision_type, config)
    with open_ledger(data) as ledger:
        evaluation = last_evaluation(ledger, model_id)
        deployment = find_deployment(ledger, model_id, DeploymentState.READY)
        hourly = float(hourly_usd(deployment)) if deployment is not None else 0.0
    seen = observe(
        data,
        decision_type,
        experiment_of(decision_type, model_id),
        since=served.since,
        now=now,
        sides=sides,
        slow_ms=served.serving.deadline_ms,
        config=config,
    )
    if hourly and (per_hour := questions_per_hour(data, decision_type, now)):
        seen = replace(seen, cost_per_1000_usd=(seen.cost_per_1000_usd or 0.0) + 1000 * hourly / per_hour)
    policy = load_policy(kind, evaluation.content if evaluation is not None else None)
    return seen, decide(seen, policy, stage=stage, now=now)


def sides_of(lives: Lives, model_id: str, against: Literal["original", "incumbent"] = "original") -> Sides:
    """Whose answers are compared to test a model of a type, the challenger or the incumbent."""
    is_incumbent = lives.incumbent is not None and lives.incumbent.model_id == model_id
    own = lives.incumbent_share if is_incumbent else lives.challenger_share
    other = lives.incumbent_share if against == "incumbent" else lives.original_share
    share = own / (own + other) if own > 0 and other > 0 else None
    return Sides(against=against, as_incumbent=is_incumbent, share=share)


def _first_decision(data: Path, decision_type: str, experiment: str) -> datetime | None:
    query = "SELECT min(ts) FROM decisions WHERE decision_type = ? AND experiment = ?"
    ((first,),) = storage.sql(data, query, [decision_type, experiment]).rows
    found: datetime | None = first
    return found


def experiment_rows(report: ExperimentReport) -> list[dict[str, Any]]:
    """The path as a table with a picture: the interval of the difference as a line, `|` where there is none."""
    reach = max((max(abs(row["low"]), abs(row["high"])) for row in report.path[len(report.path) // 4 :]), default=1.0)
    return [
        {
            "known_at": row["known_at"],
            "episodes": row["episodes"],
            "difference": f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
            f"worse {-reach:+.2f} .. {reach:+.2f} better": draw_interval(
                row["difference"], row["low"], row["high"], reach
            ),
        }
        for row in report.path
    ]


def draw_interval(value: float, low: float, high: float, reach: float) -> str:
    """An interval as a line of 41 characters from -`reach` to `reach`; what is outside is cut off."""

    def place(x: float) -> int:
        return _HALF + round(max(-1.0, min(1.0, x / reach)) * _HALF)

    line = [" "] * (2 * _HALF + 1)
    line[place(low) : place(high) + 1] = ["-"] * (place(high) - place(low) + 1)
    line[_HALF] = "|"
    line[place(value)] = "o"
    return "".join(line)
