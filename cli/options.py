"""Options that many commands have, and the settings behind them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from annotated_types import Ge, Gt, Le, Lt

from cli.environment import set_prefect_password, use_emulator, use_prefect
from cli.output import print_note
from pipeline import parameters
from pipeline.parameters import (
    Confidence,
    Parameter,
    bound_broken,
    collect_settings,
    describe_bounds,
    expand_settings,
    parse_confidence,
    parse_moment,
)
from quality.settings import Moment


class Provider(StrEnum):
    """The values of `--provider`."""

    LOCAL = "local"
    EMULATOR = "emulator"
    TOGETHER = "together"


Data = Annotated[
    Path | None,
    typer.Option("--data", help="The data folder", show_default="REASONING_DATA, else `data` in reasoning.toml"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV for spreadsheets")]
Watch = Annotated[bool, typer.Option("--watch", help="Show it again every 10 seconds, until Ctrl-C")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would be done")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")]
DecisionType = Annotated[str, typer.Argument(help=parameters.DECISION_TYPE_HELP)]
ModelName = Annotated[str, typer.Argument(help=parameters.MODEL_HELP)]


def find_data(data: Path | None, *, may_be_new: bool = False) -> Path:
    """The data folder to use. Raises `DataFolderError` if it is not one, unless it `may_be_new`.

    The provider and the Prefect server of the `reasoning serve` that is up for it, if any, are taken too.
    """
    from cli.serve import prefect_password, served
    from reasoning.config import load_config
    from storage.layout import Layout

    folder = load_config(data).data
    if not (may_be_new and not folder.exists()):
        Layout(folder).check()
    _warn_of_rights(folder)
    urls = served(folder)
    if emulator := urls.get("emulator"):
        use_emulator(emulator)
    if (prefect := _api(urls.get("prefect"))) and use_prefect(prefect):  # the password is never sent to another server
        set_prefect_password(prefect_password(folder))
    return folder


def _warn_of_rights(folder: Path) -> None:
    """Tell once in a folder's life that others of this machine may enter it. It may be meant so: nothing is changed."""
    with suppress(OSError):
        if folder.stat().st_mode & 0o007:
            os.close(os.open(folder / ".rights-told", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            print_note(f"other users of this machine may enter {folder}; unless they should: chmod -R go= {folder}")


def check_decision_type(name: str, data: Path) -> str:
    """The name of a declared decision type; dashes are as good as underscores. Raises `UnknownDecisionType`."""
    from reasoning.config import load_config
    from reasoning.decision_types import get_decision_type

    return get_decision_type(name.replace("-", "_"), load_config(data)).name


def with_settings(function: Callable[..., None]) -> Callable[..., None]:
    """`function` with the fields of its `settings` (`pipeline.parameters`) as options, for Typer."""
    signature, fields = expand_settings(function, _option)

    @functools.wraps(function)
    def command(**values: Any) -> None:
        function(**collect_settings(function, values | {field.name: _read(field, values) for field in fields}))

    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in signature.parameters.values()}
    return command


def _option(parameter: Parameter) -> Any:
    """The option of a parameter. Typer knows inclusive bounds; the help names the others, and `_read` checks them."""
    flag = "--" + parameter.name.replace("_", "-")
    is_open = any(isinstance(bound, Gt | Lt) for bound in parameter.bounds)
    option = typer.Option(
        flag,
        help=f"{parameter.help} ({describe_bounds(parameter)})" if is_open else parameter.help,
        min=None if is_open else next((bound.ge for bound in parameter.bounds if isinstance(bound, Ge)), None),  # type: ignore[arg-type]
        max=None if is_open else next((bound.le for bound in parameter.bounds if isinstance(bound, Le)), None),  # type: ignore[arg-type]
    )
    return Annotated[_TEXTS.get(parameter.type, parameter.type), option]


# Options that are texts on the command line, and their type there. `_read` reads them.
_TEXTS: dict[Any, Any] = {Moment | None: str | None, Confidence: str}


def _read(parameter: Parameter, values: dict[str, Any]) -> Any:
    """The value of an option. Raises BadParameter."""
    value = values.get(parameter.name, parameter.default)
    flag = "--" + parameter.name.replace("_", "-")
    if (bound := bound_broken(parameter, value)) is not None:
        raise typer.BadParameter(f"{value} is out of range; give one that is {bound}", param_hint=flag)
    if parameter.type in _TEXTS and value is not None:
        try:
            if parameter.type == Moment | None:
                return parse_moment(str(value), end=parameter.name == "until")
            return parse_confidence(str(value))
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint=flag) from error
    return None if value == [] else value


def read_moment(text: str | None, flag: str) -> Moment | None:
    """A moment as people type it, None without one. Raises BadParameter."""
    try:
        return None if text is None else parse_moment(text, end=flag == "--until")
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=flag) from error


def _api(prefect: str | None) -> str | None:
    return f"{prefect}/api" if prefect else None
