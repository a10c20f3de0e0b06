"""Erasure: remove every row about one person from the log, the spool, the quarantine and the datasets.

What takes long, searching the log and writing the files that hold the person anew, is done without the data folder's
lock. Under the lock the plan is carried out, unless what has landed meanwhile makes it wrong: then it is made again,
and at last under the lock. Only files that hold the person are written anew.

Datasets and feedback are erased first. Decisions, by which the others are found, are erased last, wherever they are
(quarantine, spool or log), so an erasure that was killed is finished by running it again. Once the rows are gone nobody
can see which datasets had them, so that is recorded in `erasures/` until the erasure is complete.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import orjson

from storage.erasure.datasets import dataset_name, erase_faults, erase_lines, find_lines, list_datasets
from storage.erasure.lines import About, Outside, erase_quarantine, erase_spool, find_outside
from storage.files import make_folder, scratch_folder, sync, write_atomic
from storage.lake.upkeep import delete_rows, purge
from storage.layout import Layout
from storage.ledger.streams import files_uploaded_of, models_trained_on
from storage.locks import LOCK_TIMEOUT, check_held, data_lock
from storage.log.home import lake_address
from storage.log.land import finish_landing
from storage.log.landed import ID_COLUMNS
from storage.log.replace import SCRATCH
from storage.log.rewrite import (
    FilesChanged,
    Rewrite,
    check_ready,
    check_unchanged,
    commit,
    empty_folder,
    mark_files,
    write_anew,
)
from storage.log.schema import PARTITIONS, PartitionKey
from storage.log.table import list_files, naming_unreadable, take_snapshot
from storage.log.views import connect, scan, show
from storage.progress import OnProgress, Progress

_ATTEMPTS = 3  # plans without the lock, before one is made under it


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

    def count(self, table: str, rows: int) -> None:
        """Count rows that were erased from a table."""
        setattr(self, table, getattr(self, table) + rows)


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
    if lake_address(layout) is not None:
        with data_lock(layout, "erasure", timeout=lock_timeout), connect(data, memory_limit=memory_limit) as con:
            finish_landing(layout, now=now)
            _erase_from_lake(con, layout, report, now)
        return report
    with data_lock(layout, "erasure", timeout=lock_timeout):
        finish_landing(layout, now=now)
    files = (path for table in PARTITIONS for path in list_files(layout, table))
    with (
        naming_unreadable(files),
        connect(data, memory_limit=memory_limit, threads=threads) as con,
        scratch_folder(layout.data, SCRATCH) as scratch,
    ):
        planner = _Planner(con, layout, subject_id, scratch, progress)

        def remove(kind: str) -> None:
            for rewrites in plan.rewrites[kind] if plan else ():
                commit(layout, rewrites, scratch)
                for rewrite in rewrites:
                    report.count(rewrite.key.table, rewrite.dropped)

        for attempt in range(_ATTEMPTS + 1):
            plan = None
            if attempt < _ATTEMPTS:
                with suppress(FilesChanged):
                    plan = planner.make()
                if plan is None:
                    continue
            with data_lock(layout, "erasure", timeout=lock_timeout):
                finish_landing(layout, now=now)
                if plan is None:
                    plan = planner.make()
                elif not planner.is_current(plan):
                    continue
                _carry_out(con, layout, plan, report, now, remove)
            break
        empty_folder(scratch)
    return report


@dataclass
class _Plan:
    """What is to be erased, as of the files of one moment. `rewrites` are by the kind of record, a list a partition."""

    files: dict[Path, str]
    about: About
    outside: Outside
    shared: int  # episodes of erased decisions that others' decisions are in
    rewrites: dict[str, list[list[Rewrite]]] = field(default_factory=dict)


class _Planner:
    """Makes plans, each new one with what is still right of those before."""

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        layout: Layout,
        subject_id: str,
        scratch: Path,
        progress: OnProgress | None,
    ) -> None:
        self._con, self._layout, self._subject_id, self._scratch = con, layout, subject_id, scratch
        self._progress = progress
        self._written: dict[tuple[Path, str, Any], Rewrite] = {}
        con.execute("CREATE OR REPLACE TEMP TABLE subject AS SELECT $1::VARCHAR AS id", [subject_id])

    def make(self) -> _Plan:
        """Search the log as of now, and write the files anew that hold the person. Raises `FilesChanged`."""
        snapshot = take_snapshot(self._layout)
        files = mark_files([*snapshot.decisions, *snapshot.feedback])
        folders: dict[Path, dict[Path, str]] = {}
        for path, mark in files.items():
            folders.setdefault(path.parent, {})[path] = mark
        try:
            show(self._con, snapshot)
            plan = self.find(files)
            keys = _partitions_about(self._con)
            done, total = 0, sum(map(len, keys.values()))
            for kind, partitions in keys.items():
                plan.rewrites[kind] = []
                for key in partitions:
                    plan.rewrites[kind].append(self._write(key, folders))
                    done += 1
                    if self._progress:
                        self._progress(Progress(done, total, "partitions"))
        except duckdb.Error:
            check_unchanged(files)
            raise
        return plan

    def find(self, files: dict[Path, str]) -> _Plan:
        """Fill the tables `erased` (decisions; no date if not in the log), `taught` (requests that the subject
        demonstrated the answer of) and `emptied` (episodes)."""
        con, outside = self._con, find_outside(self._layout, self._subject_id)
        con.execute(f"""
            CREATE OR REPLACE TEMP TABLE erased AS
            SELECT decision_type, date, decision_id, request_id, episode_id FROM decisions WHERE {_OF_SUBJECT}
        """)  # noqa: S608 - a constant
        con.execute("""
            CREATE OR REPLACE TEMP TABLE taught AS
            SELECT DISTINCT request_id
            FROM decisions JOIN (
                SELECT date, decision_id FROM feedback_log
                WHERE kind = 'demonstration' AND author = (SELECT id FROM subject) AND decision_id IS NOT NULL
            ) USING (date, decision_id)
        """)
        for ids in outside.erased:
            con.execute(
                """
                INSERT INTO erased
                SELECT NULL, NULL, id, TRY_CAST($2 AS UUID), $3 FROM (SELECT TRY_CAST($1 AS UUID) AS id)
                WHERE id IS NOT NULL
                """,
                list(ids),
            )
        con.execute(
            "CREATE OR REPLACE TEMP TABLE kept AS SELECT unnest($1::VARCHAR[]) AS episode_id", [list(outside.kept)]
        )
        con.execute(f"""
            CREATE OR REPLACE TEMP TABLE emptied AS
            SELECT episode_id FROM erased WHERE episode_id IS NOT NULL
            EXCEPT SELECT episode_id FROM kept
            EXCEPT SELECT episode_id FROM decisions WHERE {_OF_SUBJECT} IS NOT true
        """)  # noqa: S608 - a constant
        about = About(
            self._subject_id,
            frozenset(row[0] for row in con.execute("SELECT decision_id::VARCHAR FROM erased").fetchall()),
            frozenset(row[0] for row in con.execute("SELECT episode_id FROM emptied").fetchall()),
        )
        episodes = con.execute("SELECT count(DISTINCT episode_id) FROM erased").fetchall()[0][0]
        return _Plan(files, about, outside, episodes - len(about.episode_ids))

    def _write(self, key: PartitionKey, files: dict[Path, dict[Path, str]]) -> list[Rewrite]:
        """The files of a partition that hold the person, written anew."""
        drop = _FEEDBACK_ABOUT if key.table == "feedback" else _OF_SUBJECT
        rewrites = []
        for path, mark in files.get(self._layout.data / key.folder, {}).items():
            rows = _fingerprint(self._con, key.table, [path], drop)
            if rows[0]:
                known = path, mark, rows
                with suppress(KeyError, FilesChanged):
                    check_ready(self._written[known])
                    rewrites.append(self._written[known])
                    continue
                self._written[known] = write_anew(self._con, key, [path], self._scratch, drop=drop)
                rewrites.append(self._written[known])
        return rewrites

    def is_current(self, plan: _Plan) -> bool:
        """Whether a plan is still right, for one who holds the lock and has finished landing.

        Reads what is new since, and nothing of the rest of the log.
        """
        snapshot = take_snapshot(self._layout)
        files = mark_files([*snapshot.decisions, *snapshot.feedback])
        try:
            for rewrite in chain.from_iterable(chain.from_iterable(plan.rewrites.values())):
                check_ready(rewrite)
        except FilesChanged:
            return False
        if plan.shared and any(files.get(path) != mark for path, mark in plan.files.items()):
            return False  # another erasure may have emptied an episode
        new = {path for path, mark in files.items() if plan.files.get(path) != mark}
        decisions = [path for path in snapshot.decisions if path in new]
        if _fingerprint(self._con, "decisions", decisions, f"({_OF_SUBJECT} OR {_IN_EMPTIED})")[0]:
            return False
        feedback = [path for path in snapshot.feedback if path in new]
        if _fingerprint(self._con, "feedback", feedback, _FEEDBACK_ABOUT)[0]:
            return False
        outside = find_outside(self._layout, self._subject_id)
        return outside.erased <= plan.outside.erased and not outside.kept & plan.about.episode_ids


def _fingerprint(
    con: duckdb.DuckDBPyConnection, table: str, files: Sequence[Path], where: str
) -> tuple[int, int | None]:
    """How many rows of some files fulfil the SQL `where`, and a hash of their ids."""
    if not files:
        return 0, None
    query = f"SELECT count(*), bit_xor(hash({ID_COLUMNS[table]})) FROM ({scan(table, files)}) WHERE {where}"  # noqa: S608
    count, ids = con.execute(query).fetchall()[0]
    return count, ids


def _carry_out(
    con: duckdb.DuckDBPyConnection,
    layout: Layout,
    plan: _Plan,
    report: EraseReport,
    now: datetime | None,
    remove: Callable[[str], None],
) -> None:
    """Erase what is planned, for one who holds the lock. `remove` takes rows of one kind out of their table."""
    note = layout.erasures / f"{hashlib.sha256(report.subject_id.encode()).hexdigest()[:16]}.json"
    check_held(layout)
    show(con, take_snapshot(layout))  # of older datasets some lines are looked for in the log
    _erase_datasets(con, layout, note, report)
    for kind in ("feedback", "decision"):
        check_held(layout)
        erased, unreadable = erase_quarantine(layout, plan.about, kind, now)
        report.quarantine += erased
        report.unreadable += unreadable
        report.spool += erase_spool(layout, plan.about, kind)
        remove(kind)
    if note.exists():
        note.unlink()
        sync(layout.erasures)


_OF_SUBJECT = "list_contains(subject_ids, (SELECT id FROM subject))"
_IN_EMPTIED = "coalesce(episode_id IN (SELECT episode_id FROM emptied), false)"
_FEEDBACK_ABOUT = (
    "(author = (SELECT id FROM subject) OR decision_id IN (SELECT decision_id FROM erased)"
    " OR decision_id IS NULL AND episode_id IN (SELECT episode_id FROM emptied))"
)


def _erase_from_lake(con: duckdb.DuckDBPyConnection, layout: Layout, report: EraseReport, now: datetime | None) -> None:
    """Delete the rows where they are, all under the lock, and let DuckLake write their files anew.

    Also if nothing was found: an erasure before may have been killed between the two.
    """
    plan = _Planner(con, layout, report.subject_id, layout.data, None).find({})

    def remove(kind: str) -> None:
        table, where = ("feedback", _FEEDBACK_ABOUT) if kind == "feedback" else ("decisions", _OF_SUBJECT)
        report.count(table, delete_rows(con, table, where))
        if kind == "decision":
            purge(con)

    _carry_out(con, layout, plan, report, now, remove)


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
