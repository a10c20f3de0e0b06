"""Prepare a Prefect server: the work pool, every deployment of `prefect.yaml`, and clean-up after the last worker.

Run as a program of its own (`python -m cli.deployments`), so that `reasoning serve` need not import Prefect.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from datetime import UTC, datetime
from typing import Any

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import Crashed

from cli.serve import WORK_POOL
from tasks.entrypoints import PROJECT


def job_template() -> dict[str, Any]:
    """What the pool's worker runs: a fixed command without variables.

    Prefect's own template takes `command`, `env` and `working_dir` from whoever starts a run.
    """
    template: dict[str, Any] = json.loads((PROJECT / "prefect-work-pool.json").read_text())
    return template


async def make_work_pool(client: PrefectClient) -> None:
    """Make the pool, or bring the one of an earlier version to the template of today."""
    template = job_template()
    try:
        await client.create_work_pool(WorkPoolCreate(name=WORK_POOL, type="process", base_job_template=template))
    except ObjectAlreadyExists:
        await client.update_work_pool(WORK_POOL, WorkPoolUpdate(base_job_template=template))


async def settle_leftovers(client: PrefectClient, now: datetime) -> tuple[int, int]:
    """Before a worker starts: what the last one left RUNNING crashed with it, and ticks that nobody was there to run
    are dropped. A worker would run every one of them, after a night off some hundred at once; the next tick makes up
    for them all. Runs that a person asked for stay. Returns how many (crashed, dropped)."""
    crashed = await _runs(client, StateType.RUNNING, StateType.PENDING, StateType.CANCELLING)
    for run in crashed:
        state: State[None] = Crashed(
            message="The worker stopped before the run finished. Run it again: it resumes where it stopped."
        )
        await client.set_flow_run_state(run.id, state, force=True)
    dropped = [
        run
        for run in await _runs(client, StateType.SCHEDULED)
        if run.auto_scheduled and run.expected_start_time and run.expected_start_time < now
    ]
    for run in dropped:
        await client.delete_flow_run(run.id)
    return len(crashed), len(dropped)


async def _runs(client: PrefectClient, *states: StateType) -> list[FlowRun]:
    wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states))))
    pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[WORK_POOL]))
    runs: list[FlowRun] = []
    while page := await client.read_flow_runs(
        flow_run_filter=wanted, work_pool_filter=pool, limit=200, offset=len(runs)
    ):
        runs += page
    return runs


async def prepare() -> None:
    """Make the work pool, and settle what the last worker left."""
    async with get_client() as client:
        await make_work_pool(client)
        crashed, dropped = await settle_leftovers(client, datetime.now(UTC))
    print(f"left by the last worker: {crashed} runs crashed, {dropped} missed ticks dropped", flush=True)


def main() -> int:
    """Prepare the server and deploy every flow; returns the exit code."""
    os.umask(0o077)
    asyncio.run(prepare())
    # In this process, which has imported Prefect already. `deploy` looks for `prefect.yaml` in the current folder.
    from prefect.cli import app

    os.chdir(PROJECT)
    sys.argv = ["prefect", "--no-prompt", "deploy", "--all"]
    try:
        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
