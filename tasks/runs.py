"""What every flow run needs: the data folder, its turn among runs of its kind, and a way to say what came out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger
from prefect.states import Completed
from pydantic import Field

from reasoning.config import load_config
from storage.ledger import open_ledger
from tasks.progress import RunProgress
from tasks.reports import markdown, plain

# Parameters that several flows have, as the forms of Prefect's UI show them.
DataFolder = Annotated[
    Path | None, Field(description="The data folder. Empty: REASONING_DATA, or `data` in reasoning.toml, of the worker")
]
IfBusy = Annotated[
    Literal["wait", "skip"], Field(description="When another run of this flow is at work: wait for it, or end at once")
]
Moment = Annotated[
    datetime | None, Field(description="The time it is held to be, for replays. Empty: the time of the machine")
]
DecisionTypeName = Annotated[
    str, Field(description="Such as should_respond, planning or coding", pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")
]


def data_folder(data: Path | None) -> Path:
    return load_config(data).data


def utc(moment: datetime | None) -> datetime | None:
    """A form's time: one without a zone is UTC."""
    if moment is None:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


@contextmanager
def taking_turns(data: Path, flow: str, if_busy: str) -> Iterator[bool]:
    """Hold the flow's lock of this installation; yields False when another run holds it and `if_busy` is `skip`.

    Not Prefect's concurrency limits: their CANCEL_NEW cancels the run a person started when it meets a tick, ENQUEUE
    piles ticks up, and a slot outlives the kill -9 of who held it. This lock ends with its process.
    """
    with open_ledger(data) as ledger, ledger.exclusive(f"flow-{flow}", wait=if_busy == "wait") as ours:
        yield ours


def skipped(flow: str) -> Any:
    """The final state of a tick that met a run still at work."""
    return Completed(name="Skipped", message=f"another run of {flow} is at work")


def run_progress(key: str, description: str) -> RunProgress:
    """A progress callback into the current run's log and a progress artifact."""
    return RunProgress(key, description, get_run_logger())


def publish(key: str, report: Any, *, title: str) -> None:
    """A report as an artifact of the current run: a table for a list, else Markdown. `key`: lower case and dashes."""
    if isinstance(report, list):
        create_table_artifact(
            [{name: _cell(value) for name, value in plain(row).items()} for row in report], key=key, description=title
        )
    else:
        create_markdown_artifact(markdown(report, title=title), key=key, description=title)


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
