"""Commands on the decision log."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import CommandError
from cli.options import AsCsv, AsJson, Data, Yes, find_data, with_settings
from cli.output import print_json, print_note, print_table, progress_bar, show
from pipeline.parameters import CheckSettings, CompactSettings, ExpireSettings
from pipeline.reports import without

app = typer.Typer()
data_app = typer.Typer(help="What is in the data folder", no_args_is_help=True)


@app.command()
def land(data: Data = None, as_json: AsJson = False) -> None:
    """Ingest what agents have written into the decision log."""
    from storage.log.land import land_decisions

    with progress_bar("landing") as progress:
        report = land_decisions(find_data(data), progress=progress)
    show(report, as_json=as_json, title="Landed")


@app.command()
def reland(data: Data = None, as_json: AsJson = False) -> None:
    """Retry quarantined lines, after an upgrade or a repair by hand."""
    from storage.log.reland import reland_quarantine

    with progress_bar("landing the quarantine") as progress:
        report = reland_quarantine(find_data(data), progress=progress)
    show(report, as_json=as_json, title="Landed from the quarantine")


@app.command()
@with_settings
def compact(
    data: Data = None,
    *,
    settings: CompactSettings,
    as_json: AsJson = False,
) -> None:
    """Merge the small files of each day into one."""
    from storage.log.compact import compact_decisions

    with progress_bar("compacting") as progress:
        report = compact_decisions(find_data(data), min_files=settings.min_files, progress=progress)
    show(report, as_json=as_json, title="Compacted")


@app.command()
@with_settings
def expire(
    data: Data = None,
    *,
    settings: ExpireSettings,
    as_json: AsJson = False,
) -> None:
    """Delete decisions older than the retention, and their feedback. Without a setting nothing is deleted."""
    from storage.log.expire import expire_decisions

    report = expire_decisions(find_data(data), **asdict(settings))
    if not report.configured and not as_json:
        print_note(
            "no retention is configured, so nothing is deleted: give --retention-days DAYS, or set `decisions = DAYS` "
            "under [retention] in reasoning.toml for the daily flow as well (docs/guides/storage.md)"
        )
        return
    show(report, as_json=as_json, title="Would expire" if settings.dry_run else "Expired")


@app.command()
def erase(
    subject_id: Annotated[str, typer.Argument(help="The person's id, as in the decisions' subject_ids")],
    data: Data = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Erase a person from log, spool, quarantine and datasets, and list the models trained on their data."""
    from storage.erasure.erase import erase_subject

    folder = find_data(data)
    if not subject_id:
        raise typer.BadParameter(
            "it is empty; give the person's id as in the decisions' subject_ids", param_hint="SUBJECT_ID"
        )
    if not yes:
        typer.confirm(f"Erase {subject_id} from {folder}? This cannot be undone", abort=True)
    with progress_bar("erasing") as progress:
        report = erase_subject(folder, subject_id, progress=progress)
    show(report, as_json=as_json, title="Erased")
    if not as_json:
        print_note("earlier backups still hold the erased data: delete them, or erase again after a restore")


@app.command()
def backup(
    target: Annotated[Path, typer.Argument(help="A folder outside the data folder; each backup gets a folder in it")],
    data: Data = None,
    keep: Annotated[
        int | None, typer.Option(min=1, help="How many backups stay in TARGET, this one included", show_default="all")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Back up the data folder while everything runs: spool, log, datasets, evaluations, ledger. Tokens are left out."""
    from storage.backup import back_up

    folder = find_data(data)
    with progress_bar("backing up") as progress:
        report = back_up(folder, target, keep=keep, progress=progress)
    show(report, as_json=as_json, title="Backed up")


@app.command()
def verify(
    target: Annotated[Path, typer.Argument(help="A backup, or the folder of `reasoning backup`")],
    as_json: AsJson = False,
) -> None:
    """Check every file of the backups by its SHA-256; exits with 1 if one is damaged or missing."""
    from storage.backup import verify_backup

    with progress_bar("verifying") as progress:
        report = verify_backup(target, progress=progress)
    show(report, as_json=as_json, title="Verified")
    if report.problems:
        raise typer.Exit(1)


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(help="A backup, or the folder of `reasoning backup` for its latest")],
    data: Annotated[Path, typer.Option("--data", help="The new data folder: it must not exist yet, or be empty")],
    as_json: AsJson = False,
) -> None:
    """Restore a backup into a new data folder. The next `land` ingests what was in its spool."""
    from storage.backup import restore_backup

    with progress_bar("restoring") as progress:
        report = restore_backup(source, data, progress=progress)
    show(report if as_json else without(report, "warnings"), as_json=as_json, title="Restored")
    for warning in () if as_json else report.warnings:
        print_note(warning)


@app.command()
@with_settings
def check(
    data: Data = None,
    *,
    settings: CheckSettings,
    as_json: AsJson = False,
) -> None:
    """Check the quality of the decision log; exits with 1 if a critical check fails."""
    from quality.checks.log import check_decisions

    report = check_decisions(find_data(data), days=settings.days)
    if as_json:
        print_json(report)
    else:
        print_table(
            ["severity", "of", "expectation", "observed"],
            [[each.severity, each.profile, each.expectation, each.observed] for each in report.failures],
            title=f"{report.checked} expectations, {len(report.failures)} not met",
        )
        if report.data_docs:
            show({"success": report.success, "data docs": report.data_docs}, as_json=False)
    if not report.success:
        raise typer.Exit(1)


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="Over the views decisions, feedback, labelled_decisions, costs, models")],
    data: Data = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Rows at most", show_default="1000, with --json all of them")
    ] = None,
    unsafe: Annotated[
        bool,
        typer.Option("--unsafe", help="Let the query write (`COPY (…) TO 'file.parquet'`), and read any file or host"),
    ] = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Query the decision log and the ledger in DuckDB's SQL. Read-only; --unsafe lets a query write files."""
    import duckdb

    import storage

    try:
        result = storage.sql(
            find_data(data), query, limit=limit or (None if as_json or as_csv else _TABLE_ROWS), read_only=not unsafe
        )
    except (duckdb.Error, ValueError) as error:
        raise CommandError(f"the query cannot be run: {error}") from error
    if as_json or as_csv:
        names = _apart(result.columns)
        show([dict(zip(names, row, strict=True)) for row in result.rows], as_json=as_json, as_csv=as_csv)
    else:
        print_table(result.columns, result.rows)
    if result.more:
        shown = f"the first {len(result.rows):,} rows"
        print_note(f"{shown}; --limit shows more, `--unsafe \"COPY (…) TO 'file.parquet'\"` writes all")


def _apart(columns: list[str]) -> list[str]:
    """Names that differ, as DuckDB makes them in a subquery: a second `a` is `a_1`."""
    names: list[str] = []
    for column in columns:
        name = column
        for number in itertools.count(1):
            if name not in names:
                break
            name = f"{column}_{number}"
        names.append(name)
    return names


@data_app.command()
def stats(data: Data = None, as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """Count the decisions of each type, and say whether they are ready for training."""
    from quality.dataset.statistics import summarize_log

    rows = [
        {
            "decision_type": each.decision_type,
            "questions": each.questions,
            "last_24_hours": each.last_day,
            "demonstrations": each.label_sources.get("demonstration", 0),
            "labelled_by_the_original": each.label_sources.get("original", 0),
            "episodes": each.verdict.episodes,
            "first": each.first,
            "last": each.last,
            "verdict": each.verdict.level,
            "advice": " ".join(each.verdict.advice),
        }
        for each in summarize_log(find_data(data))
    ]
    show(rows, as_json=as_json, as_csv=as_csv, title="Decisions")


@data_app.command()
def datasets(data: Data = None, as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """List the exported datasets."""
    from quality.dataset.manifest import read_manifest
    from storage.layout import Layout

    layout = Layout(find_data(data))
    manifests = [read_manifest(path.parent) for path in sorted(layout.datasets.glob("*/*/manifest.json"))]
    rows = [
        {
            "dataset": manifest.dataset_id,
            "decision_type": manifest.decision_type,
            **{name: split.rows for name, split in manifest.splits.items()},
            "holdout_from": manifest.holdout_from,
        }
        for manifest in manifests
    ]
    show(rows, as_json=as_json, as_csv=as_csv, title="Datasets")


_TABLE_ROWS = 1_000  # nobody reads more, and laying out a table of them takes its time
