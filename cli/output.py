"""What commands print: reports as tables for people, as JSON for programs, and progress while they wait."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import orjson

from pipeline.reports import fields, text, to_jsonable, without
from storage.progress import OnProgress, Progress

if TYPE_CHECKING:
    from rich.console import Console

_FOLD_FROM = 24
"""On a narrow terminal longer cells are folded, shorter ones never."""
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
"""What anyone's text in the log could steer the reader's terminal with: shown, not obeyed."""


def without_controls(line: str) -> str:
    """A line of anyone's text whose control characters are shown, not obeyed."""
    return line.translate(_CONTROLS)


def print_json(value: Any) -> None:
    """Print a value as indented JSON to stdout."""
    sys.stdout.write(orjson.dumps(to_jsonable(value), option=orjson.OPT_INDENT_2).decode() + "\n")


def print_csv(rows: Sequence[Any]) -> None:
    """Print rows (dictionaries or dataclasses) as CSV with a header; lists and objects as JSON. Nothing for no rows."""
    import csv

    plain = [to_jsonable(without(row)) for row in rows]
    columns = list(dict.fromkeys(name for row in plain for name in row))
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if columns:
        writer.writerow(columns)
    for row in plain:
        cells = (row.get(name) for name in columns)
        writer.writerow(orjson.dumps(cell).decode() if isinstance(cell, list | dict | bool) else cell for cell in cells)


def show(report: Any, *, as_json: bool, as_csv: bool = False, title: str | None = None) -> None:
    """Print a report: a row a field, and a table for each field that has rows; or the rows of a list.

    Only a list can be printed as CSV. Raises BadParameter for both forms at once.
    """
    if as_json and as_csv:
        import typer

        raise typer.BadParameter("give one of the two", param_hint="--json --csv")
    if as_json:
        print_json(report)
        return
    if as_csv:
        print_csv(report)
        return
    if isinstance(report, list):
        rows = [without(row) for row in report]
        print_table(list(rows[0]) if rows else [], [list(row.values()) for row in rows], title=title)
        return
    told = list(fields(report))
    print_table(["", ""], [field for field in told if not _has_rows(field[1])], title=title, header=False)
    for name, value in told:
        if _has_rows(value):
            show(value, as_json=False, title=name.capitalize())


def _has_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) or is_dataclass(row) for row in value)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None, header: bool = True
) -> None:
    """Print a table; with `title: nothing` where there are no rows."""
    if not rows:
        print_line(f"{title}: nothing" if title else "nothing")
        return
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    console = new_console()
    names = [column.replace("_", " ") for column in columns]
    cells = [[text(value).translate(_CONTROLS) for value in row] for row in rows]
    widths = [
        min(_FOLD_FROM, max(map(len, [*name.split(), *(row[index] for row in cells)]), default=0))
        for index, name in enumerate(names)
    ]
    if header and sum(widths) + 3 * len(widths) + 1 > console.width:  # two of padding and one of edge a column
        if title:
            print_line(title)
        for row in cells:  # too many columns for this terminal: the rows one below the other
            print_table(["", ""], list(zip(names, row, strict=True)), header=False)
        return
    fits = sum(max(len(name), *(len(row[i]) for row in cells)) + 3 for i, name in enumerate(names)) < console.width
    table = Table(title=title, title_justify="left", show_header=header, box=box.SIMPLE)
    for index, name in enumerate(names):
        numbers = all(isinstance(row[index], int | float | Decimal) or row[index] is None for row in rows)
        # Rich narrows short columns below their minimum when space is short, and cuts a number in two: not with these.
        longest = max((len(row[index]) for row in cells), default=0)
        table.add_column(
            name,
            justify="right" if numbers and header else "left",
            overflow="fold",
            min_width=widths[index],
            max_width=None if fits or longest > widths[index] else widths[index],
        )
    for row in cells:
        table.add_row(*map(escape, row))
    console.print(table)


def new_console() -> Console:
    """Where tables go: as wide as the terminal; piped, as wide as they need to be."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 1000)


@contextmanager
def is_interrupted() -> Iterator[None]:
    """Ctrl-C ends what is in it, quietly, with the exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        import typer

        raise typer.Exit(130) from None


def watch_output(watch: bool, once: Callable[[], None], *, seconds: float = 10) -> None:
    """Call `once`; with `watch` again and again, on a cleared screen where it is a terminal, until Ctrl-C."""
    with is_interrupted():
        while True:
            if watch and sys.stdout.isatty():
                print("\x1b[H\x1b[2J", end="")
            once()
            if not watch:
                return
            sys.stdout.flush()
            time.sleep(seconds)


def strip_controls(line: str) -> str:
    """A text with its control characters shown, so that a terminal does not obey them."""
    return line.translate(_CONTROLS)


def print_line(line: str) -> None:
    """Print a line to stdout at once."""
    print(line, flush=True)


def print_note(line: str) -> None:
    """A line for people beside the output, such as progress: to stderr."""
    print(line, file=sys.stderr)


@contextmanager
def progress_bar(what: str) -> Iterator[OnProgress]:
    """A progress callback (`storage.progress`). Silent unless stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as ProgressBar

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with ProgressBar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)

        def update(progress: Progress) -> None:
            description = f"{what}: {progress.message}" if progress.message else what
            bar.update(task, completed=progress.fraction, total=1.0, description=description)

        yield update
