"""The process: starting, stopping, being killed, and keeping secrets."""

from __future__ import annotations

import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.emulator.conformance import write_dataset
from tests.emulator.conftest import Server, start


def run_emulator(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "emulator", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_port_in_use_is_one_clear_message(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_emulator("--data", str(tmp_path), "--port", str(port))
    assert done.returncode == 1
    assert done.stderr == f"emulator: port {port} on 127.0.0.1 is in use; give another --port, or 0 for a free one\n"
    assert done.stdout == ""


def test_data_folder_in_use_is_one_clear_message(server: Server, tmp_path: Path) -> None:
    for first in start(tmp_path, "--trainer", "majority"):
        done = run_emulator("--data", str(tmp_path), "--port", "0")
        assert done.returncode == 1
        assert done.stderr == f"emulator: another emulator uses the data folder {tmp_path}; give another --data\n"
        assert first.get("/emulator/healthz")["status"] == "ok"


def test_folder_that_is_not_ours_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "emulator.sqlite").write_text("a diary, not a database, of more than one hundred bytes " * 20)
    done = run_emulator("--data", str(tmp_path), "--port", "0")
    assert done.returncode == 1
    assert "is not a database of the emulator" in done.stderr
    assert "Traceback" not in done.stderr


def test_clock_that_is_no_time_is_one_clear_message(tmp_path: Path) -> None:
    done = run_emulator("--data", str(tmp_path), "--port", "0", "--clock", "noon")
    assert done.returncode == 1
    assert done.stderr == "emulator: 'noon' is not a time; write it as 2026-11-22T12:00:00Z\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    for server in start(tmp_path, "--trainer", "majority", "--clock", "2026-03-01T12:00:00Z"):
        assert server.get("/emulator/clock")["now"].startswith("2026-03-01T12:00:0")
        server.process.send_signal(number)
        assert server.process.wait(timeout=10) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ended_in_the_middle_of_a_training_it_begins_anew(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # trainings run in another folder: a relative --data must reach them, too
    data, options = Path("data"), ("--trainer", "majority", "--cold-start", "0")
    dataset = write_dataset(tmp_path / "dataset.jsonl")
    for server in start(data, *options):
        file_id = server.upload(dataset)
        endpoint, deployment = server.deploy("kept")
        server.fault("503", match="GET /v1/never")
        server.fault("training_slow", seconds=600)
        job_id = server.train(file_id, n_epochs=2)["id"]
        waiting_id = server.train(file_id)["id"]
        wait_for_first_epoch(server, job_id)
        workers = children(server.process.pid)
        assert len(workers) == 1
        server.process.send_signal(number)
        server.process.wait(timeout=10)
    Server.wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))

    # The order to be slow stays with the job; without it the second attempt would take as long as the first.
    forget_fault(data, job_id)
    for server in start(data, *options):
        job = server.finish(job_id)
        assert job["status"] == "completed"
        types = [event["type"] for event in job["events"]]
        assert types.count("job_restarted") == 1
        assert types.count("job_start") == 2
        assert types.count("job_complete") == 1
        assert len(server.get(f"/v1/fine-tunes/{job_id}/metrics")["metrics"]) == 2
        assert server.finish(waiting_id)["status"] == "completed"
        bill = server.get("/emulator/bill")["items"]
        assert sorted(item["resource_id"] for item in bill if item["kind"] == "fine_tune") == sorted(
            [job_id, waiting_id]
        )
        assert server.http.get(f"/v1/files/{file_id}/content").content == dataset.read_bytes()
        assert server.state(endpoint, deployment) == "READY"
        assert server.chat("local/kept").status_code == 200
        assert [fault["kind"] for fault in server.get("/emulator/faults")["faults"]] == ["503"]
        assert list((data / "jobs").iterdir()) == []


def wait_for_first_epoch(server: Server, job_id: str) -> None:
    server.wait(lambda: server.get(f"/v1/fine-tunes/{job_id}")["epochs_completed"] == 1)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def forget_fault(data: Path, job_id: str) -> None:
    from emulator.world.state import State

    state = State(data)
    state.update("fine_tunes", job_id, fault=None)
    state.close()


def test_stopped_clock_stands_over_a_restart(tmp_path: Path) -> None:
    for server in start(tmp_path, "--trainer", "majority"):
        server.post("/emulator/clock", {"now": "2026-03-01T12:00:00Z", "frozen": True})
    for server in start(tmp_path, "--trainer", "majority"):
        assert server.get("/emulator/clock") == {"now": "2026-03-01T12:00:00.000000Z", "frozen": True}


def test_keys_reach_no_log_and_no_disk(tmp_path: Path) -> None:
    data, log = tmp_path / "data", tmp_path / "log"
    command = [sys.executable, "-m", "emulator", "--data", str(data), "--port", "0", "--trainer", "majority"]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=output, text=True)
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            with httpx.Client(base_url=url, headers={"Authorization": "Bearer SECRET-1"}, timeout=20) as http:
                server = Server(process, url, http)
                file_id = server.upload(write_dataset(tmp_path / "dataset.jsonl"))
                server.finish(server.train(file_id, wandb_key="SECRET-2", hf_api_token="SECRET-3")["id"])
                assert server.chat("Qwen/Qwen3.5-9B").status_code == 200
                assert http.post("/v1/fine-tunes", content=b"{SECRET-4").status_code == 400
                assert http.get("/v1/nothing").status_code == 404
        finally:
            process.terminate()
            process.wait(timeout=10)
    assert "SECRET" not in log.read_text()
    for path in data.rglob("*"):
        assert not path.is_file() or b"SECRET" not in path.read_bytes(), path


@pytest.mark.parametrize("headers", [{"Authorization": ""}, {"Authorization": "Bearer"}, {"Authorization": "Basic x"}])
def test_missing_key_is_refused_in_the_first_apis_shape(server: Server, headers: dict[str, str]) -> None:
    for path in ("/v1/files", "/v2/supported-models", "/v3/whoami"):
        refused = server.http.get(path, headers=headers)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "missing_api_key"


@pytest.mark.parametrize(
    "path", ["/v1/fine-tunes", "/v1/chat/completions", "/v1/files/multipart/initiate", "/emulator/faults"]
)
@pytest.mark.parametrize("body", [b"{", b"[1, 2]", b"\xff", b'"text"'])
def test_bad_json_is_refused(server: Server, path: str, body: bytes) -> None:
    refused = server.http.post(path, content=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"]


def test_chunked_and_empty_bodies_are_read(server: Server) -> None:
    pieces = (piece for piece in (b'{"advance_', b'seconds": 0}'))
    assert server.http.post("/emulator/clock", content=pieces).status_code == 200
    assert server.http.post("/emulator/clock").status_code == 200


def test_full_disk_under_the_database_is_told_and_changes_nothing(tmp_path: Path) -> None:
    data, limit = tmp_path / "data", 400_000
    command = [sys.executable, "-m", "emulator", "--data", str(data), "--port", "0", "--trainer", "majority"]

    def limit_file_size() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=limit_file_size
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with httpx.Client(base_url=url, headers={"Authorization": "Bearer key"}, timeout=20) as http:
            order = {"kind": "503", "match": "GET /v1/never", "message": "x" * 50_000}
            kept = 0
            while (answer := http.post("/emulator/faults", json=order)).status_code == 200:
                kept += 1
            assert answer.status_code == 507, answer.text
            assert "free some space" in answer.json()["error"]["message"]
            assert len(http.get("/emulator/faults").json()["faults"]) == kept
    finally:
        process.terminate()
        process.wait(timeout=10)


def test_unknown_route_is_refused_in_the_shape_of_its_api(server: Server) -> None:
    assert "error" in server.http.get("/v1/nothing").json()
    assert server.http.get("/v2/nothing").json()["code"] == 5
    assert server.http.put("/v1/files").status_code == 405


def test_worker_ends_when_the_emulator_is_gone() -> None:
    command = [sys.executable, "-m", "emulator.world.worker"]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert worker.stdin is not None
    worker.stdin.close()
    assert worker.wait(timeout=20) != 0
    assert worker.stdout is not None
    worker.stdout.close()
