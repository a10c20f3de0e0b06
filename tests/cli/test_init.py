"""`reasoning init`: what it writes, that it may be run again, and that what it prints works."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from cli.snippets import snippets
from reasoning.config import load_config
from storage.ledger.ledger import open_ledger
from tests.cli.test_commands import failure, reasoning

KEY = "tgp_v1_" + "a1B2" * 8
ENTER, DOWN, YES = "\r", "\x1b[B", "y"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_options_write_private_files_and_budgets(project: Path) -> None:
    told = reasoning(
        "init", "--data", "d", "--type", "tone=friendly,formal:Which tone?", "--retention-days", "90", "--idle-minutes",
        "2.5", "--budget-day", "$10", "--budget-month", "none", "--client-credentials", "--yes",
    ).stdout  # fmt: skip
    assert "day budget: 10 buys" in told and "month budget: no limit" in told
    for name in ("reasoning.toml", ".env"):
        assert (project / name).stat().st_mode & 0o777 == 0o600
    config = load_config(path=project / "reasoning.toml", env={})
    assert config.data == project / "d" and config.retention.decisions == 90
    assert config.decision_types["tone"].labels == ("friendly", "formal")
    assert "idle_minutes = 2.5" in (project / "reasoning.toml").read_text()
    assert "client_credentials = true" in (project / "reasoning.toml").read_text()
    with open_ledger(project / "d") as ledger:
        limits = {budget.period: budget.limit_usd for budget in ledger.budgets()}
    assert limits["day"] == Decimal(10) and "month" not in limits


def test_again_it_keeps_what_it_was_not_asked_about(project: Path) -> None:
    Path("reasoning.toml").write_text(
        '# mine\nagent_id = "ada"  # her\ndata = "old"\n[client]\nshadow_workers = 3\n[decision_types.tone]\n'
        'labels = ["a", "b"]\nquestion = "Which?"\ninstruction = "Mine."\nmax_tokens = 4\n'
    )
    Path(".env").write_text("# keep\nOTHER=1\nexport REASONING_PROVIDER=emulator\n")
    Path(".env").chmod(0o644)
    for _ in range(2):
        assert reasoning("init", "--type", "tone=x,y", "--yes").returncode == 0
    text = Path("reasoning.toml").read_text()
    assert "# mine" in text and "# her" in text and "shadow_workers = 3" in text and text.count("[decision_types") == 1
    own = load_config(path=project / "reasoning.toml", env={}).decision_types["tone"]
    assert (own.labels, own.question, own.instruction, own.max_tokens) == (("x", "y"), "Which?", "Mine.", 4)
    lines = Path(".env").read_text().splitlines()
    assert lines[:2] == ["# keep", "OTHER=1"] and lines.count("REASONING_PROVIDER='local'") == 1 and len(lines) == 4
    assert Path(".env").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--type", "tone=only"], "NAME=LABEL,LABEL"),
        (["--type", "2tone=a,b"], "starting with a letter"),
        (["--type", "tone=a,A"], "differ by more than upper and lower case"),
        (["--budget-day", "much"], "US dollars"),
        (["--budget-day", "-1"], "US dollars"),
        (["--provider", "together"], "TOGETHER_API_KEY is not set"),
    ],
)
def test_what_is_wrong_is_refused_and_nothing_is_written(project: Path, options: list[str], why: str) -> None:
    finished = reasoning("init", "--data", "d", *options, "--yes")
    assert finished.returncode != 0 and why in " ".join(finished.stderr.replace("│", " ").split())
    assert list(project.iterdir()) == []


def test_a_broken_file_is_left_as_it_is(project: Path) -> None:
    Path("reasoning.toml").write_text("data = [")
    assert "not TOML" in failure(reasoning("init", "--yes"))
    assert Path("reasoning.toml").read_text() == "data = [" and not Path(".env").exists()


def test_a_folder_of_somebody_elses_is_left_alone(project: Path) -> None:
    (project / "photos").mkdir()
    (project / "photos" / "holiday.jpg").touch()
    assert "is not a data folder" in failure(reasoning("init", "--data", "photos", "--yes"))
    assert [path.name for path in project.rglob("*")] == ["photos", "holiday.jpg"]


def test_without_a_terminal_and_without_yes_nobody_is_asked() -> None:
    assert "--yes" in failure(reasoning("init"))


def test_commands_take_keys_and_settings_of_a_private_env_file_alone(project: Path) -> None:
    reasoning("init", "--data", "d", "--yes")
    with Path(".env").open("a") as file:
        file.write(f"TOGETHER_API_KEY='{KEY}'\nPATH=/nowhere\nREASONING_AGENT_ID=eve\n")
    path = os.environ["PATH"]
    shown = reasoning("config").stdout
    assert (
        "agent id" in shown and "eve" in shown and KEY not in shown and " set" in shown and os.environ["PATH"] == path
    )
    assert "bob" in reasoning("config", env={"REASONING_AGENT_ID": "bob"}).stdout
    assert "taken from" in reasoning("doctor", "--offline").stdout
    Path(".env").chmod(0o640)
    assert "eve" not in reasoning("config").stdout
    assert "chmod 600" in reasoning("doctor", "--offline").stdout


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[PipeInput]:
    """A terminal whose keys are what a test sends."""
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        monkeypatch.setattr("cli.init._in_terminal", lambda: True)
        yield keys


def test_the_wizard_asks_for_what_no_option_gives(project: Path, keyboard: PipeInput) -> None:
    keyboard.send_text(f"\x15{project / 'asked'}{ENTER}")  # Ctrl-U: the default is deleted
    keyboard.send_text(f"{YES}tone=a{ENTER}{YES}tone=a,b{ENTER}n")  # the first is no type and is asked for again
    keyboard.send_text(ENTER)  # this machine
    keyboard.send_text(f"x\x7f\x1530{ENTER}")  # a letter is refused; 30 days
    keyboard.send_text(f"\x155{ENTER}")  # minutes
    keyboard.send_text("n")  # the gateway has the keys
    keyboard.send_text(f"sk-ant-{KEY}{ENTER}{ENTER}")
    finished = reasoning("init")
    assert finished.returncode == 0, finished.stderr
    assert KEY not in finished.stdout + finished.stderr
    config = load_config(path=project / "reasoning.toml", env={})
    assert (config.data, config.retention.decisions) == (project / "asked", 30) and "tone" in config.decision_types
    lines = Path(".env").read_text().splitlines()
    assert f"ANTHROPIC_API_KEY='sk-ant-{KEY}'" in lines and not any("OPENAI" in line for line in lines)


def test_ctrl_c_in_the_wizard_writes_nothing(project: Path, keyboard: PipeInput) -> None:
    keyboard.send_text("\x03")
    assert reasoning("init").returncode != 0
    assert list(project.iterdir()) == []


def test_what_is_printed_can_be_pasted(project: Path) -> None:
    data, settings, env = project / "my data", project / "reasoning.toml", project / ".env"
    told = dict(snippets(data, settings, env))
    (data / "spool").mkdir(parents=True)
    (data / "gateway.token").write_text("rsn-secret-token\n")
    assert not any("rsn-secret-token" in text for text in dict(snippets(data, settings, env)).values())
    subprocess.run([sys.executable, "-c", told["Python"]], check=True, capture_output=True)
    assert "RESPOND" in reasoning("log", "--data", data).stdout
    shell = told["Claude Code with a subscription"] + '\nprintf %s "$ANTHROPIC_CUSTOM_HEADERS|$ANTHROPIC_AUTH_TOKEN"'
    done = subprocess.run(
        ["bash", "-ec", shell], capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]}
    )
    assert done.stdout == "x-reasoning-token: rsn-secret-token|"
    unit = configparser.ConfigParser(strict=False)
    unit.read_string("\n".join(line for line in told["systemd"].splitlines() if not line.startswith("#")))
    assert unit["Service"]["ExecStart"].endswith("reasoning serve") and unit["Service"]["EnvironmentFile"] == str(env)
    service = yaml.safe_load(told["Compose"])["services"]["reasoning"]
    assert (
        service["volumes"][0] == f"{data}:/data" and (Path(service["build"]["context"]) / "deploy/Dockerfile").exists()
    )
