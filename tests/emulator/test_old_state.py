"""A data folder of an older version is brought up to date when it is opened."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from emulator.world.state import SCHEMA, SCHEMA_VERSION, State


def test_a_folder_of_version_one_is_upgraded(tmp_path: Path) -> None:
    older = SCHEMA.replace("    load_seconds REAL DEFAULT 0,     -- NULL: it does not load\n", "")
    assert older != SCHEMA
    with sqlite3.connect(tmp_path / "emulator.sqlite") as connection:
        connection.executescript(f"{older} PRAGMA user_version = 1;")
    state = State(tmp_path)
    state.insert("endpoints", id="ep_1", name="a", visibility="x", created_at=0, updated_at=0)
    assert state.rows("SELECT load_seconds FROM adapters") == []
    assert state.row("PRAGMA user_version")["user_version"] == SCHEMA_VERSION  # type: ignore[index]
    state.close()
