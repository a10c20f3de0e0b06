"""Every flow of prefect.yaml imports, fits its schedule, and has a form that people can fill in."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import yaml

from pipeline.errors import UnknownFlow
from pipeline.exclusive import exclusive_run
from tasks.entrypoints import PROJECT, entrypoints, load_flow

DEPLOYMENTS = {each["name"]: each for each in yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_the_entrypoint_imports_and_the_schedule_fits_the_parameters(name: str):
    flow = load_flow(name)
    assert flow.name == name
    assert flow.isasync  # an empty flow that is not takes a second longer
    for schedule in DEPLOYMENTS[name].get("schedules", []):
        flow.validate_parameters(schedule["parameters"])


TICKS = [
    name
    for name, each in DEPLOYMENTS.items()
    if name != "turn_flywheel" and any("if_busy" in schedule["parameters"] for schedule in each.get("schedules", []))
]


@pytest.mark.parametrize("name", TICKS)
def test_a_tick_leaves_a_run_at_work_alone(name: str, tmp_path: Path):
    with exclusive_run(tmp_path, name, "wait"):
        state = asyncio.run(load_flow(name).fn(data=tmp_path, if_busy="skip"))
    assert (state.type, state.name) == ("COMPLETED", "Skipped")


def test_there_are_ticks():
    assert {"land_decisions", "guard_costs", "check_decisions"} <= set(TICKS)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_parameter_is_described_in_its_form(name: str):
    schema = load_flow(name).parameters.model_dump()
    assert {key for key, value in schema["properties"].items() if not value.get("description")} == set()


def test_every_flow_file_is_deployed():
    files = {path.stem for path in (PROJECT / "flows").glob("*.py")} - {"__init__"}
    assert set(entrypoints()) == files


def test_nothing_of_this_machine_is_in_the_file():
    text = (PROJECT / "prefect.yaml").read_text()
    assert "{{" not in text  # a template whose variable is unset is deployed as it stands
    assert str(PROJECT) not in text and str(Path.home()) + "/" not in text
    assert yaml.safe_load(text)["pull"] == []


@pytest.mark.parametrize("name", ["fine-tune", "fine_tune"])
def test_a_name_may_have_dashes(name: str):
    assert load_flow(name).name == "fine_tune"


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownFlow, match="did you mean fine_tune"):
        load_flow("finetune")
