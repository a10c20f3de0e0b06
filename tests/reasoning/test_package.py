"""What an agent installs, and what it costs to import."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from reasoning.io.segments import read_segment
from tests.test_layers import MAY_IMPORT

CHECKOUT = Path(__file__).parents[2]
# Of what the project uses elsewhere, nothing may come along; asyncio and httpcore2 only when they are needed.
HEAVY = (
    "asyncio",
    "httpcore2",
    "prefect",
    "together",
    "pandas",
    "pyarrow",
    "duckdb",
    "sklearn",
    "numpy",
    "yaml",
    "re2",
    "phonenumbers",
)


def run(*argv: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *argv], cwd=cwd, env=os.environ | env, capture_output=True, text=True)


def test_the_wheel_holds_the_client_alone(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(CHECKOUT / name, tmp_path)
    for room in MAY_IMPORT:
        shutil.copytree(CHECKOUT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    built = run("-m", "hatchling", "build", "-t", "wheel", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
        assert {top for top in tops if not top.endswith(".dist-info")} == {"reasoning"}
        assert "reasoning/py.typed" in archive.namelist()
        assert "reasoning/redaction/prompts.py" in archive.namelist()
        archive.extractall(tmp_path / "site")
    # Installed like this there is no checkout beside it: the command says so.
    told = run("-c", "from reasoning.__main__ import main; main()", cwd=tmp_path / "site", PYTHONPATH="")
    assert told.returncode == 1 and "runs from a checkout" in told.stderr and "Traceback" not in told.stderr
    # And the agent works.
    code = "import reasoning; c = reasoning.DecisionClient(); print(reasoning.__file__); c.close()"
    worked = run("-c", code, cwd=tmp_path / "site", PYTHONPATH="")
    assert worked.returncode == 0 and str(tmp_path / "site") in worked.stdout


def test_the_documented_module_of_0_2_still_works_with_a_warning() -> None:
    import reasoning.routes as former
    from reasoning.serving import routes

    with pytest.warns(DeprecationWarning, match=r"import it from reasoning\.serving\.routes"):
        assert former.MAX_LEASE == routes.MAX_LEASE
    with pytest.raises(AttributeError):
        _ = former.no_such_name


def test_without_the_extra_the_wheel_asks_no_model(tmp_path: Path) -> None:
    """Nothing listens on the route's port: the answer comes at once, since nobody is asked."""
    code = """
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
for name in ("re2", "phonenumbers", "mnemonic", "stdnum"):
    sys.modules[name] = None
from reasoning import DecisionClient
from reasoning.serving.routes import Arm, Route, Routes, write_routes
now = datetime.now(UTC)
arm = Arm("custom", "custom", 1.0, model="m", base_url="http://127.0.0.1:9")
Path("data").mkdir()
write_routes(Path("data/routes.json"), Routes(now, now + timedelta(minutes=5), {"should_respond": Route((arm,))}))
with DecisionClient("data") as client:
    context = {"agent_name": "B", "messages": [{"speaker": "A", "text": "x"}]}
    answer = client.decide_should_respond(context, lambda _: "STOP")
    print(answer.source, answer.fallback_reason, client.stats()["redaction"])
"""
    done = run("-c", code, cwd=tmp_path, PYTHONPATH=str(CHECKOUT))
    assert done.stdout == "original disabled {'not installed': 1}\n", done.stderr
    assert "pip install 'custom-reasoning[redact]'" in done.stderr


def test_beside_a_checkout_the_command_runs_its_cli(tmp_path: Path) -> None:
    shutil.copytree(CHECKOUT / "reasoning", tmp_path / "reasoning", ignore=shutil.ignore_patterns("__pycache__"))
    users = tmp_path / "user"  # who has a package `cli` as well
    for folder, text in ((tmp_path, "the command"), (users, "the user's")):
        (folder / "cli").mkdir(parents=True)
        (folder / "cli" / "__init__.py").touch()
        (folder / "cli" / "__main__.py").write_text(f'print("{text}")\n')
    done = run("-m", "reasoning", cwd=users, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "the command\n")


def test_importing_it_brings_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; before = set(sys.modules); from reasoning import DecisionClient, decision; c = DecisionClient();"
        "c.decide_should_respond({'agent_name': 'B', 'messages': [{'speaker': 'A', 'text': 'x'}]}, lambda _: 'STOP');"
        f"print([m for m in {HEAVY!r} if m in set(sys.modules) - before]); c.close()"
    )
    done = run("-c", code, cwd=tmp_path, PYTHONPATH=str(CHECKOUT))
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_the_examples_run_without_any_configuration(tmp_path: Path) -> None:
    for name, lines in (("sync_agent.py", 3), ("async_agent.py", 3)):
        (tmp_path / name).mkdir()
        done = run(str(CHECKOUT / "examples" / name), cwd=tmp_path / name, PYTHONPATH=str(CHECKOUT))
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == lines and "RESPOND" in done.stdout
        (segment,) = (tmp_path / name / "reasoning-data" / "spool").glob("*.seal")
        assert len(list(read_segment(segment).lines)) >= 3


def test_a_process_that_never_closes_seals_at_its_end(tmp_path: Path) -> None:
    code = "from reasoning import DecisionClient as C\nc = C()\nc.feedback('m', 1, episode_id='e')"
    assert run("-c", code, cwd=tmp_path, PYTHONPATH=str(CHECKOUT)).returncode == 0
    assert [path.suffix for path in (tmp_path / "reasoning-data" / "spool").iterdir()] == [".seal"]
