"""What our processes make in a data folder is for its owner alone, whatever the umask."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reasoning import DecisionClient
from storage.layout import Layout
from tests.storage.logs import make_days, make_feedback, write_segment

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def open_to_others(data: Path) -> list[str]:
    return [
        f"{stat.S_IMODE(path.stat().st_mode):o} {path}"
        for path in (data, *sorted(data.rglob("*")))
        if stat.S_IMODE(path.stat().st_mode) & 0o077
    ]


COMMANDS = """
import json, os, sys
from reasoning.__main__ import main
for arguments in json.loads(sys.argv[1]):
    os.umask(0)
    sys.argv = ["reasoning", *arguments]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""


def reasoning(data: Path, *commands: str) -> str:
    """Run the commands one after the other, in one process that imports once."""
    arguments = json.dumps([[*command.split(), "--data", str(data)] for command in commands])
    argv = [sys.executable, "-c", COMMANDS, arguments]
    run = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    return run.stderr


def test_commands_make_files_for_their_owner_alone(tmp_path: Path) -> None:
    data = tmp_path / "new" / "data"
    decisions = make_days(2, 4, subject_ids=["ann"])
    write_segment(data, [*decisions, make_feedback(decision_id=decisions[0].decision_id)])
    (data / "spool" / "bad.seal").write_bytes(b"garbage\n")
    (data / "spool" / "bad.seal").chmod(0o600)
    reasoning(data, "land")
    write_segment(data, make_days(2, 4))
    backup = f"backup {tmp_path / 'target'}"
    reasoning(
        data, "land", "compact", "costs set-budget 5", "check", backup, "erase ann --yes", "expire --retention-days 1"
    )
    assert open_to_others(data) == [] == open_to_others(tmp_path / "target")
    assert {"ledger.sqlite", "quarantine", "quality"} <= {path.name for path in data.iterdir()}


def test_the_library_as_well(tmp_path: Path) -> None:
    """Without our command, so without our umask: in a notebook, or in an agent."""
    from storage.erasure.erase import erase_subject
    from storage.ledger.ledger import open_ledger
    from storage.log.compact import compact_decisions
    from storage.log.land import land_decisions

    data = tmp_path / "deep" / "data"
    client = DecisionClient(data=data)
    client.decide_should_respond(
        {"agent_name": "Eve", "messages": [{"speaker": "ann", "text": "hi"}]}, lambda context: {"action": "IGNORE"}
    )
    client.close()
    land_decisions(data)
    for _ in range(2):
        write_segment(data, make_days(2, 4, subject_ids=["ann"]))
        land_decisions(data)
    with open_ledger(data) as ledger:
        ledger.set_budget("day", "5")
        assert open_to_others(data) == []  # the files beside an open database, too
    compact_decisions(data)
    erase_subject(data, "ann")
    assert open_to_others(data) == []
    assert os.umask(0) == 0, "the library changed the umask of an agent's process"


@pytest.mark.parametrize("server", ["gateway", "emulator"])
def test_the_servers(tmp_path: Path, server: str) -> None:
    data = tmp_path / "data"
    home = data / "emulator" if server == "emulator" else data
    argv = [sys.executable, "-m", server, "--data", str(home), "--port", "0"]
    with subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if "http://" in line:
                break
        child.terminate()
    assert list(home.iterdir()), "it made nothing"
    assert open_to_others(data) == []


def test_a_folder_that_others_may_enter_is_told_once_and_left_as_it_is(tmp_path: Path) -> None:
    data = tmp_path / "data"
    Layout(data).create()
    data.chmod(0o755)
    assert f"chmod -R go= {data}" in reasoning(data, "land")
    assert "chmod" not in reasoning(data, "land")
    assert stat.S_IMODE(data.stat().st_mode) == 0o755
