"""The buttons that change what runs and costs: each shows what it would do and its price, and asks once more.

A confirmation carries a digest of what was shown. Where something changed meanwhile, it is shown and asked again.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from console.cycles import cycle_log
from console.errors import NoSuchPage, NotConfirmed, PageError
from console.request import Request, Response, render, usd
from pipeline.reports import to_jsonable
from reasoning.config import load_config
from reasoning.decision_types import get_decision_type

PROJECT = Path(__file__).resolve().parents[1]
_RUN = f"import sys; sys.path.insert(0, {str(PROJECT)!r}); from cli.main import main; main()"


@dataclass(frozen=True, slots=True)
class Plan:
    """What an action would do, in sentences, and its price. `blocked` says why it cannot be done."""

    title: str
    button: str
    what: list[str]
    price: str
    table: list[Mapping[str, Any]] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Of all that is shown."""
        content = orjson.dumps(to_jsonable(asdict(self)), option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(content).hexdigest()[:32]


def page(request: Request, action: str = "", of: str = "") -> Response:
    """The confirmation of an action; by POST with its digest, the action."""
    request.visitor.require_operator()
    if action not in ACTIONS:
        raise NoSuchPage(f"there is no action {action!r:.40}")
    plan_of, act = ACTIONS[action]
    plan = plan_of(request, of)
    if request.method != "POST":
        return render("confirm.html", plan=plan, action=action, of=of, said="")
    if plan.blocked:
        raise PageError("; ".join(plan.blocked))
    if request.form.get("confirm") != plan.digest:
        raise NotConfirmed("what would be done changed since it was shown; look at it again")
    return render("done.html", title=plan.title, lines=act(request, of))


def _plan_cycle(request: Request, of: str) -> Plan:
    from pipeline.cycle import plan_cycle

    found = plan_cycle(request.data, _type(request, of))
    price = f"{usd(found.amount_usd)} in all, and {usd(found.hourly_usd)} an hour while the candidate runs"
    return Plan(
        title=f"Run a cycle of {found.decision_type}",
        button="Run the cycle",
        what=[
            "Export, fine-tune, deploy, evaluate, then promote or drop. What the budgets do not carry is not begun.",
            *found.notes,
        ],
        price=price,
        table=[asdict(step) for step in found.steps],
        blocked=found.blocked_by,
    )


def _run_cycle(request: Request, of: str) -> list[str]:
    """Begin it in a process of its own, which outlives the page: it takes minutes to hours."""
    name = _type(request, of)
    path = cycle_log(request.data, name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("wb") as log:
        subprocess.Popen(
            [sys.executable, "-c", _RUN, "cycle", name, "--data", str(request.data)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return [f"The cycle of {name} has begun. The page Cycles follows it."]


def _plan_promote(request: Request, of: str) -> Plan:
    from provider.lifecycle.status import model_status

    rows = [row for row in model_status(request.data, now=request.now) if row["model_id"] == of]
    if not rows:
        raise PageError(f"there is no model {of!r:.60}, or it is retired")
    row = rows[0]
    blocked = [] if row["deployment_state"] == "ready" else [f"{of} is not deployed and ready: deploy it first"]
    return Plan(
        title=f"Promote {of} of {row['decision_type']}",
        button="Promote",
        what=[
            "It answers 90 % of the decisions; the fallback keeps the rest, for labels and comparison.",
            "The model that serves now is undeployed.",
            f"It is {row['state']} now. Its newest evaluation must approve it.",
        ],
        price=f"{usd(row['hourly_usd'])} an hour while it runs",
        blocked=blocked,
    )


def _promote(request: Request, of: str) -> list[str]:
    from pipeline.promotion import promote_model

    route = promote_model(request.data, of)
    return [f"{arm.name}: {arm.weight:.0%} ({arm.model or 'the fallback'})" for arm in route.arms]


def _plan_rollback(request: Request, of: str) -> Plan:
    from pipeline.demotion import previous_incumbent
    from pipeline.life import read_lives
    from provider.lifecycle.status import model_status
    from storage.ledger.ledger import open_ledger

    name = _type(request, of)
    with open_ledger(request.data) as ledger:
        lives = read_lives(ledger, name)
        former = previous_incumbent(ledger, name)
    serving = lives.challenger or lives.incumbent
    prices = {row["model_id"]: row["hourly_usd"] for row in model_status(request.data, now=request.now)}
    if serving is None:
        return Plan(f"Roll back {name}", "Roll back", [], "", blocked=[f"no model of {name} has traffic"])
    what = [
        f"{serving.model_id} loses its traffic and is undeployed ({usd(prices.get(serving.model_id))} an hour less)."
    ]
    price = "nothing"
    if lives.challenger is not None:
        what.append("The incumbent, or the fallback, goes on.")
    elif former is not None:
        what.append(f"{former[0].id}, which served before, is deployed and promoted again.")
        price = "what the model before costs an hour, within the budgets"
    else:
        what.append("No model served before: the fallback answers.")
    return Plan(f"Roll back {name}", "Roll back", what, price)


def _roll_back(request: Request, of: str) -> list[str]:
    from pipeline.demotion import roll_back

    done = roll_back(request.data, _type(request, of))
    return [
        f"Withdrawn: {done.withdrawn or 'nothing'}",
        f"Restored: {done.restored or 'nothing'}",
        f"Answering now: {done.answering or 'the fallback'}",
    ]


def _plan_stop(request: Request, of: str) -> Plan:
    from provider.lifecycle.status import cost_report, running

    found = running(request.data)
    hourly = cost_report(request.data, period="day", now=request.now)["hourly_rate_usd"]
    return Plan(
        title="Stop everything",
        button="Stop everything",
        what=[
            "Every route is withdrawn, so the fallback answers from then on. Every deployment and fine-tune of this "
            "installation is stopped at the provider. Nothing is deleted here.",
            "It takes up to some minutes; the page says what the provider answered.",
        ],
        price=f"nothing; it ends {usd(hourly)} an hour",
        table=[{"running by the ledger": each["what"]} for each in found],
    )


def _stop(request: Request, of: str) -> list[str]:
    from provider.errors import ProviderError
    from provider.lifecycle.stop import stop_everything, withdraw_registered
    from provider.providers import open_provider

    try:
        opened = open_provider(request.data, timeout=20)
    except ProviderError as error:
        withdrawn = withdraw_registered(request.data)
        return [
            f"The provider cannot be asked: {error}",
            f"Withdrawn all the same: {', '.join(withdrawn) or 'nothing'}",
            "What runs is unknown; on the machine itself: reasoning stop",
        ]
    with opened:
        report = stop_everything(opened, request.data, installations=[])
    lines = [f"Stopped: {each.name} ({each.remote_id})" for each in report.found if each not in report.remaining]
    lines += [f"Still running: {each.name} ({each.remote_id}, {each.state})" for each in report.remaining]
    lines += [f"Unknown or refused: {each}" for each in report.errors]
    lines += report.notes
    return [*lines, "Nothing of this installation runs at the provider."] if report.is_clear else lines


def _type(request: Request, name: str) -> str:
    return get_decision_type(name, load_config(request.data)).name


ACTIONS: Mapping[str, tuple[Callable[[Request, str], Plan], Callable[[Request, str], list[str]]]] = {
    "cycle": (_plan_cycle, _run_cycle),
    "promote": (_plan_promote, _promote),
    "rollback": (_plan_rollback, _roll_back),
    "stop": (_plan_stop, _stop),
}
"""By its name in the address: what it would do, and doing it."""
