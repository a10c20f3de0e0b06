"""The command and the flow of a verb have the same parameters: names, bounds, defaults and help."""

from __future__ import annotations

import inspect
from dataclasses import fields
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.exceptions import ParameterTypeError
from typer.main import get_command
from typer.testing import CliRunner

import pipeline.cycle
import pipeline.demotion
import pipeline.economy.pays
import pipeline.evaluation
import pipeline.models
import pipeline.promotion
import provider.lifecycle.deployments
import provider.lifecycle.guard_report
import quality.checks.log
import quality.dataset.export
import storage.log.compact
import storage.log.expire
from cli.main import app
from pipeline.parameters import SETTINGS, PromoteSettings, describe_bounds, parameters_of
from tasks.entrypoints import PROJECT, load_flow

COMMANDS = {
    "check_decisions": "check",
    "compact_decisions": "compact",
    "expire_decisions": "expire",
    "export_dataset": "export",
    "fine_tune": "fine-tune",
    "deploy_model": "deploy",
    "evaluate_model": "evaluate",
    "promote_model": "promote",
    "demote_model": "demote",
    "rollback_type": "rollback",
    "undeploy_model": "undeploy",
    "guard_costs": "guard",
    "estimate_value": "pays",
    "turn_flywheel": "cycle",
}

# Parameters that only one of the two has, and why.
ONLY_FLOW = {
    "now": "replays are made by flows and by Python; a command works now",
    "if_busy": "a command waits, or says who is busy",
}
ONLY_COMMAND = {
    "as_json": "how a report is printed",
    "plan": "prints a plan; a flow has no terminal",
    "shadow": "the older form of --mode shadow",
    "help": "prints help",
}
# Arguments that say what the verb works on. Named, typed and described by each side's own signature.
SUBJECT = {"data", "decision_type", "model"}

# Settings of the functions that neither can reach, and why.
NOT_OFFERED = {
    "method": "auto is right on every machine that was measured",
    "memory_limit": "a limit of the machine, for benchmarks",
    "threads": "a limit of the machine, for benchmarks",
    "lock_timeout": "how long tests wait",
    "retention": "what reasoning.toml says",
    "parameters": "its n_epochs is offered; the others are those that were measured",
    "warn_share": "a warning, not a limit: budgets are the setting",
    "drain_share": "an invariant of the money: budgets are the setting",
    "tier": "the tier of a cycle is its decision type's",
    "pace": "how long the provider is waited for, and how often it is asked",
    "policy": "what reasoning.toml says in [labels.<type>]",
    "share": "what reasoning.toml says in [serving.<type>]",
    "serving": "what reasoning.toml says in [serving]",
    "idle": "offered as idle_minutes",
    "lease": "offered as lease_minutes",
}
PLUMBING = {"data", "decision_type", "model", "model_id", "settings", "provider", "ledger", "now", "progress", "config"}

FUNCTIONS: dict[str, Any] = {
    "check_decisions": quality.checks.log.check_decisions,
    "compact_decisions": storage.log.compact.compact_decisions,
    "expire_decisions": storage.log.expire.expire_decisions,
    "export_dataset": quality.dataset.export.export_dataset,
    "fine_tune": pipeline.models.fine_tune,
    "deploy_model": provider.lifecycle.deployments.deploy_model,
    "evaluate_model": pipeline.evaluation.evaluate_model,
    "promote_model": pipeline.promotion.promote_model,
    "demote_model": pipeline.demotion.demote_model,
    "rollback_type": pipeline.demotion.roll_back,
    "undeploy_model": pipeline.models.undeploy,
    "guard_costs": provider.lifecycle.guard_report.GuardPolicy,
    "estimate_value": pipeline.economy.pays.pays,
    "turn_flywheel": pipeline.cycle.plan_cycle,
}


def options(name: str) -> dict[str, Any]:
    """The parameters of a verb's command by name, without its subject and what only commands have."""
    command = get_command(app).commands[COMMANDS[name]]  # type: ignore[attr-defined]
    return {each.name: each for each in command.params if each.name not in SUBJECT | set(ONLY_COMMAND)}


def form(name: str) -> dict[str, Any]:
    """The parameters of a verb's flow by name, as Prefect's form has them."""
    properties = load_flow(name).parameters.model_dump()["properties"]
    return {key: value for key, value in properties.items() if key not in SUBJECT | set(ONLY_FLOW)}


def test_every_flow_with_settings_has_its_command():
    assert set(COMMANDS) == set(SETTINGS) == set(FUNCTIONS)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_command_and_the_flow_have_the_same_parameters(name: str):
    command, flow = options(name), form(name)
    subject = {"dataset"} if name == "fine_tune" else set()
    assert set(command) - subject == set(flow) - subject
    for parameter in parameters_of(SETTINGS[name]):
        option, field = command[parameter.name], flow[parameter.name]
        assert option.default == field.get("default") == parameter.default
        assert option.help.startswith(parameter.help)
        assert field["description"] == parameter.help
        assert option.opts == ["--" + parameter.name.replace("_", "-")]


def bounded() -> list[tuple[str, str, Any, bool]]:
    """(verb, parameter, value, is it allowed) at and beside every bound."""
    cases = []
    for name, settings in SETTINGS.items():
        for parameter in parameters_of(settings):
            step = 1 if parameter.type in (int, int | None) else 0.001
            for bound in parameter.bounds:
                kind = type(bound).__name__.lower()
                edge = getattr(bound, kind)
                inside, outside = (edge + step, edge - step) if kind[0] == "g" else (edge - step, edge + step)
                cases += [
                    (name, parameter.name, edge, kind.endswith("e")),
                    (name, parameter.name, inside, True),
                    (name, parameter.name, outside, False),
                ]
    return cases


SUBJECTS = {
    "export_dataset": {"decision_type": "should_respond"},
    "turn_flywheel": {"decision_type": "should_respond"},
    "rollback_type": {"decision_type": "should_respond"},
    "fine_tune": {"dataset": "x"},
} | {
    name: {"model": "x"}
    for name in ("deploy_model", "evaluate_model", "promote_model", "demote_model", "undeploy_model")
}


@pytest.mark.parametrize(("name", "parameter", "value", "is_allowed"), bounded())
def test_the_command_and_the_flow_have_the_same_bounds(
    name: str, parameter: str, value: Any, is_allowed: bool, tmp_path: Path
):
    subject = SUBJECTS.get(name, {})
    try:
        load_flow(name).validate_parameters({**subject, parameter: value})
        by_flow = True
    except ParameterTypeError:
        by_flow = False
    arguments = [COMMANDS[name], *subject.values(), "--data", str(tmp_path / "none")]
    result = CliRunner().invoke(app, [*arguments, f"--{parameter.replace('_', '-')}", str(value)])
    assert result.exit_code in (1, 2)  # there is no such folder, which is looked at after the arguments
    assert (by_flow, result.exit_code != 2) == (is_allowed, is_allowed)


def test_nan_is_outside_of_every_bound(tmp_path: Path):
    result = CliRunner().invoke(app, ["promote", "x", "--data", str(tmp_path / "none"), "--weight", "nan"])
    assert result.exit_code == 2


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_of_the_function_is_offered_or_has_a_reason(name: str):
    function = FUNCTIONS[name]
    taken = set(inspect.signature(function).parameters) - PLUMBING
    offered = {each.name for each in fields(SETTINGS[name])} | ({"dataset"} if name == "fine_tune" else set())
    assert taken - offered <= set(NOT_OFFERED)


def test_every_exception_is_one():
    """A reason for what is offered by now, or is gone, is removed from the list."""
    known = {key for function in FUNCTIONS.values() for key in inspect.signature(function).parameters}
    assert set(NOT_OFFERED) <= known


def test_the_deployments_override_no_default():
    for deployment in yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]:
        given = deployment.get("parameters", {})
        for schedule in deployment.get("schedules", []):
            given |= schedule.get("parameters", {})
        settings = SETTINGS.get(deployment["name"])
        defaults = {each.name for each in parameters_of(settings)} if settings else set()
        assert not defaults & set(given), deployment["name"]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-22", date(2026, 11, 22)),
        ("2026-11-22T00:00:00Z", datetime(2026, 11, 22, tzinfo=UTC)),
        ("2026-11-22T08:00:00", datetime(2026, 11, 22, 8, tzinfo=UTC)),
    ],
)
def test_a_day_and_a_time_are_told_apart_by_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, moment: Any
):
    validated = load_flow("export_dataset").validate_parameters({"decision_type": "coding", "until": text})["until"]
    assert (type(validated), validated) == (type(moment), moment)
    asked: list[Any] = []
    monkeypatch.setattr("pipeline.models.export", lambda *arguments, **_: asked.append(arguments[2].until) or 1 / 0)
    CliRunner().invoke(app, ["export", "coding", "--data", str(tmp_path), "--until", text])
    assert (type(asked[0]), asked[0]) == (type(moment), moment)


def test_the_older_option_for_shadow_still_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked: list[PromoteSettings] = []
    monkeypatch.setattr("pipeline.promotion.promote_model", lambda *arguments: asked.append(arguments[2]) or 1 / 0)
    result = CliRunner().invoke(app, ["promote", "x", "--data", str(tmp_path), "--shadow"])
    assert [each.mode for each in asked] == ["shadow"]
    assert "use --mode shadow" in result.output


def test_bounds_that_typer_does_not_know_are_in_the_help():
    weight = next(each for each in parameters_of(PromoteSettings) if each.name == "weight")
    assert describe_bounds(weight) == "above 0, at most 1"
    assert "(above 0, at most 1)" in options("promote_model")["weight"].help
