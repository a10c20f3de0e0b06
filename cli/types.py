"""Commands on decision types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import AsCsv, AsJson, Data, find_data
from cli.output import print_note, show

types_app = typer.Typer(help="What decisions there are", no_args_is_help=True)


@types_app.command("discover")
def discover(
    requests: Annotated[
        Path | None,
        typer.Argument(help="Recorded requests, one JSON body a line, or an object with `path` and `body`"),
    ] = None,
    data: Data = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """List the forced tools and JSON schemas that are decisions: those in the log, and those of recorded requests.

    It is a dry run: nothing is recorded, and no setting is changed.
    """
    from gateway.decisions.discover import DiscoveredType, discover_types, read_requests
    from gateway.decisions.forced import read_templates
    from gateway.settings import load_forced_templates

    folder = find_data(data)
    if requests is not None:
        found = discover_types(read_requests(requests), read_templates(load_forced_templates()))
    else:
        found = []
    listed = {each.decision_type for each in found}
    for kind, rows, decides in _logged(folder):
        if kind not in listed:
            found.append(DiscoveredType(kind, kind.rsplit("_", 2)[0], "log", rows, decides, "", "in the log"))
    show(found, as_json=as_json, as_csv=as_csv, title="Forced decisions")
    if not found and not (as_json or as_csv):
        print_note("none: give a file of recorded requests, or let the gateway log some (docs/guides/gateway.md)")


def _logged(folder: Path) -> list[tuple[str, int, str]]:
    """The types of typed questions in the log with their rows, and what they decide."""
    import storage
    from reasoning.question_catalog import load_catalog

    catalog = load_catalog(folder)
    if not catalog:
        return []
    query = "SELECT decision_type, count(*) FROM decisions WHERE tags->>'door' IS NOT NULL GROUP BY 1 ORDER BY 2 DESC"
    rows = storage.sql(folder, query).rows
    return [(kind, count, catalog[kind].form.describe(catalog[kind])) for kind, count in rows if kind in catalog]
