"""An artifact: a trained model as files that can be loaded without running anything that they hold.

`model.npz` has the numbers (NumPy arrays, never pickled objects), `model.json` everything else: what the model is, and
the SHA-256 of the numbers. It is written last, so a training that was killed leaves no artifact.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from learners.errors import ArtifactError

FORMAT = 2
ABOUT, NUMBERS = "model.json", "model.npz"
MAX_BYTES = 2 << 30
"""Arrays that claim to be larger than this are not read: a file that is not ours must not fill the memory."""


@dataclass
class Parts:
    """What a model is made of: JSON values and arrays by name. Objects put theirs under a prefix of their own."""

    values: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def put(self, prefix: str, inner: Parts) -> None:
        """Take in the parts of a part."""
        self.values |= {f"{prefix}.{name}": value for name, value in inner.values.items()}
        self.arrays |= {f"{prefix}.{name}": array for name, array in inner.arrays.items()}

    def get(self, prefix: str) -> Parts:
        """The parts that were put under `prefix`."""
        start = f"{prefix}."
        return Parts(
            {name.removeprefix(start): value for name, value in self.values.items() if name.startswith(start)},
            {name.removeprefix(start): array for name, array in self.arrays.items() if name.startswith(start)},
        )


def save(directory: Path, parts: Parts, about: dict[str, Any], files: Sequence[str] = ()) -> None:
    """Write an artifact into a folder, which is made if missing. `about` describes it and must be JSON.

    `files` are names of files in the folder that belong to the artifact: `load` checks that they are unchanged.
    """
    directory.mkdir(parents=True, exist_ok=True)
    numbers = directory / NUMBERS
    np.savez_compressed(numbers, allow_pickle=False, **parts.arrays)
    hashes = {name: _sha256(directory / name) for name in (NUMBERS, *files)}
    described = {"format": FORMAT, **about, "sha256": hashes, "values": parts.values}
    temporary = directory / f"{ABOUT}.part"
    temporary.write_text(json.dumps(described, ensure_ascii=False), encoding="utf-8")
    temporary.rename(directory / ABOUT)


def load(directory: Path) -> tuple[Parts, dict[str, Any]]:
    """Read what `save` wrote: the parts and `about`.

    Raises:
        ArtifactError: there is no finished artifact, it is damaged, or another version wrote it.
    """
    about = describe(directory)
    numbers = directory / NUMBERS
    try:
        for name, expected in {NUMBERS: None, **about["sha256"]}.items():
            if Path(name).name != name:
                raise ArtifactError(f"{ABOUT} in {directory} names a file outside of the folder: {name!r}")
            if _sha256(directory / name) != expected:
                raise ArtifactError(
                    f"{directory / name} is damaged: its SHA-256 is not the one in {ABOUT}; train the model again"
                )
        with zipfile.ZipFile(numbers) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_BYTES:
            raise ArtifactError(f"{numbers} holds {size:,} bytes; at most {MAX_BYTES:,} are read")
        with np.load(numbers, allow_pickle=False) as arrays:
            return Parts(about.pop("values"), dict(arrays)), about
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"no usable model in {directory}: {error}; train it again") from error


def describe(directory: Path) -> dict[str, Any]:
    """What an artifact says of itself, without its numbers. Raises as `load` does."""
    path = directory / ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise ArtifactError(
                f"the model in {directory} has the format {about['format']}, not {FORMAT}: train it again"
            )
        return dict(about)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"no usable model in {directory}: {error}; train it again") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
