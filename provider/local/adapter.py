"""The adapter of the port: models are trained in a process here and served by one server here. It costs nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx

from provider.endpoint.asking import ask_arm
from provider.errors import NotServable, ProviderRefused, ProviderUnavailable, RemoteNotFound
from provider.local.capabilities import CAPABILITIES
from provider.local.folder import Folder, Job, LocalDeployment, LocalEndpoint, check_name, is_held, server_url
from provider.local.jobs import cancel, follow, submit
from provider.local.process import start_detached
from provider.port import (
    CONCURRENCY,
    BaseModel,
    BeforeCreate,
    CompletionResult,
    FileState,
    Messages,
    Provider,
    RemoteDeployment,
    RemoteEndpoint,
    RemoteFile,
    RemoteJob,
    RemoteJobState,
    RemoteState,
    Sampling,
    ServingOption,
    ServingRequest,
    TrainingRequest,
)
from provider.rows import CheckedFile
from reasoning.config import Config
from reasoning.serving.routes import Arm
from storage.files import make_folder, write_atomic
from storage.ledger.rows import LOCAL
from storage.progress import OnProgress

TIERS = ("small", "medium", "large")
LEARNERS = ("auto", "linear", "encoder", "stacked")
CONFIG, HARDWARE = "process", "this machine"
_FREE = Decimal(0)
_SECONDS_TO_START = 30.0


class LocalProvider(Provider):
    """The models of one data folder."""

    name = LOCAL
    capabilities = CAPABILITIES
    poll_seconds = 0.3
    training_parameters: Mapping[str, Any] = {"seconds": 600, "max_seconds": 3_600, "memory_gb": 8}
    """`auto` begins no other learner after `seconds`; the process is ended after `max_seconds`, or at `memory_gb`."""

    def __init__(self, data: Path) -> None:
        """`data` is the data folder."""
        self.folder = Folder(data / "local")

    def close(self) -> None:
        """Nothing is open."""
        return

    # Prices and models

    def hourly_prices(self) -> Mapping[str, Decimal]:
        """Nothing."""
        return {HARDWARE: _FREE}

    def base_model(self, tier: str, *, lora: bool = True) -> BaseModel:
        """A learner: `local/NAME`; for each tier `local/auto`, which compares all that are installed."""
        name = "auto" if tier in TIERS else tier.removeprefix("local/")
        if name not in LEARNERS or (tier not in TIERS and not tier.startswith("local/")):
            known = ", ".join([*TIERS, *(f"local/{each}" for each in LEARNERS)])
            raise NotServable(f"this machine trains no {tier!r}; known: {known}")
        full = f"local/{name}"
        return BaseModel(id=full, name=full, config=CONFIG, hardware=HARDWARE, hourly_usd=_FREE)

    def serving_options(self, model_object_id: str, base_model: str) -> list[ServingOption]:
        """One: in the server here."""
        if not self.folder.model(model_object_id).exists():
            raise NotServable(f"there is no model {model_object_id!r}")
        return [ServingOption(CONFIG, HARDWARE, _FREE)]

    # Training

    def upload(self, name: str, file: CheckedFile) -> str:
        """A copy of the file; its id is the hash of its content."""
        place = self.folder.file(file.sha256)
        make_folder(place.parent)
        write_atomic(place, file.path.read_bytes())
        return file.sha256

    def file(self, file_id: str) -> RemoteFile:
        """Raises RemoteNotFound."""
        place = self.folder.file(file_id)
        if not place.exists():
            raise RemoteNotFound(f"there is no file {file_id!r}")
        return RemoteFile(file_id, FileState.READY, bytes=place.stat().st_size)

    def training_price(self, request: TrainingRequest) -> Decimal:
        """Nothing."""
        return _FREE

    def train(self, request: TrainingRequest, *, before_create: BeforeCreate) -> RemoteJob:
        """Start a training."""
        check_name(request.name)
        return _job(submit(self.folder, request, before_create=before_create))

    def jobs(self) -> list[RemoteJob]:
        """All trainings of this folder."""
        return [self.job(name) for name in self.folder.job_names()]

    def find_job(self, name: str) -> RemoteJob | None:
        """The training of that name."""
        job = self.folder.read_job(name)
        return None if job is None else _job(job)

    def job(self, job_id: str) -> RemoteJob:
        """How a training is; one whose process died is started again."""
        return _job(follow(self.folder, job_id))

    def job_progress(self, job_id: str) -> tuple[float, str | None]:
        """How far it is."""
        job = follow(self.folder, job_id)
        return job.progress, job.said or None

    def cancel_job(self, job_id: str) -> None:
        """End it."""
        cancel(self.folder, job_id)

    # Serving

    def endpoints(self) -> list[RemoteEndpoint]:
        """All endpoints of this folder."""
        return [_endpoint(each) for each in self.folder.read_endpoints().values()]

    def find_endpoint(self, name: str) -> RemoteEndpoint | None:
        """The endpoint of that name."""
        found = self.folder.read_endpoints().get(name)
        return None if found is None else _endpoint(found)

    def create_endpoint(self, name: str) -> RemoteEndpoint:
        """The endpoint, created where it is not there."""
        with self.folder.locked():
            endpoints = self.folder.read_endpoints()
            if name not in endpoints:
                endpoints[name] = LocalEndpoint(check_name(name), time.time())
                self.folder.write_endpoints(endpoints)
            return _endpoint(endpoints[name])

    def delete_endpoint(self, endpoint_id: str) -> None:
        """Delete an endpoint that has no replica."""
        with self.folder.locked():
            endpoints = self.folder.read_endpoints()
            found = _get(endpoints, endpoint_id)
            if any(each.replicas for each in found.deployments):
                raise ProviderRefused(f"{endpoint_id} has a deployment that runs; stop it first")
            del endpoints[endpoint_id]
            self.folder.write_endpoints(endpoints)

    def deployments(self, endpoint_id: str) -> list[RemoteDeployment]:
        """All that is under an endpoint."""
        return [self._state(each) for each in _get(self.folder.read_endpoints(), endpoint_id).deployments]

    def find_deployment(self, endpoint_id: str, name: str) -> RemoteDeployment | None:
        """The deployment of that name."""
        found = _get(self.folder.read_endpoints(), endpoint_id).find(name)
        return None if found is None else self._state(found)

    def deployment(self, endpoint_id: str, deployment_id: str) -> RemoteDeployment:
        """How it is: ready when the server has loaded its model."""
        return self._state(_get_deployment(_get(self.folder.read_endpoints(), endpoint_id), deployment_id))

    def create_deployment(self, request: ServingRequest, *, before_create: BeforeCreate) -> RemoteDeployment:
        """The deployment, created where it is not there."""
        if not self.folder.model(request.model_object_id).exists():
            raise ProviderRefused(f"there is no model {request.model_object_id!r}")
        with self.folder.locked():
            endpoints = self.folder.read_endpoints()
            endpoint = _get(endpoints, request.endpoint_id)
            found = endpoint.find(request.name)
            if found is None:
                before_create()
                found = LocalDeployment(
                    id=f"{endpoint.name}.{check_name(request.name)}",
                    name=request.name,
                    model=request.model_object_id,
                    replicas=min(request.replicas, 1),
                    created_at=time.time(),
                )
                endpoint.deployments.append(found)
                self.folder.write_endpoints(endpoints)
        return self._state(found)

    def scale(self, endpoint_id: str, deployment_id: str, replicas: int) -> RemoteDeployment:
        """Start it, or stop it."""
        with self._changing(endpoint_id) as endpoint:
            found = _get_deployment(endpoint, deployment_id)
            found.replicas = min(replicas, 1)
        return self._state(found)

    def delete_deployment(self, endpoint_id: str, deployment: RemoteDeployment) -> None:
        """Delete a deployment that is stopped."""
        with self._changing(endpoint_id) as endpoint:
            found = _get_deployment(endpoint, deployment.id or "")
            if found.replicas:
                raise ProviderRefused(f"{found.id} runs; stop it first")
            endpoint.deployments.remove(found)

    def give_traffic(self, endpoint_id: str, deployment_id: str) -> None:
        """Have one deployment answer."""
        with self._changing(endpoint_id) as endpoint:
            endpoint.traffic = _get_deployment(endpoint, deployment_id).id

    def withdraw_traffic(self, endpoint_id: str) -> None:
        """Have nothing answer."""
        with self._changing(endpoint_id) as endpoint:
            endpoint.traffic = None

    def wrong_model(self, deployment: RemoteDeployment, model_object_id: str) -> str | None:
        """Why it serves another model, or None."""
        if deployment.model_id == model_object_id:
            return None
        return f"it serves {deployment.model_id}"

    # The server

    def url(self) -> str:
        """Base URL of the server, without `/v1`; it is started where it does not run. Raises ProviderUnavailable."""
        until = time.monotonic() + _SECONDS_TO_START
        while time.monotonic() < until:
            if not is_held(self.folder.server_lock):
                start_detached("provider.local.server", [str(self.folder.path)], self.folder.path / "server.log")
            with suppress(OSError, ValueError, httpx.HTTPError):
                url = server_url(self.folder.path)
                if url and _ask_health(url).json().get("folder") == str(self.folder.path):
                    return url
            time.sleep(0.05)
        raise ProviderUnavailable(
            f"the server of local models does not answer: see {self.folder.path / 'server.log'}, and start again"
        )

    def ask(
        self,
        model: str,
        conversations: Iterable[Messages],
        sampling: Sampling,
        *,
        concurrency: int = CONCURRENCY,
        progress: OnProgress | None = None,
    ) -> list[CompletionResult]:
        """As `Provider.ask`."""
        arm = Arm(name="custom", source="custom", model=model, base_url=self.url(), logprobs="flag")
        config = Config(data=self.folder.path.parent)
        # More at once would wait for each other in the server, and be measured so.
        return ask_arm(config, arm, conversations, sampling, concurrency=min(concurrency, 2), progress=progress)

    def _state(self, row: LocalDeployment) -> RemoteDeployment:
        return _told(row, *self._loaded(row)) if row.replicas else _told(row)

    def _loaded(self, row: LocalDeployment) -> tuple[RemoteState, str]:
        try:
            answer = _ask_health(self.url(), model=row.model)
        except (httpx.HTTPError, ProviderUnavailable) as error:
            return RemoteState.STARTING, str(error)
        if answer.status_code != 200:
            return RemoteState.FAILED, _message(answer)
        return RemoteState.READY, ""

    @contextmanager
    def _changing(self, endpoint_id: str) -> Iterator[LocalEndpoint]:
        """An endpoint that is written back at the end of the block."""
        with self.folder.locked():
            endpoints = self.folder.read_endpoints()
            yield _get(endpoints, endpoint_id)
            self.folder.write_endpoints(endpoints)


def _get(endpoints: Mapping[str, LocalEndpoint], endpoint_id: str) -> LocalEndpoint:
    if endpoint_id not in endpoints:
        raise RemoteNotFound(f"there is no endpoint {endpoint_id!r}")
    return endpoints[endpoint_id]


def _get_deployment(endpoint: LocalEndpoint, deployment_id: str) -> LocalDeployment:
    found = endpoint.find(deployment_id)
    if found is None:
        raise RemoteNotFound(f"{endpoint.name} has no deployment {deployment_id!r}")
    return found


def _endpoint(row: LocalEndpoint) -> RemoteEndpoint:
    deployments = [_told(each) for each in row.deployments]
    return RemoteEndpoint(
        id=row.name,
        name=row.name,
        served_name=row.name,
        created_at=datetime.fromtimestamp(row.created_at, UTC),
        deployments=tuple(deployments),
    )


def _told(row: LocalDeployment, state: RemoteState | None = None, message: str = "") -> RemoteDeployment:
    """A deployment; without a `state` as a list tells it, which does not ask the server."""
    state = state or (RemoteState.STARTING if row.replicas else RemoteState.STOPPED)
    return RemoteDeployment(
        id=row.id,
        name=row.name,
        state=state,
        said=state.value,
        message=message,
        running=row.replicas,
        max_replicas=row.replicas,
        hardware=HARDWARE,
        model=row.model,
        model_id=row.model,
        created_at=datetime.fromtimestamp(row.created_at, UTC),
    )


def _job(job: Job) -> RemoteJob:
    return RemoteJob(
        id=job.name,
        state=job.state,
        said=job.state.value,
        name=job.name,
        output_name=job.name,
        base_model=job.base_model,
        created_at=datetime.fromtimestamp(job.created_at, UTC),
        price_usd=_FREE,
        model_object_id=job.name if job.state is RemoteJobState.COMPLETED else None,
        error=job.error,
    )


def _ask_health(url: str, **parameters: str) -> httpx.Response:
    """The server's state. A proxy of the environment is for other hosts than this one."""
    return httpx.get(f"{url}/health", params=parameters, timeout=30, trust_env=False)


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:300]
