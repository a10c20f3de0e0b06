"""Uploads: what is refused, what is kept, and that nothing is half kept."""

from __future__ import annotations

import hashlib
import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from emulator.api.datasets import check_dataset
from tests.emulator.conftest import Server, write_lines

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "hello"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"messages": [', "line 2 is not JSON"),
        ("[1]", "line 2 is not a JSON object"),
        ("", "line 2 is not JSON"),
        ('{"rows": 1}', "none of the keys"),
        ('{"text": "words"}', "one format per file"),
        (json.dumps({"messages": [USER, ASSISTANT], "metadata": {}}), "extra keys: metadata"),
        (json.dumps({"messages": [USER, ASSISTANT | {"mood": 1}]}), "message 2 has extra keys: mood"),
        (json.dumps({"messages": [USER]}), "no assistant message"),
        (json.dumps({"messages": [USER, ASSISTANT, ASSISTANT]}), "message 3 repeats the role assistant"),
        (json.dumps({"messages": [{"content": "hi"}, ASSISTANT]}), "message 1 has no role"),
        (json.dumps({"messages": [USER, ASSISTANT | {"weight": 2}]}), "weight other than 0 and 1"),
        (json.dumps({"messages": [USER, ASSISTANT], "weight": float("nan")}), "weight that is no number"),
        (json.dumps({"messages": [USER, {"role": "assistant"}]}), "message 2 has no text"),
        (json.dumps({"messages": [USER, {"role": "system", "content": "x"}, ASSISTANT]}), "not the first"),
    ],
)
def test_a_bad_line_refuses_the_dataset_and_names_itself(tmp_path: Path, line: str, reason: str) -> None:
    path = write_lines(tmp_path / "d.jsonl", {"messages": [USER, ASSISTANT]})
    path.write_text(path.read_text() + line + "\n")
    report = check_dataset(path)
    assert not report.validation["valid"]
    assert reason in report.validation["error"]
    assert report.validation["error_type"] == "INVALID_FORMAT"


@pytest.mark.parametrize(("data", "reason"), [(b"", "empty"), (b"\xef\xbb\xbf{}", "byte order"), (b"\xff\n", "UTF-8")])
def test_bytes_that_are_no_text_refuse_the_dataset(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(data)
    assert reason in check_dataset(path).validation["error"]


def test_tokens_are_words_and_marks_and_the_template(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", {"messages": [USER, {"role": "assistant", "content": "Hello, you!"}]})
    assert check_dataset(path).tokens == (4 + 1) + (4 + 4)


def test_invalid_dataset_is_told_and_cannot_be_trained_on(server: Server, tmp_path: Path) -> None:
    id = server.upload(write_lines(tmp_path / "bad.jsonl", {"messages": [USER]}))
    file = server.get(f"/v1/files/{id}")
    assert file["processing_status"] == "INVALID_FORMAT"
    assert file["validation_report"]["error"] == "line 1 has no assistant message to learn from"
    refused = server.http.post("/v1/fine-tunes", json={"model": "Qwen/Qwen3.5-9B", "training_file": id})
    assert refused.status_code == 400
    assert "no assistant message" in refused.json()["error"]["message"]


def test_unfinished_upload_cannot_be_trained_on(server: Server) -> None:
    announced = server.http.post("/v1/files", files={"file_name": (None, "x.jsonl")})
    body = {"model": "Qwen/Qwen3.5-9B", "training_file": announced.headers["x-together-file-id"]}
    refused = server.http.post("/v1/fine-tunes", json=body)
    assert refused.status_code == 400
    assert "upload did not finish" in refused.json()["error"]["message"]
    estimate = server.post("/v1/fine-tunes/estimate-price", body)
    assert estimate == {"estimation_available": False, "unavailable_reason": "train_file_not_validated"}


def test_bytes_other_than_announced_are_refused_and_not_kept(server: Server) -> None:
    form = {"file_name": (None, "x.jsonl"), "checksum": (None, hashlib.sha256(b"other").hexdigest())}
    announced = server.http.post("/v1/files", files=form)
    refused = httpx.put(announced.headers["location"], content=b"these")
    assert refused.status_code == 400
    assert "sha256" in refused.json()["error"]["message"]
    id = announced.headers["x-together-file-id"]
    assert server.http.get(f"/v1/files/{id}/content").status_code == 404


def test_duplicate_names_the_file_that_is_there(server: Server, dataset: Path) -> None:
    id = server.upload(dataset)
    checksum = hashlib.sha256(dataset.read_bytes()).hexdigest()
    again = server.http.post("/v1/files", files={"file_name": (None, "y.jsonl"), "checksum": (None, checksum)})
    assert again.status_code == 409
    assert again.json()["file_id"] == id
    assert again.headers["x-should-retry"] == "false"


def test_upload_address_needs_its_token(server: Server) -> None:
    announced = server.http.post("/v1/files", files={"file_name": (None, "x.jsonl")})
    assert httpx.put(announced.headers["location"] + "x", content=b"{}").status_code == 403


def test_sdk_uploads_in_parts(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from together import Together
    from together.lib.resources import files

    # Its own thresholds would need a dataset of 5 GB.
    monkeypatch.setattr(files, "MULTIPART_THRESHOLD_GB", 0.001)
    monkeypatch.setattr(files, "TARGET_PART_SIZE_MB", 5)
    sample = {"messages": [USER | {"content": "x" * 100_000}, ASSISTANT]}
    path = write_lines(tmp_path / "large.jsonl", *([sample] * 110))
    client = Together(api_key="key", base_url=server.url, max_retries=0, _strict_response_validation=True)
    id = client.files.upload(file=path, purpose="fine-tune", check=False).id
    server.wait(lambda: client.files.retrieve(id).processing_status == "COMPLETED")
    assert client.files.content(id).read() == path.read_bytes()
    assert client.files.upload(file=path, purpose="fine-tune", check=False).id == id


def test_incomplete_parts_are_refused_and_abort_leaves_nothing(server: Server) -> None:
    order = {"file_name": "x.jsonl", "num_parts": 2, "file_size": 2}
    begun = server.post("/v1/files/multipart/initiate", order)
    etag = httpx.put(begun["parts"][0]["URL"], content=b"a").headers["etag"]
    name = {"upload_id": begun["upload_id"], "file_id": begun["file_id"]}
    parts = [{"part_number": 1, "etag": etag}]
    refused = server.http.post("/v1/files/multipart/complete", json=name | {"parts": parts})
    assert refused.status_code == 400
    assert "lacks the parts [2]" in refused.json()["error"]["message"]
    server.post("/v1/files/multipart/abort", name)
    assert server.http.get(f"/v1/files/{begun['file_id']}").status_code == 404


def test_full_disk_is_told_and_leaves_no_half_file(tmp_path: Path) -> None:
    data = tmp_path / "data"
    limit = 1_000_000

    def limit_file_size() -> None:
        # A file that may not grow is what a full disk is to the writer; the signal would end the process.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "emulator", "--data", str(data), "--port", "0", "--trainer", "majority"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=limit_file_size)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        key = {"Authorization": "Bearer key"}
        announced = httpx.post(f"{url}/v1/files", files={"file_name": (None, "x.jsonl")}, headers=key)
        refused = httpx.put(announced.headers["location"], content=b"x" * 3 * limit)
        assert refused.status_code == 507
        assert "no space left" in refused.json()["error"]["message"]
        assert list((data / "files").iterdir()) == []
        assert httpx.put(announced.headers["location"], content=b"{}").status_code == 200
    finally:
        process.terminate()
        process.wait(timeout=10)
