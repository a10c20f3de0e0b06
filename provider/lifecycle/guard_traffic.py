"""The guard and the routes file: what does not serve loses its traffic, and the lease is renewed when all is well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

from provider.endpoint.arms import is_registered
from provider.lifecycle.guard_report import RUNNING_STATES, GuardPolicy, GuardReport, level_of, spending_budgets
from provider.lifecycle.routes import forget_paused, keep_models, renew_lease, restore_route, resume_routes
from reasoning.errors import ReasoningError, RoutesError
from reasoning.serving.routes import parse_routes, read_routes
from storage.layout import Layout
from storage.ledger.ledger import Ledger
from storage.ledger.lives import drop_promotions, mark_published, mark_unpublished, promotions
from storage.ledger.rows import Deployment, DeploymentState


def withdraw_routes(layout: Layout, ledger: Ledger, policy: GuardPolicy, report: GuardReport) -> None:
    """Leave only arms whose deployment serves, and none of a decision type whose budget is used up.

    What had been ready and may become so again (a passing DEGRADED) gets its route back when it has.
    """
    running = ledger.find(Deployment, state=RUNNING_STATES)
    serving = {
        row.served_name
        for row in running
        if row.state == DeploymentState.READY
        or (row.state == DeploymentState.DEGRADED and row.ready_at and row.replicas)
    }
    waiting = {row.served_name for row in running if row.ready_at} - serving
    spent_types = {
        budget.decision_type
        for budget in spending_budgets(report.budgets)
        if level_of(budget, policy) in ("drain", "stop")
    }

    def keep(decision_type: str, model: str) -> bool:
        if None in spent_types or decision_type in spent_types:
            return False
        return model in serving or not _is_ours(ledger, model)

    try:
        for decision_type in _restore(layout, ledger, keep, report):
            report.actions.append(f"wrote the route of {decision_type} from the ledger: the routes file lacked it")
        for decision_type in resume_routes(layout.routes, keep, pause=waiting.__contains__, now=report.now):
            report.actions.append(f"gave {decision_type} its route back: its model is ready again")
        withdrawn = keep_models(layout.routes, keep, pause=waiting.__contains__, now=report.now)
        for decision_type, model in withdrawn:
            report.actions.append(f"withdrew {model} from {decision_type}")
            if model in waiting and _has_route(layout, decision_type):  # another model of the type goes on
                mark_unpublished(ledger, decision_type)  # it is written again when all of them are ready
    except (ReasoningError, OSError) as error:
        report.errors.append(f"the routes cannot be changed: {error}")


def _restore(layout: Layout, ledger: Ledger, keep: Callable[[str, str], bool], report: GuardReport) -> Iterator[str]:
    """Write decided routes that never reached the routes file, or all of them where no file can be read.

    What was decided to have no traffic loses it at once, also while the rest of its route cannot be written yet.
    """
    for promotion in promotions(ledger, only_unpublished=_has_routes(layout)):
        name = promotion.decision_type
        route = parse_routes(promotion.routes.encode()).routes.get(name)
        models = [arm.model or "" for arm in route.arms if arm.source == "custom"] if route is not None else []
        _keep_only(layout, name, models, now=report.now)
        if route is None:
            drop_promotions(ledger, decision_type=name, model_id=promotion.model_id)
            yield name
        elif all(keep(name, model) for model in models):
            restore_route(layout.routes, name, route, now=report.now)
            mark_published(ledger, promotion, now=report.now)
            yield name


def _keep_only(layout: Layout, decision_type: str, models: list[str], *, now: datetime) -> None:
    keep_models(layout.routes, lambda name, model: name != decision_type or model in models, now=now)
    forget_paused(layout.routes, decision_type, now=now)


def _has_route(layout: Layout, decision_type: str) -> bool:
    return decision_type in read_routes(layout.routes).routes


def _has_routes(layout: Layout) -> bool:
    try:
        read_routes(layout.routes)
    except (FileNotFoundError, RoutesError):
        return False
    return True


def _is_ours(ledger: Ledger, model: str) -> bool:
    # An adapter's name holds ours, behind its base model's.
    return ledger.prefix in model or is_registered(model) or bool(ledger.find(Deployment, served_name=model))


def renew_routes(layout: Layout, policy: GuardPolicy, report: GuardReport) -> None:
    """Give the routes their next minutes, only when nothing at all is wrong."""
    try:
        if not layout.routes.exists():
            return
        if report.errors:
            report.lease = "left"
            return
        routes = renew_lease(layout.routes, lease=policy.lease, now=report.now)
        if routes is not None and routes.routes:
            report.lease, report.lease_expires_at = "renewed", routes.expires_at
    except (ReasoningError, OSError) as error:
        report.errors.append(f"the lease cannot be renewed: {error}")
        report.lease = "left"
