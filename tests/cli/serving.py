"""`reasoning serve` for real, and Prefect's API as its flows are run by."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from cli.serve import basic_authorization, prefect_password, served

COMMAND = [
    sys.executable,
    "-P",  # it is started in a folder with modules of the same names; its children must do without this
    "-m",
    "cli.main",
    "serve",
    "--provider",
    "emulator",
    "--prefect-port",
    "0",
    "--gateway-port",
    "0",
    "--emulator-port",
    "0",
]

_LOGINS: dict[str, str] = {}
"""`Authorization` by the address of a Prefect server that is up."""


def copy_prefect_database(config: pytest.Config, home: Path) -> None:
    """Put a migrated database of Prefect into `home`, which saves its server some ten seconds.

    It is made once, by Prefect's own command, and kept in pytest's cache by Prefect's version. Workers of pytest wait
    for the one that makes it.
    """
    home.mkdir(mode=0o700, parents=True)
    cache: pytest.Cache | None = getattr(config, "cache", None)
    if cache is None:  # run with `-p no:cacheprovider`
        return
    kept = cache.mkdir("prefect") / f"{version('prefect')}.db"
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            made = kept.with_suffix(f".{os.getpid()}")
            made.mkdir()
            command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
            subprocess.run(command, env=os.environ | {"PREFECT_HOME": str(made)}, check=True, capture_output=True)
            (made / "prefect.db").replace(kept)
            shutil.rmtree(made)
    shutil.copyfile(kept, home / "prefect.db")
    (home / "prefect.db").chmod(0o600)


@contextmanager
def serving(
    data: Path, *options: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    env = os.environ | (env or {}) | {"PREFECT_WORKER_QUERY_SECONDS": "2"}  # less waiting
    command = [*COMMAND, "--data", str(data), *options]
    with subprocess.Popen(
        command, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            assert any("Ctrl-C" in line for line in process.stdout), process.stderr.read()
            _LOGINS[urlsplit(served(data)["prefect"]).netloc] = basic_authorization(prefect_password(data))
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)


def run_as_scheduled(api: str, deployment: str) -> dict[str, Any]:
    """Let the next run of the deployment's own schedule be due now instead of within the minute; wait for its end."""
    wanted = {
        "flow_runs": {"deployment_id": {"any_": [deployment]}, "state": {"type": {"any_": ["SCHEDULED"]}}},
        "sort": "EXPECTED_START_TIME_ASC",
    }
    run = _wait(lambda: next(iter(post(f"{api}/flow_runs/filter", wanted)), None))
    assert run["auto_scheduled"]
    due = {"type": "SCHEDULED", "state_details": {"scheduled_time": datetime.now(UTC).isoformat()}}
    post(f"{api}/flow_runs/{run['id']}/set_state", {"state": due, "force": True})
    return _ended(api, run["id"])


def run(api: str, deployment: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return _ended(api, post(f"{api}/deployments/{deployment}/create_flow_run", {"parameters": parameters})["id"])


def _ended(api: str, run: str) -> dict[str, Any]:
    def ended() -> Any:
        found = get(f"{api}/flow_runs/{run}")
        return found if found["state"]["type"] not in ("SCHEDULED", "PENDING", "RUNNING") else None

    return dict(_wait(ended))


def _wait(found: Callable[[], Any]) -> Any:
    for _ in range(900):
        if (value := found()) is not None:
            return value
        time.sleep(0.2)
    raise AssertionError("it did not end")


def get(url: str) -> Any:
    return _request(url, None, "GET")


def post(url: str, body: Any) -> Any:
    return _request(url, body, "POST")


def patch(url: str, body: Any) -> Any:
    return _request(url, body, "PATCH")


def _request(url: str, body: Any, method: str) -> Any:
    content = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    if login := _LOGINS.get(urlsplit(url).netloc):
        headers["Authorization"] = login
    request = urllib.request.Request(url, content, headers, method=method)

    def answer() -> Any:
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return (json.loads(response.read() or b"null"),)
        except urllib.error.HTTPError as error:
            if error.code == 503:  # its SQLite was locked, nothing was done: Prefect's clients ask again too
                return None
            raise

    return _wait(answer)[0]


def processes_of(data: Path) -> list[str]:
    """Command lines of the processes that have the data folder in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"REASONING_DATA={data}\0".encode() in process.joinpath("environ").read_bytes() + b"\0":
                found.append(process.joinpath("cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found
