"""What `reasoning serve` refuses. That it serves is in tests/demo/test_demo.py, on the folder that is there by then."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cli import serve
from cli.errors import ServeError
from cli.serve import check_served, environment, only_one, served
from cli.stopping import last_provider
from reasoning.io import hosts
from storage import locks, volumes
from storage.errors import DataFolderBusy, DataFolderError
from storage.ledger.ledger import open_ledger
from tests.cli.serving import COMMAND, processes_of


def test_a_port_in_use_is_named_with_the_mend_before_anything_starts(tmp_path: Path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        command = [*COMMAND, "--data", str(tmp_path / "data"), "--gateway-port", str(port)]
        failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"error: port {port} of 127.0.0.1, which the gateway needs, is not available")
    assert "--gateway-port PORT" in failed.stderr
    assert processes_of(tmp_path / "data") == []


def test_a_file_is_no_data_folder(tmp_path: Path):
    (tmp_path / "data").touch()
    with pytest.raises(ServeError, match=r"data is not a folder.*--data FOLDER"), only_one(tmp_path / "data"):
        pass


class TestHostsThatShareAFolder:
    def claim(self, data: Path, **changes: Any) -> None:
        claim = {"verb": "serve", "pid": 7, "host": "elsewhere", "tag": "f" * 16, "nonce": "n", "beat": 0}
        (data / ".serve.lock").write_text(json.dumps(claim | changes))

    def test_a_second_one_is_refused_while_the_other_host_gives_signs_of_life(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        """Before: two hosts that do not see each other's `flock` served one folder, and guarded one ledger."""
        now = [1000.0]
        monkeypatch.setattr(hosts, "steady", lambda: now[0])
        for beat in range(3):
            self.claim(tmp_path, beat=beat)
            with pytest.raises(ServeError, match=r"served already.* on host elsewhere"), only_one(tmp_path):
                pass
            now[0] += hosts.GRACE - 1
        now[0] += 2
        with only_one(tmp_path) as lock:
            check_served(lock)
            assert json.loads((tmp_path / ".serve.lock").read_text())["host"] == hosts.host_name()

    def test_one_that_slept_while_another_host_took_over_ends(self, tmp_path: Path):
        with only_one(tmp_path) as lock:
            check_served(lock)
            self.claim(tmp_path)
            lock.beat()
            with pytest.raises(ServeError, match=r"suspended.* on host elsewhere"):
                check_served(lock)
        assert json.loads((tmp_path / ".serve.lock").read_text())["host"] == "elsewhere"

    def test_on_a_volume_of_unknown_locks_it_is_refused_unless_told_otherwise(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(volumes, "_find_mount", lambda *_: volumes.Mount("/mnt/b", "fuse.s3fs", frozenset()))
        monkeypatch.setattr(locks, "SETTLE", 0.0)
        wanted = pytest.raises(DataFolderError, match=r"serve was not begun.*REASONING_VOLUME=single-host")
        with wanted, only_one(tmp_path):
            pass
        monkeypatch.setenv("REASONING_VOLUME", "single-host")
        with only_one(tmp_path):
            pass
        # Nor does another command spend beside it on another host.
        self.claim(tmp_path)
        with pytest.raises(DataFolderBusy, match="opening the ledger was not begun"):
            open_ledger(tmp_path)

    def test_its_addresses_are_told_on_its_own_host_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """127.0.0.1 of another host, or container, is another server: Prefect's password is not for it."""
        with only_one(tmp_path) as lock:
            lock.tell(prefect="http://127.0.0.1:4200", network=serve._network(tmp_path))
            assert served(tmp_path)["prefect"] == "http://127.0.0.1:4200"
            lock.tell(provider="together")
            monkeypatch.setattr(serve, "_network", lambda data: "another")
            assert served(tmp_path) == {}
        monkeypatch.undo()
        assert served(tmp_path) == {}
        assert last_provider(tmp_path) == "together"  # what `reasoning stop` goes by when it has ended
        with only_one(tmp_path):
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
