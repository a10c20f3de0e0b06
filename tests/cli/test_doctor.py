"""`reasoning doctor`, `status`: every fault is caused for real, and named with what to do about it."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import cli.doctor
import cli.serve
from reasoning.serving.routes import Routes, write_routes
from storage.log.land import land_decisions
from tests.cli.test_commands import reasoning
from tests.tasks.rooms import write_log

KEY = "sk-ant-" + "a1B2" * 8


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    write_log(folder, episodes=2, turns=2, until=datetime.now(UTC))
    land_decisions(folder)
    return folder


Found = dict[str, list[tuple[str, str, str]]]


def findings(*arguments: Any, env: dict[str, str] | None = None, code: int = 0) -> Found:
    """(level, text, remedy) by name, of `doctor --offline` unless told otherwise."""
    finished = reasoning("doctor", "--json", *(arguments or ("--offline",)), env=env)
    assert finished.returncode == code, finished.stderr + finished.stdout
    found: Found = {}
    for each in json.loads(finished.stdout):
        found.setdefault(each["name"], []).append((each["level"], each["text"], each["remedy"]))
    return found


def test_a_sound_folder_has_no_failure_and_says_what_is_needed(data: Path) -> None:
    found = findings("--offline", "--data", data)
    assert found["decisions"][0][:2] == (
        "warn",
        "should_respond: 4 questions, 4 of 200 labelled, 2 of 10 episodes: Insufficient",
    )
    assert "Label at least 46 more" in found["decisions"][0][2]
    assert found["cycle"] == [("ok", "should_respond: not due: 4 of 200 new labelled decisions", "")]
    assert found["agents"][0][1].startswith("robin: 4 answers")
    assert found["data folder"] == [("ok", f"{data} (by --data)", "")]
    assert {"disk", "versions", "gpu", "budget", "routes", "models", "landing", "ports"} <= set(found)
    status = reasoning("status", "--data", data).stdout
    assert "ok    cycle" in status and "GiB" not in status


def test_which_file_was_read_and_whether_the_folder_depends_on_where_one_stands(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data.rename(tmp_path / "reasoning-data")
    found = findings()
    assert found["settings"][0][0] == found["data folder"][0][0] == "warn"
    assert f"REASONING_DATA={tmp_path / 'reasoning-data'}" in found["data folder"][0][2]
    Path("reasoning.toml").write_text('data = "reasoning-data"\n[keys]\nMY_KEY = "https://gpu.example"\n')
    found = findings()
    assert found["settings"] == [("ok", f"read {tmp_path / 'reasoning.toml'}", "")]
    assert found["data folder"] == [("ok", f"{tmp_path / 'reasoning-data'} (by reasoning.toml)", "")]
    assert found["keys"] == [("warn", "MY_KEY is not set ([keys])", "set it to the key of https://gpu.example")]


def test_an_empty_folder_says_that_agents_write_elsewhere(tmp_path: Path) -> None:
    (level, text, remedy), *_ = findings("--offline", "--data", tmp_path)["agents"]
    assert (level, text) == ("warn", "no decision is in this folder yet") and f"REASONING_DATA={tmp_path}" in remedy


def test_what_nobody_lands_a_quarantine_a_lease_and_rights_are_told(data: Path) -> None:
    write_log(data, episodes=1, turns=1, seed=1)
    (sealed,) = data.glob("spool/*.seal")
    os.utime(sealed, (time.time() - 10_000,) * 2)
    (data / "quarantine").mkdir(exist_ok=True)
    (data / "quarantine" / "x.jsonl").write_text("{}\n")
    past = datetime.now(UTC) - timedelta(hours=3)
    routes = {"issued_at": past, "expires_at": past + timedelta(minutes=3)}
    write_routes(data / "routes.json", Routes(**routes))
    data.chmod(0o755)
    found = findings("--offline", "--data", data)
    assert found["landing"][0][0] == found["quarantine"][0][0] == found["rights"][0][0] == "warn"
    assert "`reasoning land`" in found["landing"][0][2]
    (data / "routes.json").write_text("{")
    assert findings("--offline", "--data", data, code=1)["routes"][0][0] == "fail"


def test_a_clock_ahead_is_told(tmp_path: Path) -> None:
    write_log(tmp_path, episodes=1, turns=1, until=datetime.now(UTC) + timedelta(hours=1))
    assert "ahead of this machine's" in findings("--offline", "--data", tmp_path)["clock"][0][1]


def test_a_damaged_file_is_a_failure_that_hides_nothing_else(data: Path) -> None:
    (file,) = data.glob("decisions/*/*/*.parquet")
    content = bytearray(file.read_bytes())
    file.write_bytes(content[: len(content) // 2])
    found = findings("--offline", "--data", data, code=1)
    assert found["agents"][0][0] == "fail" and file.name in found["agents"][0][1]
    assert found["disk"][0][0] in ("ok", "warn") and found["budget"][0][0] == "ok"


def test_a_provider_that_is_down_or_without_key_is_a_failure(data: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        upstreams = {"REASONING_ANTHROPIC_URL": url, "REASONING_OPENAI_URL": url}
        emulator = {"REASONING_PROVIDER": "emulator", "REASONING_PROVIDER_URL": url}
        found = findings("--data", data, env=upstreams | emulator, code=1)
    assert found["provider"][0][0] == "fail" and url in found["provider"][0][1]
    assert any(level == "warn" and f"{url} cannot be reached" in text for level, text, _ in found["upstream"])
    found = findings("--data", data, env=upstreams | {"REASONING_PROVIDER": "together"}, code=1)
    assert "TOGETHER_API_KEY is not set" in found["provider"][0][1]


@contextmanager
def server(status: int) -> Iterator[str]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.headers.get("authorization") is None and self.headers.get("x-api-key") is None
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


def test_an_upstream_answers_whatever_its_status_and_no_key_is_shown_or_sent(data: Path) -> None:
    with server(404) as url:
        env = {"REASONING_ANTHROPIC_URL": url, "REASONING_OPENAI_URL": url, "ANTHROPIC_API_KEY": KEY}
        finished = reasoning("doctor", "--data", data, env=env)
    assert f"{url} answers" in finished.stdout and "local answers" in finished.stdout
    assert KEY not in finished.stdout + finished.stderr
    assert re.search(r"\d+ ok, \d+ warn, 0 fail", finished.stdout)
    found = findings("--offline", "--data", data, env={"ANTHROPIC_API_KEY": KEY})["upstream"]
    assert {each[0] for each in found} == {"ok"} and found[0][1] == "anthropic: has its credential"
    found = findings("--offline", "--data", data)["upstream"]
    assert {each[0] for each in found} == {"warn"} and "ANTHROPIC_API_KEY" in found[0][2]


def test_a_port_that_is_taken_and_a_service_that_does_not_answer(data: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with patch.object(cli.serve, "GATEWAY_PORT", port):
            found = findings("--offline", "--data", data)["ports"]
        assert any(level == "warn" and f"port {port}" in text for level, text, _ in found)
    with patch.object(cli.serve, "served", lambda _: {"gateway": f"http://127.0.0.1:{port}"}):
        found = {each.level for each in cli.doctor.look_at_services(data)}
    assert found == {"fail", "warn"}
