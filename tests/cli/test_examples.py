"""Every command's help has an example, and every example is a command that the parser takes."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from cli.examples import EXAMPLES, EXIT_CODES
from cli.main import app
from tests.packages import ROOT


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, sub in command.commands.items():
        if hasattr(sub, "commands"):
            yield from commands(sub, (*path, name))
        elif not sub.hidden:
            yield " ".join((*path, name)), sub


COMMANDS = dict(commands(get_command(app)))


def test_every_command_shows_its_example() -> None:
    assert {name for name, command in COMMANDS.items() if not command.epilog} == set()
    assert set(EXAMPLES) == set(COMMANDS)
    assert COMMANDS["models jobs"].epilog == f"Example: {EXAMPLES['models jobs']}"


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_taken_by_the_parser(name: str) -> None:
    words = shlex.split(EXAMPLES[name])
    path = name.split()
    assert words[: len(path) + 1] == ["reasoning", *path]
    COMMANDS[name].make_context(name, words[len(path) + 1 :])


def test_the_guide_has_every_exit_code() -> None:
    guide = (ROOT / "docs" / "guides" / "cli.md").read_text()
    for code, meaning in EXIT_CODES.items():
        assert f"| {code} | {meaning} |" in guide
