"""Fine-tune jobs in the background: a queue in the database, a process per running job, honest states and events."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import shutil
import sqlite3
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any

from starlette.requests import Request

from emulator.api.files import data_path
from emulator.billing.bill import charge_training, training_kind
from emulator.world.clock import format_time
from emulator.world.context import Emulator
from emulator.world.state import new_id

OPEN_STATES = ("pending", "queued", "running", "uploading", "cancel_requested")
_STDERR_KEPT = 2000


class Scheduler:
    """Runs at most `settings.workers` trainings at a time, oldest first."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self._running: dict[str, asyncio.Task[None]] = {}
        self._processes: dict[str, Process] = {}
        self._stopping = False

    def resume(self) -> None:
        """Queue again what a stop or crash interrupted: its training starts over, and its events say so."""
        state, now = self.emulator.state, self.emulator.clock.timestamp()
        for leftover in state.jobs.iterdir():
            shutil.rmtree(leftover, ignore_errors=True)
        for job in state.rows("SELECT * FROM fine_tunes WHERE status IN ('running', 'uploading', 'cancel_requested')"):
            with state.transaction():
                if job["status"] == "cancel_requested":
                    self._finish_cancelled(job)
                    continue
                state.update(
                    "fine_tunes",
                    job["id"],
                    status="queued",
                    updated_at=now,
                    progress=0,
                    epochs_completed=0,
                    steps_completed=0,
                )
                state.execute("DELETE FROM fine_tune_metrics WHERE fine_tune_id = ?", job["id"])
                self.add_event(
                    job["id"], "job_restarted", "Emulator restarted; the training begins anew", level="warning"
                )
        self.dispatch()

    def dispatch(self) -> None:
        """Start waiting jobs while there are workers."""
        if self._stopping:
            return
        waiting = self.emulator.state.rows(
            "SELECT * FROM fine_tunes WHERE status IN ('pending', 'queued') ORDER BY created_at, rowid"
        )
        for job in waiting:
            if len(self._running) < self.emulator.settings.workers:
                self._begin(job)
                task = asyncio.get_running_loop().create_task(self._run(job["id"]))
                self._running[job["id"]] = task
                task.add_done_callback(functools.partial(self._forget, job["id"]))
            elif job["status"] == "pending":
                with self.emulator.state.transaction():
                    self._set_status(job["id"], "queued")

    def cancel(self, job: sqlite3.Row) -> None:
        """Cancel at once what has not started; ask a running process to end otherwise."""
        with self.emulator.state.transaction():
            self._set_status(job["id"], "cancel_requested")
            self.add_event(job["id"], "cancel_requested", "Cancellation requested")
        process = self._processes.get(job["id"])
        if job["id"] not in self._running:
            with self.emulator.state.transaction():
                self._finish_cancelled(job)
        elif process is not None:
            _kill(process)

    async def close(self) -> None:
        """End the processes; their jobs are begun anew at the next start."""
        self._stopping = True
        tasks = list(self._running.values())
        for process in self._processes.values():
            _kill(process)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def add_event(self, job_id: str, type: str, message: str, *, level: str = "info", **extra: Any) -> None:
        """Append to the job's events. The caller holds the transaction."""
        now = self.emulator.clock.timestamp()
        body = {"object": "fine-tune-event", "type": type, "message": message, "level": level} | extra
        self.emulator.state.insert(
            "fine_tune_events",
            fine_tune_id=job_id,
            created_at=now,
            body=json.dumps(body | {"created_at": format_time(now)}),
        )

    def _forget(self, job_id: str, task: asyncio.Task[None]) -> None:
        del self._running[job_id]
        if not task.cancelled() and (error := task.exception()) is not None and not self._stopping:
            with self.emulator.state.transaction():
                self._finish_failed(job_id, f"{type(error).__name__}: {error}")
        self.dispatch()

    def _begin(self, job: sqlite3.Row) -> None:
        now = self.emulator.clock.timestamp()
        with self.emulator.state.transaction():
            self.emulator.state.update(
                "fine_tunes", job["id"], status="running", started_at=now, updated_at=now, attempt=job["attempt"] + 1
            )
            self.add_event(job["id"], "job_start", "Job started")

    async def _run(self, job_id: str) -> None:
        job = self._job(job_id)
        # A name for each attempt: the worker of a killed emulator may still be writing the former one.
        output = self.emulator.state.jobs / f"{job_id}.{job['attempt']}"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "emulator.world.worker",
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            cwd=Path(__file__).parents[2],
            limit=1 << 20,
            # A worker that took every core would slow down the answers of the models being served.
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        self._processes[job_id] = process
        if self._job(job_id)["status"] == "cancel_requested":
            _kill(process)
        try:
            await self._follow(job, process, output)
        finally:
            del self._processes[job_id]
            _kill(process)
            await process.wait()
            shutil.rmtree(output, ignore_errors=True)

    async def _follow(self, job: sqlite3.Row, process: Process, output: Path) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        stderr = asyncio.create_task(process.stderr.read())
        self._announce_data(job)
        with contextlib.suppress(ConnectionError):  # the process may have been killed already
            process.stdin.write(json.dumps(self._order(job, output)).encode() + b"\n")
            await process.stdin.drain()
        failure = "the training process ended without a word"
        user_error = False
        async for line in process.stdout:
            message = json.loads(line)
            if "progress" in message:
                self._note_progress(job, float(message["progress"]), message["metrics"])
            elif "error" in message:
                failure, user_error = message["error"], message["user_error"]
            else:
                failure = ""
        code = await process.wait()
        tail = (await stderr)[-_STDERR_KEPT:].decode(errors="replace").strip()
        if self._job(job["id"])["status"] == "cancel_requested":
            with self.emulator.state.transaction():
                self._finish_cancelled(self._job(job["id"]))
        elif failure:
            reason = f"{failure} (exit code {code})" if code < 0 else failure
            with self.emulator.state.transaction():
                self._finish_failed(job["id"], reason, user_error=user_error, details=tail)
        else:
            await self._finish_completed(job, output)

    def _order(self, job: sqlite3.Row, output: Path) -> dict[str, Any]:
        request = json.loads(job["request"])
        validation = request.get("validation_file")
        return {
            "trainer": self.emulator.settings.trainer,
            "train": str(data_path(self.emulator, request["training_file"])),
            "validation": str(data_path(self.emulator, validation)) if validation else None,
            "output": str(output),
            "n_epochs": request["n_epochs"],
            "fault": json.loads(job["fault"]) if job["fault"] else None,
        }

    def _announce_data(self, job: sqlite3.Row) -> None:
        request = json.loads(job["request"])
        with self.emulator.state.transaction():
            self.add_event(job["id"], "training_data_downloading", "Training data downloading")
            self.add_event(job["id"], "training_data_download_complete", "Training data download complete")
            if request.get("validation_file"):
                self.add_event(job["id"], "validation_data_downloading", "Validation data downloading")
                self.add_event(job["id"], "validation_data_download_complete", "Validation data download complete")
            self.add_event(job["id"], "training_start", "Training started", total_steps=job["total_steps"])

    def _note_progress(self, job: sqlite3.Row, fraction: float, metrics: dict[str, float]) -> None:
        n_epochs = json.loads(job["request"])["n_epochs"]
        fraction = min(1.0, max(0.0, fraction))
        step, epochs = round(fraction * job["total_steps"]), int(fraction * n_epochs + 1e-9)
        now = self.emulator.clock.timestamp()
        done = self._job(job["id"])["epochs_completed"]
        with self.emulator.state.transaction():
            self.emulator.state.update(
                "fine_tunes",
                job["id"],
                progress=fraction,
                steps_completed=step,
                epochs_completed=epochs,
                updated_at=now,
            )
            if metrics:
                self.emulator.state.insert(
                    "fine_tune_metrics",
                    fine_tune_id=job["id"],
                    step=step,
                    logged_at=now,
                    body=json.dumps({_metric_name(k): v for k, v in metrics.items()}),
                )
            for epoch in range(done + 1, epochs + 1):
                self.add_event(job["id"], "epoch_complete", f"Epoch {epoch} of {n_epochs} completed", step=step)

    async def _finish_completed(self, job: sqlite3.Row, output: Path) -> None:
        state = self.emulator.state
        with state.transaction():
            self._set_status(job["id"], "uploading", progress=1.0, steps_completed=job["total_steps"])
            self.add_event(job["id"], "checkpoint_save", "Checkpoint saved", step=job["total_steps"])
            self.add_event(job["id"], "training_complete", "Training completed", step=job["total_steps"])
            self.add_event(job["id"], "model_uploading", "Model uploading")
        target = state.models / job["id"]
        await asyncio.get_running_loop().run_in_executor(self.emulator.disk, _publish, output, target)
        now = self.emulator.clock.timestamp()
        with state.transaction():
            model_id, adapter_id = self._add_models(job, now)
            state.insert(
                "checkpoints",
                fine_tune_id=job["id"],
                step=job["total_steps"],
                created_at=now,
                checkpoint_type="Final",
                path=f"emulator://models/{job['id']}",
            )
            price = charge_training(self.emulator, job, share=1.0)
            self._set_status(
                job["id"], "completed", price=price, output_model_id=model_id, output_adapter_id=adapter_id
            )
            self.add_event(job["id"], "model_upload_complete", "Model upload complete", model_path=job["output_name"])
            self.add_event(job["id"], "job_complete", "Job finished")

    def _add_models(self, job: sqlite3.Row, now: float) -> tuple[str, str | None]:
        """The merged model and, of a LoRA training, the adapter: two names for the same learned thing."""
        model_id, adapter_id = new_id("ml_"), None
        columns = {"base_model": job["model"], "fine_tune_id": job["id"], "directory": job["id"], "created_at": now}
        self.emulator.state.insert(
            "models",
            id=model_id,
            revision_id=new_id("mr_"),
            name=job["output_name"],
            weights_type="WEIGHTS_TYPE_DEFAULT",
            **columns,
        )
        if training_kind(json.loads(job["request"])["training_type"]) == "lora":
            adapter_id = new_id("ml_")
            self.emulator.state.insert(
                "models",
                id=adapter_id,
                revision_id=new_id("mr_"),
                name=f"{job['output_name']}-adapter",
                weights_type="WEIGHTS_TYPE_ADAPTER",
                **columns,
            )
        return model_id, adapter_id

    def _finish_cancelled(self, job: sqlite3.Row) -> None:
        price = charge_training(self.emulator, job, share=job["progress"]) if job["started_at"] else 0
        self._set_status(job["id"], "cancelled", price=price)
        self.add_event(job["id"], "job_stopped", "Job cancelled")

    def _finish_failed(self, job_id: str, reason: str, *, user_error: bool = False, details: str = "") -> None:
        self._set_status(job_id, "user_error" if user_error else "error", price=0)
        message = f"{reason}\n{details}" if details and not user_error else reason
        self.add_event(job_id, "job_error", message, level="error")

    def _set_status(self, job_id: str, status: str, **columns: Any) -> None:
        self.emulator.state.update(
            "fine_tunes", job_id, status=status, updated_at=self.emulator.clock.timestamp(), **columns
        )

    def _job(self, job_id: str) -> sqlite3.Row:
        row = self.emulator.state.row("SELECT * FROM fine_tunes WHERE id = ?", job_id)
        assert row is not None, "a job with a task is not deleted"
        return row


def scheduler_of(request: Request) -> Scheduler:
    """The scheduler of the emulator that a request came to."""
    scheduler = request.app.state.scheduler
    assert isinstance(scheduler, Scheduler)
    return scheduler


def _metric_name(name: str) -> str:
    """The service's way of writing: `eval/loss` for `eval_loss`; what is not of the evaluation is of the training."""
    if name.startswith("eval_"):
        return f"eval/{name.removeprefix('eval_')}"
    return f"train/{name.removeprefix('train_')}"


def _kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()


def _publish(output: Path, target: Path) -> None:
    """Move a finished model to its place, durably; what a crash left there goes first."""
    shutil.rmtree(target, ignore_errors=True)
    for path in output.rglob("*"):
        if path.is_file():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
    output.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
