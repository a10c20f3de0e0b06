"""Trainings: submitted once for a name, started again when their process died, cancelled."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from provider.errors import ProviderRefused, RemoteNotFound
from provider.local.folder import Folder, Job, is_held
from provider.local.process import start_detached
from provider.port import ENDED_JOBS, BeforeCreate, RemoteJobState, TrainingRequest

ATTEMPTS = 3
"""So many processes may die of one job before it has failed."""


def submit(folder: Folder, request: TrainingRequest, *, before_create: BeforeCreate) -> Job:
    """The job of that name; started where it is not there."""
    for file_id in filter(None, (request.train_file_id, request.validation_file_id)):
        if not folder.file(file_id).exists():
            raise ProviderRefused(f"there is no file {file_id!r}; upload it first")
    with folder.locked():
        if (found := folder.read_job(request.name)) is not None:
            return found
        before_create()
        job = Job(
            name=request.name,
            base_model=request.base_model,
            train=request.train_file_id,
            validation=request.validation_file_id,
            parameters=dict(request.parameters),
            created_at=time.time(),
        )
        folder.write_job(job)
    _start(folder, job)
    return job


def follow(folder: Folder, name: str) -> Job:
    """How a job is. Where its process died, it is started again. Raises RemoteNotFound."""
    with folder.locked():
        job = folder.read_job(name)
        if job is None:
            raise RemoteNotFound(f"there is no job {name!r}")
        if job.state in ENDED_JOBS or is_held(folder.job(name) / "lock"):
            return job
        job = folder.read_job(name) or job  # it may have ended in between
        if job.state in ENDED_JOBS:
            return job
        job = replace(job, pid=None)
        if job.cancel:
            job = replace(job, state=RemoteJobState.CANCELLED)
        elif job.attempts >= ATTEMPTS:
            log = folder.job(name) / "log"
            error = f"the process that trains died {job.attempts} times, at last with {_last_line(log)!r}; see {log}"
            job = replace(job, state=RemoteJobState.FAILED, error=error)
        folder.write_job(job)
        if job.state in ENDED_JOBS:
            return job
    _start(folder, job)
    return job


def cancel(folder: Folder, name: str) -> None:
    """End a job. Raises RemoteNotFound, and ProviderRefused where it has ended."""
    with folder.locked():
        job = folder.read_job(name)
        if job is None:
            raise RemoteNotFound(f"there is no job {name!r}")
        if job.state in ENDED_JOBS:
            raise ProviderRefused(f"job {name} has ended: {job.state}")
        lock = folder.job(name) / "lock"
        folder.write_job(replace(job, cancel=True))
        until = time.monotonic() + 10
        while is_held(lock) and time.monotonic() < until:
            job = folder.read_job(name) or job
            if job.pid:
                with suppress(ProcessLookupError):
                    os.kill(job.pid, signal.SIGKILL)
            time.sleep(0.02)
        job = folder.read_job(name) or job
        if job.state not in ENDED_JOBS:
            folder.write_job(replace(job, cancel=True, state=RemoteJobState.CANCELLED, pid=None))


def _start(folder: Folder, job: Job) -> None:
    start_detached("provider.local.trainer", [str(folder.path), job.name], folder.job(job.name) / "log")


def _last_line(log: Path) -> str:
    try:
        return log.read_text(errors="replace").strip().rpartition("\n")[2][-200:]
    except OSError:
        return ""
