"""Fine-tune jobs: limits, prices, creation, and what became of them."""

from __future__ import annotations

import asyncio
import json
import math
import sqlite3
import tarfile
import uuid
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from emulator.api.files import find_file
from emulator.billing.bill import remaining_balance, require_funds, training_kind, training_price
from emulator.billing.catalog import NANO, BaseModel
from emulator.errors import ApiError
from emulator.world.clock import format_time, parse_time
from emulator.world.context import PROJECT, USER_ID, Emulator, emulator_of, read_int, read_json
from emulator.world.forms import form
from emulator.world.scheduler import OPEN_STATES, scheduler_of

_MAX_SUFFIX = 40
_MAX_EPOCHS = 20
_MAX_BATCH = 32
_MAX_RANK = 64
_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_MODEL_FAULTS = ("training_error", "training_user_error", "training_slow", "training_crash")


async def retrieve_limits(request: Request) -> Response:
    emulator = emulator_of(request)
    model = _find_trainable(emulator, request.query_params.get("model_name"))
    batches = {"max_batch_size": _MAX_BATCH, "max_batch_size_dpo": _MAX_BATCH // 2, "min_batch_size": 1}
    limits: dict[str, Any] = {
        "model_name": model.name,
        "default_gradient_accumulation_steps": 1,
        "max_learning_rate": 0.01,
        "min_learning_rate": 0.0,
        "max_num_checkpoints": 20,
        "max_num_epochs": _MAX_EPOCHS,
        "max_num_evals": 100,
        "max_seq_length_sft": model.context_length,
        "max_seq_length_dpo": model.context_length // 2,
        "min_max_seq_length": 256,
        "merge_output_lora": form(emulator, "lora_output") == "merged",
        "supports_full_training": model.full_training,
        "supports_reasoning": True,
        "supports_tools": True,
        "supports_vision": False,
        "lora_training": batches | {"default_rank": 8, "max_rank": _MAX_RANK, "target_modules": _MODULES},
    }
    if model.full_training:
        limits["full_training"] = batches
    return JSONResponse(limits)


async def estimate_price(request: Request) -> Response:
    emulator = emulator_of(request)
    body = await read_json(request)
    training = find_file(emulator, str(body.get("training_file")))
    validation = find_file(emulator, str(body["validation_file"])) if body.get("validation_file") else None
    for name, row in (("train", training), ("eval", validation)):
        if row is not None and row["status"] != "COMPLETED":
            reason = "invalid" if row["status"] in ("INVALID_FORMAT", "FAILED") else "not_validated"
            return JSONResponse({"estimation_available": False, "unavailable_reason": f"{name}_file_{reason}"})
    model = _find_trainable(emulator, body.get("model") or _read_checkpoint_model(emulator, body))
    n_epochs, n_evals = int(body.get("n_epochs") or 1), int(body.get("n_evals") or 0)
    train_tokens = n_epochs * training["tokens"]
    eval_tokens = n_evals * validation["tokens"] if validation else 0
    estimate: dict[str, Any] = {
        "estimation_available": True,
        "estimated_train_token_count": train_tokens,
        "estimated_eval_token_count": eval_tokens,
        "allowed_to_proceed": True,
    }
    if model.training is None:
        estimate["estimated_total_price"] = None
        return JSONResponse(estimate)
    kind = training_kind(body.get("training_type"))
    price = training_price(emulator, model.name, kind, train_tokens + eval_tokens)
    balance = remaining_balance(emulator)
    estimate["estimated_total_price"] = price / NANO
    estimate["allowed_to_proceed"] = balance is None or price <= balance
    if balance is not None:
        estimate["user_limit"] = balance / NANO
    return JSONResponse(estimate)


async def create_fine_tune(request: Request) -> Response:
    emulator, scheduler = emulator_of(request), scheduler_of(request)
    body = await read_json(request)
    model = _find_trainable(emulator, body.get("model") or _read_checkpoint_model(emulator, body))
    resolved = _resolve(emulator, body, model)
    training = _require_file(emulator, body.get("training_file"), "Training")
    validation = _require_file(emulator, body["validation_file"], "Validation") if body.get("validation_file") else None
    if resolved["n_evals"] and validation is None:
        raise ApiError(400, "n_evals needs a validation_file", param="n_evals")
    tokens = resolved["n_epochs"] * training["tokens"] + resolved["n_evals"] * (
        validation["tokens"] if validation else 0
    )
    kind = training_kind(resolved["training_type"])
    price = training_price(emulator, model.name, kind, tokens)
    require_funds(emulator, price)
    fault = emulator.faults.strike(request.method, request.url.path, kinds=_MODEL_FAULTS)
    lines = json.loads(training["report"])["nlines"]
    now = emulator.clock.timestamp()
    id = f"ft-{uuid.uuid4()}"
    suffix = resolved.get("suffix")
    output_name = "-".join(filter(None, (f"{PROJECT['slug']}/{model.name.split('/')[-1]}", suffix, id[-8:])))
    with emulator.state.transaction():
        emulator.state.insert(
            "fine_tunes",
            id=id,
            status="pending",
            created_at=now,
            updated_at=now,
            request=json.dumps(resolved),
            model=model.name,
            suffix=suffix,
            output_name=output_name,
            token_count=tokens,
            price=price,
            total_steps=resolved["n_epochs"] * math.ceil(lines / resolved["batch_size"]),
            fault=json.dumps({"kind": fault.kind} | fault.options) if fault else None,
        )
        scheduler.add_event(id, "job_pending", "Job created")
    scheduler.dispatch()
    # No events: this one answer is read by a class of the SDK that knows other event types than all the rest.
    return JSONResponse(describe_fine_tune(emulator, find_fine_tune(emulator, id), events=False))


async def list_fine_tunes(request: Request) -> Response:
    emulator = emulator_of(request)
    rows = emulator.state.rows("SELECT * FROM fine_tunes ORDER BY created_at DESC, rowid DESC")
    return JSONResponse({"data": [describe_fine_tune(emulator, row, events=False) for row in rows]})


async def retrieve_fine_tune(request: Request) -> Response:
    emulator = emulator_of(request)
    return JSONResponse(describe_fine_tune(emulator, find_fine_tune(emulator, request.path_params["fine_tune"])))


async def list_events(request: Request) -> Response:
    emulator = emulator_of(request)
    job = find_fine_tune(emulator, request.path_params["fine_tune"])
    return JSONResponse({"data": _read_events(emulator, job["id"])})


async def list_checkpoints(request: Request) -> Response:
    emulator = emulator_of(request)
    job = find_fine_tune(emulator, request.path_params["fine_tune"])
    rows = emulator.state.rows("SELECT * FROM checkpoints WHERE fine_tune_id = ? ORDER BY step", job["id"])
    return JSONResponse(
        {
            "data": [
                {
                    "checkpoint_type": row["checkpoint_type"],
                    "created_at": format_time(row["created_at"]),
                    "path": row["path"],
                    "step": row["step"],
                    "checkpoint": "model",
                    "object_id": job["output_model_id"],
                    "object_name": job["output_name"],
                    "object_revision_id": _revision_of(emulator, job["output_model_id"]),
                }
                for row in rows
            ]
        }
    )


async def list_metrics(request: Request) -> Response:
    """What the trainer reported, as `train/<name>` and `eval/<name>`, with the step and the time (seconds)."""
    emulator = emulator_of(request)
    job = find_fine_tune(emulator, request.path_params["fine_tune"])
    least, most = read_int(request, "global_step_from", 0, least=0), read_int(request, "global_step_to", 2**53, least=0)
    since, until = (request.query_params.get(name) for name in ("logged_at_from", "logged_at_to"))
    rows = emulator.state.rows(
        """SELECT * FROM fine_tune_metrics WHERE fine_tune_id = ? AND step BETWEEN ? AND ? AND logged_at BETWEEN ? AND ?
           ORDER BY sequence""",
        job["id"],
        least,
        most,
        parse_time(since).timestamp() if since else 0.0,
        parse_time(until).timestamp() if until else 1e12,
    )
    resolution = read_int(request, "resolution", len(rows) or 1, least=1)
    if len(rows) > resolution:
        rows = [rows[round(index * (len(rows) - 1) / max(1, resolution - 1))] for index in range(resolution)]
    return JSONResponse(
        {
            "metrics": [
                {"train/global_step": row["step"], "timestamp": row["logged_at"]} | json.loads(row["body"])
                for row in rows
            ]
        }
    )


async def cancel_fine_tune(request: Request) -> Response:
    emulator = emulator_of(request)
    job = find_fine_tune(emulator, request.path_params["fine_tune"])
    if job["status"] not in ("pending", "queued", "running"):
        raise ApiError(400, f"Fine-tune {job['id']} is {job['status']} and cannot be cancelled")
    scheduler_of(request).cancel(job)
    return JSONResponse(describe_fine_tune(emulator, find_fine_tune(emulator, job["id"])))


async def delete_fine_tune(request: Request) -> Response:
    """Delete a job that has ended. Its model, when there is one, stays: `DELETE /v2/.../models/{id}` removes that."""
    emulator = emulator_of(request)
    job = find_fine_tune(emulator, request.path_params["fine_tune"])
    if job["status"] in OPEN_STATES:
        raise ApiError(400, f"Fine-tune {job['id']} is {job['status']}; cancel it first")
    with emulator.state.transaction():
        for table in ("fine_tune_events", "fine_tune_metrics", "checkpoints"):
            emulator.state.execute(f"DELETE FROM {table} WHERE fine_tune_id = ?", job["id"])  # noqa: S608
        emulator.state.execute("DELETE FROM fine_tunes WHERE id = ?", job["id"])
    return JSONResponse({"message": f"Fine-tune {job['id']} deleted"})


async def download_model(request: Request) -> Response:
    """The trained model as a gzipped tar; ranges are honoured."""
    emulator = emulator_of(request)
    job = find_fine_tune(emulator, str(request.query_params.get("ft_id")))
    if job["status"] != "completed":
        raise ApiError(400, f"Fine-tune {job['id']} is {job['status']}: there is no model to download")
    step = request.query_params.get("checkpoint_step")
    if step not in (None, "", "-1", str(job["total_steps"])):
        raise ApiError(404, f"Fine-tune {job['id']} has no checkpoint at step {step}", param="checkpoint_step")
    directory = emulator.state.models / job["id"]
    archive = directory.with_suffix(".tar.gz")
    if not archive.exists():
        await asyncio.get_running_loop().run_in_executor(emulator.disk, _pack, directory, archive)
    name = job["output_name"].rsplit("/", 1)[-1] + ".tar.gz"
    return FileResponse(archive, filename=name, media_type="application/x-tar")


def find_fine_tune(emulator: Emulator, id: str) -> sqlite3.Row:
    row = emulator.state.row("SELECT * FROM fine_tunes WHERE id = ?", id)
    if row is None:
        raise ApiError(404, f"Fine-tune {id} not found", code="not_found", param="id")
    return row


def describe_fine_tune(emulator: Emulator, job: sqlite3.Row, *, events: bool = True) -> dict[str, Any]:
    resolved = json.loads(job["request"])
    description = {
        "id": job["id"],
        "status": job["status"],
        "user_id": USER_ID,
        "created_at": format_time(job["created_at"]),
        "updated_at": format_time(job["updated_at"]),
        "started_at": format_time(job["started_at"]) if job["started_at"] else None,
        "model": job["model"],
        "model_output_name": job["output_name"],
        "adapter_output_name": None,
        "suffix": job["suffix"],
        "token_count": job["token_count"],
        "total_price": job["price"],
        "total_steps": job["total_steps"],
        "steps_completed": job["steps_completed"],
        "epochs_completed": job["epochs_completed"],
        "queue_depth": _queue_depth(emulator, job),
        "progress": {"estimate_available": False, "seconds_remaining": 0},
        "job_id": job["id"],
        "events": _read_events(emulator, job["id"]) if events else [],
    } | {name: resolved[name] for name in _ECHOED if name in resolved}
    if job["output_model_id"] and form(emulator, "lora_output") == "merged":
        description |= {
            "model_object_id": job["output_model_id"],
            "model_object_name": job["output_name"],
            "model_object_revision_id": _revision_of(emulator, job["output_model_id"]),
        }
    if job["output_adapter_id"]:
        description |= {
            "adapter_output_name": f"{job['output_name']}-adapter",
            "adapter_object_id": job["output_adapter_id"],
            "adapter_object_name": f"{job['output_name']}-adapter",
            "adapter_object_revision_id": _revision_of(emulator, job["output_adapter_id"]),
        }
    return description


# Never the request whole: it may carry the keys of other services (wandb_key, hf_api_token).
_ECHOED = (
    "training_file",
    "validation_file",
    "n_epochs",
    "n_evals",
    "n_checkpoints",
    "batch_size",
    "learning_rate",
    "lr_scheduler",
    "warmup_ratio",
    "max_grad_norm",
    "weight_decay",
    "max_seq_length",
    "packing",
    "random_seed",
    "training_type",
    "training_method",
    "train_on_inputs",
    "from_checkpoint",
    "wandb_project_name",
    "wandb_name",
)


def _resolve(emulator: Emulator, body: dict[str, Any], model: BaseModel) -> dict[str, Any]:
    """The request with every default filled in. Keeps only what is echoed: no key of another service is stored."""
    suffix = body.get("suffix")
    if suffix is not None and (not isinstance(suffix, str) or len(suffix) > _MAX_SUFFIX):
        raise ApiError(400, f"suffix is text of at most {_MAX_SUFFIX} characters", param="suffix")
    training_type = dict(body.get("training_type") or {"type": "Lora", "lora_r": 8, "lora_alpha": 16})
    if training_type.get("type") == "Full" and not model.full_training:
        raise ApiError(400, f"{model.name} supports LoRA training only", param="training_type")
    if training_type.get("type") not in ("Full", "Lora"):
        raise ApiError(
            400, f"training_type {training_type.get('type')!r} is neither Lora nor Full", param="training_type"
        )
    if training_type["type"] == "Lora":
        training_type = {"lora_dropout": 0.0, "lora_trainable_modules": "all-linear"} | training_type
        rank = training_type.get("lora_r")
        if not isinstance(rank, int) or not 1 <= rank <= _MAX_RANK:
            raise ApiError(400, f"lora_r {rank!r} is not 1 to {_MAX_RANK}", param="training_type")
    method = dict(body.get("training_method") or {"method": "sft", "train_on_inputs": "auto"})
    if method.get("method") != "sft":
        raise ApiError(400, f"the emulator trains by sft only, not {method.get('method')!r}", param="training_method")
    batch_size = body.get("batch_size", "max")
    resolved = {name: body[name] for name in _ECHOED if body.get(name) is not None} | {
        "n_epochs": _read_count(body, "n_epochs", 1, least=1, most=_MAX_EPOCHS),
        "n_evals": _read_count(body, "n_evals", 0, least=0, most=100),
        "n_checkpoints": _read_count(body, "n_checkpoints", 1, least=0, most=20),
        "batch_size": _MAX_BATCH
        if batch_size in ("max", None)
        else _read_count(body, "batch_size", _MAX_BATCH, least=1, most=_MAX_BATCH),
        "training_type": training_type,
        "training_method": method,
        "train_on_inputs": method.get("train_on_inputs", "auto"),
    }
    return resolved | ({"suffix": suffix} if suffix else {})


def _read_count(body: dict[str, Any], name: str, default: int, *, least: int, most: int) -> int:
    value = body.get(name, default)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ApiError(400, f"{name} {value!r} is not a whole number from {least} to {most}", param=name)
    return value


def _find_trainable(emulator: Emulator, name: Any) -> BaseModel:
    if not name:
        raise ApiError(400, "model is required", param="model")
    model = emulator.catalog.model(str(name))
    if model is None or model.name != name or not model.trainable:
        raise ApiError(
            404,
            f"Model {name} is not available for fine-tuning; /v2/supported-models lists what is",
            code="model_not_available",
            param="model",
        )
    return model


def _read_checkpoint_model(emulator: Emulator, body: dict[str, Any]) -> str | None:
    """The base model of the job that `from_checkpoint` names; the emulator's trainers start anew all the same."""
    checkpoint = str(body.get("from_checkpoint") or "").split(":")[0]
    row = emulator.state.row(
        "SELECT model FROM fine_tunes WHERE id = ?1 OR output_name = ?1 OR output_model_id = ?1", checkpoint
    )
    return row["model"] if row else None


def _require_file(emulator: Emulator, id: Any, what: str) -> sqlite3.Row:
    param = f"{what.lower()}_file"
    if not id:
        raise ApiError(400, f"{param} is required", param=param)
    row = find_file(emulator, str(id))
    if row["status"] == "INVALID_FORMAT":
        raise ApiError(400, f"{what} file {id} is invalid: {json.loads(row['report'])['error']}", param=param)
    if row["status"] != "COMPLETED":
        raise ApiError(
            400, f"{what} file upload did not finish: {id} is {row['status']}; poll it until COMPLETED", param=param
        )
    if row["purpose"] != "fine-tune":
        raise ApiError(400, f"{what} file {id} has purpose {row['purpose']}, not fine-tune", param=param)
    dataset_format = json.loads(row["report"])["dataset_format"]
    if dataset_format != "conversation":
        raise ApiError(
            400, f"the emulator trains on the conversational format only; {id} is {dataset_format}", param=param
        )
    return row


def _queue_depth(emulator: Emulator, job: sqlite3.Row) -> int:
    if job["status"] not in ("pending", "queued"):
        return 0
    row = emulator.state.row(
        "SELECT count(*) AS ahead FROM fine_tunes WHERE status IN ('pending', 'queued') AND created_at < ?",
        job["created_at"],
    )
    assert row is not None
    return int(row["ahead"])


def _read_events(emulator: Emulator, job_id: str) -> list[dict[str, Any]]:
    rows = emulator.state.rows("SELECT body FROM fine_tune_events WHERE fine_tune_id = ? ORDER BY sequence", job_id)
    return [json.loads(row["body"]) for row in rows]


def _revision_of(emulator: Emulator, model_id: str | None) -> str | None:
    row = emulator.state.row("SELECT revision_id FROM models WHERE id = ?", model_id) if model_id else None
    return row["revision_id"] if row else None


def _pack(directory: Path, archive: Path) -> None:
    partial = archive.with_suffix(".partial")
    with tarfile.open(partial, mode="w:gz") as tar:
        tar.add(directory, arcname=directory.name)
    partial.replace(archive)
