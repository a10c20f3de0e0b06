"""The commands on volumes, backups and retention, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from storage import volumes
from storage.log.land import land_decisions
from storage.volumes import Mount
from tests.cli.test_commands import reasoning
from tests.storage.logs import make_days, write_segment


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    write_segment(folder, make_days(1, 3))
    land_decisions(folder)
    return folder


def test_expire_without_a_setting_says_so_and_deletes_nothing(data: Path, tmp_path: Path) -> None:
    run = reasoning("expire", "--data", data)
    assert run.returncode == 0 and "no retention is configured, so nothing is deleted" in run.stderr
    report = json.loads(reasoning("expire", "--data", data, "--json").stdout)
    assert report["configured"] is False and report["partitions"] == 0
    toml = tmp_path / "reasoning.toml"
    toml.write_text("[retention]\ndecisions = 30\n")
    run = reasoning("expire", "--data", data, "--dry-run", env={"REASONING_CONFIG": str(toml)})
    assert run.returncode == 0 and "Would expire" in run.stdout and run.stderr == ""
    assert reasoning("expire", "--data", data, "--retention-days", "100000").returncode == 0
    assert "30" in reasoning("config", "--data", data, env={"REASONING_CONFIG": str(toml)}).stdout


def test_a_backup_its_check_and_the_way_back(data: Path, tmp_path: Path) -> None:
    target, new = tmp_path / "target", tmp_path / "new"
    made = json.loads(reasoning("backup", target, "--data", data, "--json").stdout)
    assert made["files"] >= 1 and Path(made["path"]).parent == target
    assert reasoning("backup", target, "--data", data, "--keep", "1").returncode == 0
    run = reasoning("verify", target)
    assert run.returncode == 0, run.stdout
    run = reasoning("restore", target, "--data", new)
    assert run.returncode == 0 and "reasoning reconcile" in run.stderr
    assert "3" in reasoning("sql", "SELECT count(*) FROM decisions", "--data", new).stdout
    run = reasoning("restore", target, "--data", new)
    assert run.returncode == 1 and "is not empty" in run.stderr
    (parquet,) = target.rglob("*.parquet")
    parquet.write_bytes(b"")
    run = reasoning("verify", target)
    assert run.returncode == 1 and "its size is 0" in run.stdout
    assert reasoning("verify", tmp_path / "nothing").returncode == 1


def test_a_volume_of_unknown_locks_is_refused_with_the_remedy(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "_find_mount", lambda *_: Mount("/mnt/bucket", "fuse.s3fs", frozenset()))
    run = reasoning("land", "--data", data)
    assert run.returncode == 1 and "REASONING_VOLUME=single-host" in run.stderr
    assert reasoning("land", "--data", data, env={"REASONING_VOLUME": "single-host"}).returncode == 0
