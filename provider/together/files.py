"""Training files at Together: uploaded under our name, and checked there."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from provider.errors import ProviderUnavailable
from provider.port import FileState, RemoteFile
from provider.rows import CheckedFile
from provider.together.client import translate_sdk_errors

if TYPE_CHECKING:
    from together import Together


def upload_file(client: Together, name: str, checked: CheckedFile) -> str:
    """Upload under our name. Sending again is safe: of content it has, the provider answers with the file it has."""
    from together.lib.resources.files import FileAlreadyExistsError

    with tempfile.TemporaryDirectory(prefix="reasoning-upload-") as temporary:
        named = Path(temporary, name)
        try:
            named.hardlink_to(checked.path)
        except OSError:  # another filesystem
            shutil.copyfile(checked.path, named)
        with translate_sdk_errors(f"uploading {checked.path}"):
            try:
                return client.files.upload(named, purpose="fine-tune", check=False, raise_if_already_exists=True).id
            except FileAlreadyExistsError as known:
                _process(client, known.file_id, name)
                return known.file_id
            except KeyError as error:  # the SDK takes every 409 for a known file, also one that names none
                raise ProviderUnavailable(f"uploading {checked.path}: the provider answered 409") from error


def _process(client: Together, file_id: str, name: str) -> None:
    """Have a file checked whose upload broke off before that was asked for. Only ours: strangers see to theirs."""
    from together.types import FileResponse

    file = client.files.retrieve(file_id)
    if file.processing_status in (None, "PENDING") and file.filename == name:
        client.post(f"/v1/files/{file_id}/preprocess", cast_to=FileResponse)


def retrieve_file(client: Together, file_id: str) -> RemoteFile:
    """How far the provider's check of a file is. Its older answers have `Processed` instead of a status."""
    with translate_sdk_errors(f"file {file_id}"):
        file: Any = client.files.retrieve(file_id)
        said, report = file.processing_status, file.validation_report
        if said is None and getattr(file, "Processed", None) is True:
            said = "COMPLETED"
        refused = said in ("FAILED", "INVALID_FORMAT")
        state = FileState.REFUSED if refused else FileState.READY if said == "COMPLETED" else FileState.CHECKING
        return RemoteFile(
            id=file_id,
            state=state,
            said=said,
            bytes=file.bytes,
            rows=None if report is None else report.nlines,
            reason=(report and report.error) or None,
        )
