"""Where the cycle of each decision type stands: its steps, what it waits for, and the end of its log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from console.request import Request, Response, render
from reasoning.config import load_config
from storage.ledger.ledger import open_ledger
from storage.ledger.lives import CycleRow, read_cycle
from storage.ledger.rows import Deployment, FineTuneJob

_LOG_BYTES = 4_000
_STEPS = (
    ("dataset_id", "Export"),
    ("job_id", "Fine-tune"),
    ("deployment_id", "Deploy"),
    ("evaluation_id", "Evaluate"),
)


def page(request: Request, part: str = "") -> Response:
    """The whole page, or with `live` what changes."""
    types = load_config(request.data).decision_types
    with open_ledger(request.data) as ledger:
        cycles = [found for name in types if (found := read_cycle(ledger, name)) is not None]
        jobs = {row.id: row for row in ledger.find(FineTuneJob, id=[each.job_id for each in cycles if each.job_id])}
        deployments = {
            row.id: row
            for row in ledger.find(Deployment, id=[each.deployment_id for each in cycles if each.deployment_id])
        }
    rows = [
        {
            "cycle": each,
            "steps": steps_of(each),
            "job": jobs.get(each.job_id or ""),
            "deployment": deployments.get(each.deployment_id or ""),
            "log": tail(cycle_log(request.data, each.decision_type)),
        }
        for each in cycles
    ]
    template = "cycles_live.html" if part == "live" else "cycles.html"
    begun = {name: tail(cycle_log(request.data, name)) for name in types}
    return render(template, visitor=request.visitor, rows=rows, types=sorted(types), begun=begun)


def steps_of(cycle: CycleRow) -> list[dict[str, Any]]:
    """The steps of a cycle; `state` is done, current or open."""
    done = [getattr(cycle, column) is not None for column, _ in _STEPS]
    done.append(cycle.finished_at is not None)
    names = [*(name for _, name in _STEPS), "Decide"]
    first_open = done.index(False) if False in done else None
    under_way = cycle.outcome == "under_way"
    return [
        {
            "name": name,
            "state": "done" if is_done else "current" if under_way and number == first_open else "open",
            "id": getattr(cycle, _STEPS[number][0]) if number < len(_STEPS) else None,
        }
        for number, (name, is_done) in enumerate(zip(names, done, strict=True))
    ]


def cycle_log(data: Path, decision_type: str) -> Path:
    """Where a cycle that the page began writes."""
    return data / "logs" / f"cycle-{decision_type}.log"


def tail(path: Path) -> str:
    """The end of a text file; empty where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _LOG_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
