"""A real emulator process for each test module, and a client for it that checks every answer."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.emulator.conformance import serve, write_dataset

BASE_MODEL = "Qwen/Qwen3.5-9B"
CONFIG = "projects/proj_together/configs/cr_qwen35_9b_h100"
START = "2026-03-01T12:00:00Z"


@dataclass
class Server:
    """A running emulator and a plain HTTP client for it."""

    process: subprocess.Popen[str]
    url: str
    http: httpx.Client

    def get(self, path: str, **params: Any) -> Any:
        return self.http.get(path, params=params).raise_for_status().json()

    def post(self, path: str, body: Any = None) -> Any:
        return self.http.post(path, json=body).raise_for_status().json()

    def patch(self, path: str, body: Any) -> Any:
        return self.http.patch(path, json=body).raise_for_status().json()

    def advance(self, seconds: float) -> None:
        self.post("/emulator/clock", {"advance_seconds": seconds})

    def fault(self, kind: str, **options: Any) -> None:
        self.post("/emulator/faults", {"kind": kind} | options)

    def upload(self, path: Path) -> str:
        """Upload a dataset as the SDK does; returns the file's id when it has been checked."""
        form = {"purpose": "fine-tune", "file_name": path.name, "file_type": "jsonl"}
        announced = self.http.post("/v1/files", files={name: (None, value) for name, value in form.items()})
        assert announced.status_code == 302, announced.text
        httpx.put(announced.headers["location"], content=path.read_bytes()).raise_for_status()
        id = str(announced.headers["x-together-file-id"])
        self.post(f"/v1/files/{id}/preprocess")
        self.wait(lambda: self.get(f"/v1/files/{id}")["processing_status"] in ("COMPLETED", "INVALID_FORMAT"))
        return id

    def train(self, file_id: str, **options: Any) -> dict[str, Any]:
        """Begin a fine-tune."""
        body = {"model": BASE_MODEL, "training_file": file_id, "n_epochs": 1} | options
        return dict(self.post("/v1/fine-tunes", body))

    def finish(self, job_id: str) -> dict[str, Any]:
        """The job when it has ended, however it did."""
        ended = ("completed", "error", "user_error", "cancelled")
        self.wait(lambda: self.get(f"/v1/fine-tunes/{job_id}")["status"] in ended)
        return dict(self.get(f"/v1/fine-tunes/{job_id}"))

    def deploy(self, name: str, *, model: str | None = None, replicas: int = 1, weight: float = 1) -> tuple[str, str]:
        """An endpoint with one deployment in its traffic split; their ids."""
        model = model or "projects/proj_together/models/ml_qwen35_9b"
        endpoint = self.post("/v2/projects/proj_local/endpoints", {"name": name})["id"]
        order = {"name": "one", "model": model, "config": CONFIG, "autoscaling": {"minReplicas": replicas}}
        deployment = self.post(f"/v2/projects/proj_local/endpoints/{endpoint}/deployments", order)["id"]
        split = {"trafficSplit": [{"deploymentId": deployment, "weight": weight}]}
        self.patch(f"/v2/projects/proj_local/endpoints/{endpoint}", split)
        return endpoint, deployment

    def scale(self, endpoint: str, deployment: str, replicas: int) -> dict[str, Any]:
        body = {"autoscaling": {"minReplicas": replicas, "maxReplicas": replicas}}
        return dict(self.patch(f"/v2/projects/proj_local/endpoints/{endpoint}/deployments/{deployment}", body))

    def state(self, endpoint: str, deployment: str) -> str:
        found = self.get(f"/v2/projects/proj_local/endpoints/{endpoint}/deployments/{deployment}")
        return str(found["status"]["state"]).removeprefix("DEPLOYMENT_STATE_")

    def chat(self, model: str, **options: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "Ann: hello"}]} | options
        return self.http.post("/v1/chat/completions", json=body)

    @staticmethod
    def wait(condition: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.02)


def start(data: Path, *options: str) -> Iterator[Server]:
    with (
        serve(data, *options) as (process, url),
        httpx.Client(
            base_url=url,
            headers={"Authorization": "Bearer key"},
            timeout=20,
            # Surplus idle connections are never closed: httpcore 1.0 may close one that a thread was just given
            # (encode/httpcore#1110), and this client serves more threads than httpx keeps connections by default.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        ) as http,
    ):
        yield Server(process, url, http)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An emulator with the quick trainer, shared by a module's tests."""
    yield from start(tmp_path_factory.mktemp("emulator"), "--trainer", "majority", "--cold-start", "0")


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Server]:
    """An emulator of its own whose clock stands at `START`; a replica is ready 60 s after it was asked for."""
    for server in start(tmp_path / "data", "--trainer", "majority", "--cold-start", "60"):
        server.post("/emulator/clock", {"now": START, "frozen": True})
        yield server


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "dataset.jsonl")


def write_lines(path: Path, *samples: Any) -> Path:
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return path
