"""The test of a model that answers live questions, as a report: what it shows, and what would be done."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import storage
from pipeline.errors import MissingStep
from pipeline.models import find_deployment
from pipeline.traffic import questions_per_hour
from provider.clock import clock_of
from provider.money.metering import hourly_usd
from quality.errors import EvaluationError
from quality.evaluation.evaluate import Evaluation
from quality.evaluation.experiments import evaluate_log
from quality.evaluation.live import LiveDecision, Observations, Stage, decide, path_so_far
from quality.evaluation.observations import observe
from quality.evaluation.policies import load_policy
from quality.period import first_moment, moment_after
from quality.settings import ExperimentSettings
from reasoning.config import load_config
from reasoning.decision_types import get_decision_type
from reasoning.serving.routes import parse_routes
from storage.ledger.ledger import open_ledger
from storage.ledger.lives import Promotion, last_evaluation, promotions

_HALF = 20
_CANARY_SHARE = 0.5


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
        promotion = next((each for each in promotions(ledger) if each.decision_type == name), None)
    if promotion is None:
        raise MissingStep(f"no model of {name} has traffic: give it some by `reasoning promote {name}`")
    experiment = f"{name}-{promotion.model_id}"
    since = first_moment(settings.since) or _first_decision(data, name, experiment)
    if since is None:
        raise MissingStep(f"model {promotion.model_id} of {name} was asked nothing yet: land the decisions, or wait")
    stage, deadline_ms, against = _stage(promotion)
    seen, decision = decide_live(
        data, name, promotion.model_id, stage=stage, since=since, deadline_ms=deadline_ms, against=against, now=now
    )
    evaluation, why_not = None, None
    try:
        evaluation = evaluate_log(data, name, replace(settings, until=now), now=now, config=config).evaluation
    except EvaluationError as error:
        why_not = str(error)
    return ExperimentReport(
        decision_type=name,
        model_id=promotion.model_id,
        stage=stage,
        against=seen.against,
        since=since,
        decision=decision,
        path=path_so_far(seen.difference),
        evaluation=evaluation,
        nothing_to_compare=why_not,
    )


def decide_live(
    data: Path,
    decision_type: str,
    model_id: str,
    *,
    stage: Stage,
    since: datetime,
    deadline_ms: float,
    against: Literal["original", "incumbent"] = "original",
    now: datetime,
) -> tuple[Observations, LiveDecision]:
    """What the log shows of a model since its test began, and what is to be done. Changes nothing.

    The policy is that of the type and of the model's newest evaluation. What 1,000 answers cost is the deployment's
    price an hour over the questions of its type an hour, where it has one. A challenger is compared with the
    incumbent, whose arm is called so, where one serves beside it.
    """
    config = load_config(data)
    kind = get_decision_type(decision_type, config)
    with open_ledger(data) as ledger:
        evaluation = last_evaluation(ledger, model_id)
        deployment = find_deployment(ledger, model_id, "ready")
        hourly = float(hourly_usd(deployment)) if deployment is not None else 0.0
    experiment = f"{decision_type}-{model_id}"
    seen = observe(
        data, decision_type, experiment, since=since, now=now, against=against, slow_ms=deadline_ms, config=config
    )
    if hourly and (per_hour := questions_per_hour(data, decision_type, now)):
        seen = replace(seen, cost_per_1000_usd=(seen.cost_per_1000_usd or 0.0) + 1000 * hourly / per_hour)
    policy = load_policy(kind, evaluation.content if evaluation is not None else None)
    return seen, decide(seen, policy, stage=stage, now=now)


def _first_decision(data: Path, decision_type: str, experiment: str) -> datetime | None:
    query = "SELECT min(ts) FROM decisions WHERE decision_type = ? AND experiment = ?"
    ((first,),) = storage.sql(data, query, [decision_type, experiment]).rows
    found: datetime | None = first
    return found


def _stage(promotion: Promotion) -> tuple[Stage, float, Literal["original", "incumbent"]]:
    """In what stage the model of a route is, the deadline of its answers (ms), and what it is compared with."""
    route = parse_routes(promotion.routes.encode()).routes[promotion.decision_type]
    against: Literal["original", "incumbent"] = (
        "incumbent" if any(arm.name == "incumbent" for arm in route.arms) else "original"
    )
    custom = next((arm for arm in route.arms if arm.source == "custom" and arm.name != "incumbent"), None)
    if custom is None or custom.mode == "shadow":
        return "shadow", route.deadline_ms, against
    return ("canary" if custom.weight < _CANARY_SHARE else "live"), route.deadline_ms, against


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
