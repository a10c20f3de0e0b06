"""Options that many commands have, and the settings behind them."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.output import print_note


class Provider(StrEnum):
    """The values of `--provider`."""

    LOCAL = "local"
    TOGETHER = "together"


Data = Annotated[
    Path | None,
    typer.Option("--data", help="The data folder", show_default="REASONING_DATA, else `data` in reasoning.toml"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")]
DecisionType = Annotated[str, typer.Argument(help="Such as should_respond, planning or coding")]
Model = Annotated[str, typer.Argument(help="A model's id, or a decision type for what of it serves or costs")]


def find_data(data: Path | None, *, may_be_new: bool = False) -> Path:
    """The data folder that is meant. Raises `DataFolderError` where it is none, unless it `may_be_new`.

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
    for name, url in (("REASONING_PROVIDER_URL", urls.get("emulator")), ("PREFECT_API_URL", _api(urls.get("prefect")))):
        if url:
            os.environ.setdefault(name, url)
    if "prefect" in urls and os.environ["PREFECT_API_URL"] == _api(urls["prefect"]):  # never sent to another server
        os.environ["PREFECT_API_AUTH_STRING"] = prefect_password(folder)
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


def parse_day(text: str | None) -> datetime | None:
    """`2026-11-22`, or a time as in RFC 3339, as typed on a command line."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is neither a day (2026-11-22) nor a time (2026-11-22T08:00:00Z)") from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _api(prefect: str | None) -> str | None:
    return f"{prefect}/api" if prefect else None
