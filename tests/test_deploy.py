"""The files of `deploy/`: every command in them exists, and they agree with the project."""

from __future__ import annotations

import argparse
import configparser
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

from cli.main import app
from cli.supervisor import Supervisor, answers, free_port
from reasoning import DecisionClient
from tests.postgres import fresh_database, run_postgres

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
COMPOSE = sorted(DEPLOY.glob("compose*.yaml"))
UNITS = [*sorted(DEPLOY.glob("*.service")), *sorted(DEPLOY.glob("*.timer"))]


def parse_command(command: list[str]) -> None:
    """Raise where the project does not have the command, or the command does not have the option."""
    program, *arguments = command
    if program.rpartition("/")[2] == "reasoning":
        parse_reasoning(arguments)
    elif arguments[:1] == ["-m"]:
        assert importlib.util.find_spec(arguments[1]), f"no module {arguments[1]}"
        if arguments[1] == "gateway":
            parse_gateway(arguments[2:])
    else:
        assert program in ("python", "prefect"), command


def parse_reasoning(arguments: list[str]) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    command = group.commands[arguments[0]]
    with command.make_context(arguments[0], arguments[1:], resilient_parsing=False):
        pass


def parse_gateway(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    for option in re.findall(r'"(--[a-z-]+)"', (ROOT / "gateway/__main__.py").read_text()):
        parser.add_argument(option)
    parser.parse_args(arguments)


def services(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from yaml.safe_load(path.read_text())["services"].items()


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_commands_of_compose_files_exist(path: Path) -> None:
    ours = [(name, service) for name, service in services(path) if service.get("image") == "custom-reasoning"]
    assert ours
    for _, service in ours:
        parse_command(service["command"])
        assert (path.parent / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_compose_publishes_ports_on_this_machine_only_and_keeps_no_secret(path: Path) -> None:
    for name, service in services(path):
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} is open to the network: {port}"
        for variable, value in (service.get("environment") or {}).items():
            if re.search("KEY|PASSWORD|AUTH|URL", variable) and value and "://" not in value:
                assert value.startswith("${"), f"{name}: {variable} is written into the file"


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_compose_names_only_services_and_volumes_that_it_has(path: Path) -> None:
    parsed = yaml.safe_load(path.read_text())
    for service in parsed["services"].values():
        assert set(service.get("depends_on", {})) <= set(parsed["services"])
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            known = source in parsed["volumes"] or source == "./config" or (path.parent / source).is_file()
            assert known, f"{source} is no volume of {path.name}"


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_commands_of_systemd_units_exist(path: Path) -> None:
    parser = configparser.RawConfigParser(strict=False)
    parser.read(path)
    for line in path.read_text().splitlines():
        if line.startswith("ExecStart="):
            parse_command(shlex.split(line.removeprefix("ExecStart=")))
    assert parser["Unit"]["Description"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    program = tmp_path / "reasoning"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    for unit in UNITS:
        text = unit.read_text().replace("/opt/custom-reasoning/.venv/bin/reasoning", str(program))
        (tmp_path / unit.name).write_text(text)
    units = [tmp_path / unit.name for unit in UNITS]
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if "reasoning" in line]
    assert done.returncode == 0 and not said, done.stderr


def test_the_image_copies_what_there_is_and_installs_extras_that_there_are() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = (DEPLOY / "Dockerfile").read_text()
    assert set(re.findall(r"--extra ([a-z]+)", text)) <= set(extras)
    for sources in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for secret in ("**/.env*", "**/*.env", "**/gateway.token", "reasoning-data", "demo-data"):
        assert secret in ignored, f"{secret} would become a part of the image"


def compose_command(name: str, values: dict[str, str], environment: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a service of `compose.parts.yaml`, its values and addresses replaced."""
    service = dict(services(DEPLOY / "compose.parts.yaml"))[name]
    env = {key: str(value) for key, value in service["environment"].items() if value is not None} | environment
    for key, value in env.items():
        env[key] = re.sub(r"\$\{(\w+)[^}]*\}", lambda match: values[match[1]], value)
    return service["command"], env


@pytest.mark.torture
@pytest.mark.timeout(400)
def test_the_parts_of_compose_run_a_flow_together(tmp_path: Path) -> None:
    """Each service's own command, here as processes: a worker of its own lands a decision by the schedule."""
    prefect_port, gateway_port = free(), free()
    values = {"PREFECT_AUTH": "reasoning:abcdefghijklmnopqrstuvwxyz", "POSTGRES_PASSWORD": "x", "TOGETHER_API_KEY": "x"}
    with run_postgres() as server, fresh_database(server) as ledger:
        shared = {
            "REASONING_DATA": str(tmp_path / "data"),
            "REASONING_PROVIDER": "local",
            "REASONING_LEDGER_URL": ledger,
            "PREFECT_HOME": str(tmp_path / "prefect"),
            "PREFECT_API_URL": f"http://127.0.0.1:{prefect_port}/api",
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": str(prefect_port),
            # The PostgreSQL of the tests lacks the extension pg_trgm, which Prefect needs.
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{tmp_path}/prefect.db",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "PYTHONSAFEPATH": "1",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "REASONING_CONFIG": str(DEPLOY / "config/reasoning.toml"),
        }
        client = DecisionClient(data=tmp_path / "data")
        answer = client.decide_should_respond(
            {"agent_name": "Nova", "messages": [{"speaker": "Ada", "text": "Nova?"}]},
            lambda _: "RESPOND",
            episode_id="1",
        )
        client.close()
        with Supervisor(tmp_path / "logs", {}) as children:

            def start(name: str, **more: str) -> None:
                command, children.env = compose_command(name, values, shared | more)
                children.start(
                    name, [sys.executable, *command[1:]] if command[0] == "python" else command, cwd=tmp_path
                )

            start("prefect-server", PREFECT_API_AUTH_STRING=values["PREFECT_AUTH"])
            health = f"http://127.0.0.1:{prefect_port}/api/health"
            children.wait_until("Prefect's server", lambda: answers(health), timeout=180)
            command, children.env = compose_command("deployments", values, shared)
            children.run("deployments", [sys.executable, *command[1:]], cwd=tmp_path, timeout=180)
            start("worker")
            command, children.env = compose_command("gateway", values, shared)
            children.start("gateway", [sys.executable, *command[1:-1], str(gateway_port)], cwd=tmp_path)
            children.wait_until("the gateway", lambda: answers(f"http://127.0.0.1:{gateway_port}/healthz"))
            landed = (tmp_path / "data/decisions").rglob
            children.wait_until("a landed decision", lambda: any(landed("*.parquet")), timeout=180)
        assert answer.decision_id


def free() -> int:
    return free_port("127.0.0.1", 0, what="a test", option="")
