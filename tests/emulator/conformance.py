"""Does the real client understand the emulator? `python -m tests.emulator.conformance` asks it and prints the calls.

It starts an emulator of its own and drives it with the unmodified `together` SDK (strict response validation, sync and
async) and with the unmodified `together` command, over HTTP. Any answer that the client does not take stops it.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emulator.errors import EmulatorError

_KEY = "local"
_BASE_MODEL = "Qwen/Qwen3.5-9B"
_PATIENCE_SECONDS = 60.0


class ConformanceError(EmulatorError):
    """The client did not take an answer, or the answer was not what it should be."""


@dataclass
class Transcript:
    """The calls that passed, by who made them."""

    calls: list[tuple[str, str]] = field(default_factory=list)

    def note(self, client: str, call: str) -> None:
        self.calls.append((client, call))

    def count(self, client: str) -> Counter[str]:
        return Counter(call for caller, call in self.calls if caller == client)

    def render(self) -> str:
        """A line for each kind of call, with how often each client made it, and a total."""
        clients = list(dict.fromkeys(client for client, _ in self.calls))
        names = list(dict.fromkeys(call for _, call in self.calls))
        width = max(map(len, names), default=0)
        lines = [" " * width + "".join(f"{client:>8}" for client in clients)]
        for name in names:
            counts = (self.count(client)[name] for client in clients)
            lines.append(f"{name:<{width}}" + "".join(f"{count or '·':>8}" for count in counts))
        totals = ", ".join(f"{self.count(client).total()} {client}" for client in clients)
        return "\n".join([*lines, f"{len(self.calls)} calls made, all passed ({totals})"])


class _Caller:
    """Calls a sync or an async client by one way, and writes down what passed."""

    def __init__(self, client: Any, name: str, transcript: Transcript) -> None:
        self.client = client
        self._name = name
        self._transcript = transcript

    async def __call__(self, call: str, *arguments: Any, **options: Any) -> Any:
        target = self.client
        for part in call.split("."):
            target = getattr(target, part)
        result = target(*arguments, **options)
        if inspect.isawaitable(result):
            result = await result
        self._transcript.note(self._name, call)
        return result

    async def read(self, content: Any) -> bytes:
        data: bytes = await found if inspect.isawaitable(found := content.read()) else found
        return data

    async def collect(self, items: Any) -> list[Any]:
        """Every item of a stream, or of a list over all its pages."""
        if isinstance(items, AsyncIterator) or hasattr(items, "__aiter__"):
            return [item async for item in items]
        return list(items)


async def check_sdk(base_url: str, transcript: Transcript, dataset: Path, *, use_async: bool) -> None:
    """Call every route of the emulator through the SDK. Raises `ConformanceError` or the SDK's own error."""
    from together import AsyncTogether, Together

    make = AsyncTogether if use_async else Together
    name = "async" if use_async else "sync"
    client = make(api_key=_KEY, base_url=base_url, max_retries=0, _strict_response_validation=True)
    call = _Caller(client, name, transcript)
    identity = await call("whoami")
    client.project_id = identity.project.id
    _expect(await call.collect(await call("projects.list")), "the key's project is listed")

    file_id = await _check_files(call, dataset)
    job = await _check_fine_tunes(call, file_id, f"conformance-{name}")
    model = await _check_catalog(call, job.api_model_object_id)
    endpoint, deployment = await _check_endpoints(call, f"conformance-{name}", model)
    await _check_chat(call, endpoint, deployment)
    await _check_adapters(call, endpoint, job.adapter_object_id)
    await _check_billing(call)
    await _check_removal(call, endpoint, deployment, job, file_id)
    closed = client.close()
    if inspect.isawaitable(closed):
        await closed


async def _check_files(call: _Caller, dataset: Path) -> str:
    uploaded = await call("files.upload", file=dataset, purpose="fine-tune", check=True)
    file = await _poll(call, "files.retrieve", uploaded.id, until=lambda file: file.processing_status == "COMPLETED")
    _expect(file.validation_report.valid, "the dataset is valid")
    again = await call("files.upload", file=dataset, purpose="fine-tune", check=False)
    _expect(again.id == uploaded.id, "the same bytes are the same file")
    _expect(any(entry.id == file.id for entry in (await call("files.list")).data), "the file is listed")
    content = await call.read(await call("files.content", file.id))
    _expect(content == dataset.read_bytes(), "the content comes back byte for byte")
    return str(file.id)


async def _check_fine_tunes(call: _Caller, file_id: str, suffix: str) -> Any:
    await call("fine_tuning.model_limits", model_name=_BASE_MODEL)
    estimate = await call("fine_tuning.estimate_price", training_file=file_id, model=_BASE_MODEL, n_epochs=1)
    _expect(estimate.estimated_total_price >= 4, "the estimate keeps the minimum")
    options = {"training_file": file_id, "validation_file": file_id, "n_evals": 1, "model": _BASE_MODEL, "lora": True}
    job = await call("fine_tuning.create", **options, n_epochs=2, suffix=suffix)
    done = await _poll(call, "fine_tuning.retrieve", job.id, until=lambda job: job.status == "completed")
    # The sync client reads this one answer with a class of its own.
    promised = job.output_name if hasattr(job, "output_name") else job.x_model_output_name
    _expect(done.x_model_output_name == promised, "the output has the name that was promised")
    types = [event.type for event in (await call("fine_tuning.list_events", job.id)).data]
    _expect(types[0] == "job_pending" and types[-1] == "job_complete", "the events tell the job from end to end")
    _expect((await call("fine_tuning.list_checkpoints", job.id)).data, "there is a checkpoint")
    _expect((await call("fine_tuning.list_metrics", job.id)).metrics, "there are metrics")
    _expect(any(entry.id == job.id for entry in (await call("fine_tuning.list")).data), "the job is listed")
    archive = await call.read(await call("fine_tuning.content", ft_id=job.id, checkpoint="merged"))
    _expect(archive[:2] == b"\x1f\x8b", "the model comes as a gzipped tar")
    second = await call("fine_tuning.create", training_file=file_id, model=_BASE_MODEL, suffix=f"{suffix}-cancelled")
    try:
        await call("fine_tuning.cancel", second.id)
    except Exception as error:
        # A job of this size may be through before it can be cancelled, and the service says so.
        if getattr(error, "status_code", None) != 400:
            raise
    ended = ("cancelled", "completed")
    await _poll(call, "fine_tuning.retrieve", second.id, until=lambda job: job.status in ended)
    await call("fine_tuning.delete", second.id)
    return done


async def _check_catalog(call: _Caller, model_id: str) -> dict[str, str]:
    supported = await call.collect(await call("models.list_supported", product="PRODUCT_FINE_TUNING", limit=1))
    _expect(len(supported) > 1, "paging leads through all supported models")
    profile = next(model for model in supported if model.name == _BASE_MODEL).deployment_profiles[0]
    await call("models.retrieve_supported", next(model.id for model in supported if model.name == _BASE_MODEL))
    model = await call("models.retrieve", model_id)
    _expect(any(entry.id == model_id for entry in await call.collect(await call("models.list"))), "the model is listed")
    await call("models.list_revisions", model_id)
    _expect((await call("models.list_files", model_id)).data, "the model has files")
    await call.collect(await call("models.list_org_scoped", organization_id=model.organization_id))
    configs = await call.collect(await call("models.configs.list", reference_model_id=model.base_model_id))
    await call("models.configs.retrieve", configs[0].id)
    kinds = (await call("endpoints.hardware.list")).data
    kind = await call("endpoints.hardware.retrieve", kinds[0].id)
    _expect(kind.price_cents_per_hour > 0, "hardware has a price")
    return {"model": f"projects/{model.project_id}/models/{model.id}", "config": profile.config, "base": profile.model}


async def _check_endpoints(call: _Caller, name: str, model: dict[str, str]) -> tuple[Any, Any]:
    endpoint = await call("endpoints.create", name=name)
    _expect(await call.collect(await call("endpoints.list", filter=f'name="{name}"')), "the filter finds the endpoint")
    await call.collect(await call("endpoints.list_org_scoped", organization_id="org_local"))
    await call.collect(await call("endpoints.placement_profiles.list"))
    order = {
        "autoscaling": {"min_replicas": 1, "max_replicas": 1},
        "model": model["model"],
        "config": model["config"],
        "inactive_timeout": 30,
    }
    await call("endpoints.deployments.create", endpoint.id, name="custom", validate_only=True, **order)
    _expect(
        not await call.collect(await call("endpoints.deployments.list", endpoint.id)), "validateOnly creates nothing"
    )
    created = await call("endpoints.deployments.create", endpoint.id, name="custom", **order)
    base = await call("endpoints.deployments.create", endpoint.id, name="base", **order | {"model": model["base"]})
    for id in (created.id, base.id):
        await _poll(call, "endpoints.deployments.retrieve", id, endpoint_id=endpoint.id, until=_is_ready)
    deployments = await call.collect(await call("endpoints.deployments.list", endpoint.id, limit=1))
    _expect(len(deployments) == 2, "paging leads through all deployments")
    split = [{"deployment_id": created.id, "weight": 1}]
    changed = await call("endpoints.update", endpoint.id, traffic_split=split, etag=endpoint.etag)
    _expect(changed.traffic_split[0].weight == 1, "the traffic split is kept")
    await _expect_status(call, 409, "endpoints.update", endpoint.id, traffic_split=[], etag=endpoint.etag)
    for kind in ("ab_experiments", "shadow_experiments", "rollouts"):
        _expect(not await call.collect(await call(f"endpoints.{kind}.list", endpoint.id)), f"there are no {kind}")
    await call.collect(await call("endpoints.list_events", endpoint.id))
    await call("endpoints.analytics", endpoint.id)
    return changed, created


async def _check_chat(call: _Caller, endpoint: Any, deployment: Any) -> None:
    question = {"messages": [{"role": "user", "content": "Ann: hello"}], "max_tokens": 50, "temperature": 0}
    answer = await call("chat.completions.create", model=endpoint.name, logprobs=1, **question)
    choice = answer.choices[0]
    _expect("".join(choice.logprobs.tokens) == choice.message.content, "the tokens are the text")
    _expect(answer.usage.completion_tokens == len(choice.logprobs.token_logprobs), "the usage counts the tokens")
    chunks = await call.collect(
        await call("chat.completions.create", model=deployment.name, stream=True, logprobs=1, **question)
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    _expect(text == choice.message.content, "the stream is the same answer")
    _expect(chunks[-1].usage.completion_tokens == answer.usage.completion_tokens, "the stream ends with the usage")
    untuned = await call("chat.completions.create", model=_BASE_MODEL, **question)
    _expect("untuned" in untuned.choices[0].message.content, "a base model owns up to knowing nothing")
    await _expect_status(call, 404, "chat.completions.create", model="nobody/nothing", **question)


async def _check_adapters(call: _Caller, endpoint: Any, adapter_model_id: str) -> None:
    deployments = await call.collect(await call("endpoints.deployments.list", endpoint.id, filter='name="base"'))
    where = {"endpoint_id": endpoint.id, "deployment_id": deployments[0].id}
    adapter = await call("endpoints.adapters.create", **where, adapter_model_id=adapter_model_id)
    await call("endpoints.adapters.retrieve", adapter.id, **where)
    _expect(len(await call.collect(await call("endpoints.adapters.list", **where))) == 1, "the adapter is listed")
    revision = adapter.desired_revision_id
    changed = await call(
        "endpoints.adapters.update", adapter.id, **where, adapter_revision_id=revision, etag=adapter.etag
    )
    await call("endpoints.adapters.delete", adapter.id, **where, etag=changed.etag)


async def _check_billing(call: _Caller) -> None:
    for granularity in ("day", "hour"):
        windows = await call.collect(await call("organization.usage.costs.list", granularity=granularity, limit=1))
        _expect(any(window.line_items for window in windows), "the training is on the bill")


async def _check_removal(call: _Caller, endpoint: Any, deployment: Any, job: Any, file_id: str) -> None:
    where = {"endpoint_id": endpoint.id}
    await _expect_status(call, 400, "endpoints.deployments.delete", deployment.id, **where)
    await call("endpoints.update", endpoint.id, traffic_split=[], update_mask="trafficSplit")
    for entry in await call.collect(await call("endpoints.deployments.list", endpoint.id)):
        stop = {"min_replicas": 0, "max_replicas": 0}
        await call("endpoints.deployments.update", entry.id, **where, autoscaling=stop, update_mask="autoscaling")
        await _poll(call, "endpoints.deployments.retrieve", entry.id, **where, until=_is_stopped)
        await call("endpoints.deployments.delete", entry.id, **where)
    await call("endpoints.delete", endpoint.id)
    await call("models.delete", job.api_model_object_id)
    await call("models.delete", job.adapter_object_id)
    await call("fine_tuning.delete", job.id)
    await call("files.delete", file_id)
    await _expect_status(call, 404, "endpoints.retrieve", endpoint.id)


def check_cli(base_url: str, transcript: Transcript, dataset: Path, scratch: Path) -> None:
    """Drive the `together` command through one whole flow; what does not depend on each other runs side by side."""
    cli = _Cli(base_url, transcript, scratch)
    with ThreadPoolExecutor(2) as pool:
        check = pool.submit(cli.run, "files", "check", str(dataset))
        file = cli.run("files", "upload", str(dataset), "--purpose", "fine-tune")
        _expect(check.result()["is_check_passed"], "the dataset passes the check")
        _poll_path(base_url, f"/v1/files/{file['id']}", "processing_status", "COMPLETED")
        cli.run(
            *("fine-tuning", "create", "--training-file", file["id"], "--model", _BASE_MODEL),
            *("--suffix", "conformance-cli", "--lora", "-y"),
            json_output=False,
        )
        job = _get(base_url, "/v1/fine-tunes")["data"][0]
        _poll_path(base_url, f"/v1/fine-tunes/{job['id']}", "status", "completed")
        archive = scratch / "model.tar.gz"
        model_id = _get(base_url, f"/v1/fine-tunes/{job['id']}")["model_object_id"]
        model = f"projects/{_get(base_url, '/v3/whoami')['project']['id']}/models/{model_id}"
        waiting = [
            pool.submit(cli.run, "fine-tuning", "list", json_output=False),
            pool.submit(cli.run, "fine-tuning", "retrieve", job["id"]),
            pool.submit(cli.run, "fine-tuning", "list-events", job["id"]),
            pool.submit(cli.run, "fine-tuning", "download", job["id"], "--output-dir", str(archive)),
            pool.submit(
                cli.run, "endpoints", "deploy", model, "--endpoint", "conformance-cli", "--traffic-weight", "1"
            ),
        ]
        table, retrieved, events, _, deployed = (future.result() for future in waiting)
        _expect(job["id"] in table, "the job is in the table")
        _expect(retrieved["status"] == "completed", "the command sees the job completed")
        _expect(any(event["type"] == "job_complete" for event in events), "the command has the events")
        _expect(archive.stat().st_size > 0, "the command downloads the model")
        endpoint, deployment = deployed["endpoint"]["id"], deployed["deployment"]["id"]
        listing = pool.submit(cli.run, "endpoints", "ls", json_output=False)
        stop = ("--min-replicas", "0", "--max-replicas", "0", "--traffic-weight", "0")
        cli.run("endpoints", "update", deployment, *stop)
        _expect("conformance-cli" in listing.result(), "the endpoint is in the table")
        cli.run("endpoints", "rm", deployment)
        cli.run("endpoints", "rm", endpoint)


class _Cli:
    def __init__(self, base_url: str, transcript: Transcript, scratch: Path) -> None:
        self._transcript = transcript
        home = scratch / "home"
        home.mkdir(exist_ok=True)
        self._environment = os.environ | {
            "CI": "1",
            "TOGETHER_TELEMETRY_DISABLED": "1",
            "TOGETHER_DISABLE_VERSION_CHECK": "1",
            "TOGETHER_API_KEY": _KEY,
            "TOGETHER_BASE_URL": base_url,
            "TOGETHER_PROJECT_ID": _get(base_url, "/v3/whoami")["project"]["id"],
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home),
            "XDG_CACHE_HOME": str(home),
            "COLUMNS": "200",
        }

    def run(self, *arguments: str, json_output: bool = True) -> Any:
        """Run one command; its JSON, or its text."""
        program = Path(sys.executable).parent / "together"
        form = "--json" if json_output else "--no-json"
        done = subprocess.run(
            [program, *arguments, form],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
        call = f"together {arguments[0]} {arguments[1]}"
        if done.returncode != 0:
            raise ConformanceError(f"{call} ended with {done.returncode}: {done.stdout}{done.stderr}")
        self._transcript.note("cli", call)
        return json.loads(done.stdout) if json_output else done.stdout


async def _poll(call: _Caller, name: str, *arguments: Any, until: Any, **options: Any) -> Any:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        result = await call(name, *arguments, **options)
        if until(result):
            return result
        if time.monotonic() > deadline or getattr(result, "status", None) in ("error", "user_error"):
            raise ConformanceError(f"{name} does not come to what is waited for: {result}")
        await asyncio.sleep(0.05)


def _poll_path(base_url: str, path: str, key: str, value: str) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (seen := _get(base_url, path)[key]) != value:
        if time.monotonic() > deadline or seen in ("error", "user_error", "INVALID_FORMAT"):
            raise ConformanceError(f"GET {path}: {key} is {seen}, not {value}")
        time.sleep(0.05)


def _get(base_url: str, path: str) -> Any:
    import httpx

    return httpx.get(base_url + path, headers={"Authorization": f"Bearer {_KEY}"}).raise_for_status().json()


async def _expect_status(call: _Caller, status: int, name: str, *arguments: Any, **options: Any) -> None:
    try:
        await call(name, *arguments, **options)
    except Exception as error:
        if getattr(error, "status_code", None) != status:
            raise
    else:
        raise ConformanceError(f"{name} was taken; it should be refused with {status}")


def _expect(holds: Any, what: str) -> None:
    if not holds:
        raise ConformanceError(f"not so: {what}")


def _is_ready(deployment: Any) -> bool:
    return bool(deployment.status.state == "DEPLOYMENT_STATE_READY")


def _is_stopped(deployment: Any) -> bool:
    return bool(deployment.status.state == "DEPLOYMENT_STATE_STOPPED")


def write_dataset(path: Path, *, rows: int = 40) -> Path:
    """A small conversational dataset with two answers."""
    answers = ("<response><action>RESPOND</action></response>", "<response><action>IGNORE</action></response>")
    with path.open("w", encoding="utf-8") as handle:
        for number in range(rows):
            addressed = number % 4 == 0
            question = f"Ann: {'Bo, are you there?' if addressed else 'hello everyone'} ({path.stem} {number})"
            messages = [
                {"role": "system", "content": "You are Bo. Answer with RESPOND or IGNORE."},
                {"role": "user", "content": question},
                {"role": "assistant", "content": answers[0] if addressed else answers[1]},
            ]
            handle.write(json.dumps({"messages": messages}) + "\n")
    return path


@contextmanager
def serve(data: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """An emulator in a process of its own on a free port: (process, address)."""
    command = [sys.executable, "-m", "emulator", "--data", str(data), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            raise ConformanceError(f"the emulator did not start: {' '.join(command)}")
        yield process, address
    finally:
        process.terminate()
        process.wait(timeout=10)
        if process.stdout is not None:
            process.stdout.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.emulator.conformance", description=__doc__.splitlines()[0])
    parser.add_argument("--trainer", default="sklearn", help="which trainer the emulator uses (%(default)s)")
    parser.add_argument("--no-cli", action="store_true", help="leave out the `together` command")
    options = parser.parse_args()
    transcript = Transcript()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        with serve(scratch / "data", "--trainer", options.trainer) as (_, address):
            for use_async in (False, True):
                dataset = write_dataset(scratch / f"dataset-{use_async}.jsonl")
                asyncio.run(check_sdk(address, transcript, dataset, use_async=use_async))
            if not options.no_cli:
                check_cli(address, transcript, write_dataset(scratch / "dataset-cli.jsonl"), scratch)
    print(transcript.render())
    return 0


if __name__ == "__main__":
    sys.exit(main())
