"""Every command refuses a data folder that does not exist, and makes none: found by introspection of the CLI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from typer.main import get_command

from cli.main import app
from tests.cli.test_commands import failure, reasoning

MAY_BE_NEW = {"init", "serve", "demo", "config", "restore"}
"""Commands that may start a new data folder, or only show settings. All others refuse a missing one."""
WITHOUT_DATA = {"flow list", "verify"}
ARGUMENTS = {
    "costs set-budget": ["25"],
    "models register": ["mine", "--type", "should_respond", "--url", "http://127.0.0.1:9", "--model", "m"],
    "flow run": ["land_decisions"],
    "sql": ["SELECT 1"],
    "import": ["csv", "old.csv"],
}
"""Where an argument must be more than any text."""


def list_commands(group: click.Command, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in getattr(group, "commands", {}).items():
        path = f"{prefix}{name}"
        if hasattr(command, "commands"):
            yield from list_commands(command, f"{path} ")
        else:
            yield path, command


COMMANDS = dict(list_commands(get_command(app)))


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - MAY_BE_NEW - WITHOUT_DATA))
def test_a_missing_data_folder_is_refused_and_not_made(tmp_path: Path, name: str) -> None:
    required = [p for p in COMMANDS[name].params if p.param_type_name == "argument" and p.required]
    arguments = ARGUMENTS.get(name, ["should_respond"] * len(required))
    said = failure(reasoning(*name.split(), *arguments, "--data", tmp_path / "typo"))
    assert f"there is no data folder {tmp_path / 'typo'}" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - MAY_BE_NEW - WITHOUT_DATA))
def test_a_folder_of_somebody_elses_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "holiday.jpg").touch()
    required = [p for p in COMMANDS[name].params if p.param_type_name == "argument" and p.required]
    arguments = ARGUMENTS.get(name, ["should_respond"] * len(required))
    assert "is not a data folder" in failure(reasoning(*name.split(), *arguments, "--data", tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_the_settings_are_shown_without_making_the_folder(tmp_path: Path) -> None:
    assert reasoning("config", "--data", tmp_path / "new").returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_the_named_commands_exist() -> None:
    assert MAY_BE_NEW | WITHOUT_DATA | ARGUMENTS.keys() <= COMMANDS.keys()
    assert all(any("--data" in p.opts for p in COMMANDS[name].params) for name in COMMANDS.keys() - WITHOUT_DATA)
