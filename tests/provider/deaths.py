"""Commands in processes of their own, which SIGKILL or SIGINT ends at a chosen request to the provider.

All are forked from one that has the imports done.
"""

from __future__ import annotations

import fnmatch
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from provider.lifecycle.deployments import deploy_model
from provider.lifecycle.fine_tunes import cancel_fine_tune, follow_fine_tune, submit_fine_tune
from provider.lifecycle.guard import guard_costs
from provider.lifecycle.reconcile import reconcile_provider
from provider.lifecycle.shutdown import undeploy_model
from provider.lifecycle.uploads import upload_dataset
from provider.pace import Pace
from provider.together.adapter import TogetherProvider
from provider.together.client import connect
from storage.ledger.ledger import open_ledger
from tests.forkserver import CONTEXT
from tests.provider.world import Emulator


@dataclass(frozen=True)
class Death:
    """At which request the process ends: the `nth` that matches "METHOD /path"; `answered`: the provider did it."""

    match: str = "* *"
    nth: int = 1
    answered: bool = False
    signal: int = signal.SIGKILL

    def __str__(self) -> str:
        return f"{self.match} {self.nth} {'done' if self.answered else 'not sent'}"


def upload(client: Any, ledger: Any, argument: str, **options: Any) -> None:
    upload_dataset(client, ledger, argument, pace=Pace(**options))


def fine_tune(client: Any, ledger: Any, dataset_id: str, **options: Any) -> None:
    job = submit_fine_tune(client, ledger, dataset_id, tier="small", pace=Pace(**options))
    follow_fine_tune(client, ledger, job.id, pace=Pace(poll_seconds=1, **options))


def cancel(client: Any, ledger: Any, job_id: str, *, now: Callable[[], Any], **_: Any) -> None:
    cancel_fine_tune(client, ledger, job_id, now=now())


def deploy(client: Any, ledger: Any, model_id: str, **options: Any) -> None:
    deploy_model(client, ledger, model_id, pace=Pace(poll_seconds=1, **options))


def undeploy(client: Any, ledger: Any, deployment_id: str, **options: Any) -> None:
    undeploy_model(client, ledger, deployment_id, drain_seconds=0, pace=Pace(poll_seconds=1, **options))


def guard(client: Any, ledger: Any, data: str, *, now: Callable[[], Any], **_: Any) -> None:
    guard_costs(data, client, ledger=ledger, now=now())


def reconcile(client: Any, ledger: Any, data: str, *, now: Callable[[], Any], **_: Any) -> None:
    reconcile_provider(data, client, ledger=ledger, now=now())


Command = Callable[..., None]


def run(command: Command, emulator: Emulator, data: Path | str, argument: str, death: Death | None = None) -> int:
    """Run it in a process of its own; returns its exit code, minus the signal that ended it."""
    process = CONTEXT.Process(target=_run, args=(command, emulator.url, str(data), argument, death), daemon=True)
    process.start()
    process.join()
    emulator.forget_time()  # the process moved it while it waited
    assert process.exitcode is not None
    return process.exitcode


def _run(command: Command, url: str, data: str, argument: str, death: Death | None) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    emulator = Emulator(url)
    with open_ledger(data) as ledger, connect(base_url=url) as client:
        if death is not None:
            client._client.event_hooks = {"response" if death.answered else "request": [_executioner(death)]}
        command(TogetherProvider(client), ledger, argument, now=emulator.now, wait=emulator.advance)


def _executioner(death: Death) -> Callable[[Any], None]:
    left = death.nth

    def hook(event: httpx.Request | httpx.Response) -> None:
        nonlocal left
        request = event if isinstance(event, httpx.Request) else event.request
        if fnmatch.fnmatchcase(f"{request.method} {request.url.path}", death.match):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), death.signal)

    return hook
