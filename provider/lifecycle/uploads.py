"""Datasets at the provider: checked row by row here, uploaded, and verified to have arrived as they are."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from provider.clock import clock_of
from provider.errors import InvalidDataset, NotReady, ProviderUnavailable, RemoteNotFound, UploadFailed
from provider.pace import AT_EASE, Pace
from provider.port import FileState, Provider
from provider.retries import pause, retry_after, retrying
from provider.rows import CheckedFile, check_rows
from storage.ledger.database import new_id
from storage.ledger.rows import DatasetState, UploadedDataset, required
from storage.progress import OnProgress, share_done

if TYPE_CHECKING:
    from storage.ledger.ledger import Ledger

PROCESSING_TIMEOUT = timedelta(minutes=30)


def upload_dataset(
    provider: Provider,
    ledger: Ledger,
    dataset_dir: Path | str,
    *,
    decision_type: str | None = None,
    pace: Pace = AT_EASE,
) -> UploadedDataset:
    """Upload a dataset folder's `train.jsonl` and `validation.jsonl` (if any) and return its ledger row, state `ready`.

    Called again, for instance after a kill, it goes on from where it was, and uploads nothing that is there. Of several
    at once, one uploads and the others wait for it. The holdout is never uploaded. Raises InvalidDataset, UploadFailed,
    NotReady, ProviderUnavailable.
    """
    folder, clock = Path(dataset_dir), clock_of(pace.now)
    train = check_rows(folder / "train.jsonl")
    validation_path = folder / "validation.jsonl"
    has_validation = validation_path.exists() and validation_path.stat().st_size > 0
    validation = check_rows(validation_path) if has_validation else None
    decision_type = decision_type or _decision_type(folder)
    files = [("train", train)] + ([("validation", validation)] if validation else [])
    with _alone(ledger, folder.absolute().name, pace.progress):
        row = _record(ledger, folder, decision_type, train, validation, clock)
        if row.state == DatasetState.READY and all(_exists(provider, row.file_id(split)) for split, _ in files):
            return row
        return _upload_files(provider, ledger, row, files, pace)


@contextmanager
def _alone(ledger: Ledger, name: str, progress: OnProgress | None) -> Iterator[None]:
    """One upload of a dataset at a time: two would move its row back and forth under each other."""
    lock = f"upload-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    with ledger.exclusive(lock) as alone:
        if alone:
            yield
            return
    if progress:
        progress(share_done(0.0, f"another process uploads {name}; waiting for it"))
    with ledger.exclusive(lock, wait=True):
        yield


def _upload_files(
    provider: Provider,
    ledger: Ledger,
    row: UploadedDataset,
    files: list[tuple[str, CheckedFile]],
    pace: Pace,
) -> UploadedDataset:
    clock, progress = clock_of(pace.now), pace.progress
    row = ledger.transition(UploadedDataset, row.id, DatasetState.INTENDED, now=clock())
    try:
        for index, (split, checked) in enumerate(files):
            column = f"{split}_file_id"
            file_id = row.file_id(split)
            if file_id and not _exists(provider, file_id):
                file_id = None
            if file_id is None:
                if progress:
                    progress(share_done(index / (len(files) + 1), f"uploading {split}.jsonl ({checked.rows:,} rows)"))
                file_id = _upload(provider, f"{ledger.prefix}{row.id}-{split}.jsonl", checked, pace)
                row = ledger.transition(
                    UploadedDataset, row.id, DatasetState.INTENDED, now=clock(), **{column: file_id}
                )
        row = ledger.transition(UploadedDataset, row.id, DatasetState.UPLOADED, now=clock())
        for split, checked in files:
            if progress:
                progress(share_done(len(files) / (len(files) + 1), f"the provider checks {split}.jsonl"))
            _wait_until_processed(provider, required(row.file_id(split), f"the file {split}"), checked, pace)
    except UploadFailed as error:
        ledger.transition(UploadedDataset, row.id, DatasetState.FAILED, why=str(error), error=str(error), now=clock())
        raise
    if progress:
        progress(share_done(1.0, "uploaded"))
    return ledger.transition(UploadedDataset, row.id, DatasetState.READY, error=None, now=clock())


def _record(
    ledger: Ledger,
    folder: Path,
    decision_type: str | None,
    train: CheckedFile,
    validation: CheckedFile | None,
    clock: Callable[[], Any],
) -> UploadedDataset:
    facts = {
        "train_sha256": train.sha256,
        "validation_sha256": validation.sha256 if validation else None,
        "train_rows": train.rows,
        "validation_rows": validation.rows if validation else 0,
    }
    name = folder.absolute().name
    with ledger.transaction():
        known = ledger.find(UploadedDataset, dataset=name)
        if not known:
            return ledger.add(
                UploadedDataset,
                state=DatasetState.INTENDED,
                id=new_id(),
                dataset=name,
                decision_type=decision_type,
                now=clock(),
                **facts,
            )
        if any(getattr(known[0], column) != value for column, value in facts.items()):
            raise InvalidDataset(
                f"{folder} is not the dataset {name} that was uploaded before: a file has changed. Export it anew"
            )
        return known[0]


def _decision_type(folder: Path) -> str | None:
    try:
        decision_type: str | None = json.loads((folder / "manifest.json").read_bytes()).get("decision_type")
        return decision_type
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError):
        raise InvalidDataset(f"{folder / 'manifest.json'} is not a JSON object") from None


def _exists(provider: Provider, file_id: str | None) -> bool:
    if file_id is None:
        return False
    try:
        return provider.file(file_id).state != FileState.REFUSED
    except RemoteNotFound:
        return False


def _upload(provider: Provider, name: str, checked: CheckedFile, pace: Pace) -> str:
    """Upload under our name. Sending again is safe: of content it has, the provider answers with the file it has."""
    for attempt in retrying(pace.wait, attempts=3, progress=pace.progress, what=f"uploading {checked.path.name}"):
        with attempt:
            file_id = provider.upload(name, checked)
    return file_id


def _wait_until_processed(provider: Provider, file_id: str, checked: CheckedFile, pace: Pace) -> None:
    """A job submitted before its file is processed fails, so wait for it."""
    deadline = time.monotonic() + pace.longest(PROCESSING_TIMEOUT).total_seconds()
    seconds = 0.1
    while True:
        try:
            file = provider.file(file_id)
        except ProviderUnavailable as error:
            # It says when to come again: it is well, and so is the file.
            if retry_after(error) is None or time.monotonic() + pause(seconds, error) >= deadline:
                raise
            pace.wait(pause(seconds, error))
            continue
        if file.state == FileState.REFUSED:
            reason = file.reason or "no reason given"
            raise UploadFailed(f"the provider refused {checked.path} ({file.said}): {reason}")
        if file.state == FileState.READY:
            break
        if time.monotonic() >= deadline:
            raise NotReady(
                f"the provider is still checking {checked.path} ({file.said}); run it again to go on waiting"
            )
        pace.wait(seconds)
        seconds = min(seconds * 1.5, 5.0)
    if file.bytes is not None and file.bytes != checked.bytes:
        raise UploadFailed(f"{checked.path} has {checked.bytes:,} bytes, at the provider {file.bytes}")
    if file.rows is not None and file.rows != checked.rows:
        raise UploadFailed(f"{checked.path} has {checked.rows:,} rows, at the provider {file.rows}")
