"""What `TYPE | MODEL_ID` means to each verb: what serves or costs, and never a guess."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import AmbiguousModel, MissingStep
from pipeline.models import undeploy
from pipeline.selection import Verb, find_model
from provider.lifecycle.routes import publish_route
from reasoning.serving.routes import Arm, Route, read_routes
from storage.layout import Layout
from storage.ledger.ledger import open_ledger
from storage.ledger.lives import save_evaluation
from storage.ledger.rows import Deployment, Model
from tests.cli.test_commands import failure, reasoning

TYPE = "should_respond"


def add_model(data: Path, model_id: str, state: str = "trained", decision_type: str = TYPE) -> None:
    Layout(data).create()
    with open_ledger(data) as ledger:
        ledger.add(Model, id=model_id, state=state, decision_type=decision_type, base_model="b", model_object_id="o")


def add_deployment(data: Path, model_id: str, *states: str, routed: bool = False) -> str:
    """A deployment that went through `states`, with a route if `routed`; returns its name at the provider."""
    name = f"project/{model_id}"
    with open_ledger(data) as ledger:
        row = ledger.add(
            Deployment,
            state="intended",
            name=f"d-{model_id}",
            model_id=model_id,
            decision_type=TYPE,
            hourly_usd=Decimal("5.49"),
            max_replicas=1,
            replicas=1,
            model_object_id="o",
            config="c",
            hardware="h",
            served_name=name,
        )
        for state in states:
            ledger.transition(Deployment, row.id, state)
    if routed:
        arm = Arm(name="custom", source="custom", model=name, base_url="http://127.0.0.1:9", weight=1.0)
        publish_route(Layout(data).routes, TYPE, Route(arms=(arm,)))
    return name


def evaluate(data: Path, model_id: str) -> None:
    verdict = {"decision": "promote", "why": "better"}
    about = {"model_id": model_id, "verdict": verdict}
    with open_ledger(data) as ledger:
        save_evaluation(ledger, {"evaluation_id": f"e-{model_id}", "about": about})


def found(data: Path, verb: Verb, model: str = TYPE) -> str:
    with open_ledger(data) as ledger:
        return str(find_model(data, ledger, model, verb).id)


def test_a_type_is_what_bills_and_not_an_idle_newer_model(tmp_path: Path) -> None:
    add_model(tmp_path, "old", "promoted")
    add_deployment(tmp_path, "old", "provisioning", "ready", routed=True)
    add_model(tmp_path, "new")
    for verb in ("undeploy", "show", "evaluate", "promote"):
        assert found(tmp_path, verb) == "old"  # type: ignore[arg-type]
    assert found(tmp_path, "deploy") == "new"
    assert found(tmp_path, "undeploy", "should-respond") == "old"
    assert found(tmp_path, "undeploy", "new") == "new"


@pytest.mark.parametrize(
    "states", [(), ("provisioning",), ("provisioning", "degraded"), ("provisioning", "failed"), ("stopping",)]
)
def test_what_costs_in_any_state_is_what_undeploy_means(tmp_path: Path, states: tuple[str, ...]) -> None:
    add_model(tmp_path, "costs")
    add_deployment(tmp_path, "costs", *states)
    add_model(tmp_path, "idle")
    assert found(tmp_path, "undeploy") == "costs"


def test_a_route_alone_is_what_undeploy_means(tmp_path: Path, local: str) -> None:
    add_model(tmp_path, "gone", "promoted")
    add_deployment(tmp_path, "gone", "deleted", routed=True)
    add_model(tmp_path, "idle")
    assert undeploy(tmp_path, TYPE) == []
    assert read_routes(Layout(tmp_path).routes).routes == {}
    with open_ledger(tmp_path) as ledger:
        assert ledger.get(Model, "gone").state == "trained"


def test_two_that_cost_are_an_error_that_lists_both(tmp_path: Path) -> None:
    for model_id, state in (("one", "promoted"), ("two", "trained")):
        add_model(tmp_path, model_id, state)
        add_deployment(tmp_path, model_id, "provisioning", "ready")
    with pytest.raises(AmbiguousModel) as error:
        found(tmp_path, "undeploy")
    assert "one (promoted, deployment ready, $5.49 an hour)" in str(error.value)
    assert "two (trained, deployment ready, $5.49 an hour)" in str(error.value)
    assert found(tmp_path, "evaluate") == "two"


def test_promote_means_the_candidate_that_was_evaluated(tmp_path: Path) -> None:
    add_model(tmp_path, "incumbent", "promoted")
    add_deployment(tmp_path, "incumbent", "provisioning", "ready", routed=True)
    for model_id in ("judged", "unjudged"):
        add_model(tmp_path, model_id)
        add_deployment(tmp_path, model_id, "provisioning", "ready")
    evaluate(tmp_path, "judged")
    assert found(tmp_path, "promote") == "judged"
    with pytest.raises(AmbiguousModel, match=r"judged.*unjudged"):
        found(tmp_path, "promote --force")
    with pytest.raises(AmbiguousModel, match=r"judged.*unjudged"):
        found(tmp_path, "evaluate")


def test_several_that_are_all_idle_are_not_guessed_between(tmp_path: Path) -> None:
    add_model(tmp_path, "a")
    add_model(tmp_path, "b")
    for verb in ("show", "deploy"):
        with pytest.raises(AmbiguousModel, match=r"a .*not deployed.*b "):
            found(tmp_path, verb)  # type: ignore[arg-type]
    for verb in ("evaluate", "promote", "undeploy"):
        with pytest.raises(MissingStep, match=r"a .trained, not deployed"):
            found(tmp_path, verb)  # type: ignore[arg-type]


def test_undeploy_never_says_nothing_while_something_bills(tmp_path: Path, local: str) -> None:
    add_model(tmp_path, "old", "promoted")
    add_deployment(tmp_path, "old", "provisioning", "ready", routed=True)
    add_model(tmp_path, "new")
    env = {"REASONING_PROVIDER_URL": local}
    said = failure(reasoning("undeploy", "new", "--data", tmp_path, env=env))
    assert "nothing of model new is deployed" in said and "old (promoted, deployment ready, has a route" in said
    assert reasoning("undeploy", TYPE, "--data", tmp_path, env=env).returncode == 0
    with open_ledger(tmp_path) as ledger:
        assert [row.state for row in ledger.find(Deployment)] == ["deleted"]
    none = reasoning("undeploy", TYPE, "--data", tmp_path, env=env)
    assert none.returncode == 0 and "nothing of model should_respond was deployed" in none.stderr
    again = reasoning("undeploy", "old", "--data", tmp_path, env=env)
    assert again.returncode == 0 and "nothing of model old was deployed" in again.stderr


def test_status_and_history_by_type_are_of_what_serves(tmp_path: Path) -> None:
    add_model(tmp_path, "old", "promoted")
    add_deployment(tmp_path, "old", "provisioning", "ready")
    add_model(tmp_path, "new")
    status: dict[str, Any] = json.loads(reasoning("models", "status", TYPE, "--data", tmp_path, "--json").stdout)
    assert status["model_id"] == "old"
    history = json.loads(reasoning("models", "history", TYPE, "--data", tmp_path, "--json").stdout)
    assert {row["object_id"] for row in history} >= {"old"}


def test_a_ledger_without_models_says_how_to_make_one(tmp_path: Path) -> None:
    Layout(tmp_path).create()
    with pytest.raises(MissingStep, match="`reasoning fine-tune DATASET` makes one"):
        found(tmp_path, "show")
