"""`reasoning import`: a way in for what people already have."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.options import AsJson, Data, check_decision_type, find_data, with_settings
from cli.output import print_json, print_line, progress_bar, show, strip_controls
from pipeline.parameters import ImportSettings
from pipeline.reports import without

app = typer.Typer()


class Source(StrEnum):
    """What a file is of."""

    CLAUDE_CODE = "claude-code"
    CODEX = "codex"
    OTEL = "otel"
    LANGFUSE = "langfuse"
    OPENAI_JSONL = "openai-jsonl"
    CSV = "csv"


@app.command("import")
@with_settings
def import_command(
    source: Annotated[
        Source,
        typer.Argument(
            help="claude-code, codex: sessions; otel: spans as OTLP JSON; langfuse: exported observations; "
            "openai-jsonl: a fine-tuning file or stored completions; csv: columns question and answer"
        ),
    ],
    path: Annotated[Path, typer.Argument(help="A file, or a folder of them, such as ~/.claude/projects")],
    data: Data = None,
    *,
    settings: ImportSettings,
    as_json: AsJson = False,
) -> None:
    """Import existing sessions or exports as decisions, redacted, and say what could be learned and whether it pays.

    The same again adds nothing. Spends nothing.
    """
    from pipeline.importing.run import import_decisions

    folder = find_data(data)
    name = check_decision_type(settings.decision_type, folder) if settings.decision_type else None
    with progress_bar(f"importing {source.value}") as progress:
        report = import_decisions(
            folder,
            source.value,
            path.expanduser(),
            decision_type=name,
            names=settings.name or (),
            agent=settings.agent,
            progress=progress,
        )
    if as_json:
        print_json(report)
        return
    show(without(report, "learn", "worth", "candidates"), as_json=False, title="Imported")
    show(report.learn, as_json=False, title="What could be learned (of all that the log has)")
    for each in report.worth:
        print_line(f"Would it pay? {each['decision_type']}: {each['verdict'].upper()}. {each['why']}")
    _tell_candidates(report.candidates, source.value, path)


def _tell_candidates(candidates: list[Any], source: str, path: Path) -> None:
    """What else the source has, and how to declare it."""
    for each in candidates[:10]:
        if each.declare:
            kind = shlex.split(each.declare)[-1].partition("=")[0]
            command = ["reasoning", "import", source, str(path), f"--name={each.name}", "--decision-type", kind]
            again = strip_controls(shlex.join(command))
            print_line(
                f"{each.items:,} of {each.name!r} have one of {len(each.labels)} answers: a decision type of its own:"
            )
            print_line(f"  {each.declare} --yes && {again}")
        elif each.labels:
            print_line(
                f"{each.items:,} of {each.name!r} have one of {len(each.labels)} answers, which hold a comma, a colon "
                "or a control character: declare a type in reasoning.toml by hand"
            )
        else:
            print_line(f"{each.items:,} of {each.name!r} are free text, of no declared decision type: not imported")
    if len(candidates) > 10:
        print_line(f"and {len(candidates) - 10:,} other names")
