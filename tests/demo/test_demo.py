"""The whole wheel, as a stranger turns it, on part of the conversations; then what the README says to do with it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

import storage
from demo.conversations import dataset_path
from storage.ledger import open_ledger

BUDGET_USD = 25  # reached after some 90 minutes of two deployments
ONE_ROUND_USD = Decimal("5.49")  # two deployments, half an hour between two rounds of the guard
PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished demo: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    conversations = {
        key: value
        for key, value in json.loads(dataset_path().read_bytes()).items()
        if value["start"][:10] >= "2018-04-29" and value["start"] < "2018-05-05T05"
    }
    part = folder / "part.json"
    part.write_text(json.dumps(conversations))
    data = folder / "demo-data"
    # A key in the environment is no leave to spend it.
    arguments = ["--data", str(data), "--conversations", str(part), "--budget", str(BUDGET_USD)]
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "demo", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "TOGETHER_API_KEY": "tgp_v1_this-must-never-be-seen", "COLUMNS": "160"},
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return data, done.stdout


@pytest.mark.timeout(300)
def test_every_step_comes_to_its_end(demo: tuple[Path, str]) -> None:
    _, printed = demo
    steps = re.findall(r"^✓ (\w[\w ]*?)  ", printed, re.MULTILINE)
    assert steps == ["collect", "servers", "land", "check", "turn", "serve", "shut down", "report"]
    for table in ("Rows not learned from", "Training", "Original against custom", "Spend against budget", "Shut down"):
        assert table in printed


@pytest.mark.timeout(300)
def test_nothing_that_was_asked_is_lost(demo: tuple[Path, str]) -> None:
    data, printed = demo
    collected = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) (?:should_respond|planning)", printed)[:2]]
    served = int(re.search(r"✓ serve +([\d,]+) decisions", printed)[1].replace(",", ""))
    ((questions, demonstrated),) = storage.sql(
        data, "SELECT count(*), count(demonstration) FROM labelled_decisions"
    ).rows
    assert questions == demonstrated == sum(collected) + served
    assert not list((data / "spool").iterdir())
    assert not list((data / "quarantine").iterdir())


@pytest.mark.timeout(300)
def test_money_is_charged_to_the_cent_and_everything_is_down(demo: tuple[Path, str]) -> None:
    data, printed = demo
    assert "Nothing was left running." in printed
    billed = Decimal(re.search(r"The provider billed \$([\d.]*\d)", printed)[1])
    with open_ledger(data) as ledger:
        assert ledger.spent().quantize(Decimal("0.01")) == billed <= BUDGET_USD + ONE_ROUND_USD
        assert {row["state"] for row in ledger.find("deployments")} == {"deleted"}
        assert len(ledger.find("fine_tune_jobs", state="completed")) == 2
    assert not json.loads((data / "routes.json").read_bytes())["routes"]


@pytest.mark.timeout(300)
def test_the_report_needs_nothing_else(demo: tuple[Path, str]) -> None:
    data, _ = demo
    html = (data / "report.html").read_text()
    assert html.count("<svg") >= 3
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)[^"']+|url\((?!["']?(?:#|data:))[^)]+|@import""", html)


@pytest.mark.timeout(300)
def test_a_key_is_nowhere(demo: tuple[Path, str]) -> None:
    data, printed = demo
    assert "this-must-never-be-seen" not in printed
    for path in data.rglob("*"):
        if path.is_file():
            assert b"this-must-never-be-seen" not in path.read_bytes(), path


@pytest.mark.timeout(300)
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
