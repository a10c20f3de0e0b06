"""The ids of this installation, kept beside the ledger so that they outlive it.

Every remote object's name starts with `rsn-<installation id>-`. Without the id nobody could tell which of the objects
that cost money are ours, so a dead ledger must not take it along.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from storage.layout import Layout

FILE = "installation.ids"
_ID = re.compile(r"[a-z0-9]{4,32}")
_NAME = re.compile(r"\brsn-([a-z0-9]{4,32})-[a-z0-9]")


def remember_installation(data: Path | str, installation_id: str) -> None:
    """Add an id to the data folder's file, one a line. Earlier ones stay: what they name may still cost money.

    Does nothing where the folder cannot be written: this is a copy, and the ledger itself was opened.
    """
    path = Path(data) / FILE
    with contextlib.suppress(OSError):
        if installation_id in _read(path):
            return
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, f"{installation_id}\n".encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remembered_installations(data: Path | str) -> list[str]:
    """Every id that this data folder has had, oldest first; also those in the names of models that have routes.

    Never raises: what cannot be read names nothing.
    """
    layout = Layout(data)
    found = [line for line in _read(layout.data / FILE) if _ID.fullmatch(line)]
    for path in (layout.routes, layout.routes.with_suffix(".paused.json")):
        found += _NAME.findall("\n".join(_read(path)))
    return list(dict.fromkeys(found))


def _read(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").split("\n")
    except OSError:
        return []
