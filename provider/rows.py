"""A fine-tuning file before its upload: every row is checked, and the file is measured."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from provider.errors import InvalidDataset
from storage.training_rows import MAX_CHARACTERS, find_line_fault


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """A file whose every row is fit for training."""

    path: Path
    rows: int
    bytes: int
    sha256: str


def check_rows(path: Path | str, *, max_characters: int = MAX_CHARACTERS) -> CheckedFile:
    """Check every row of a JSONL file (`storage.training_rows`). Raises InvalidDataset with the file and the line."""
    path = Path(path)
    digest, size, rows = hashlib.sha256(), 0, 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                digest.update(line)
                size += len(line)
                if fault := find_line_fault(line, is_first=number == 1, max_characters=max_characters):
                    raise InvalidDataset(f"{path}, line {number}: {fault}")
                rows = number
    except OSError as error:
        raise InvalidDataset(f"{path}: {error.strerror}") from None
    if not rows:
        raise InvalidDataset(f"{path} is empty")
    return CheckedFile(path, rows, size, digest.hexdigest())
