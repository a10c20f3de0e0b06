"""What commands print: reports as tables for people, as JSON for programs, and progress while they wait."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson


def plain(value: Any) -> Any:
    """`value` as JSON has it: dataclasses become objects, decimals and paths text, times RFC 3339."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def print_json(value: Any) -> None:
    sys.stdout.write(orjson.dumps(plain(value), option=orjson.OPT_INDENT_2).decode() + "\n")


def show(report: Any, *, as_json: bool, title: str | None = None) -> None:
    """Print a report: a row a field, or the rows of a list."""
    if as_json:
        print_json(report)
        return
    if isinstance(report, list):
        rows = [plain(row) for row in report]
        print_table(list(rows[0]) if rows else [], [list(row.values()) for row in rows], title=title)
        return
    fields = [(name, value) for name, value in _flat(report) if value not in (None, [], {}, "")]
    print_table(["", ""], [[name.replace("_", " "), value] for name, value in fields], title=title, header=False)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None, header: bool = True
) -> None:
    if not rows:
        print_line(f"{title}: nothing" if title else "nothing")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=header, box=box.SIMPLE)
    for index, column in enumerate(columns):
        numbers = all(isinstance(row[index], int | float | Decimal) or row[index] is None for row in rows)
        table.add_column(column.replace("_", " "), justify="right" if numbers and header else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    Console().print(table)


def print_line(text: str) -> None:
    sys.stdout.write(text + "\n")


def print_note(text: str) -> None:
    """A line for people beside the output, such as progress: to stderr."""
    sys.stderr.write(text + "\n")


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[..., None]]:
    """A progress callback for any of the rooms: `(done, total)`, or `(fraction, message)`. Silent unless a terminal."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)

        def update(done: float, rest: float | str | None = None) -> None:
            if isinstance(rest, str):
                bar.update(task, completed=done, total=1.0, description=f"{what}: {rest}")
            else:
                bar.update(task, completed=done, total=rest or None)

        yield update


def _flat(report: Any) -> Iterator[tuple[str, Any]]:
    for name, value in plain(report).items():
        if isinstance(value, dict):
            yield from ((f"{name}: {inner}", item) for inner, item in value.items())
        else:
            yield name, value


def _cell(value: Any) -> str:
    from rich.markup import escape

    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, list):
        return escape(", ".join(str(item) for item in value))
    return escape(str(value))


def home_relative(path: Path) -> str:
    """`path` as people read it: relative to where they are, when it is below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
