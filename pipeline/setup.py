"""What `reasoning init` writes: `reasoning.toml`, `.env`, and budgets in the ledger. Asks nobody.

Writing again changes what was answered and leaves everything else as it is: other settings, comments, other lines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from pipeline.errors import SetupError
from reasoning.config import load_config
from reasoning.errors import ReasoningError
from storage.files import write_atomic
from storage.layout import Layout
from storage.ledger.ledger import open_ledger

if TYPE_CHECKING:
    from tomlkit import TOMLDocument
    from tomlkit.items import Table

PERIODS = ("hour", "day", "month", "total")
_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=")
_SAFE = re.compile(r"[^\n\r\0'\\]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnType:
    """A decision type of the user's own: which of these labels is right, as an answer to an optional question."""

    name: str
    labels: tuple[str, ...]
    question: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The answers. None leaves what there is; `retention_days` 0 keeps records for ever, `idle_minutes` 0 never stops.

    `budgets` are US dollars by period, None for no limit. `variables` are lines of `.env`, such as API keys.
    """

    data: Path
    provider: str = "local"
    types: tuple[OwnType, ...] = ()
    retention_days: int | None = None
    idle_minutes: float | None = None
    client_credentials: bool | None = None
    budgets: Mapping[str, Decimal | None] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)


def write_setup(setup: Setup, settings: Path, env_file: Path) -> list[Path]:
    """Write the files and the budgets; returns the files. The settings are checked before anything is written.

    Raises `SetupError` for answers that make no valid settings, and for files that cannot be read or written, and
    `DataFolderError` for a folder that holds something else.
    """
    text = render_settings(setup, settings)
    env_text = render_env(setup, env_file, settings)
    if setup.data.exists():
        Layout(setup.data).check()  # a folder of somebody else's is left alone
    draft = settings.with_name(f".{settings.name}.draft")
    try:
        settings.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(draft, text.encode())
        try:
            load_config(path=draft, env={})
        except ReasoningError as error:
            raise SetupError(str(error).replace(str(draft), str(settings))) from None
        finally:
            draft.unlink(missing_ok=True)
        Layout(setup.data).create()
        write_atomic(settings, text.encode())
        write_atomic(env_file, env_text.encode())
    except OSError as error:
        raise SetupError(
            f"{error.filename or settings} cannot be written ({error.strerror}); choose another"
        ) from error
    with open_ledger(setup.data) as ledger:
        for period, limit in setup.budgets.items():
            ledger.set_budget(period, limit)  # type: ignore[arg-type]  # checked there
    return [settings, env_file]


def render_settings(setup: Setup, settings: Path) -> str:
    """`reasoning.toml` with the answers, the rest as it is. Raises `SetupError` where it is not TOML."""
    try:
        document = tomlkit.parse(settings.read_text()) if settings.exists() else _new_document()
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise SetupError(f"{settings}: not TOML: {error}; mend it, or move it away") from None
    document["data"] = str(setup.data)
    if setup.retention_days:
        _table(document, "retention")["decisions"] = setup.retention_days
    elif setup.retention_days == 0 and "retention" in document:
        _table(document, "retention").pop("decisions", None)
    if setup.idle_minutes is not None:
        _table(document, "serving")["idle_minutes"] = _number(setup.idle_minutes)
    if setup.client_credentials is not None:
        _table(document, "gateway")["client_credentials"] = setup.client_credentials
    for own in setup.types:
        types = _table(document, "decision_types", is_super_table=True)
        wanted = _table(types, own.name)
        wanted["labels"] = list(own.labels)
        if own.question or "question" not in wanted:
            wanted["question"] = own.question or f"Which one is it: {' or '.join(own.labels)}?"
        if "instruction" not in wanted:
            wanted["instruction"] = f"You are {{agent_name}}. Decide {own.name.replace('_', ' ')} for what is below."
    return tomlkit.dumps(document)


def _new_document() -> TOMLDocument:
    document = tomlkit.document()
    document.add(tomlkit.comment("Settings of custom-reasoning; docs/reference/settings.md has them all."))
    return document


def _table(parent: Any, name: str, *, is_super_table: bool = False) -> Table:
    if name not in parent:
        parent[name] = tomlkit.table(is_super_table=is_super_table)
    return parent[name]  # type: ignore[no-any-return]


def _number(value: float) -> int | float:
    return int(value) if value == int(value) else value


def render_env(setup: Setup, env_file: Path, settings: Path) -> str:
    """`.env` with the answers, other lines as they are. Raises `SetupError` for a value that a line cannot hold."""
    values = {
        "REASONING_CONFIG": str(settings.absolute()),
        "REASONING_PROVIDER": setup.provider,
        **setup.variables,
    }
    for name, value in values.items():
        if not _SAFE.fullmatch(value):
            raise SetupError(f"{name}: holds a quote, a backslash or a line break; copy it anew")
    try:
        lines = env_file.read_text().splitlines()
    except FileNotFoundError:
        lines = ["# Read by `reasoning`, systemd (EnvironmentFile) and Compose (env_file). Keep it to yourself: 0600."]
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"{env_file} cannot be read ({error}); mend it, or move it away") from None
    kept = [line for line in lines if not ((match := _LINE.match(line)) and match[1] in values)]
    return "\n".join([*kept, *(f"{name}='{value}'" for name, value in values.items())]) + "\n"
