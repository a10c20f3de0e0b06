"""A running `reasoning serve` in a folder of modules with our names, attacked by a web page and by a neighbour.

One server for the whole file: the tests build on each other's order only in that the last one ends it.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect as open_websocket

import storage
from cli.serve import PASSWORD, environment, served
from provider.together.client import connect
from storage.ledger.ledger import open_ledger
from storage.log.land import land_decisions
from tasks.entrypoints import entrypoints
from tests.cli.serving import (
    COMMAND,
    copy_prefect_database,
    get,
    patch,
    post,
    processes_of,
    run,
    run_as_scheduled,
    serving,
)
from tests.provider.world import run_emulator
from tests.storage.logs import make_decision, write_segment

pytestmark = pytest.mark.timeout(300)
EVIL = "https://evil.example"


class Victim(NamedTuple):
    data: Path
    folder: Path
    prefect: str
    provider: str
    process: subprocess.Popen[str]
    env: dict[str, str]


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Victim]:
    """`serve --provider together` (an emulator of its own stands for it) in a folder with modules like ours."""
    root = tmp_path_factory.mktemp("served")
    folder, data = root / "folder", root / "data"
    for name in ("tasks", "storage", "flows", "quality", "provider", "gateway", "cli", "prefect"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise SystemExit('the module {name} of the current folder')")
    (folder / "reasoning.py").write_text("raise SystemExit('the module reasoning of the current folder')")
    # Settings of another Prefect, which looks for them where it is started, and ours, which hold in every run.
    (folder / ".env").write_text("PREFECT_SERVER_API_BASE_PATH=/elsewhere\nPREFECT_API_KEY=pnu_of_the_user\n")
    (folder / "reasoning.toml").write_text("[retention]\ndecisions = 3\n")
    write_segment(data, [make_decision(datetime.now(UTC))])
    copy_prefect_database(pytestconfig, data / "prefect")
    with run_emulator(root / "emulator") as url:
        env = {
            "REASONING_PROVIDER": "together",
            "TOGETHER_BASE_URL": url,
            "TOGETHER_API_KEY": "the-key-of-the-user",
            # Of the user's own Prefect: they once made `serve` die with 401.
            "PREFECT_SERVER_API_AUTH_STRING": "mine:mine",
            "PREFECT_API_AUTH_STRING": "other:other",
        }
        with serving(data, "--provider", "together", cwd=folder, env=env) as process:
            victim = Victim(data, folder, served(data)["prefect"], url, process, os.environ | env)
            _pause(victim, but=("expire_decisions",))
            yield victim


def _ask(victim: Victim, path: str, body: Any = None, method: str = "POST", **headers: str) -> int:
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{victim.prefect}{path}", content, {"Content-Type": "application/json"} | headers, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def _login(victim: Victim) -> dict[str, str]:
    from cli.serve import basic_authorization

    return {"Authorization": basic_authorization((victim.data / PASSWORD).read_text().strip())}


def _pause(victim: Victim, but: tuple[str, ...] = ()) -> dict[str, str]:
    """Pause the schedules: a run that is due meanwhile takes seconds of CPU. The ids of all deployments by name."""
    deployments = post(f"{victim.prefect}/api/deployments/filter", {})
    for each in deployments:
        if each["name"] not in but and not each["paused"]:
            post(f"{victim.prefect}/api/deployments/{each['id']}/pause_deployment", {})
    return {each["name"]: each["id"] for each in deployments}


def _land(victim: Victim) -> str:
    deployments = post(f"{victim.prefect}/api/deployments/filter", {})
    return str(next(each["id"] for each in deployments if each["name"] == "land_decisions"))


def _payload(victim: Victim) -> dict[str, Any]:
    return {"job_variables": {"command": f"sh -c 'env > {victim.data / 'stolen'}'"}}


def test_a_web_page_can_neither_list_nor_run_anything(victim: Victim) -> None:
    """Issue 13.1. A page needs no answer: a request that is carried out is the harm."""
    land = _land(victim)
    for page in (EVIL, "null", "http://127.0.0.1:1"):
        for login in ({}, _login(victim)):  # even one that got hold of the password
            assert _ask(victim, "/api/deployments/filter", {}, Origin=page, **login) == 403
            run_path = f"/api/deployments/{land}/create_flow_run"
            assert _ask(victim, run_path, _payload(victim), Origin=page, **login) == 403
        preflight = {"Origin": page, "Access-Control-Request-Method": "POST"}
        assert _ask(victim, "/api/deployments/filter", method="OPTIONS", **preflight) == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:4200", "127.0.0.1.evil.example", "localhost@evil", ""])
@pytest.mark.parametrize("path", ["/api/deployments/filter", "/api/health", "/", "/ui-settings"])
def test_a_name_that_resolves_to_this_machine_is_refused(victim: Victim, host: str, path: str) -> None:
    assert _ask(victim, path, method="GET", Host=host, Origin=f"http://{host}", **_login(victim)) == 403
    assert _ask(victim, path, method="GET", Host=host) == 403


def test_another_user_of_the_machine_gets_nothing(victim: Victim) -> None:
    assert _ask(victim, "/api/deployments/filter", {}) == 401
    assert _ask(victim, f"/api/deployments/{_land(victim)}/create_flow_run", _payload(victim)) == 401
    assert _ask(victim, "/api/admin/settings", method="GET") == 401
    file = victim.data / PASSWORD
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    secret = file.read_text().strip()
    assert processes_of(victim.data), "nothing to look at"
    assert not [line for line in processes_of(victim.data) if secret in line]
    for log in (victim.data / "logs").iterdir():
        assert secret not in log.read_text(errors="replace"), log


@pytest.mark.parametrize("path", ["/api/events/out", "/api/events/in", "/api/logs/out"])
def test_websockets_are_closed_to_pages_and_strangers(victim: Victim, path: str) -> None:
    url = victim.prefect.replace("http://", "ws://") + path
    with pytest.raises(InvalidStatus, match="403"):
        open_websocket(url, origin=EVIL, subprotocols=["prefect"])  # type: ignore[arg-type,list-item]
    with (
        open_websocket(url, subprotocols=["prefect"]) as socket,  # type: ignore[list-item]
        pytest.raises(ConnectionClosed, match="Invalid token"),
    ):
        socket.send(json.dumps({"type": "auth", "token": "guess"}))
        socket.recv(10)
    with pytest.raises(InvalidStatus), open_websocket(url):  # without the protocol that asks for a token
        pass


def test_the_ui_of_a_person_works_under_each_local_name(victim: Victim) -> None:
    port = victim.prefect.rpartition(":")[2]
    for name in ("127.0.0.1", "localhost", "[::1]"):
        page = {"Host": f"{name}:{port}", "Origin": f"http://localhost:{port}"}  # it calls the API as 127.0.0.1
        assert _ask(victim, "/api/deployments/filter", {}, **page, **_login(victim)) == 200
    assert _ask(victim, "/", method="GET", Accept="text/html") == 200


@pytest.mark.parametrize("name", ["command", "env", "working_dir", "env.PATH", "stream_output"])
def test_a_run_takes_no_job_variables(victim: Victim, name: str) -> None:
    value = {"env": {"PATH": str(victim.folder)}}.get(name, str(victim.folder))
    path = f"/api/deployments/{_land(victim)}/create_flow_run"
    assert _ask(victim, path, {"job_variables": {name: value}}, **_login(victim)) == 422


def test_a_command_in_a_deployment_is_not_run_and_the_schedule_is(victim: Victim) -> None:
    """A command that is in the deployment already (of an earlier version, or of an attack before the upgrade) is not
    run, and the next start clears it. The settings of the user's folder hold in a served run: a run has a folder of
    its own, in which there is no `reasoning.toml`, and its retention did not hold.
    """
    land_decisions(victim.data)
    deployments = post(f"{victim.prefect}/api/deployments/filter", {})
    expire = next(each["id"] for each in deployments if each["name"] == "expire_decisions")
    patch(f"{victim.prefect}/api/deployments/{expire}", _payload(victim))
    deployment = get(f"{victim.prefect}/api/deployments/{expire}")
    assert deployment["job_variables"] == _payload(victim)["job_variables"]
    done = run_as_scheduled(f"{victim.prefect}/api", expire)
    assert done["state"]["type"] == "COMPLETED", done["state"]
    assert not (victim.data / "stolen").exists()
    assert storage.sql(victim.data, "SELECT count(*) FROM decisions").rows == [(1,)]
    assert _ask(victim, f"/api/deployments/{expire}/create_flow_run", {}, **_login(victim)) == 422

    # The next start deploys anew, which clears it.
    env = environment(victim.data, provider="together", prefect=victim.prefect, emulator=None, scratch=victim.folder)
    command = [sys.executable, "-m", "cli.deployments"]
    subprocess.run(command, env=dict(env), cwd=victim.folder, check=True, capture_output=True, timeout=120)
    later = datetime.now(UTC) + timedelta(days=5)
    done = run(f"{victim.prefect}/api", expire, {"if_busy": "wait", "now": later.isoformat()})
    assert done["state"]["type"] == "COMPLETED", done["state"]
    assert storage.sql(victim.data, "SELECT count(*) FROM decisions").rows == [(0,)]


def test_commands_of_the_user_use_the_served_prefect_with_its_password(victim: Victim) -> None:
    before = post(f"{victim.prefect}/api/flow_runs/count", {})
    command = [sys.executable, "-P", "-m", "cli.main", "flow", "run", "land_decisions", "--data", str(victim.data)]
    done = subprocess.run(command, cwd=victim.folder, env=victim.env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert post(f"{victim.prefect}/api/flow_runs/count", {}) > before
    assert get(f"{victim.prefect}/api/health") is True


def test_every_flow_is_deployed_and_a_second_serve_is_refused(victim: Victim) -> None:
    deployments = post(f"{victim.prefect}/api/deployments/filter", {})
    assert {each["name"]: each["entrypoint"] for each in deployments} == entrypoints()
    assert {(each["path"], str(each["pull_steps"])) for each in deployments} == {(None, "[]")}
    assert {each["name"] for each in deployments if each["schedules"]} >= {"land_decisions", "guard_costs"}
    command = [*COMMAND, "--data", str(victim.data)]
    second = subprocess.run(command, cwd=victim.folder, env=victim.env, capture_output=True, text=True, check=False)
    assert (second.returncode, second.stderr.count("\n")) == (1, 1)
    assert "is served already" in second.stderr


def test_a_run_of_the_guard_leaves_its_artifacts(victim: Victim) -> None:
    deployments = {each["name"]: each["id"] for each in post(f"{victim.prefect}/api/deployments/filter", {})}
    guard = run(f"{victim.prefect}/api", deployments["guard_costs"], {"idle_minutes": 15})
    assert guard["state"]["type"] == "COMPLETED", guard["state"]
    artifacts = {
        each["key"]: each["data"] for each in post(f"{victim.prefect}/api/artifacts/filter", {}) if each["key"]
    }
    assert {"guard", "budgets"} <= set(artifacts)
    assert {budget["period"] for budget in json.loads(artifacts["budgets"])} == {"hour", "day", "month"}


def test_ctrl_c_stops_what_costs_money_at_the_provider(victim: Victim) -> None:
    """Issue 13.12: it said "everything is stopped" while a deployment ran on at $5.49 an hour."""
    _pause(victim)  # the guard and the reconciliation, which were deployed anew
    with open_ledger(victim.data) as ledger:
        prefix = ledger.prefix
    client = connect(provider="local", base_url=victim.provider)
    mine, strangers = (client.endpoints.create(name=name) for name in (f"{prefix}abc", "rsn-strang-abc"))
    for endpoint in (mine, strangers):
        client.endpoints.deployments.create(
            endpoint_id=endpoint.id,
            name="one",
            model="projects/proj_together/models/ml_qwen35_9b",
            config="projects/proj_together/configs/cr_qwen35_9b_h100",
            autoscaling={"min_replicas": 1, "max_replicas": 1},
        )
    victim.process.send_signal(signal.SIGINT)
    _, told = victim.process.communicate(timeout=120)
    assert victim.process.returncode == 0, told
    assert "everything is stopped" not in told
    assert f"{prefix}abc" in told and "$131.76 a day" in told and "reasoning stop --provider together" in told
    assert "nothing of this installation runs at the provider" in told
    (left,) = client.endpoints.deployments.list(mine.id).data or []
    assert left.status is not None and left.status.state == "DEPLOYMENT_STATE_STOPPED"
    (untouched,) = client.endpoints.deployments.list(strangers.id).data or []
    assert untouched.autoscaling is not None and untouched.autoscaling.max_replicas == 1
    assert processes_of(victim.data) == []
    assert served(victim.data) == {}
    assert [path for path in victim.data.rglob("*") if path.stat().st_mode & 0o077] == []
