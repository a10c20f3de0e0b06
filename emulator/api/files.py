"""Files: an announced upload, the bytes, and the check of what came."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import secrets
import sqlite3
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from emulator.api.datasets import DatasetReport, check_dataset
from emulator.errors import ApiError
from emulator.world.context import Emulator, emulator_of, read_json

_PURPOSES = ("fine-tune", "calibration", "eval", "batch-api")
_FILE_TYPES = ("jsonl", "csv", "parquet")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


async def create_file(request: Request) -> Response:
    """Announce an upload: 302 to where the bytes go, or 409 with the id of the file that has them already."""
    async with request.form() as form:
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
    emulator = emulator_of(request)
    id, token = _announce(emulator, fields)
    location = f"{_base_url(request)}/blobs/{id}?token={token}"
    return Response(status_code=302, headers={"Location": location, "X-Together-File-Id": id})


async def put_blob(request: Request) -> Response:
    """Take the bytes of an announced file. No Authorization: the token in the address is the permission."""
    emulator = emulator_of(request)
    row = _find_blob(request)
    partial = emulator.state.files / f"{row['id']}.partial"
    size, digest = await _write_body(emulator, request, partial)
    if row["checksum"] and digest != row["checksum"]:
        partial.unlink(missing_ok=True)
        raise ApiError(400, f"the bytes have sha256 {digest}, announced was {row['checksum']}; upload again")
    partial.replace(data_path(emulator, row["id"]))
    with emulator.state.transaction():
        emulator.state.update("files", row["id"], bytes=size, checksum=digest, status="UPLOADED")
    return Response(status_code=200)


async def preprocess_file(request: Request) -> Response:
    """Begin the check of an uploaded file. It runs in the background: poll `processing_status`."""
    emulator = emulator_of(request)
    row = find_file(emulator, request.path_params["file"])
    if row["status"] == "PENDING":
        raise ApiError(400, f"File {row['id']} has no content yet; PUT it first")
    if row["status"] == "UPLOADED":
        start_processing(emulator, row["id"])
    return JSONResponse(describe_file(find_file(emulator, row["id"])))


async def initiate_multipart(request: Request) -> Response:
    emulator = emulator_of(request)
    body = await read_json(request)
    parts = body.get("num_parts")
    if not isinstance(parts, int) or not 1 <= parts <= 10_000:
        raise ApiError(400, f"num_parts {parts!r} is not a whole number from 1 to 10000", param="num_parts")
    id, token = _announce(emulator, body, num_parts=parts)
    base = _base_url(request)
    return JSONResponse(
        {
            "upload_id": f"upload-{id}",
            "file_id": id,
            "parts": [
                {"PartNumber": number, "URL": f"{base}/blobs/{id}/parts/{number}?token={token}", "Headers": {}}
                for number in range(1, parts + 1)
            ],
        }
    )


async def put_part(request: Request) -> Response:
    emulator = emulator_of(request)
    row = _find_blob(request)
    number = request.path_params["part"]
    if not 1 <= number <= (row["num_parts"] or 0):
        raise ApiError(404, f"upload {row['id']} has no part {number}")
    partial = emulator.state.files / f"{row['id']}.{number}.partial"
    _, digest = await _write_body(emulator, request, partial)
    partial.replace(_part_path(emulator, row["id"], number))
    return Response(status_code=200, headers={"ETag": f'"{digest}"'})


async def complete_multipart(request: Request) -> Response:
    emulator = emulator_of(request)
    body = await read_json(request)
    row = _find_upload(emulator, body)
    given = {part.get("part_number"): str(part.get("etag", "")).strip('"') for part in body.get("parts") or []}
    numbers = range(1, row["num_parts"] + 1)
    paths = [_part_path(emulator, row["id"], number) for number in numbers]
    missing = [number for number, path in zip(numbers, paths, strict=True) if number not in given or not path.exists()]
    if missing:
        raise ApiError(400, f"upload {row['id']} lacks the parts {missing[:10]}")
    loop = asyncio.get_running_loop()
    etags = [given[number] for number in numbers]
    try:
        size, digest = await loop.run_in_executor(emulator.disk, _join, paths, etags, data_path(emulator, row["id"]))
    except OSError as error:
        raise _disk_error(error) from error
    if row["checksum"] and digest != row["checksum"]:
        data_path(emulator, row["id"]).unlink(missing_ok=True)
        raise ApiError(400, f"the parts have sha256 {digest}, announced was {row['checksum']}; upload again")
    for path in paths:
        path.unlink(missing_ok=True)
    with emulator.state.transaction():
        emulator.state.update("files", row["id"], bytes=size, checksum=digest, status="UPLOADED")
    start_processing(emulator, row["id"])
    return JSONResponse({"file": describe_file(find_file(emulator, row["id"]))})


async def abort_multipart(request: Request) -> Response:
    emulator = emulator_of(request)
    row = _find_upload(emulator, await read_json(request))
    with emulator.state.transaction():
        emulator.state.execute("DELETE FROM files WHERE id = ? AND status = 'PENDING'", row["id"])
    remove_leftovers(emulator, row["id"])
    return JSONResponse({"file_id": row["id"], "aborted": True})


async def list_files(request: Request) -> Response:
    rows = emulator_of(request).state.rows("SELECT * FROM files ORDER BY created_at DESC, rowid DESC")
    return JSONResponse({"data": [describe_file(row) for row in rows]})


async def retrieve_file(request: Request) -> Response:
    return JSONResponse(describe_file(find_file(emulator_of(request), request.path_params["file"])))


async def retrieve_file_content(request: Request) -> Response:
    emulator = emulator_of(request)
    row = find_file(emulator, request.path_params["file"])
    path = data_path(emulator, row["id"])
    if not path.exists():
        raise ApiError(404, f"File {row['id']} has no content yet")
    return FileResponse(path, filename=row["filename"], media_type="application/octet-stream")


async def delete_file(request: Request) -> Response:
    emulator = emulator_of(request)
    row = find_file(emulator, request.path_params["file"])
    busy = emulator.state.row(
        """SELECT id FROM fine_tunes WHERE status IN ('pending', 'queued', 'running')
           AND ?1 IN (json_extract(request, '$.training_file'), json_extract(request, '$.validation_file'))""",
        row["id"],
    )
    if busy:
        raise ApiError(400, f"File {row['id']} is in use by fine-tune {busy['id']}; cancel that or wait")
    with emulator.state.transaction():
        emulator.state.execute("DELETE FROM files WHERE id = ?", row["id"])
    remove_leftovers(emulator, row["id"])
    return JSONResponse({"id": row["id"], "deleted": True})


def find_file(emulator: Emulator, id: str) -> sqlite3.Row:
    row = emulator.state.row("SELECT * FROM files WHERE id = ?", id)
    if row is None:
        raise ApiError(404, f"File {id} not found", code="file_not_found", param="file_id")
    return row


def describe_file(row: sqlite3.Row) -> dict[str, Any]:
    status = "PENDING" if row["status"] == "UPLOADED" else row["status"]
    return {
        "id": row["id"],
        "object": "file",
        "bytes": row["bytes"],
        "created_at": int(row["created_at"]),
        "filename": row["filename"],
        "FileType": row["file_type"],
        "purpose": row["purpose"],
        "processing_status": status,
        "Processed": status in ("COMPLETED", "INVALID_FORMAT"),
        "validation_report": json.loads(row["report"]) | {"file_id": row["id"]} if row["report"] else None,
    }


def start_processing(emulator: Emulator, id: str) -> None:
    """Check the file on the disk thread; an interrupted check is begun again at the next start."""
    with emulator.state.transaction():
        emulator.state.update("files", id, status="RUNNING")
    row = find_file(emulator, id)
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(emulator.disk, _check, data_path(emulator, id), row["file_type"])
    future.add_done_callback(lambda done: _finish_processing(emulator, id, done))


def resume_processing(emulator: Emulator) -> None:
    for row in emulator.state.rows("SELECT id FROM files WHERE status = 'RUNNING'"):
        start_processing(emulator, row["id"])


def remove_leftovers(emulator: Emulator, id: str) -> None:
    for path in emulator.state.files.glob(f"{id}.*"):
        path.unlink(missing_ok=True)


def _check(path: Path, file_type: str) -> DatasetReport:
    if file_type != "jsonl":
        reason = f"the emulator trains on jsonl only, this file is {file_type}"
        return DatasetReport({"valid": False, "error": reason, "error_type": "INVALID_FORMAT"}, 0)
    return check_dataset(path)


def _finish_processing(emulator: Emulator, id: str, done: asyncio.Future[DatasetReport]) -> None:
    if done.cancelled():
        return
    if (error := done.exception()) is not None:
        status, report, tokens = "FAILED", {"valid": False, "error": f"the file could not be read: {error}"}, 0
    else:
        report, tokens = done.result().validation, done.result().tokens
        status = "COMPLETED" if report["valid"] else "INVALID_FORMAT"
    with emulator.state.transaction():
        emulator.state.update("files", id, status=status, report=json.dumps(report), tokens=tokens)


def _announce(emulator: Emulator, fields: dict[str, Any], *, num_parts: int | None = None) -> tuple[str, str]:
    purpose, file_type = fields.get("purpose", "fine-tune"), fields.get("file_type", "jsonl")
    filename = str(fields.get("file_name") or "")
    if not filename:
        raise ApiError(400, "file_name is required", param="file_name")
    if purpose not in _PURPOSES:
        raise ApiError(400, f"purpose {purpose!r} is none of {', '.join(_PURPOSES)}", param="purpose")
    if file_type not in _FILE_TYPES:
        raise ApiError(400, f"file_type {file_type!r} is none of {', '.join(_FILE_TYPES)}", param="file_type")
    checksum = fields.get("checksum") or None
    if checksum:
        same = emulator.state.row(
            "SELECT id FROM files WHERE checksum = ? AND purpose = ? AND status != 'PENDING'", checksum, purpose
        )
        if same:
            raise ApiError(
                409,
                f"A file with this content exists already: {same['id']}",
                code="file_already_exists",
                headers={"x-should-retry": "false"},
                extra={"file_id": same["id"]},
            )
    id, token = f"file-{uuid.uuid4()}", secrets.token_urlsafe(16)
    with emulator.state.transaction():
        emulator.state.insert(
            "files",
            id=id,
            filename=Path(filename).name,
            purpose=purpose,
            file_type=file_type,
            checksum=checksum,
            created_at=emulator.clock.timestamp(),
            status="PENDING",
            upload_token=token,
            num_parts=num_parts,
        )
    return id, token


def _find_blob(request: Request) -> sqlite3.Row:
    row = find_file(emulator_of(request), request.path_params["file"])
    if not secrets.compare_digest(request.query_params.get("token", ""), row["upload_token"]):
        raise ApiError(403, "this upload address is not valid")
    if row["status"] != "PENDING":
        raise ApiError(409, f"File {row['id']} has its content already", headers={"x-should-retry": "false"})
    return row


def _find_upload(emulator: Emulator, body: dict[str, Any]) -> sqlite3.Row:
    row = find_file(emulator, str(body.get("file_id")))
    if body.get("upload_id") != f"upload-{row['id']}" or not row["num_parts"]:
        raise ApiError(404, f"Upload {body.get('upload_id')} not found", param="upload_id")
    return row


async def _write_body(emulator: Emulator, request: Request, path: Path) -> tuple[int, str]:
    """Write the request's body to `path` durably; (bytes, sha256). Leaves no half file behind."""
    loop = asyncio.get_running_loop()
    digest = hashlib.sha256()
    size = 0
    try:
        handle = await loop.run_in_executor(emulator.disk, path.open, "wb")
        try:
            async for chunk in _read_chunks(request):
                digest.update(chunk)
                size += len(chunk)
                await loop.run_in_executor(emulator.disk, handle.write, chunk)
            await loop.run_in_executor(emulator.disk, _sync, handle)
        finally:
            handle.close()
    except OSError as error:
        _discard(path)
        raise _disk_error(error) from error
    except BaseException:  # the client went away, or the emulator is being stopped
        _discard(path)
        raise
    return size, digest.hexdigest()


async def _read_chunks(request: Request, size: int = 1 << 20) -> AsyncIterator[bytes]:
    """The body in pieces of about `size` bytes, so that a thread is not asked for each small packet."""
    pending = bytearray()
    async for chunk in request.stream():
        pending += chunk
        if len(pending) >= size:
            yield bytes(pending)
            pending.clear()
    if pending:
        yield bytes(pending)


def _discard(path: Path) -> None:
    path.unlink(missing_ok=True)


def _sync(handle: Any) -> None:
    handle.flush()
    os.fsync(handle.fileno())


def _join(parts: list[Path], etags: list[str], target: Path) -> tuple[int, str]:
    whole = hashlib.sha256()
    partial = target.with_suffix(".partial")
    try:
        with partial.open("wb") as output:
            for number, (path, etag) in enumerate(zip(parts, etags, strict=True), start=1):
                data = path.read_bytes()
                if hashlib.sha256(data).hexdigest() != etag:
                    raise ApiError(400, f"part {number} does not have the etag {etag}; upload it again")
                whole.update(data)
                output.write(data)
            _sync(output)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target.stat().st_size, whole.hexdigest()


def _disk_error(error: OSError) -> ApiError:
    if error.errno in _DISK_FULL:
        return ApiError(
            507, f"no space left for the upload ({error.strerror}); nothing of it was kept", code="insufficient_storage"
        )
    return ApiError(500, f"the upload could not be written: {error.strerror}", code="storage_error")


def data_path(emulator: Emulator, id: str) -> Path:
    """Where a file's bytes are."""
    return emulator.state.files / f"{id}.data"


def _part_path(emulator: Emulator, id: str, number: int) -> Path:
    return emulator.state.files / f"{id}.part-{number}"


def _base_url(request: Request) -> str:
    return str(request.base_url).rstrip("/")
