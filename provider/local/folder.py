"""What the local provider keeps: files, jobs, models and endpoints in one folder. Every change is atomic.

::

    files/<sha256>.jsonl
    jobs/<name>/job.json      a `Job`; `lock` is held by the process that trains, for as long as it lives
    models/<name>/            what a job trained: an artifact of `learners`
    serving.json              the endpoints and the deployments under them
    server.json, server.lock  where the one server listens; it holds the lock for as long as it lives
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from provider.errors import ProviderRefused, ProviderUnavailable
from provider.port import RemoteJobState
from storage.files import make_folder, open_private, write_atomic

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


@dataclass(slots=True)
class Job:
    """A training. Times are seconds since 1970 (UTC)."""

    name: str
    base_model: str
    train: str
    validation: str | None
    parameters: dict[str, Any]
    created_at: float
    state: RemoteJobState = RemoteJobState.WAITING
    attempts: int = 0
    """How many processes were started for it."""
    pid: int | None = None
    progress: float = 0.0
    said: str = ""
    error: str | None = None
    cancel: bool = False


@dataclass(slots=True)
class LocalDeployment:
    """A model that is served while `replicas` is 1."""

    id: str
    name: str
    model: str
    """Name of the model's folder."""
    replicas: int
    created_at: float


@dataclass(slots=True)
class LocalEndpoint:
    """A name that requests are sent to. `traffic` is the deployment that answers them."""

    name: str
    created_at: float
    traffic: str | None = None
    deployments: list[LocalDeployment] = field(default_factory=list)

    def find(self, deployment_id: str) -> LocalDeployment | None:
        """The deployment of that id, or of that name."""
        return next((each for each in self.deployments if deployment_id in (each.id, each.name)), None)


def check_name(name: str) -> str:
    """A name that is used as one of a file. Raises ProviderRefused."""
    if not _NAME.fullmatch(name):
        raise ProviderRefused(f"not a name: {name!r}; use letters, digits, dots, dashes and underscores")
    return name


@dataclass(frozen=True, slots=True)
class Folder:
    """The folder of one installation."""

    path: Path

    @property
    def serving(self) -> Path:
        """The file with all endpoints."""
        return self.path / "serving.json"

    @property
    def server(self) -> Path:
        """Where the server listens."""
        return self.path / "server.json"

    @property
    def server_lock(self) -> Path:
        """Held by the server."""
        return self.path / "server.lock"

    def file(self, file_id: str) -> Path:
        """An uploaded file."""
        return self.path / "files" / f"{check_name(file_id)}.jsonl"

    def job(self, name: str) -> Path:
        """The folder of a job."""
        return self.path / "jobs" / check_name(name)

    def model(self, name: str) -> Path:
        """The artifact of a model."""
        return self.path / "models" / check_name(name)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder: whoever reads and then writes does so in this block."""
        make_folder(self.path)
        with open(self.path / "lock", "ab", opener=open_private) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def read_job(self, name: str) -> Job | None:
        """A job, or None. Raises ProviderUnavailable where its file cannot be read."""
        found = _read(self.job(name) / "job.json")
        return None if found is None else Job(**{**found, "state": RemoteJobState(found["state"])})

    def write_job(self, job: Job) -> None:
        """Keep a job."""
        folder = self.job(job.name)
        make_folder(folder)
        write_atomic(folder / "job.json", json.dumps(asdict(job)).encode())

    def job_names(self) -> list[str]:
        """The names of all jobs."""
        try:
            return sorted(path.parent.name for path in (self.path / "jobs").glob("*/job.json"))
        except FileNotFoundError:
            return []

    def read_endpoints(self) -> dict[str, LocalEndpoint]:
        """All endpoints by name."""
        found = _read(self.serving) or {}
        return {
            name: LocalEndpoint(**{**each, "deployments": [LocalDeployment(**row) for row in each["deployments"]]})
            for name, each in found.items()
        }

    def write_endpoints(self, endpoints: dict[str, LocalEndpoint]) -> None:
        """Keep the endpoints."""
        make_folder(self.path)
        write_atomic(self.serving, json.dumps({name: asdict(each) for name, each in endpoints.items()}).encode())


def server_url(folder: Path) -> str | None:
    """Base URL of the server of that folder, where one runs and has written it down."""
    try:
        address = json.loads((folder / "server.json").read_bytes())
        return f"http://127.0.0.1:{address['port']}" if is_held(folder / "server.lock") else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_held(lock: Path) -> bool:
    """Does a process hold this lock, that is: is it alive?"""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ProviderUnavailable(f"{path} cannot be read: {error}; delete it to start anew") from error
