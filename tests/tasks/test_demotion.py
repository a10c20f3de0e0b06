"""Demoting a model and rolling a type back: what answers afterwards, and what is kept of it."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

import pipeline.demotion
from pipeline.demotion import demote_model, roll_back
from pipeline.errors import MissingStep
from pipeline.parameters import DemoteSettings, RollbackSettings
from provider.errors import ProviderError
from provider.lifecycle.status import model_status
from storage.layout import Layout
from storage.ledger.ledger import Ledger
from storage.ledger.lives import Serving, served_models
from storage.ledger.rows import Deployment, Model, ModelState
from tests.cli.test_commands import reasoning
from tests.tasks.rooms import NOON
from tests.tasks.served import TYPE, add_model, move, shares, state_of

PROMOTED, CANARY = ModelState.PROMOTED, ModelState.CANARY


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers of the registered models answer: their deployments are ready, and nobody asks them."""

    def deploy(data: Path, model_id: str, **_: object) -> Deployment:
        with pipeline.demotion.open_ledger(data) as ledger:
            return ledger.find(Deployment, model_id=model_id)[-1]

    monkeypatch.setattr(pipeline.demotion, "deploy", deploy)


def replace_old_by_new(data: Path, ledger: Ledger) -> None:
    """`old` served 0.7 of the questions and was replaced by `new`."""
    old = add_model(ledger, "old")
    move(data, ledger, "old", PROMOTED, serving=Serving(arm=old.arm, salt="old", weight=0.7, deadline_ms=555.0))
    move(data, ledger, "new", PROMOTED, serving=add_model(ledger, "new"))


def test_an_incumbent_is_demoted_to_the_share_of_a_canary_and_says_why(tmp_path: Path, ledger: Ledger) -> None:
    move(tmp_path, ledger, "new", PROMOTED, serving=add_model(ledger, "new"))
    found = demote_model(tmp_path, TYPE, DemoteSettings(why="complaints"), now=NOON)
    assert (found.model_id, found.from_state, found.to_state) == ("new", "promoted", "degraded")
    assert shares(tmp_path) == {"endpoint/new": 0.1, None: 0.9}
    (status,) = model_status(tmp_path, now=NOON)
    assert (status["state"], status["why"], status["changed_at"]) == ("degraded", "complaints", NOON)
    shown = reasoning("status", "--data", str(tmp_path)).stdout
    assert "new is degraded since 2026-11-20 12:00:00Z: complaints" in shown


def test_a_rejected_model_loses_its_traffic_and_its_deployment(tmp_path: Path, ledger: Ledger) -> None:
    move(tmp_path, ledger, "new", CANARY, serving=add_model(ledger, "new"))
    demote_model(tmp_path, "new", DemoteSettings(to="rejected"), now=NOON)
    assert shares(tmp_path) == {}
    assert state_of(ledger, "new") == "rejected"
    assert [row.state for row in ledger.find(Deployment, model_id="new")] == ["deleted"]


def test_a_model_in_the_shadow_serves_none(tmp_path: Path, ledger: Ledger) -> None:
    move(tmp_path, ledger, "new", PROMOTED, serving=add_model(ledger, "new"))
    demote_model(tmp_path, "new", DemoteSettings(to="shadow"), now=NOON)
    assert (state_of(ledger, "new"), shares(tmp_path)) == ("shadow", {None: 1.0})


@pytest.mark.parametrize(
    ("model", "to", "said"),
    [
        ("idle", "degraded", "no traffic to take: model idle is trained"),
        ("new", "degraded", "it has no more than the canary's share"),
        ("old", "shadow", "model new is the challenger of should_respond"),
    ],
)
def test_a_step_that_a_model_cannot_take_is_refused_and_changes_nothing(
    tmp_path: Path, ledger: Ledger, model: str, to: str, said: str
) -> None:
    move(tmp_path, ledger, "old", PROMOTED, serving=add_model(ledger, "old"))
    move(tmp_path, ledger, "new", CANARY, serving=add_model(ledger, "new"))
    add_model(ledger, "idle")
    before = shares(tmp_path)
    with pytest.raises(MissingStep, match=said):
        demote_model(tmp_path, model, DemoteSettings(to=to), now=NOON)
    assert shares(tmp_path) == before


def test_a_rollback_ends_the_challenger_and_leaves_the_incumbent(tmp_path: Path, ledger: Ledger) -> None:
    move(tmp_path, ledger, "old", PROMOTED, serving=add_model(ledger, "old"))
    move(tmp_path, ledger, "new", CANARY, serving=add_model(ledger, "new"))
    found = roll_back(tmp_path, TYPE, now=NOON)
    assert (found.withdrawn, found.restored, found.answering) == ("new", None, "old")
    assert shares(tmp_path) == {"endpoint/old": 0.9, None: 0.1}


@pytest.mark.usefixtures("answering")
def test_a_rollback_brings_back_the_model_before_as_it_was_served(tmp_path: Path, ledger: Ledger) -> None:
    replace_old_by_new(tmp_path, ledger)
    found = roll_back(tmp_path, TYPE, RollbackSettings(why="wrong tone"), now=NOON)
    assert (found.withdrawn, found.restored, found.answering) == ("new", "old", "old")
    assert (state_of(ledger, "new"), state_of(ledger, "old")) == ("rejected", "promoted")
    assert shares(tmp_path) == {"endpoint/old": 0.7, None: 0.3}
    (served,) = served_models(ledger)
    assert served.serving.deadline_ms == 555.0
    assert ledger.history(Model, "old")[-1].why == "rolled back to: wrong tone"
    rows = orjson.loads(reasoning("models", "history", TYPE, "--data", str(tmp_path), "--json").stdout)
    assert [
        (row["object_id"], row["to_state"], row["why"])
        for row in rows
        if row["object"] == "models" and row["from_state"]
    ] == [
        ("old", "promoted", "test"),
        ("old", "trained", "replaced by new"),
        ("new", "promoted", "test"),
        ("new", "rejected", "wrong tone"),
        ("old", "promoted", "rolled back to: wrong tone"),
    ]
    assert next(row["numbers"] for row in rows if row["why"] == "replaced by new")["serving"]["weight"] == 0.7


def test_a_rollback_that_cannot_restore_leaves_the_fallback_and_goes_on_later(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_old_by_new(tmp_path, ledger)
    with pytest.raises(ProviderError, match="The fallback answers for should_respond meanwhile"):
        roll_back(tmp_path, TYPE, now=NOON)  # nobody listens at the model's URL
    assert shares(tmp_path) == {}
    assert (state_of(ledger, "new"), state_of(ledger, "old")) == ("rejected", "trained")
    row = ledger.find(Deployment, model_id="old")[-1]
    monkeypatch.setattr(pipeline.demotion, "deploy", lambda *_, **__: row)
    found = roll_back(tmp_path, TYPE, now=NOON)
    assert (found.withdrawn, found.restored) == (None, "old")
    assert shares(tmp_path) == {"endpoint/old": 0.7, None: 0.3}


def test_where_nothing_was_replaced_a_rollback_leaves_the_fallback(tmp_path: Path, ledger: Ledger) -> None:
    move(tmp_path, ledger, "new", PROMOTED, serving=add_model(ledger, "new"))
    found = roll_back(tmp_path, TYPE, now=NOON)
    assert (found.withdrawn, found.restored, found.route) == ("new", None, None)
    assert not Layout(tmp_path).routes.exists() or shares(tmp_path) == {}
    with pytest.raises(MissingStep, match="nothing to roll back"):
        roll_back(tmp_path, TYPE, now=NOON)
