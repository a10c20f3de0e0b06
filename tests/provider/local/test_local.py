"""The local provider: real processes that train and serve, killed and started again."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from provider.errors import NotServable, ProviderRefused, RemoteNotFound
from provider.local.adapter import LocalProvider
from provider.local.folder import Folder, is_held
from provider.local.server import _bind
from provider.money.metering import meter_minutes
from provider.port import RemoteJob, RemoteJobState, RemoteState, ServingRequest, TrainingRequest
from provider.rows import check_rows
from storage.ledger.ledger import open_ledger
from storage.ledger.rows import Deployment

WORDS = ["river", "stone", "cloud", "paper", "green", "quiet", "seven", "table", "winter", "music"]


def write_rows(path: Path, count: int, seed: int = 1) -> Path:
    """RESPOND is right when Nova is named."""
    draw = random.Random(seed)
    lines = []
    for _ in range(count):
        named = draw.random() < 0.5
        text = ("Nova, " if named else "") + " ".join(draw.sample(WORDS, 4))
        answer = f"<response><action>{'RESPOND' if named else 'IGNORE'}</action></response>"
        messages = [{"role": "user", "content": f"Ann: {text}"}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}) + "\n")
    path.write_text("".join(lines))
    return path


def request(provider: LocalProvider, folder: Path, name: str, **parameters: float) -> TrainingRequest:
    file_id = provider.upload("rows", check_rows(write_rows(folder / "rows.jsonl", 200)))
    return TrainingRequest(
        base_model="local/linear",
        train_file_id=file_id,
        validation_file_id=None,
        parameters={**provider.training_parameters, **parameters},
        name=name,
    )


def wait(provider: LocalProvider, name: str, until: Callable[[RemoteJob], bool]) -> RemoteJob:
    for _ in range(600):
        job = provider.job(name)
        if until(job):
            return job
        time.sleep(0.05)
    raise AssertionError(f"it stayed {job}")


def pid_of(provider: LocalProvider, name: str) -> int:
    for _ in range(400):
        job = provider.folder.read_job(name)
        if job and job.pid:
            return job.pid
        time.sleep(0.01)
    raise AssertionError("no process trains")


def stop_server(folder: Folder) -> None:
    if is_held(folder.server_lock):
        os.kill(json.loads(folder.server.read_text())["pid"], signal.SIGKILL)


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[LocalProvider]:
    provider = LocalProvider(tmp_path / "data")
    yield provider
    stop_server(provider.folder)


def test_a_model_is_trained_served_restarted_and_stopped(provider: LocalProvider, tmp_path: Path) -> None:
    created: list[str] = []
    order = request(provider, tmp_path, "rsn-a-1")
    provider.train(order, before_create=lambda: created.append("job"))
    assert provider.train(order, before_create=lambda: None).name == "rsn-a-1"  # once for its name
    job = wait(provider, "rsn-a-1", lambda job: job.has_ended)
    assert (job.state, job.error, job.model_object_id) == (RemoteJobState.COMPLETED, None, "rsn-a-1")
    provider.create_endpoint("rsn-a-e")
    serving = ServingRequest(endpoint_id="rsn-a-e", name="d1", model_object_id="rsn-a-1", config="process", replicas=1)
    deployment = provider.create_deployment(serving, before_create=lambda: created.append("deployment"))
    assert (deployment.state, created) == (RemoteState.READY, ["job", "deployment"])
    provider.give_traffic("rsn-a-e", deployment.id or "")

    url = provider.url()
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        question = [{"role": "user", "content": "Ann: Nova, river stone cloud paper"}]
        answer = client.chat.completions.create(model="rsn-a-e", messages=question, logprobs=True)  # type: ignore[call-overload]
        assert "<action>RESPOND</action>" in answer.choices[0].message.content
        assert 0.5 < np.exp(sum(each.logprob for each in answer.choices[0].logprobs.content)) <= 1
        streamed = client.chat.completions.create(model="rsn-a-e", messages=question, stream=True)  # type: ignore[call-overload]
        pieces = [chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices]
        assert "".join(pieces) == answer.choices[0].message.content

        os.kill(json.loads(provider.folder.server.read_text())["pid"], signal.SIGKILL)
        assert provider.deployment("rsn-a-e", deployment.id or "").state is RemoteState.READY
        assert provider.url() == url  # routes keep their address
        assert client.chat.completions.create(model="rsn-a-e", messages=question).choices  # type: ignore[call-overload]

        provider.scale("rsn-a-e", deployment.id or "", 0)
        with pytest.raises(openai.NotFoundError, match=r"no deployment answers for 'rsn-a-e'"):
            client.chat.completions.create(model="rsn-a-e", messages=question)  # type: ignore[call-overload]
    stopped = provider.deployment("rsn-a-e", deployment.id or "")
    assert (stopped.state, stopped.running) == (RemoteState.STOPPED, 0)
    provider.delete_deployment("rsn-a-e", stopped)
    provider.delete_endpoint("rsn-a-e")
    assert provider.endpoints() == []


def test_a_training_that_was_killed_is_started_again(provider: LocalProvider, tmp_path: Path) -> None:
    provider.train(request(provider, tmp_path, "rsn-a-2"), before_create=lambda: None)
    os.kill(pid_of(provider, "rsn-a-2"), signal.SIGKILL)
    job = wait(provider, "rsn-a-2", lambda job: job.has_ended)
    assert (job.state, job.error) == (RemoteJobState.COMPLETED, None)
    again = provider.folder.read_job("rsn-a-2")
    assert again is not None
    assert again.attempts == 2


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ({"memory_gb": 0.1}, r"out of memory: it may use 0.1 GB"),
        ({"max_seconds": 1, "seconds": 1}, r"not finished within 1 s"),
    ],
)
def test_a_training_that_takes_too_much_ends_with_the_reason_and_leaves_no_model(
    provider: LocalProvider, tmp_path: Path, limit: dict[str, float], reason: str
) -> None:
    write_rows(tmp_path / "many.jsonl", 20_000)
    file_id = provider.upload("rows", check_rows(tmp_path / "many.jsonl"))
    order = request(provider, tmp_path, "rsn-a-3", **limit)
    order = TrainingRequest(
        base_model=order.base_model,
        train_file_id=file_id,
        validation_file_id=None,
        parameters=order.parameters,
        name=order.name,
    )
    provider.train(order, before_create=lambda: None)
    job = wait(provider, "rsn-a-3", lambda job: job.has_ended)
    assert job.state is RemoteJobState.FAILED
    assert job.error is not None
    assert re.search(reason, job.error), job.error
    assert not provider.folder.model("rsn-a-3").exists()


def test_a_cancelled_training_ends_and_stays_ended(provider: LocalProvider, tmp_path: Path) -> None:
    provider.train(request(provider, tmp_path, "rsn-a-4"), before_create=lambda: None)
    provider.cancel_job("rsn-a-4")
    assert provider.job("rsn-a-4").state is RemoteJobState.CANCELLED
    with pytest.raises(ProviderRefused, match=r"has ended: cancelled"):
        provider.cancel_job("rsn-a-4")
    assert not provider.folder.model("rsn-a-4").exists()


def test_a_damaged_model_is_not_served(provider: LocalProvider) -> None:
    provider.folder.model("bad").mkdir(parents=True)
    (provider.folder.model("bad") / "model.json").write_text("{}")
    provider.create_endpoint("e")
    order = ServingRequest(endpoint_id="e", name="d", model_object_id="bad", config="process", replicas=1)
    found = provider.create_deployment(order, before_create=lambda: None)
    assert (found.state, "no usable model" in found.message) == (RemoteState.FAILED, True)
    headers = {"origin": "https://evil.example"}
    assert httpx.get(f"{provider.url()}/v1/models", headers=headers).status_code == 403
    assert httpx.get(f"{provider.url()}/v1/models", headers={"host": "evil.example"}).status_code == 403


def test_what_is_not_there_is_refused_with_its_name(provider: LocalProvider) -> None:
    with pytest.raises(RemoteNotFound, match=r"no job 'x'"):
        provider.job("x")
    with pytest.raises(ProviderRefused, match=r"not a name: '\.\./x'"):
        provider.job("../x")
    with pytest.raises(RemoteNotFound, match=r"no endpoint 'x'"):
        provider.deployments("x")
    with pytest.raises(NotServable, match=r"this machine trains no 'local/oracle'; known: small"):
        provider.base_model("local/oracle")
    assert provider.base_model("small").id == "local/auto"


def test_what_costs_nothing_is_seen_all_the_same(tmp_path: Path) -> None:
    seen = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    with open_ledger(tmp_path) as ledger:
        row = ledger.add(
            Deployment,
            state="ready",
            provider="local",
            name="d",
            model_object_id="m",
            config="process",
            hardware="this machine",
            hourly_usd=Decimal(0),
            max_replicas=1,
            replicas=1,
            now=seen - timedelta(days=3),
        )
        assert meter_minutes(ledger, row.id, 1, now=seen) == 0
        assert ledger.get(Deployment, row.id).metered_until == seen  # a look that is old makes its state unknown


def test_the_servers_socket_names_its_protocol(tmp_path: Path) -> None:
    """Otherwise asyncio leaves Nagle's algorithm on, and every answer waits 40 ms for a delayed ACK."""
    with _bind(Folder(tmp_path)) as bound:
        assert bound.proto == socket.IPPROTO_TCP
