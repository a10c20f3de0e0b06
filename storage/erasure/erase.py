"""Erasure: remove every row about one person from the log, the spool, the quarantine and the datasets.

Datasets and feedback are erased first. Decisions, by which the others are found, are erased last, wherever they are
(quarantine, spool or log), so an erasure that was killed is finished by running it again. Once the rows are gone nobody
can see which datasets had them, so that is recorded in `erasures/` until the erasure is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import duckdb
import orjson

from reasoning.errors import SegmentError
from reasoning.io.spool import check_line, frame_line
from reasoning.records import SCHEMA_VERSION
from storage.erasure.datasets import dataset_name, erase_faults, erase_lines, find_lines, list_datasets
from storage.files import make_folder, sync, write_atomic
from storage.layout import Layout
from storage.ledger.streams import files_uploaded_of, models_trained_on
from storage.locks import LOCK_TIMEOUT, check_held, data_lock
from storage.log.batches import ERASED
from storage.log.land import finish_landing, list_segments
from storage.log.quarantine import QuarantineWriter, read_quarantine
from storage.log.rewrite import rewrite_partition
from storage.log.schema import PARTITIONS, PartitionKey
from storage.log.table import list_files, naming_unreadable
from storage.log.views import connect
from storage.progress import OnProgress, Progress


@dataclass
class EraseReport:
    """What was erased, counted in rows or lines. `datasets` counts the rows by dataset (`<decision_type>/<id>`).

    `models` are those in the ledger that were trained on a dataset that had such rows: erasing does not reach into
    their weights, so retrain or retire them. `provider_files` are the ids of the files that such a dataset was uploaded
    as: what the provider keeps is to be deleted there. Both include the datasets of an erasure that was killed and is
    finished by this one, which `resumed` tells; its other counts are not known.

    Undecidable lines are kept. `unreadable` counts quarantined lines that are too damaged to tell whom they concern and
    that do not contain the subject's id. `undecided` counts, by dataset, lines of expired decisions in datasets
    exported before rows named their subjects, where the id is not a word of the text: inspect them, or delete the
    dataset.
    """

    subject_id: str
    decisions: int = 0
    feedback: int = 0
    spool: int = 0
    quarantine: int = 0
    unreadable: int = 0
    datasets: dict[str, int] = field(default_factory=dict)
    undecided: dict[str, int] = field(default_factory=dict)
    models: list[str] = field(default_factory=list)
    provider_files: list[str] = field(default_factory=list)
    resumed: bool = False


def erase_subject(
    data: Path | str,
    subject_id: str,
    *,
    now: datetime | None = None,
    memory_limit: str = "1GB",
    threads: int | None = None,
    progress: OnProgress | None = None,
    lock_timeout: float = LOCK_TIMEOUT,
) -> EraseReport:
    """Erase the decisions that have `subject_id` among their `subject_ids`, and the feedback on them or by that author.

    Feedback on an episode goes when none of the episode's decisions is left. From the datasets go the lines of these
    decisions, though they have expired since, and those whose label is a demonstration by the subject, with the
    manifests made to fit. Evaluations and Data Docs hold figures, no text. In segments that agents are writing to,
    the lines are overwritten where they are; what an agent writes after this call is not touched. Bytes are deleted,
    not shredded: traces on the disk and backups remain. Raises `DataFolderError`, `DataFolderBusy`,
    `LandingError`, `TableError`, `QuarantineError` and `DatasetError`; then run it again.
    """
    if not subject_id:
        raise ValueError("subject_id is empty: name the person whose rows are to be erased")
    subject_id = subject_id.encode("utf-8", "backslashreplace").decode()  # as the log keeps a lone surrogate
    layout = Layout(data).check().create()
    report = EraseReport(subject_id)
    with data_lock(layout, "erasure", timeout=lock_timeout):
        finish_landing(layout, now=now)
        files = (path for table in PARTITIONS for path in list_files(layout, table))
        with naming_unreadable(files), connect(data, memory_limit=memory_limit, threads=threads) as con:
            about = _find(con, layout, subject_id)
            note = layout.erasures / f"{hashlib.sha256(subject_id.encode()).hexdigest()[:16]}.json"
            check_held(layout)
            _erase_datasets(con, layout, note, report)
            partitions = _partitions_about(con)
            done, total = 0, sum(map(len, partitions.values()))
            for kind, keys in partitions.items():
                check_held(layout)
                _erase_quarantine(layout, about, kind, report, now)
                _erase_spool(layout, about, kind, report)
                for key in keys:
                    drop = _FEEDBACK_ABOUT if kind == "feedback" else _OF_SUBJECT
                    dropped = rewrite_partition(con, layout, key, drop=drop)
                    setattr(report, key.table, getattr(report, key.table) + dropped)
                    done += 1
                    if progress:
                        progress(Progress(done, total, "partitions"))
            if note.exists():
                note.unlink()
                sync(layout.erasures)
    return report


@dataclass(frozen=True)
class _About:
    """How a record is matched to the subject: its ids, the erased decisions, and the episodes that become empty."""

    subject_id: str
    decision_ids: frozenset[str]
    episode_ids: frozenset[str]

    def matches(self, raw: bytes, row: dict[str, Any] | None) -> bool:
        """Whether a line is about the subject; `row` is its JSON object, sound or not, if there is one."""
        if row is None or row.get("record") == "decision":
            return _names(raw, row, self.subject_id)
        decision_id, episode_id = row.get("decision_id"), row.get("episode_id")
        return (
            (not _tells_whose(raw, row) and _names(raw, row, self.subject_id))
            or self.subject_id in _texts(row.get("author"))
            or (isinstance(decision_id, str) and decision_id.lower() in self.decision_ids)
            or (isinstance(episode_id, str) and episode_id in self.episode_ids)
        )


def _names(raw: bytes, row: dict[str, Any] | None, subject_id: str) -> bool:
    """Whether a line that is no sound feedback names the subject."""
    written = {orjson.dumps(subject_id), json.dumps(subject_id).encode()}  # who mends a line may leave \u escapes
    if row is None:  # that it cannot be read goes for less: the id anywhere in it, as a part of another one, too
        return any(text[1:-1] in raw for text in written)
    if not _tells_whose(raw, row) and any(text in raw for text in written):
        return True
    return subject_id in _texts(row.get("subject_ids"))


_NAMING = {"decision": {"subject_ids"}, "feedback": {"author", "decision_id", "episode_id"}}


def _tells_whose(raw: bytes, row: dict[str, Any]) -> bool:
    """Whether the fields are there by which a record is found.

    Where one is missing, its name may be damaged, or another one in a newer version.
    """
    record, schema = row.get("record"), row.get("schema")
    if not isinstance(record, str) or record not in _NAMING:
        return False
    return row.keys() >= _NAMING[record] or (schema == SCHEMA_VERSION and not _is_damaged(raw))


def _texts(value: Any) -> Iterator[str]:
    """The texts, and the numbers as text, in a field of any form: quarantined lines may have malformed fields."""
    parts = [value]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            parts += [*part, *part.values()]
        elif isinstance(part, list):
            parts += part
        elif isinstance(part, str) or type(part) in (int, float):
            yield str(part)


def _find(con: duckdb.DuckDBPyConnection, layout: Layout, subject_id: str) -> _About:
    """Fill the tables `subject`, `erased` (decisions; no date if still in the spool), `taught` (requests that the
    subject demonstrated the answer of) and `emptied` (episodes)."""
    con.execute("CREATE TEMP TABLE subject AS SELECT $1::VARCHAR AS id", [subject_id])
    con.execute(f"""
        CREATE TEMP TABLE erased AS
        SELECT decision_type, date, decision_id, request_id, episode_id FROM decisions WHERE {_OF_SUBJECT}
    """)  # noqa: S608 - a constant
    con.execute("""
        CREATE TEMP TABLE taught AS
        SELECT DISTINCT request_id
        FROM decisions JOIN (
            SELECT date, decision_id FROM feedback_log
            WHERE kind = 'demonstration' AND author = (SELECT id FROM subject) AND decision_id IS NOT NULL
        ) USING (date, decision_id)
    """)
    kept: list[Any] = []
    for path in list_segments(layout, ".open", ".seal"):
        with _open(path) as file:
            for _, line, row in _records(file):
                if row.get("record") != "decision":
                    continue
                if _names(line, row, subject_id):
                    _add_erased(con, row)
                else:
                    kept.append(row.get("episode_id"))
    for path in layout.quarantine.glob("*.jsonl"):
        for _, raw in read_quarantine(path):
            row = _tolerant(raw) or {}
            if row.get("record") != "decision":
                continue
            if _names(raw, row, subject_id):
                _add_erased(con, row)
            else:
                kept.append(row.get("episode_id"))
    con.execute(
        "CREATE TEMP TABLE kept AS SELECT unnest($1::VARCHAR[]) AS episode_id",
        [[episode_id for episode_id in kept if isinstance(episode_id, str)]],
    )
    con.execute(f"""
        CREATE TEMP TABLE emptied AS
        SELECT episode_id FROM erased WHERE episode_id IS NOT NULL
        EXCEPT SELECT episode_id FROM kept
        EXCEPT SELECT episode_id FROM decisions WHERE {_OF_SUBJECT} IS NOT true
    """)  # noqa: S608 - a constant
    return _About(
        subject_id,
        frozenset(row[0] for row in con.execute("SELECT decision_id::VARCHAR FROM erased").fetchall()),
        frozenset(row[0] for row in con.execute("SELECT episode_id FROM emptied").fetchall()),
    )


def _add_erased(con: duckdb.DuckDBPyConnection, row: dict[str, Any]) -> None:
    """A decision of the subject that is not in the log. It need not be a sound one."""
    episode_id = row.get("episode_id")
    con.execute(
        """
        INSERT INTO erased SELECT NULL, NULL, id, TRY_CAST($2 AS UUID), $3 FROM (SELECT TRY_CAST($1 AS UUID) AS id)
        WHERE id IS NOT NULL
        """,
        [
            str(row.get("decision_id")),
            str(row.get("request_id")),
            episode_id if isinstance(episode_id, str) else None,
        ],
    )


_OF_SUBJECT = "list_contains(subject_ids, (SELECT id FROM subject))"
_FEEDBACK_ABOUT = (
    "(author = (SELECT id FROM subject) OR decision_id IN (SELECT decision_id FROM erased)"
    " OR decision_id IS NULL AND episode_id IN (SELECT episode_id FROM emptied))"
)


def _erase_datasets(con: duckdb.DuckDBPyConnection, layout: Layout, note: Path, report: EraseReport) -> None:
    """Record the datasets first, so that the models trained on them are reported even after a kill."""
    lines = find_lines(con, layout, report.subject_id)
    report.resumed = note.exists()
    noted = orjson.loads(note.read_bytes()) if report.resumed else {}
    report.datasets = {dataset_name(folder): len(found) for folder, found in lines.found.items()} | noted
    report.undecided = {dataset_name(folder): count for folder, count in lines.undecided.items()}
    if report.datasets:
        make_folder(layout.erasures)
        write_atomic(note, orjson.dumps(report.datasets))
    for folder, found in lines.found.items():
        erase_lines(folder, found)
    for folder in list_datasets(layout):
        erase_faults(folder, report.subject_id)
    names = {Path(name).name for name in report.datasets}
    report.models = models_trained_on(layout, names)
    report.provider_files = files_uploaded_of(layout, names)


def _partitions_about(con: duckdb.DuckDBPyConnection) -> dict[str, list[PartitionKey]]:
    """The partitions that have rows of the subject, by the kind of record; what is found by the other kind first."""
    feedback = con.execute(
        f"SELECT DISTINCT date::VARCHAR FROM feedback_log WHERE {_FEEDBACK_ABOUT} ORDER BY 1"  # noqa: S608
    ).fetchall()
    decisions = con.execute(
        "SELECT DISTINCT decision_type, date::VARCHAR FROM erased WHERE date IS NOT NULL ORDER BY ALL"
    ).fetchall()
    return {
        "feedback": [PartitionKey("feedback", None, date) for (date,) in feedback],
        "decision": [PartitionKey("decisions", decision_type, date) for decision_type, date in decisions],
    }


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("r+b")
    except FileNotFoundError:  # just sealed
        return path.with_suffix(".seal").open("r+b")


def _records(file: IO[bytes]) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """Offset, line and JSON object of every line with an intact frame. Landing quarantines the others."""
    offset = 0
    for line in file:
        with suppress(SegmentError, orjson.JSONDecodeError):
            if line.endswith(b"\n"):
                row = orjson.loads(check_line(line))  # of whatever schema: a newer client's will be quarantined
                if isinstance(row, dict) and row.get("record") != "erased":
                    yield offset, line, row
        offset += len(line)


def _erase_spool(layout: Layout, about: _About, kind: str, report: EraseReport) -> None:
    """Overwrite the subject's lines of one kind where they are: writers append, they never touch a line again.

    Landing has just finished, so these segments have live writers or were sealed since.
    """
    for path in list_segments(layout, ".open", ".seal"):
        with _open(path) as file:
            before = report.spool
            for offset, line, row in _records(file):
                if _kind(row) == kind and about.matches(line, row):
                    length = len(line) - len(frame_line(b""))
                    os.pwrite(file.fileno(), frame_line(ERASED.ljust(length)[:length]), offset)
                    report.spool += 1
            if report.spool > before:
                os.fsync(file.fileno())


def _erase_quarantine(layout: Layout, about: _About, kind: str, report: EraseReport, now: datetime | None) -> None:
    """Remove the subject's lines of one kind; together with decisions, also lines too damaged to classify."""
    for path in sorted(layout.quarantine.glob("*.jsonl")):
        kept = QuarantineWriter(path, now=now)
        found = 0
        for entry, raw in read_quarantine(path):
            row = _tolerant(raw)
            if _kind(row) == kind and about.matches(raw, row):
                found += 1
            else:
                report.unreadable += row is None and kind == "decision"
                kept.write(orjson.dumps(entry))
        if not found:
            kept.discard()
        elif kept.empty:
            path.unlink()
        else:
            kept.commit()
        report.quarantine += found
    sync(layout.quarantine)


def _kind(row: dict[str, Any] | None) -> str:
    return "feedback" if row is not None and row.get("record") == "feedback" else "decision"


def _is_damaged(raw: bytes) -> bool:
    """Whether the frame does not fit what it is of."""
    if raw.startswith(b"{"):  # bare JSON: somebody mended it
        return False
    try:
        check_line(raw)
    except SegmentError:
        return True
    return False


def _tolerant(raw: bytes) -> dict[str, Any] | None:
    """The JSON object of a line whose frame or schema is bad, or that was mended by hand, if there is one."""
    for text in (raw, raw[9:]):
        with suppress(orjson.JSONDecodeError):
            row = orjson.loads(text)
            return row if isinstance(row, dict) else None
    return None
