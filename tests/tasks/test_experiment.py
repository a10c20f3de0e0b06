"""The live test of a model, as a report of what a real log shows."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from pipeline.errors import MissingStep
from pipeline.experiment import draw_interval, report_experiment
from storage.layout import Layout
from storage.ledger.ledger import open_ledger
from storage.ledger.lives import Serving, save_serving
from storage.ledger.rows import Model
from tests.quality.log import START
from tests.quality.test_live import EXPERIMENT, serve

TYPE = "should_respond"


def _give_traffic(data: Path, weight: float) -> None:
    arm = {"name": "custom", "source": "custom", "model": "m", "base_url": "http://127.0.0.1:9", "config_hash": "c"}
    with open_ledger(data) as ledger:
        ledger.add(Model, id="m1", state="canary", decision_type=TYPE, base_model="b", model_object_id="o")
        save_serving(ledger, "m1", TYPE, Serving(arm=arm, canary_weight=weight, salt=EXPERIMENT), now=START)


def test_the_experiment_of_a_bad_canary_shows_why_it_is_to_be_withdrawn(tmp_path: Path):
    data = tmp_path / "data"
    Layout(data).create()
    with pytest.raises(MissingStep, match="no model of should_respond has traffic"):
        report_experiment(data, TYPE)
    _give_traffic(data, 0.3)
    with pytest.raises(MissingStep, match="was asked nothing yet"):
        report_experiment(data, TYPE)
    now = serve(data, right=0.0, weight=0.3)
    report = report_experiment(data, TYPE, now=now)
    assert (report.stage, report.since, report.decision.action) == ("canary", START, "withdraw")
    assert report.path[-1]["high"] < 0
    assert report.path[-1]["episodes"] == report.decision.numbers["episodes"] == 100
    assert report.evaluation is not None
    assert report.evaluation.sources["custom"].metrics["accuracy"].value == 0
    early = report_experiment(data, TYPE, now=START + timedelta(minutes=1))
    assert early.nothing_to_compare and early.path == []

    shown = ["experiment", TYPE, "--data", str(data), "--until", "2026-03-13"]
    told = CliRunner().invoke(app, shown)
    assert told.exit_code == 0, told.output
    assert "Decision: withdraw. worse than the fallback" in told.output
    assert told.output.count("o---") + told.output.count("-o-") > 5
    found = json.loads(CliRunner().invoke(app, [*shown, "--json"]).stdout)
    assert found["decision"]["action"] == "withdraw"
    assert found["path"][-1]["episodes"] == 100


def test_an_interval_is_drawn_to_scale():
    assert draw_interval(0.5, 0.25, 0.75, 1.0) == " " * 20 + "|" + "    -----o-----     "
    assert draw_interval(0.0, -9.0, 9.0, 1.0) == "-" * 20 + "o" + "-" * 20
