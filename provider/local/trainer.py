"""One training in a process of its own: `python -m provider.local.trainer FOLDER NAME`.

It writes how far it is into `job.json`. The model is made beside its place and moved there when it is whole, so a
training that was killed leaves none; `provider.local.jobs` starts it again.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType

from provider.local.folder import Folder, Job
from provider.local.process import detach
from provider.port import RemoteJobState
from storage.files import remove_tree, replace_folder

_BETWEEN_WRITES = 0.5


class _OutOfTime(Exception):
    """The training took longer than it may."""


def main() -> int:
    """Train one job."""
    folder, name = Folder(Path(sys.argv[1])), sys.argv[2]
    lock = detach(folder.job(name) / "lock")
    if lock is None:
        return 0  # it is being trained already
    with lock:
        job = folder.read_job(name)
        if job is None or job.cancel:
            return 0
        job = replace(
            job, state=RemoteJobState.RUNNING, pid=os.getpid(), attempts=job.attempts + 1, progress=0.0, said="starting"
        )
        folder.write_job(job)
        signal.signal(signal.SIGALRM, _out_of_time)
        try:
            _train(folder, job)
        except BaseException as error:
            folder.write_job(replace(job, state=RemoteJobState.FAILED, pid=None, error=_reason(job, error)))
            return 1
        folder.write_job(replace(job, state=RemoteJobState.COMPLETED, pid=None, progress=1.0, said="trained"))
    return 0


def _train(folder: Folder, job: Job) -> None:
    signal.alarm(max(int(job.parameters["max_seconds"]), 1))
    threading.Thread(target=_watch_memory, args=(folder, job), daemon=True).start()
    from learners.training import train  # 2 s of imports, after the job is known to have started

    place = folder.model(job.name)
    draft = place.with_name(f"{place.name}.part")
    remove_tree(draft)
    written = 0.0

    def progress(fraction: float, metrics: dict[str, float]) -> None:
        nonlocal written
        if time.monotonic() - written > _BETWEEN_WRITES:
            written = time.monotonic()
            said = ", ".join(f"{key} {value:.3g}" for key, value in metrics.items())
            folder.write_job(replace(job, progress=fraction, said=said or "training"))

    learner = job.base_model.removeprefix("local/")
    train(
        folder.file(job.train),
        folder.file(job.validation) if job.validation else None,
        draft,
        learner=learner,  # type: ignore[arg-type]
        seconds=float(job.parameters["seconds"]),
        progress=progress,
    )
    signal.alarm(0)
    if place.exists():
        replace_folder(draft, place)
    else:
        draft.rename(place)


def _watch_memory(folder: Folder, job: Job) -> None:
    """End the process when it has used more memory than it may. A limit of the system makes libraries fail oddly."""
    unit = 1 if sys.platform == "darwin" else 1024
    while True:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
        if used > float(job.parameters["memory_gb"]):
            limit = job.parameters["memory_gb"]
            error = f"out of memory: it may use {limit} GB; allow more (memory_gb), or use fewer rows"
            folder.write_job(replace(job, state=RemoteJobState.FAILED, pid=None, error=error))
            os._exit(1)
        time.sleep(0.1)


def _reason(job: Job, error: BaseException) -> str:
    if isinstance(error, _OutOfTime):
        return f"not finished within {job.parameters['max_seconds']} s; allow more (max_seconds), or use fewer rows"
    if isinstance(error, MemoryError):
        return "out of memory: this machine has no more; use fewer rows"
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted"
    return f"{type(error).__name__}: {error}"


def _out_of_time(number: int, frame: FrameType | None) -> None:
    raise _OutOfTime


if __name__ == "__main__":
    sys.exit(main())
