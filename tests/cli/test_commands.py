"""The command line as people use it: what it prints, and one clear line for everything that goes wrong."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import pytest

from cli.errors import STOP_HINT
from cli.main import main
from cli.output import print_table
from reasoning.serving.routes import Routes, write_routes
from storage.errors import DataFolderError
from storage.ledger.ledger import open_ledger
from storage.ledger.rows import FineTuneJob
from storage.log.land import land_decisions
from tests.tasks.rooms import write_log

# Settings of whoever runs the tests have no say.
ENV = {
    name: value for name, value in os.environ.items() if not name.startswith(("REASONING_", "TOGETHER_", "PREFECT_"))
}


def reasoning(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in this process (which has its imports done), as if in one of its own."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv = ["reasoning", *map(str, arguments)]
    with (
        patch.dict(os.environ, ENV | (env or {}), clear=True),
        patch.object(sys, "argv", argv),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as exit:
            code = int(exit.code or 0)
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


def failure(finished: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """The one line on stderr of a command that failed; one about money has the way to stop it as a second."""
    assert finished.returncode == code, finished.stderr
    assert "Traceback" not in finished.stderr
    assert finished.stderr.startswith("error: "), finished.stderr
    assert finished.stderr.removesuffix(f"{STOP_HINT}\n").count("\n") == 1, finished.stderr
    return finished.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A landed log of 12 decisions."""
    folder = tmp_path_factory.mktemp("log") / "data"
    write_log(folder, episodes=3, turns=4)
    land_decisions(folder)
    return folder


def test_help_comes_fast_because_nothing_heavy_is_imported():
    script = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "from cli.main import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "print(sorted({'prefect', 'together', 'pandas', 'duckdb', 'sqlalchemy', 'pyarrow'} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "fine-tune" in finished.stdout
    assert finished.stdout.rstrip().endswith("[]")


def test_the_version():
    assert re.fullmatch(r"reasoning \d+\.\d+\.\d+\n", reasoning("--version").stdout)


@pytest.mark.parametrize(
    "command, default",
    [("status", "REASONING_DATA"), ("sql", "1000"), ("demo", "none; 110 for")],
)
def test_the_help_tells_defaults_that_are_no_single_value(command: str, default: str):
    """Rich takes text in brackets for markup and swallows it."""
    told = " ".join(reasoning(command, "--help").stdout.replace("│", " ").split())
    assert f"[default: ({default}" in told


def test_a_table_too_wide_for_the_terminal_is_shown_row_by_row(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    columns, rows = [f"column_{number}" for number in range(10)], [[f"value-{number}" for number in range(10)]] * 2
    for width, headers in (("200", 1), ("80", 2)):
        monkeypatch.setenv("COLUMNS", width)
        print_table(columns, rows, title="Wide")
        printed = capsys.readouterr().out
        assert [printed.count(f"column {number}") for number in range(10)] == [headers] * 10
        assert [printed.count(f"value-{number}") for number in range(10)] == [2] * 10


def test_every_flow_has_its_command():
    from typer.main import get_command

    from cli.main import app
    from tasks.entrypoints import entrypoints

    short = {name.split("_")[0] for name in entrypoints()} - {"fine", "estimate"} | {"fine-tune", "pays"}
    assert short <= set(get_command(app).commands)


def test_land_and_ask(tmp_path: Path):
    write_log(tmp_path / "data", episodes=2, turns=2)
    landed = json.loads(reasoning("land", "--data", tmp_path / "data", "--json").stdout)
    assert (landed["segments"], landed["decisions"], landed["feedback"]) == (1, 4, 4)
    query = "SELECT decision_type, count(*) AS n, max(ts) FROM labelled_decisions GROUP BY ALL"
    asked = reasoning("sql", query, "--data", tmp_path / "data", "--json")
    assert json.loads(asked.stdout)[0]["n"] == 4
    assert "should_respond" in reasoning("sql", query, env={"REASONING_DATA": str(tmp_path / "data")}).stdout


def test_what_was_quarantined_is_landed_again_and_the_rest_explained(tmp_path: Path):
    write_log(tmp_path, episodes=1, turns=1)
    (segment,) = (tmp_path / "spool").glob("*.seal")
    first, *rest = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"garbage\n" + b"".join(rest) + first.removesuffix(b"\n"))
    landed = json.loads(reasoning("land", "--data", tmp_path, "--json").stdout)
    assert landed["quarantined"] == {"no frame": 1, "torn": 1}
    report = json.loads(reasoning("reland", "--data", tmp_path, "--json").stdout)
    assert (report["files"], report["relanded"], report["kept"]) == (1, 1, {"no frame": 1})
    again = reasoning("reland", "--data", tmp_path)
    assert "kept no frame" in again.stdout and "starts with 8 hex digits" in again.stdout


def test_budgets_are_set_and_reported(tmp_path: Path):
    typo = failure(reasoning("costs", "set-budget", "0.50", "--data", tmp_path / "data"))
    assert "there is no data folder" in typo and not (tmp_path / "data").exists()
    write_log(tmp_path / "data", episodes=1, turns=1)
    assert reasoning("costs", "set-budget", "0.50", "--period", "total", "--data", tmp_path / "data").returncode == 0
    report = json.loads(reasoning("costs", "report", "--data", tmp_path / "data", "--json").stdout)
    assert {budget["period"]: budget["limit_usd"] for budget in report["budgets"]}["total"] == "0.50"
    for limit, why in {"lots": "is not an amount of money", "-1": "negative", "0.0000000001": "finer than"}.items():
        refused = reasoning("costs", "set-budget", "--data", tmp_path / "data", "--", limit)
        assert refused.returncode == 2
        assert why in re.sub(r"[\s│]+", " ", refused.stderr)


def test_statistics_and_status(data: Path):
    (row,) = json.loads(reasoning("data", "stats", "--data", data, "--json").stdout)
    assert (row["questions"], row["demonstrations"], row["episodes"]) == (12, 12, 3)
    assert row["verdict"] == "Insufficient" and "Label at least 38 more" in row["advice"]
    status = json.loads(reasoning("status", "--data", data, "--json").stdout)
    assert (status["segments_to_land"], status["lease"], status["served"]) == (0, "none", {})


def test_a_lease_that_has_run_out_is_not_shown_as_one_that_holds(tmp_path: Path):
    past = datetime(2026, 11, 22, tzinfo=UTC)
    write_routes(tmp_path / "routes.json", Routes(issued_at=past, expires_at=past + timedelta(minutes=3)))
    status = json.loads(reasoning("status", "--data", tmp_path, "--json").stdout)
    assert (status["lease_until"], status["lease_in_force"]) == ("2026-11-22T00:03:00Z", False)


def test_a_bill_that_cannot_be_attributed_and_a_job_that_waits_are_shown_by_status(tmp_path: Path):
    past = datetime.now(UTC) - timedelta(days=3)
    with open_ledger(tmp_path, now=past) as ledger:
        assert json.loads(reasoning("status", "--data", tmp_path, "--json").stdout)["alerts"] == []
        ledger.note_state("billing", "deployments", "unnamed", now=past)
        reservation = ledger.reserve("4", purpose="a job", ttl=None, now=past)
        values = {"suffix": "rsn-1", "base_model": "m", "parameters": "{}", "estimate_usd": 4, "now": past}
        job = ledger.add(FineTuneJob, state="submitted", remote_state="queued", reservation_id=reservation.id, **values)
    said = re.sub(r"\s+", " ", reasoning("status", "--data", tmp_path).stdout)
    assert "ALERT: the provider's bill cannot be attributed: it names none of our deployments" in said
    assert "queued for 3.0 days and holds $4.00 of the budget: look at the provider's status page" in said
    assert f"`reasoning models cancel {job.id}`" in said
    assert len(json.loads(reasoning("status", "--data", tmp_path, "--json").stdout)["alerts"]) == 2


@pytest.mark.parametrize("ledger", ["postgresql://me:secret@db/reasoning", "postgresql://me@db/x?password=secret"])
def test_settings_are_shown_without_key_and_password(data: Path, ledger: str):
    env = {"TOGETHER_API_KEY": "tgp_v1_secret", "REASONING_LEDGER_URL": ledger}
    env |= {"REASONING_KEYS": "GPU_KEY=https://gpu.example", "GPU_KEY": "gk-secret"}
    shown = json.loads(reasoning("config", "--data", data, "--json", env=env).stdout)
    assert shown["data"] == str(data) and "@db/" in shown["ledger"]
    assert "secret" not in str(shown)
    assert shown["keys"] == {"GPU_KEY": "https://gpu.example (set)"}


def test_dashes_in_a_decision_type_are_understood(data: Path):
    said = failure(reasoning("export", "should-respond", "--data", data))
    assert "Insufficient" in said and "Label at least" in said


def test_an_unknown_decision_type_is_answered_with_those_there_are(data: Path):
    said = failure(reasoning("export", "shouldrespond", "--data", data))
    assert (
        "unknown decision type 'shouldrespond' (did you mean should_respond?); known: should_respond, planning, coding"
        in said
    )


def test_days_in_the_wrong_order_or_form_are_usage_errors(data: Path):
    for options in (["--since", "2026-02-01", "--until", "2026-01-31"], ["--since", "last week"]):
        finished = reasoning("export", "should_respond", "--data", data, *options)
        assert finished.returncode == 2
        assert "--since" in finished.stderr or "last week" in finished.stderr


def test_a_folder_that_is_not_there_or_not_ours(tmp_path: Path):
    assert f"there is no data folder {tmp_path / 'no'}" in failure(reasoning("land", "--data", tmp_path / "no"))
    (tmp_path / "holiday.jpg").touch()
    assert "is not a data folder" in failure(reasoning("status", "--data", tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_query_that_cannot_be_run(data: Path):
    said = reasoning("sql", "SELECT nonsense FROM decisions", "--data", data)
    assert said.returncode == 1
    assert said.stderr.startswith("error: the query cannot be run: Binder Error") and "Traceback" not in said.stderr


def test_ctrl_c_ends_a_long_query_at_once_and_without_a_word(data: Path):
    endless = "SELECT count(*) FROM range(100000) a, range(10000000) b WHERE a.range * b.range % 7 = 3"
    code = """
import os, signal, sys, threading
import duckdb
from storage.log import views
run = views._interruptible
def begin(con, function):
    threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
    return run(con, function)
views._interruptible = begin
from cli.errors import STOP_HINT
from cli.main import main
main()
"""
    command = [sys.executable, "-c", code, "sql", endless, "--data", str(data)]
    said = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=60)
    assert (said.returncode, said.stdout, said.stderr) == (130, "", "")


def test_columns_of_one_name_are_all_there(data: Path):
    said = reasoning("sql", "SELECT 1 AS a, 2 AS a, 3 AS a_1, 4 AS b", "--data", data, "--json")
    assert json.loads(said.stdout) == [{"a": 1, "a_1": 2, "a_1_1": 3, "b": 4}]


@pytest.mark.parametrize("command", ["erase", "sql"])
def test_an_argument_that_is_no_text_is_a_usage_error(data: Path, command: str):
    finished = reasoning(command, os.fsdecode(b"caf\xe9"), "--data", data)
    assert failure(finished, 2) == "error: the argument b'caf\\xe9' is not UTF-8\n"


def test_nobody_is_erased_without_a_name(data: Path):
    said = reasoning("erase", "", "--yes", "--data", data)
    assert said.returncode == 2
    assert "is empty" in said.stderr


def test_a_provider_that_is_not_set_or_down_or_without_key(data: Path):
    alone = {"REASONING_PROVIDER": "emulator"}
    assert "REASONING_PROVIDER_URL" in failure(reasoning("reconcile", "--data", data, env=alone))
    down = {"REASONING_PROVIDER_URL": "http://127.0.0.1:9"}
    assert "http://127.0.0.1:9" in failure(reasoning("reconcile", "--data", data, env=down))
    said = failure(reasoning("reconcile", "--data", data, env={"REASONING_PROVIDER": "together"}))
    assert "TOGETHER_API_KEY is not set" in said
    assert "TOGETHER_API_KEY is not set" in failure(reasoning("serve", "--provider", "together", "--data", data))


def test_a_guard_that_cannot_reach_the_provider_says_so_and_fails(data: Path):
    finished = reasoning("guard", "--data", data, "--json", env={"REASONING_PROVIDER_URL": "http://127.0.0.1:9"})
    assert finished.returncode == 1
    assert json.loads(finished.stdout)["errors"][0] == "the provider cannot be reached"


def test_models_and_datasets_and_flows_that_do_not_exist(data: Path):
    up = {"REASONING_PROVIDER_URL": "http://127.0.0.1:9"}
    assert "there is no model 'm1'" in failure(reasoning("models", "status", "m1", "--data", data, env=up))
    assert "`reasoning models jobs` lists them" in failure(reasoning("models", "cancel", "j1", "--data", data, env=up))
    assert "there is no dataset 'd1'" in failure(reasoning("fine-tune", "d1", "--data", data, env=up))
    assert "did you mean land_decisions?" in failure(reasoning("flow", "run", "land-decision", "--data", data))
    wrong = reasoning("flow", "run", "land_decisions", "--param", "speed=9", "--data", data)
    assert wrong.returncode == 2
    assert "land_decisions takes data, now, if_busy" in " ".join(wrong.stderr.replace("│", " ").split())
    wrong = reasoning("flow", "run", "land_decisions", "--param", "if_busy=maybe", "--data", data)
    assert wrong.returncode == 2
    assert "if_busy: Input should be 'wait' or 'skip'" in wrong.stderr and "ERROR" not in wrong.stderr


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path):
    """The file size limit of the process stands for the disk: writing past either fails in the same place."""
    data = tmp_path / "data"
    decisions = write_log(data, episodes=40, turns=4)

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))

    command = [sys.executable, "-m", "cli.main", "land", "--data", str(data)]
    failure(subprocess.run(command, env=ENV, capture_output=True, text=True, check=False, preexec_fn=small_disk))
    assert len(list((data / "spool").glob("*.seal"))) == 1
    assert json.loads(reasoning("land", "--data", data, "--json").stdout)["decisions"] == decisions


def test_a_broken_pipe_is_no_error(data: Path):
    command = f"{sys.executable} -m cli.main sql 'FROM range(100000)' --data {data} --json | head -1"
    finished = subprocess.run(command, shell=True, env=ENV, capture_output=True, text=True, check=False)
    assert (finished.stdout, finished.stderr) == ("[\n", "")


def test_debug_shows_where_an_error_comes_from(tmp_path: Path):
    with pytest.raises(DataFolderError):
        reasoning("--debug", "land", "--data", tmp_path / "no")
