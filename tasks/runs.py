"""What every flow run needs: the data folder, its turn among runs of its kind, and a way to say what came out."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.states import Completed
from pydantic import Field

from pipeline.reports import markdown, text, without
from provider.errors import ProviderUnavailable
from provider.retries import retry_after
from reasoning.config import load_config
from storage.errors import DataFolderBusy
from storage.files import private_umask
from tasks.progress import RunProgress

# Parameters that several flows have. Prefect's forms take their descriptions from the flows' docstrings.
DataFolder = Path | None
IfBusy = Literal["wait", "skip"]
Moment = datetime | None
DecisionTypeName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]


def data_folder(data: Path | None) -> Path:
    """The data folder of a run. What the run makes in it, also by libraries, is for its owner alone."""
    private_umask()
    return load_config(data).data


def utc(moment: datetime | None) -> datetime | None:
    """A form's time: one without a zone is UTC."""
    if moment is None:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def skipped(flow: str) -> Any:
    """The final state of a tick that met a run still at work."""
    return Completed(name="Skipped", message=f"another run of {flow} is at work")


def run_progress(key: str, description: str) -> RunProgress:
    """A progress callback into the current run's log and a progress artifact."""
    return RunProgress(key, description, get_run_logger())


def publish(key: str, report: Any, *, title: str) -> None:
    """A report as an artifact of the current run: a table for a list, else Markdown. `key`: lower case and dashes."""
    if isinstance(report, list):
        rows = [{name.replace("_", " "): text(value) for name, value in without(row).items()} for row in report]
        create_table_artifact(rows, key=key, description=title)
    else:
        create_markdown_artifact(markdown(report), key=key, description=title)


def publish_markdown(key: str, text: str, *, title: str) -> None:
    """A text as an artifact of the current run."""
    create_markdown_artifact(text, key=key, description=title)


def passing(task: Any, run: Any, state: Any) -> bool:
    """Retry condition of tasks: transient errors only; user errors are not retried.

    Nor is what the provider asked to leave alone for longer than the next pause: the next run of the schedule comes.
    """
    try:
        state.result()
    except ProviderUnavailable as error:
        return bool((retry_after(error) or 0.0) <= REPEATABLE["retry_delay_seconds"][0])
    except (OSError, DataFolderBusy):
        return True
    except Exception:
        return False
    return False


# For steps that may be repeated whatever became of them. A step that spends money gets none of Prefect's retries: the
# provider package repeats what may be repeated. No cache: the same arguments tomorrow are other work.
REPEATABLE: dict[str, Any] = {
    "retries": 2,
    "retry_delay_seconds": [5, 30],
    "retry_condition_fn": passing,
    "cache_policy": NO_CACHE,
}
ONCE: dict[str, Any] = {"retries": 0, "cache_policy": NO_CACHE}
