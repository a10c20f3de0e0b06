"""Commands that show single decisions: the latest, and one in full."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from cli.options import AsCsv, AsJson, Data, check_decision_type, find_data, read_moment
from cli.output import is_interrupted, print_json, print_line, show, strip_controls
from pipeline.parameters import MOMENT_HELP
from quality.settings import Source

if TYPE_CHECKING:
    from storage.log.search import DecisionFilter

app = typer.Typer()

_POLL_SECONDS = 1.0
_ANSWER_WIDTH = 48
_ID_END = 12  # the part of an id that differs between decisions of one minute
_LATEST = 1_000  # so many of the latest decisions are compared at each look of --follow


@app.command("log")
def show_log(
    decision_type: Annotated[str | None, typer.Argument(help="Only this decision type")] = None,
    data: Data = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Show this many of the latest")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones, until Ctrl-C")] = False,
    agent: Annotated[str | None, typer.Option(help="Only of this agent")] = None,
    episode: Annotated[str | None, typer.Option(help="Only of this episode")] = None,
    source: Annotated[Source | None, typer.Option(help="Only answers of the fallback, or of a model")] = None,
    model: Annotated[str | None, typer.Option(help="Only answers of this model, by the name it is served as")] = None,
    since: Annotated[str | None, typer.Option(help=f"From then on: {MOMENT_HELP}")] = None,
    until: Annotated[str | None, typer.Option(help="Up to then, inclusive; as --since")] = None,
    search: Annotated[str | None, typer.Option(help="Only with this text in the question or the answer")] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """List the latest decisions, the newest last, those that have not landed yet included."""
    from quality.period import first_moment, moment_after
    from storage.log.search import DecisionFilter, recent_decisions

    folder = find_data(data)
    wanted = DecisionFilter(
        decision_type=check_decision_type(decision_type, folder) if decision_type else None,
        agent_id=agent,
        episode_id=episode,
        source=None if source is None else source.value,
        model=model,
        since=first_moment(read_moment(since, "--since")),
        before=moment_after(read_moment(until, "--until")),
        text=search,
    )
    if follow and (as_csv or until):
        raise typer.BadParameter(f"--follow goes on for ever; leave out {'--csv' if as_csv else '--until'}")
    rows = recent_decisions(folder, wanted, limit=limit)[::-1]
    if not follow:
        if as_json or as_csv:
            show(rows, as_json=as_json, as_csv=as_csv)
            return
        for row in rows:
            print_line(log_line(row))
        if not rows:
            print_line("no decisions: agents have written none that fits, or write to another folder")
        return
    _follow(folder, wanted, rows, as_json=as_json)


def _follow(folder: Path, wanted: DecisionFilter, rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print these rows, and then each new one, until Ctrl-C."""
    from pipeline.reports import to_jsonable
    from storage.log.search import recent_decisions

    seen: set[str] = set()
    with is_interrupted():
        while True:
            for row in rows:
                if row["decision_id"] not in seen:
                    line = orjson.dumps(to_jsonable(row)).decode() if as_json else log_line(row)
                    print_line(line)
            seen |= {row["decision_id"] for row in rows}
            time.sleep(_POLL_SECONDS)
            newest = max((row["ts"] for row in rows), default=None)
            # From the newest on: an agent's clock may lag, and what landed meanwhile is found by its id again.
            since = wanted.since if newest is None else newest.replace(second=0, microsecond=0)
            rows = recent_decisions(folder, replace(wanted, since=since), limit=_LATEST)[::-1] or rows


def log_line(row: dict[str, Any]) -> str:
    """A decision as one line: time, end of its id, type, answer, who gave it, and what went wrong."""
    who = row["model"] or row["source"]
    confidence = "" if row["confidence"] is None else f" {row['confidence']:.2f}"
    why = f"  {row['fallback_reason']}" if row["fallback_reason"] else ""
    latency = "" if row["latency_ms"] is None else f"  {row['latency_ms']:,.0f} ms"
    return strip_controls(
        f"{row['ts']:%Y-%m-%d %H:%M:%S}  {row['decision_id'][-_ID_END:]}  {row['decision_type']:<14}  "
        f"{short_answer(row['decision']):<{_ANSWER_WIDTH}}  {who}{confidence}{latency}{why}"
    )


def short_answer(decision: Any) -> str:
    """A decision in at most 48 characters: its action where that is all it has."""
    if decision is None:
        return "(no answer)"
    if isinstance(decision, dict) and isinstance(decision.get("action"), str):
        text = decision["action"]
    elif isinstance(decision, dict) and len(decision) == 1:
        text = str(next(iter(decision.values())))
    else:
        text = orjson.dumps(decision).decode()
    text = " ".join(text.split())
    return text if len(text) <= _ANSWER_WIDTH else text[: _ANSWER_WIDTH - 1] + "…"


@app.command("show")
def show_decision(
    decision: Annotated[str, typer.Argument(help="A decision's id, its beginning or its end (`reasoning log`)")],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Show one decision in full: question, answers, feedback, and the route, model and dataset behind it."""
    from storage.lineage import decision_in_full
    from storage.log.search import find_decision

    folder = find_data(data)
    found = decision_in_full(folder, find_decision(folder, decision))
    if as_json:
        print_json(found)
        return
    apart = ("messages", "decision", "completion", "other_answers", "feedback", "lineage", "tools")
    show({name: value for name, value in found.items() if name not in apart}, as_json=False, title="Decision")
    print_line("Question")
    for message in found["messages"]:
        print_line(strip_controls(_indent(f"{message['role']}: {message['content']}")))
    print_line("\nAnswer")
    print_line(strip_controls(_indent(found["completion"] or "(none)")))
    if found["tools"]:
        print_line(strip_controls(_indent(f"tools: {orjson.dumps(found['tools']).decode()}")))
    print_line("")
    if found["other_answers"]:
        show(found["other_answers"], as_json=False, title="Other answers to this question")
    show(found["feedback"], as_json=False, title="Feedback")
    for name, part in found["lineage"].items():
        show(part or {name: "not known"}, as_json=False, title=name.capitalize())


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
