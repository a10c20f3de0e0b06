"""One progress event: its share, its words, and parts of a whole; the terminal and Prefect show it."""

from __future__ import annotations

import ast
import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.output import progress_bar
from storage.progress import Progress, part_of, share_done
from tasks.progress import RunProgress

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("event", "fraction", "message"),
    [
        (Progress(5, 10, "bytes"), 0.5, ""),
        (Progress(1_000, 4_000, "rows", what="prepare"), 0.25, "prepare: 1,000 of 4,000 rows"),
        (Progress(0, 0, "files"), 0.0, "0 of 0 files"),
        (Progress(3, 2, "bytes"), 1.0, ""),
        (Progress(-1, 2, "bytes"), 0.0, ""),
        (share_done(0.3, "uploading"), 0.3, "uploading"),
    ],
)
def test_the_share_and_the_words(event: Progress, fraction: float, message: str):
    assert (event.fraction, event.message) == (fraction, message)


def test_parts_add_up_to_the_whole():
    seen: list[Progress] = []
    for number, source in enumerate(["candidate", "incumbent"]):
        report = part_of(seen.append, number, 2, source)
        assert report is not None
        report(Progress(1, 2, "answers"))
        report(Progress(2, 2, "answers"))
    assert [event.fraction for event in seen] == [0.25, 0.5, 0.75, 1.0]
    assert seen[0].message == "candidate: 1 of 2 answers"
    assert part_of(None, 0, 2, "x") is None


def test_the_run_writes_it_to_its_log_and_artifact(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    made: list[Any] = []
    monkeypatch.setattr("prefect.artifacts.create_progress_artifact", lambda percent, **_: made.append(percent))
    run = RunProgress("export-progress", "Exporting", logging.getLogger("run"))
    with caplog.at_level(logging.INFO, "run"):
        run(Progress(1, 4, "rows", what="prepare"))
    assert made == [25.0]
    assert caplog.messages == ["Exporting: 25 % prepare: 1 of 4 rows"]


def test_the_terminal_shows_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with progress_bar("exporting") as progress:
        progress(Progress(1, 4, "rows", what="prepare"))
    assert "exporting: prepare: 1 of 4 rows" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)


def test_progress_has_one_home():
    """No package above the wheel defines a progress callback of its own; the learners import none of ours."""
    homes = {
        path.relative_to(ROOT).as_posix()
        for package in ("storage", "quality", "provider", "pipeline", "tasks", "flows", "cli")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ClassDef) and node.name == "Progress")
        or (isinstance(node, ast.Assign) and any(getattr(each, "id", "") == "Progress" for each in node.targets))
    }
    assert homes == {"storage/progress.py"}
