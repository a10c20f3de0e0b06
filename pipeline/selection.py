"""Which model a command means by `TYPE | MODEL_ID`.

An id means that model, and so does the name of a registered one. A decision type means what serves or costs money,
never merely the newest model: one that was trained and never deployed must not hide the one that bills. What each verb
looks for is in `_TIERS`. Where that leaves several, nothing is guessed: the error lists their ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Literal

from pipeline.errors import AmbiguousModel, MissingStep
from provider.lifecycle.deployment_state import LIVE_STATES, STARTING_STATES
from provider.money.metering import hourly_usd
from reasoning.errors import RoutesError
from reasoning.serving.routes import read_routes
from storage.layout import Layout
from storage.ledger.ledger import Ledger
from storage.ledger.lives import evaluated_models
from storage.ledger.money import format_usd
from storage.ledger.rows import CHALLENGER_STATES, INCUMBENT_STATES, Deployment, DeploymentState, Model, ModelState

Verb = Literal["show", "deploy", "evaluate", "promote", "promote --force", "demote", "undeploy"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model with what it has at the provider (`deployments`: all that are not deleted) and whether it has a route."""

    model: Model
    deployments: Sequence[Deployment]
    routed: bool
    deployed_before: bool
    evaluated: bool

    @property
    def serves_or_costs(self) -> bool:
        """Has it a route, or anything at the provider that is not deleted."""
        return self.routed or bool(self.deployments)

    @property
    def is_ready(self) -> bool:
        return any(row.state == DeploymentState.READY for row in self.deployments)

    @property
    def is_promoted(self) -> bool:
        return self.model.state in INCUMBENT_STATES

    @property
    def is_open(self) -> bool:
        """Is it neither rejected nor retired."""
        return self.model.state not in (ModelState.REJECTED, ModelState.RETIRED)

    @property
    def is_new_and_deploying(self) -> bool:
        up = any(row.state in (*STARTING_STATES, DeploymentState.READY) for row in self.deployments)
        return self.model.state == ModelState.TRAINED and (up or not self.deployed_before)

    @property
    def hourly_usd(self) -> Decimal:
        """US dollars an hour that its deployments may cost."""
        return sum((hourly_usd(row) for row in self.deployments if row.state != DeploymentState.STOPPED), Decimal(0))

    def __str__(self) -> str:
        states = ", ".join(f"deployment {row.state}" for row in self.deployments) or "not deployed"
        route = ", has a route" if self.routed else ""
        return f"{self.model.id} ({self.model.state}, {states}{route}, {format_usd(self.hourly_usd)} an hour)"


# For each verb what it looks for, the better first: the first tier that has a model decides.
_TIERS: Mapping[Verb, Sequence[Callable[[Candidate], bool]]] = {
    "show": (lambda c: c.serves_or_costs, lambda c: c.is_open, lambda c: True),
    "deploy": (lambda c: c.is_new_and_deploying, lambda c: c.is_open),
    "evaluate": (lambda c: c.is_ready and not c.is_promoted, lambda c: c.is_ready),
    "promote": (lambda c: c.is_ready and c.evaluated and not c.is_promoted, lambda c: c.is_ready),
    "promote --force": (lambda c: c.is_ready and not c.is_promoted, lambda c: c.is_ready),
    "demote": (lambda c: c.is_promoted, lambda c: c.model.state in CHALLENGER_STATES),
    "undeploy": (lambda c: c.serves_or_costs,),
}
_NONE: Mapping[Verb, str] = {
    "show": "there is no model of {name}",
    "deploy": "no model of {name} can be deployed",
    "evaluate": "no model of {name} is deployed and ready: `reasoning deploy MODEL` first",
    "promote": "no model of {name} is deployed and ready: `reasoning deploy MODEL` first",
    "promote --force": "no model of {name} is deployed and ready: `reasoning deploy MODEL` first",
    "demote": "no model of {name} has traffic: nothing was done",
    "undeploy": "nothing of {name} is deployed or has a route: nothing was done",
}


def find_model(data: Path, ledger: Ledger, model: str, verb: Verb) -> Model:
    """Ledger row of the model that `verb` means by `model`, its id, its name or a decision type.

    The beginning of an id is as good as the id. Raises `MissingStep` where there is none, and `AmbiguousModel`, which
    names all that could be meant with their state and price an hour, where a type leaves several.
    """
    if found := ledger.find(Model, id=model) or ledger.find(Model, name=model):
        return found[0]
    name = model.replace("-", "_")
    candidates = list_candidates(data, ledger, name)
    if not candidates:
        if begin := ids_beginning(model, [row.id for row in ledger.find(Model)]):
            return ledger.find(Model, id=only_one(model, begin, "models"))[0]
        raise MissingStep(
            f"there is no model {model!r}: `reasoning models list` shows them, `reasoning fine-tune DATASET` makes one"
        )
    for fits in _TIERS[verb]:
        meant = [candidate for candidate in candidates if fits(candidate)]
        if len(meant) == 1:
            return meant[0].model
        if meant:
            listed = "; ".join(map(str, meant))
            raise AmbiguousModel(f"{name} could mean {len(meant)} models: {listed}. Name the id of one of them")
    raise MissingStep(f"{_NONE[verb].format(name=name)}. The models are {'; '.join(map(str, candidates))}")


SHORTEST_ID = 4


def ids_beginning(text: str, ids: Iterable[str]) -> list[str]:
    """Those of `ids` that begin with `text`; none for less than `SHORTEST_ID` characters."""
    return sorted(each for each in ids if each.startswith(text)) if len(text) >= SHORTEST_ID else []


def only_one(text: str, ids: Sequence[str], what: str) -> str:
    """The one id of a list that is not empty. Raises `AmbiguousModel` where there are several."""
    if len(ids) > 1:
        raise AmbiguousModel(f"{text!r} could mean several {what}: {', '.join(ids)}. Give more of the id")
    return ids[0]


def list_candidates(data: Path, ledger: Ledger, decision_type: str) -> list[Candidate]:
    """Every model of a decision type, oldest first, with its deployments and whether it has a route."""
    routed, evaluated = routed_names(data), evaluated_models(ledger)
    found = []
    for model in ledger.find(Model, decision_type=decision_type):
        rows = ledger.find(Deployment, model_id=model.id)
        found.append(
            Candidate(
                model=model,
                deployments=[row for row in rows if row.state in LIVE_STATES],
                routed=any(row.served_name in routed for row in rows if row.served_name),
                deployed_before=bool(rows),
                evaluated=model.id in evaluated,
            )
        )
    return found


def routed_names(data: Path) -> set[str]:
    """Served names that `routes.json` has a route for, whether its lease holds or not. None where it cannot be read."""
    path = Layout(data).routes
    names: set[str] = set()
    for each in (path, path.with_suffix(".paused.json")):
        try:
            routes = read_routes(each).routes.values()
        except (FileNotFoundError, RoutesError):
            continue
        names |= {arm.model for route in routes for arm in route.arms if arm.model}
    return names
