"""Evaluations and cycles in the ledger, and how they got there from the files of older versions."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import storage.ledger.ledger
from storage.backup import back_up, restore_backup
from storage.errors import LedgerError
from storage.ledger import schema
from storage.ledger.ledger import open_ledger
from storage.ledger.lives import (
    CycleOutcome,
    CycleRow,
    evaluated_models,
    last_evaluation,
    read_cycle,
    read_evaluation,
    save_cycle,
    save_evaluation,
)
from tests.postgres import fresh_database, run_postgres
from tests.storage.old_ledgers import forget_migrations

VERDICT = {"decision": "promote", "why": "better"}
OLD_CYCLE = {
    "decision_type": "planning",
    "outcome": "canary",
    "why": "better",
    "started_at": "2026-11-20T12:00:00+00:00",
    "finished_at": "2026-11-20T13:00:00+00:00",
    "dataset_id": "20261120-abc",
    "job_id": "j1",
    "model_id": "m1",
    "deployment_id": "d1",
    "evaluation_id": "e2",
}


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with run_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def old_data(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder of the version before, whose ledger has no such tables."""
    monkeypatch.delenv("REASONING_LEDGER_URL", raising=False)
    data = tmp_path / "data"
    if request.param == "sqlite":
        yield _make_old(data)
        return
    with fresh_database(request.getfixturevalue("postgres_url")) as url:
        monkeypatch.setenv("REASONING_LEDGER_URL", url)
        yield _make_old(data)


def _make_old(data: Path) -> Path:
    with open_ledger(data) as ledger, ledger.transaction() as connection:
        forget_migrations(connection)
    (data / "evaluations").mkdir(parents=True)
    for number, model_id in (("e1", "m1"), ("e2", "m1"), ("e3", "m2")):
        content: dict[str, Any] = {
            "evaluation_id": number,
            "decision_type": "planning",
            "rows": 7,
            "about": {"model_id": model_id, "verdict": VERDICT},
        }
        (data / "evaluations" / f"{number}.json").write_text(json.dumps(content))
    (data / "evaluations" / "torn.json").write_text("{")
    (data / "evaluations" / "other.json").write_text("[]")
    for name, cycle in (("planning", OLD_CYCLE), ("coding", {"decision_type": "coding", "outcome": "no such"})):
        folder = data / "datasets" / name
        folder.mkdir(parents=True)
        (folder / "turn.json").write_text(json.dumps(cycle))
    return data


def check_taken_in(data: Path) -> None:
    with open_ledger(data) as ledger:
        assert evaluated_models(ledger) == {"m1", "m2"}
        newest = last_evaluation(ledger, "m1")
        assert newest is not None and newest.id == "e2"
        assert newest.content == json.loads((data / "evaluations" / "e2.json").read_text())
        cycle = read_cycle(ledger, "planning")
        assert cycle == CycleRow(**{**OLD_CYCLE, "outcome": CycleOutcome.CANARY})
        assert read_cycle(ledger, "coding") is None


def test_files_of_the_version_before_are_taken_in_once_and_stay(old_data: Path) -> None:
    check_taken_in(old_data)
    with open_ledger(old_data) as ledger:
        save_cycle(ledger, CycleRow(decision_type="planning", outcome=CycleOutcome.PROMOTED))
    with open_ledger(old_data) as ledger:
        cycle = read_cycle(ledger, "planning")
    assert cycle is not None and cycle.outcome == CycleOutcome.PROMOTED
    assert json.loads((old_data / "datasets" / "planning" / "turn.json").read_text()) == OLD_CYCLE


def _open_and_die(data: Path, take_in: Callable[..., None]) -> None:
    def die(*args: Any, **options: Any) -> None:
        take_in(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    storage.ledger.ledger.take_in_files = die
    open_ledger(data)


def test_a_process_killed_while_it_takes_files_in_leaves_the_ledger_as_it_was(old_data: Path) -> None:
    take_in = storage.ledger.ledger.take_in_files
    process = multiprocessing.get_context("fork").Process(target=_open_and_die, args=(old_data, take_in))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    check_taken_in(old_data)


def test_a_backup_has_evaluations_and_cycles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REASONING_LEDGER_URL", raising=False)
    data, cycle = tmp_path / "data", CycleRow(decision_type="planning", outcome=CycleOutcome.UNDER_WAY, job_id="j1")
    with open_ledger(data) as ledger:
        save_cycle(ledger, cycle)
        save_evaluation(ledger, {"evaluation_id": "e1", "about": {"model_id": "m1"}})
    backup = back_up(data, tmp_path / "backups")
    restore_backup(Path(backup.path), tmp_path / "restored")
    with open_ledger(tmp_path / "restored") as ledger:
        assert read_cycle(ledger, "planning") == cycle
        assert read_evaluation(ledger, "e1") is not None


@pytest.mark.parametrize("outcome", ["asleep", "not_due"])  # the second is told to people, and never kept
def test_an_unknown_outcome_names_its_cycle(tmp_path: Path, outcome: str) -> None:
    with open_ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}") as ledger:
        save_cycle(ledger, CycleRow(decision_type="planning", outcome=CycleOutcome.FAILED))
        with ledger.transaction() as connection:
            connection.execute(sa.update(schema.cycles).values(outcome=outcome))
        with pytest.raises(LedgerError, match=f"unknown outcome in the ledger: '{outcome}' of the cycle of planning"):
            read_cycle(ledger, "planning")
        with pytest.raises(ValueError, match="not_due"):
            save_cycle(ledger, CycleRow(decision_type="planning", outcome=CycleOutcome.NOT_DUE))
