"""`reasoning serve` for real: Prefect's server, every deployment, a worker, the local provider and the gateway.

One test, as starting it all is what takes the time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import storage
from cli.serve import served
from tasks.entrypoints import entrypoints
from tests.tasks.rooms import write_log

COMMAND = [
    sys.executable,
    "-m",
    "cli.main",
    "serve",
    "--prefect-port",
    "0",
    "--gateway-port",
    "0",
    "--emulator-port",
    "0",
]


@pytest.mark.timeout(400)
def test_serve_runs_every_flow_and_leaves_no_process_behind(tmp_path: Path):
    data = tmp_path / "data"
    decisions = write_log(data, episodes=10, turns=3)
    with _serving(data) as process:
        urls = served(data)
        assert urls["pid"] == process.pid
        api = f"{urls['prefect']}/api"

        deployments = {each["name"]: each for each in _post(f"{api}/deployments/filter", {})}
        assert {name: each["entrypoint"] for name, each in deployments.items()} == entrypoints()
        assert {(each["path"], str(each["pull_steps"]), each["paused"]) for each in deployments.values()} == {
            (None, "[]", False)
        }
        assert {name for name, each in deployments.items() if each["schedules"]} >= {"land_decisions", "guard_costs"}

        for each in deployments.values():  # what else is due meanwhile would only make this slower
            if each["name"] != "land_decisions":
                _post(f"{api}/deployments/{each['id']}/pause_deployment", {})
        landing = _run_as_scheduled(api, deployments["land_decisions"]["id"])
        assert landing["state"]["type"] == "COMPLETED", landing["state"]
        assert landing["parameters"]["if_busy"] == "skip"
        _post(f"{api}/deployments/{deployments['land_decisions']['id']}/pause_deployment", {})
        assert storage.sql(data, "SELECT count(*) FROM decisions").rows == [(decisions,)]

        # The turn of the wheel as flow runs is in tests/demo/test_demo.py.
        guard = _run(api, deployments["guard_costs"]["id"], {"idle_minutes": 15})
        assert guard["state"]["type"] == "COMPLETED", guard["state"]
        artifacts = {each["key"]: each["data"] for each in _post(f"{api}/artifacts/filter", {}) if each["key"]}
        assert {"landing", "guard", "budgets"} <= set(artifacts)
        assert {budget["period"] for budget in json.loads(artifacts["budgets"])} == {"hour", "day", "month"}

        assert _get(f"{urls['gateway']}/healthz")["status"] == "ok"
        second = subprocess.run([*COMMAND, "--data", str(data)], capture_output=True, text=True, check=False)
        assert (second.returncode, second.stderr.count("\n")) == (1, 1)
        assert "is served already" in second.stderr

        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert served(data) == {}
    assert _processes_of(data) == []


def test_a_port_in_use_is_named_with_the_mend_before_anything_starts(tmp_path: Path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        command = [*COMMAND, "--data", str(tmp_path / "data"), "--gateway-port", str(port)]
        failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"error: port {port} of 127.0.0.1, which the gateway needs, cannot be had")
    assert "--gateway-port PORT" in failed.stderr
    assert _processes_of(tmp_path / "data") == []


@contextmanager
def _serving(data: Path) -> Iterator[subprocess.Popen[str]]:
    env = os.environ | {
        "PREFECT_WORKER_QUERY_SECONDS": "2",  # less waiting
    }
    command = [*COMMAND, "--data", str(data)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            assert any("Ctrl-C" in line for line in process.stdout), process.stderr.read()
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)


def _run_as_scheduled(api: str, deployment: str) -> dict[str, Any]:
    """Let the next run of the deployment's own schedule be due now instead of within the minute; wait for its end."""
    wanted = {
        "flow_runs": {"deployment_id": {"any_": [deployment]}, "state": {"type": {"any_": ["SCHEDULED"]}}},
        "sort": "EXPECTED_START_TIME_ASC",
    }
    run = _wait(lambda: next(iter(_post(f"{api}/flow_runs/filter", wanted)), None))
    assert run["auto_scheduled"]
    due = {"type": "SCHEDULED", "state_details": {"scheduled_time": datetime.now(UTC).isoformat()}}
    _post(f"{api}/flow_runs/{run['id']}/set_state", {"state": due, "force": True})
    return _ended(api, run["id"])


def _run(api: str, deployment: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return _ended(api, _post(f"{api}/deployments/{deployment}/create_flow_run", {"parameters": parameters})["id"])


def _ended(api: str, run: str) -> dict[str, Any]:
    def ended() -> Any:
        found = _get(f"{api}/flow_runs/{run}")
        return found if found["state"]["type"] not in ("SCHEDULED", "PENDING", "RUNNING") else None

    return _wait(ended)


def _wait(found: Callable[[], Any]) -> Any:
    for _ in range(900):
        if (value := found()) is not None:
            return value
        time.sleep(0.2)
    raise AssertionError("it did not end")


def _get(url: str) -> Any:
    return _request(url, None, "GET")


def _post(url: str, body: Any) -> Any:
    return _request(url, body, "POST")


def _request(url: str, body: Any, method: str) -> Any:
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"}, method=method)

    def answer() -> Any:
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return (json.loads(response.read() or b"null"),)
        except urllib.error.HTTPError as error:
            if error.code == 503:  # its SQLite was locked, nothing was done: Prefect's clients ask again too
                return None
            raise

    return _wait(answer)[0]


def _processes_of(data: Path) -> list[str]:
    """Command lines of the processes that have the data folder in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"REASONING_DATA={data}\0".encode() in process.joinpath("environ").read_bytes() + b"\0":
                found.append(process.joinpath("cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found
