"""What `reasoning serve` refuses. That it serves is in tests/demo/test_demo.py, on the folder that is there by then."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cli.errors import ServeError
from cli.serve import environment, only_one
from tests.cli.serving import COMMAND, processes_of


def test_a_port_in_use_is_named_with_the_mend_before_anything_starts(tmp_path: Path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        command = [*COMMAND, "--data", str(tmp_path / "data"), "--gateway-port", str(port)]
        failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"error: port {port} of 127.0.0.1, which the gateway needs, cannot be had")
    assert "--gateway-port PORT" in failed.stderr
    assert processes_of(tmp_path / "data") == []


def test_a_file_is_no_data_folder(tmp_path: Path):
    (tmp_path / "data").touch()
    with pytest.raises(ServeError, match=r"data is not a folder.*--data FOLDER"), only_one(tmp_path / "data"):
        pass


def test_children_get_absolute_paths_as_a_run_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reasoning.toml").touch()
    for given, expected in (
        ("sqlite:///my/ledger.sqlite", f"sqlite:///{tmp_path}/my/ledger.sqlite"),
        ("sqlite:////srv/ledger.sqlite", "sqlite:////srv/ledger.sqlite"),
        ("postgresql://me@host/ledger", "postgresql://me@host/ledger"),
    ):
        monkeypatch.setenv("REASONING_LEDGER_URL", given)
        env = environment(tmp_path, provider="local", prefect="http://127.0.0.1:1", emulator=None, scratch=tmp_path)
        assert env["REASONING_LEDGER_URL"] == expected
        assert env["REASONING_CONFIG"] == f"{tmp_path}/reasoning.toml"
