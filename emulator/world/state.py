"""What the emulator keeps: SQLite (WAL) for facts, a folder for files and models.

Every change is made by the event loop's thread, inside `State.transaction()`, so a request sees and leaves whole facts.
Times are seconds since the epoch on the emulator's clock, money is whole nano-USD.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emulator.errors import StartError

SCHEMA_VERSION = 2

SCHEMA = """
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE files (
    id TEXT PRIMARY KEY, filename TEXT NOT NULL, purpose TEXT NOT NULL, file_type TEXT NOT NULL, checksum TEXT,
    bytes INTEGER NOT NULL DEFAULT 0, created_at REAL NOT NULL, status TEXT NOT NULL, report TEXT,
    tokens INTEGER, upload_token TEXT NOT NULL, upload_id TEXT, num_parts INTEGER);
CREATE INDEX files_checksum ON files (checksum);
CREATE TABLE fine_tunes (
    id TEXT PRIMARY KEY, status TEXT NOT NULL, created_at REAL NOT NULL, updated_at REAL NOT NULL, started_at REAL,
    request TEXT NOT NULL, model TEXT NOT NULL, suffix TEXT, output_name TEXT NOT NULL, output_model_id TEXT,
    output_adapter_id TEXT, token_count INTEGER NOT NULL, price INTEGER NOT NULL, progress REAL NOT NULL DEFAULT 0,
    epochs_completed INTEGER NOT NULL DEFAULT 0, steps_completed INTEGER NOT NULL DEFAULT 0,
    total_steps INTEGER NOT NULL DEFAULT 0, attempt INTEGER NOT NULL DEFAULT 0, fault TEXT);
CREATE TABLE fine_tune_events (
    sequence INTEGER PRIMARY KEY, fine_tune_id TEXT NOT NULL, created_at REAL NOT NULL, body TEXT NOT NULL);
CREATE INDEX fine_tune_events_job ON fine_tune_events (fine_tune_id);
CREATE TABLE fine_tune_metrics (
    sequence INTEGER PRIMARY KEY, fine_tune_id TEXT NOT NULL, step INTEGER NOT NULL, logged_at REAL NOT NULL,
    body TEXT NOT NULL);
CREATE INDEX fine_tune_metrics_job ON fine_tune_metrics (fine_tune_id);
CREATE TABLE checkpoints (
    sequence INTEGER PRIMARY KEY, fine_tune_id TEXT NOT NULL, step INTEGER NOT NULL, created_at REAL NOT NULL,
    checkpoint_type TEXT NOT NULL, path TEXT NOT NULL);
CREATE INDEX checkpoints_job ON checkpoints (fine_tune_id);
CREATE TABLE models (
    id TEXT PRIMARY KEY, revision_id TEXT NOT NULL, name TEXT NOT NULL UNIQUE, base_model TEXT NOT NULL,
    fine_tune_id TEXT NOT NULL, weights_type TEXT NOT NULL, directory TEXT NOT NULL, created_at REAL NOT NULL);
CREATE TABLE endpoints (
    id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, visibility TEXT NOT NULL, version INTEGER NOT NULL DEFAULT 1,
    created_at REAL NOT NULL, updated_at REAL NOT NULL, traffic_split TEXT NOT NULL DEFAULT '[]');
CREATE TABLE deployments (
    id TEXT PRIMARY KEY, endpoint_id TEXT NOT NULL REFERENCES endpoints (id), name TEXT NOT NULL UNIQUE,
    version INTEGER NOT NULL DEFAULT 1, created_at REAL NOT NULL, updated_at REAL NOT NULL,
    model_project TEXT NOT NULL, model_id TEXT NOT NULL, revision_id TEXT NOT NULL, config_id TEXT NOT NULL,
    hardware TEXT NOT NULL, price_cents_per_hour INTEGER NOT NULL, autoscaling TEXT NOT NULL, replicas INTEGER NOT NULL,
    inactive_timeout INTEGER NOT NULL, max_concurrent TEXT NOT NULL, placement TEXT, last_request_at REAL);
CREATE TABLE replicas (
    id TEXT PRIMARY KEY, deployment_id TEXT NOT NULL, deployment_name TEXT NOT NULL, hardware TEXT NOT NULL,
    price_cents_per_hour INTEGER NOT NULL, requested_at REAL NOT NULL,
    ready_at REAL,     -- NULL: never
    stopped_at REAL,   -- NULL: no stop ordered
    has_capacity INTEGER NOT NULL
);
CREATE INDEX replicas_deployment ON replicas (deployment_id);
CREATE TABLE adapters (
    id TEXT PRIMARY KEY, deployment_id TEXT NOT NULL REFERENCES deployments (id), model_id TEXT NOT NULL,
    revision_id TEXT NOT NULL, version INTEGER NOT NULL DEFAULT 1, created_at REAL NOT NULL,
    load_seconds REAL DEFAULT 0,     -- NULL: it does not load
    UNIQUE (deployment_id, model_id));
CREATE TABLE training_charges (
    id TEXT PRIMARY KEY, charged_at REAL NOT NULL, what TEXT NOT NULL, tokens INTEGER NOT NULL,
    price_per_mtok INTEGER NOT NULL, amount INTEGER NOT NULL);
CREATE TABLE token_usage (
    hour INTEGER NOT NULL, model TEXT NOT NULL, input_price INTEGER NOT NULL, output_price INTEGER NOT NULL,
    requests INTEGER NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
    PRIMARY KEY (hour, model));
CREATE TABLE faults (
    sequence INTEGER PRIMARY KEY, method TEXT NOT NULL, path TEXT NOT NULL, kind TEXT NOT NULL,
    remaining INTEGER NOT NULL, options TEXT NOT NULL);
"""

_UPGRADES = {1: "ALTER TABLE adapters ADD COLUMN load_seconds REAL DEFAULT 0;"}
"""What brings a folder of an older version to the next one, by its version."""


class State:
    """The open data folder. One process at a time owns it (see `emulator.server`)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = directory / "files"
        self.models = directory / "models"
        self.jobs = directory / "jobs"
        for folder in (self.files, self.models, self.jobs):
            folder.mkdir(parents=True, exist_ok=True)
        path = directory / "emulator.sqlite"
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.row_factory = sqlite3.Row
        self._depth = 0
        try:
            self._open(path)
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise StartError(f"{path} is not a database of the emulator ({error}); give another --data") from error

    def _open(self, path: Path) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            self._connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
            return
        while version in _UPGRADES:
            self._connection.executescript(f"BEGIN; {_UPGRADES[version]} PRAGMA user_version = {version + 1}; COMMIT;")
            version += 1
        if version != SCHEMA_VERSION:
            raise StartError(f"{path} has schema {version}, this emulator knows {SCHEMA_VERSION}; give another --data")

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. An inner transaction joins the outer one."""
        if self._depth == 0:
            self._connection.execute("BEGIN IMMEDIATE")
        self._depth += 1
        try:
            yield
            if self._depth == 1:
                self._connection.execute("COMMIT")
        except BaseException:
            # A COMMIT that fails (full disk) leaves the transaction open too.
            if self._depth == 1 and self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        finally:
            self._depth -= 1

    def execute(self, sql: str, *values: Any) -> int:
        """Run a statement; returns the number of rows that it changed."""
        return self._connection.execute(sql, values).rowcount

    def insert(self, table: str, **columns: Any) -> None:
        names = ", ".join(columns)
        marks = ", ".join("?" * len(columns))
        self._connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(columns.values()))  # noqa: S608

    def update(self, table: str, id: str, **columns: Any) -> None:
        assignments = ", ".join(f"{name} = ?" for name in columns)
        self._connection.execute(f"UPDATE {table} SET {assignments} WHERE id = ?", (*columns.values(), id))  # noqa: S608

    def row(self, sql: str, *values: Any) -> sqlite3.Row | None:
        found: sqlite3.Row | None = self._connection.execute(sql, values).fetchone()
        return found

    def rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        return self._connection.execute(sql, values).fetchall()

    def get_setting(self, key: str, default: Any) -> Any:
        row = self.row("SELECT value FROM settings WHERE key = ?", key)
        return json.loads(row["value"]) if row else default

    def set_setting(self, key: str, value: Any) -> None:
        self.execute("INSERT OR REPLACE INTO settings (key, value) VALUES (?, ?)", key, json.dumps(value))


_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


def new_id(prefix: str) -> str:
    """A fresh id as Together writes them: `ep_` and 20 random letters and digits."""
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(20))
