"""The demo as a new user runs it, on this machine and on part of the conversations; then what one does with it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import httpx
import psutil
import pytest

import storage
from cli.serve import served
from demo.conversations import dataset_path
from reasoning.serving.routes import read_routes
from storage.ledger.ledger import open_ledger
from storage.ledger.rows import Deployment, FineTuneJob
from tasks.entrypoints import entrypoints
from tests.cli.serving import COMMAND, copy_prefect_database, get, post, processes_of, run, run_as_scheduled, serving
from tests.tasks.rooms import write_log

BUDGET_USD = 20  # $8 of training and two hours of one deployment: reached in seven rounds of the guard
ONE_ROUND_USD = Decimal("5.49")  # two deployments, half an hour between two rounds of the guard
PROJECT = Path(__file__).resolve().parents[2]


def run_demo(folder: Path, config: pytest.Config, *options: str, first_day: str) -> tuple[Path, str]:
    """Run a demo to its end, on the conversations from `first_day` on: its folder, and what it printed."""
    conversations = {
        key: value
        for key, value in json.loads(dataset_path().read_bytes()).items()
        if value["start"][:10] >= first_day and value["start"] < "2018-05-05T03:30"
    }
    part = folder / "part.json"
    part.write_text(json.dumps(conversations))
    data = folder / "demo-data"
    # The demo empties its folder, so Prefect's home is beside it until the demo has ended.
    prefect_home = folder / "prefect"
    copy_prefect_database(config, prefect_home)
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "demo", "--data", str(data), "--conversations", str(part), *options],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "TOGETHER_API_KEY": "tgp_v1_this-must-never-be-seen",  # in the environment it is no leave to spend it
            "COLUMNS": "160",
            "PREFECT_HOME": str(prefect_home),
        },
        timeout=480,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    prefect_home.rename(data / "prefect")
    return data, done.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[tuple[Path, str]]:
    """The demo as `make demo` runs it, on this machine."""
    folder = tmp_path_factory.mktemp("demo")
    try:
        yield run_demo(folder, pytestconfig, first_day="2018-05-03")
    finally:  # its models stay, and are served by a process of their own
        for process in psutil.process_iter(["cmdline"]):
            if str(folder / "demo-data" / "local") in (process.info["cmdline"] or []):
                process.kill()


@pytest.fixture(scope="module")
def emulated_demo(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> tuple[Path, str]:
    """The demo with the emulator, until its budget is used up."""
    options = ("--provider", "emulator", "--budget", str(BUDGET_USD))
    return run_demo(tmp_path_factory.mktemp("emulated"), pytestconfig, *options, first_day="2018-05-02")


def _steps(printed: str) -> list[str]:
    return re.findall(r"^✓ (\w[\w ]*?)  ", printed, re.MULTILINE)


def _check_nothing_lost(data: Path, printed: str) -> None:
    collected = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) (?:should_respond|planning)", printed)[:2]]
    served = int(re.search(r"✓ serve +([\d,]+) decisions", printed)[1].replace(",", ""))
    ((questions, demonstrated),) = storage.sql(
        data, "SELECT count(*), count(demonstration) FROM labelled_decisions"
    ).rows
    assert questions == demonstrated == sum(collected) + served
    assert not list((data / "spool").iterdir())
    assert not list((data / "quarantine").iterdir())


@pytest.mark.timeout(600)
def test_every_step_comes_to_its_end(demo: tuple[Path, str]) -> None:
    _, printed = demo
    assert _steps(printed) == ["collect", "servers", "land", "check", "turn", "serve", "keep", "report"]
    for table in ("Rows not learned from", "Training", "Fallback against model"):
        assert table in printed


@pytest.mark.timeout(600)
def test_nothing_that_was_asked_is_lost(demo: tuple[Path, str]) -> None:
    _check_nothing_lost(*demo)


@pytest.mark.timeout(600)
def test_models_of_this_machine_cost_nothing_and_answer(demo: tuple[Path, str]) -> None:
    data, printed = demo
    with open_ledger(data) as ledger:
        assert ledger.spent() == 0
        assert len(ledger.find(FineTuneJob, state="completed")) == 2
        ready = {row.served_name for row in ledger.find(Deployment, state="ready")}
    routes = read_routes(data / "routes.json").routes
    assert set(routes) == set(re.findall(r"(should_respond|planning) promoted", printed))
    assert "planning" in routes, "there are 130 tasks to learn from, and the rule is often wrong"
    for route in routes.values():
        assert route.arms[0].model in ready
        question = {"model": route.arms[0].model, "messages": [{"role": "user", "content": "hello"}]}
        answer = httpx.post(f"{route.arms[0].base_url}/v1/chat/completions", json=question)
        assert answer.status_code == 200, answer.text


@pytest.mark.timeout(600)
def test_the_report_needs_nothing_else(demo: tuple[Path, str]) -> None:
    data, _ = demo
    html = (data / "report.html").read_text()
    assert html.count("<svg") >= 3
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)[^"']+|url\((?!["']?(?:#|data:))[^)]+|@import""", html)


@pytest.mark.timeout(600)
def test_a_key_is_nowhere(demo: tuple[Path, str]) -> None:
    data, printed = demo
    assert "this-must-never-be-seen" not in printed
    for path in data.rglob("*"):
        if path.is_file():
            assert b"this-must-never-be-seen" not in path.read_bytes(), path


@pytest.mark.timeout(600)
def test_the_readmes_queries_run(demo: tuple[Path, str]) -> None:
    data, _ = demo
    section = (PROJECT / "README.md").read_text().split("## Ask the log")[1].split("\n## ")[0]
    commands = [line for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL) for line in block.splitlines()]
    assert len(commands) >= 4
    for command in commands:
        program, *arguments = shlex.split(command)
        program = str(Path(sys.executable).with_name(Path(program).name))
        done = subprocess.run([program, *arguments], cwd=data.parent, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "should_respond" in done.stdout


@pytest.mark.timeout(600)
def test_the_folder_is_private_and_only_the_models_go_on(demo: tuple[Path, str]) -> None:
    data, _ = demo
    assert [path for path in data.rglob("*") if path.stat().st_mode & 0o077] == []
    assert [process for process in processes_of(data) if "provider.local.server" not in process] == []


@pytest.mark.torture  # the default demo has the steps, and the tests of the provider the money
@pytest.mark.timeout(600)
def test_with_the_emulator_money_is_charged_to_the_cent_and_everything_is_down(emulated_demo: tuple[Path, str]) -> None:
    data, printed = emulated_demo
    assert _steps(printed) == ["collect", "servers", "land", "check", "turn", "serve", "shut down", "report"]
    _check_nothing_lost(data, printed)
    assert "Spend against budget" in printed and "Shut down" in printed
    assert "Nothing was left running." in printed
    billed = Decimal(re.search(r"The provider billed \$([\d.]*\d)", printed)[1])
    with open_ledger(data) as ledger:
        assert ledger.spent().quantize(Decimal("0.01")) == billed <= BUDGET_USD + ONE_ROUND_USD
        assert {row.state for row in ledger.find(Deployment)} == {"deleted"}
        assert len(ledger.find(FineTuneJob, state="completed")) == 2
    assert not json.loads((data / "routes.json").read_bytes())["routes"]
    with closing(sqlite3.connect(data / "emulator" / "emulator.sqlite")) as state:
        settings = dict(state.execute("SELECT key, value FROM settings"))
    assert json.loads(settings["clock_frozen_at"]) is None, "what is deployed now would wait in 2018 for ever"
    assert processes_of(data) == []


@pytest.mark.torture  # `test_serve_attack` has the parts; this is all of it in the folder of a demo
@pytest.mark.timeout(400)
def test_what_the_demo_left_is_served_and_no_process_stays_behind(emulated_demo: tuple[Path, str]) -> None:
    """It is in this file because the demo's folder has a Prefect database already."""
    data, _ = emulated_demo
    ((before,),) = storage.sql(data, "SELECT count(*) FROM decisions").rows
    written = write_log(data, episodes=10, turns=3)
    with serving(data) as process:
        urls = served(data)
        assert urls["pid"] == process.pid
        api = f"{urls['prefect']}/api"

        deployments = {each["name"]: each for each in post(f"{api}/deployments/filter", {})}
        assert {name: each["entrypoint"] for name, each in deployments.items()} == entrypoints()
        assert {(each["path"], str(each["pull_steps"]), each["paused"]) for each in deployments.values()} == {
            (None, "[]", False)
        }
        assert {name for name, each in deployments.items() if each["schedules"]} >= {"land_decisions", "guard_costs"}

        for each in deployments.values():  # what else is due meanwhile would only make this slower
            if each["name"] != "land_decisions":
                post(f"{api}/deployments/{each['id']}/pause_deployment", {})
        landing = run_as_scheduled(api, deployments["land_decisions"]["id"])
        assert landing["state"]["type"] == "COMPLETED", landing["state"]
        assert landing["parameters"]["if_busy"] == "skip"
        post(f"{api}/deployments/{deployments['land_decisions']['id']}/pause_deployment", {})
        assert storage.sql(data, "SELECT count(*) FROM decisions").rows == [(before + written,)]

        guard = run(api, deployments["guard_costs"]["id"], {"idle_minutes": 15})
        assert guard["state"]["type"] == "COMPLETED", guard["state"]
        artifacts = {each["key"]: each["data"] for each in post(f"{api}/artifacts/filter", {}) if each["key"]}
        assert {"landing", "guard", "budgets"} <= set(artifacts)
        assert {budget["period"] for budget in json.loads(artifacts["budgets"])} == {"hour", "day", "month", "total"}

        assert get(f"{urls['gateway']}/healthz")["status"] == "ok"
        clock = get(f"{urls['emulator']}/emulator/clock")
        assert not clock["frozen"] and clock["now"] > "2026", "what is deployed now would wait in 2018 for ever"
        second = subprocess.run([*COMMAND, "--data", str(data)], capture_output=True, text=True, check=False)
        assert (second.returncode, second.stderr.count("\n")) == (1, 1)
        assert "is served already" in second.stderr

        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert served(data) == {}
    open_to_others = [path for path in data.rglob("*") if path.stat().st_mode & 0o077]
    assert open_to_others == []
    assert processes_of(data) == []
