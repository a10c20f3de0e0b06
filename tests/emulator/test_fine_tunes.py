"""Jobs: their states, their prices, and what is refused before anything is spent."""

from __future__ import annotations

import io
import tarfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from emulator.api.datasets import check_dataset
from tests.emulator.conformance import write_dataset
from tests.emulator.conftest import Server, write_lines


@pytest.fixture(scope="module")
def file_id(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    return server.upload(write_dataset(tmp_path_factory.mktemp("dataset") / "dataset.jsonl"))


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ({"model": "Qwen/none"}, 404, "not available for fine-tuning"),
        ({"model": None}, 400, "model is required"),
        ({"training_file": "file-none"}, 404, "file-none not found"),
        ({"training_file": None}, 400, "training_file is required"),
        ({"suffix": "x" * 41}, 400, "at most 40"),
        ({"n_epochs": 0}, 400, "n_epochs 0"),
        ({"n_epochs": "many"}, 400, "n_epochs 'many'"),
        ({"n_evals": 1}, 400, "validation_file"),
        ({"training_type": {"type": "Lora", "lora_r": 1000}}, 400, "lora_r 1000"),
        ({"training_type": {"type": "None"}}, 400, "neither Lora nor Full"),
        ({"model": "deepseek-ai/DeepSeek-V3.1", "training_type": {"type": "Full"}}, 400, "LoRA training only"),
        ({"training_method": {"method": "dpo"}}, 400, "sft only"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    server: Server, file_id: str, change: dict[str, Any], status: int, reason: str
) -> None:
    before = len(server.get("/v1/fine-tunes")["data"])
    body = {"model": "Qwen/Qwen3.5-9B", "training_file": file_id, "n_epochs": 1} | change
    refused = server.http.post("/v1/fine-tunes", json=body)
    assert refused.status_code == status
    assert reason in refused.json()["error"]["message"]
    assert len(server.get("/v1/fine-tunes")["data"]) == before


def test_states_come_in_order_and_the_steps_add_up(server: Server, file_id: str) -> None:
    job = server.finish(server.train(file_id, n_epochs=3, batch_size=8, suffix="mine")["id"])
    assert job["status"] == "completed"
    assert "mine" in job["model_output_name"]
    assert job["total_steps"] == job["steps_completed"] == 3 * 5
    assert job["epochs_completed"] == 3
    types = [event["type"] for event in job["events"]]
    assert types == [
        "job_pending",
        "job_start",
        "training_data_downloading",
        "training_data_download_complete",
        "training_start",
        *["epoch_complete"] * 3,
        "checkpoint_save",
        "training_complete",
        "model_uploading",
        "model_upload_complete",
        "job_complete",
    ]
    times = [event["created_at"] for event in job["events"]]
    assert times == sorted(times)


def test_one_job_trains_and_the_next_waits(server: Server, file_id: str) -> None:
    server.fault("training_slow", seconds=0.5)
    first, second = server.train(file_id), server.train(file_id)
    assert first["status"] == "running"
    assert (second["status"], second["queue_depth"]) == ("queued", 0)
    assert server.train(file_id)["queue_depth"] == 1
    assert server.finish(second["id"])["status"] == "completed"
    assert server.get(f"/v1/fine-tunes/{first['id']}")["status"] == "completed"


def test_waiting_job_is_cancelled_at_once_and_free(server: Server, file_id: str) -> None:
    server.fault("training_slow", seconds=0.5)
    first, second = server.train(file_id), server.train(file_id)
    cancelled = server.post(f"/v1/fine-tunes/{second['id']}/cancel")
    assert (cancelled["status"], cancelled["total_price"]) == ("cancelled", 0)
    refused = server.http.post(f"/v1/fine-tunes/{second['id']}/cancel")
    assert refused.status_code == 400
    server.finish(first["id"])


def test_running_job_is_cancelled_and_pays_for_its_part(server: Server, file_id: str) -> None:
    server.fault("training_slow", seconds=30)
    job = server.train(file_id, n_epochs=4)
    server.wait(lambda: server.get(f"/v1/fine-tunes/{job['id']}")["epochs_completed"] == 1)
    assert server.post(f"/v1/fine-tunes/{job['id']}/cancel")["status"] == "cancel_requested"
    ended = server.finish(job["id"])
    assert ended["status"] == "cancelled"
    assert ended["total_price"] == 4_000_000_000  # a quarter of the tokens is far below the minimum
    (item,) = [item for item in server.get("/emulator/bill")["items"] if item["resource_id"] == job["id"]]
    assert item["quantity"] == -(-job["token_count"] // 4)


@pytest.mark.parametrize(
    ("kind", "status", "message"),
    [
        ("training_error", "error", "ordered fault"),
        ("training_user_error", "user_error", "ordered fault"),
        ("training_crash", "error", "exit code -9"),
    ],
)
def test_failed_job_says_why_and_is_free(server: Server, file_id: str, kind: str, status: str, message: str) -> None:
    server.fault(kind)
    job = server.finish(server.train(file_id)["id"])
    assert job["status"] == status
    assert (job["events"][-1]["type"], job["events"][-1]["level"]) == ("job_error", "error")
    assert message in job["events"][-1]["message"]
    assert job["total_price"] == 0
    assert job["id"] not in {item["resource_id"] for item in server.get("/emulator/bill")["items"]}
    assert server.finish(server.train(file_id)["id"])["status"] == "completed"


def test_price_is_tokens_times_price_and_at_least_the_minimum(server: Server, tmp_path: Path) -> None:
    words = "word " * 60_000
    sample = {"messages": [{"role": "user", "content": words}, {"role": "assistant", "content": "yes"}]}
    train, validation = (
        write_lines(tmp_path / f"{name}.jsonl", *([sample] * count)) for name, count in (("t", 40), ("v", 3))
    )
    tokens = 2 * check_dataset(train).tokens + 5 * check_dataset(validation).tokens
    body = {
        "model": "meta-llama/Llama-3.3-70B-Instruct-Reference",
        "training_file": server.upload(train),
        "validation_file": server.upload(validation),
        "n_epochs": 2,
        "n_evals": 5,
        "training_type": {"type": "Full"},
    }
    expected = Decimal(tokens) * Decimal("7.25") / 1_000_000
    assert expected > 4
    estimate = server.post("/v1/fine-tunes/estimate-price", body)
    assert Decimal(str(estimate["estimated_total_price"])) == expected
    job = server.finish(server.post("/v1/fine-tunes", body)["id"])
    assert Decimal(job["total_price"]) / 10**9 == expected
    assert job["token_count"] == tokens
    (item,) = [item for item in server.get("/emulator/bill")["items"] if item["resource_id"] == job["id"]]
    assert Decimal(item["amount_usd"]) == expected


def test_model_without_a_listed_price_has_no_estimate_and_is_not_free(server: Server, file_id: str) -> None:
    body = {"model": "deepseek-ai/DeepSeek-V3.1", "training_file": file_id, "n_epochs": 1}
    estimate = server.post("/v1/fine-tunes/estimate-price", body)
    assert estimate["estimated_total_price"] is None
    assert server.finish(server.post("/v1/fine-tunes", body)["id"])["total_price"] >= 4_000_000_000


def test_download_obeys_ranges(server: Server, file_id: str) -> None:
    job = server.finish(server.train(file_id)["id"])
    path = f"/v1/finetune/download?ft_id={job['id']}&checkpoint=merged"
    whole = server.http.get(path)
    with tarfile.open(fileobj=io.BytesIO(whole.content)) as tar:
        assert {Path(name).name for name in tar.getnames()} >= {"majority.json", "trainer.json"}
    part = server.http.get(path, headers={"Range": "bytes=10-19"})
    assert part.status_code == 206
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole.content)}"
    assert part.content == whole.content[10:20]
    assert server.http.get(path + "&checkpoint_step=999").status_code == 404


def test_dataset_without_answers_is_the_submitters_error(server: Server, tmp_path: Path) -> None:
    messages = [{"role": "assistant", "content": "hi"}, {"role": "user", "content": "yes?"}]
    job = server.finish(server.train(server.upload(write_lines(tmp_path / "d.jsonl", {"messages": messages})))["id"])
    assert job["status"] == "user_error"
    assert "no assistant message to learn from" in job["events"][-1]["message"]


def test_keys_of_other_services_are_not_kept(server: Server, file_id: str) -> None:
    job = server.train(file_id, wandb_key="wandb-secret", hf_api_token="hf-secret")
    assert "secret" not in str(job)
    assert "secret" not in str(server.finish(job["id"]))
