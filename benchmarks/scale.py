"""A log that is large for its machine: what waits for what, and how much of it an export copies.

    python -m benchmarks.scale day [--rows 5000000] [--files 100] [--only compaction ...] [--data FOLDER]
    python -m benchmarks.scale export [--rows 600000] [--limit 1000] [--data FOLDER]

`day` makes one day of so many decisions in so many files, and lands a segment of one record again and again: alone,
beside a compaction of the day, and beside the erasure of a person who is in every file. What counts is the longest
wait for the data folder's lock. `export` makes a log of so many decisions and exports the latest `limit`; what counts
is the size of its scratch folder beside that of the log.

The rows are made by DuckDB, as landing them would take minutes for each million. `--data` keeps the log.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import storage
from reasoning.ids import uuid7
from reasoning.io.spool import SegmentWriter
from reasoning.records import Decision
from storage.erasure.erase import erase_subject
from storage.files import make_folder
from storage.layout import Layout
from storage.log import land
from storage.log.compact import compact_decisions
from storage.log.schema import SCHEMAS, PartitionKey, sql_columns
from storage.log.views import open_engine, sql_text

# The records have a fixed date and land in any year.
os.environ |= {"REASONING_MAX_DAYS_AHEAD": "36500", "REASONING_MAX_DAYS_BEHIND": "36500"}
START = datetime(2026, 11, 20, tzinfo=UTC)
PERSON = "person-7"
_DAY_MS = 86_400_000


def make_days(data: Path, rows: int, files: int, days: int = 1) -> None:
    """Write decisions of `should_respond` into the table: `files` files a day, about 0.2 KB a row on disk.

    One row in 50,000 is about `PERSON`, so that every file has some.
    """
    layout = Layout(data).create()
    per_file = rows // days // files
    with open_engine("2GB") as con:
        for day in range(days):
            start = int((START + timedelta(days=day)).timestamp() * 1000)
            key = PartitionKey("decisions", "should_respond", (START + timedelta(days=day)).date().isoformat())
            folder = layout.data / key.folder
            make_folder(folder)
            for file in range(files):
                first = file * per_file
                path = sql_text(str(folder / f"data-{uuid4()}.parquet"))
                con.execute(
                    f"COPY ({_rows(start, first, per_file, per_file * files)}) TO {path} "
                    "(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 20480)"
                )


def _rows(start: int, first: int, count: int, of: int) -> str:
    """SQL of `count` decisions from the `first` on, of a day with `of`, which begins at `start` (ms)."""
    id_of = "(time[:8] || '-' || time[9:12] || '-7' || {0}[1:3] || '-a' || {0}[4:6] || '-' || {0}[7:18])::UUID".format
    values = {
        "decision_id": id_of("m"),
        "request_id": id_of("md5(m)"),
        "ts": "make_timestamptz(ms * 1000)",
        "agent_id": "'agent-' || i % 20",
        "episode_id": "'episode-' || i // 10",
        "subject_ids": f"CASE WHEN i % 50000 = 77 THEN ['{PERSON}'] ELSE ['user-' || hash(i) % 100000] END",
        "source": "'original'",
        "served": "true",
        "messages": "[{'role': 'system', 'content': 'Decide whether to answer.'}, "
        "{'role': 'user', 'content': concat_ws(' ', 'Ann: hello', "
        "m, md5(m), md5(m || 1), md5(m || 2), md5(m || 3), md5(m || 4))}]",
        "completion": "'<response><action>' || action || '</action></response>'",
        "decision": "'{\"action\": \"' || action || '\"}'",
        "valid": "true",
        "latency_ms": "(hash(i) % 1000)::DOUBLE",
        "input_tokens": "100 + i % 50",
        "output_tokens": "12",
    }
    columns = ", ".join(
        f"({values.get(name, 'NULL')})::{kind} AS {name}"
        for name, kind in sql_columns("decisions")
        if name in SCHEMAS["decisions"].names
    )
    return f"""
        SELECT {columns} FROM (
            SELECT *, lpad(to_hex(ms), 12, '0') AS time, md5(i::VARCHAR) AS m,
                   CASE WHEN hash(i) % 3 = 0 THEN 'RESPOND' ELSE 'IGNORE' END AS action
            FROM (SELECT i, {start} + i * {_DAY_MS} // {of} AS ms FROM range({first}, {first + count}) AS r(i))
        )
    """


class Landings:
    """Lands a segment of one record again and again, until it is stopped. Seconds of each, and of its wait."""

    def __init__(self, data: Path) -> None:
        self._data, self._done = data, threading.Event()
        self.seconds: list[float] = []
        self.waits: list[float] = []

    def __enter__(self) -> Landings:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        finish = land.finish_landing

        def begun(*arguments: object, **keywords: object) -> land.LandReport:
            if threading.current_thread() is self._thread:
                self.waits.append(time.perf_counter() - start)
            return finish(*arguments, **keywords)  # type: ignore[arg-type]

        land.finish_landing = begun
        try:
            while not self._done.wait(0.1):
                _write_one(self._data)
                start = time.perf_counter()
                land.land_decisions(self._data, lock_timeout=600)
                self.seconds.append(time.perf_counter() - start)
        finally:
            land.finish_landing = finish

    def show(self, what: str, seconds: float) -> None:
        print(
            f"{what:34}{seconds:9.1f}{len(self.seconds):10}{max(self.waits):14.2f}{statistics.median(self.waits):12.3f}"
            f"{max(self.seconds):14.2f}{statistics.median(self.seconds):12.3f}",
            flush=True,
        )


def _write_one(data: Path) -> None:
    writer = SegmentWriter(data / "spool")
    ts = START + timedelta(seconds=time.time() % 86_000)
    messages = [{"role": "user", "content": "Ann: one more"}]
    writer.write(
        Decision(
            decision_id=uuid7(ts),
            request_id=uuid7(ts),
            ts=ts,
            decision_type="should_respond",
            source="original",
            served=True,
            messages=messages,  # type: ignore[arg-type]
            subject_ids=["bob"],
        )
    )
    writer.close()


def bench_day(data: Path, rows: int, files: int, only: list[str]) -> None:
    if not (data / "decisions").exists():
        make_days(data, rows, files)
    total = sum(path.stat().st_size for path in data.rglob("*.parquet"))
    print(f"\none day of {rows:,} decisions in {files} files, {total / 1e6:,.0f} MB\n")
    print(f"{'landing beside':34}{'seconds':>9}{'landings':>10}{'longest wait':>14}{'median':>12}", end="")
    print(f"{'longest in all':>14}{'median':>12}")
    verbs: dict[str, Callable[[], object]] = {
        "nothing": lambda: time.sleep(20),
        "compaction": lambda: print("   ", compact_decisions(data)),
        "erasure of a person": lambda: print("   ", erase_subject(data, PERSON)),
    }
    for what, verb in verbs.items():
        if only and what.split()[0] not in only:
            continue
        start = time.perf_counter()
        with Landings(data) as landings:
            verb()
        landings.show(what, time.perf_counter() - start)
    ((count, ids, left),) = storage.sql(
        data,
        "SELECT count(*), count(DISTINCT decision_id), count(*) FILTER (list_contains(subject_ids, ?)) FROM decisions",
        [PERSON],
        memory_limit="2GB",
    ).rows
    print(f"\n{count:,} rows, {count - ids} doubled, {left} of the person left")


def bench_export(data: Path, rows: int, limit: int) -> None:
    from quality.dataset.export import export_dataset
    from quality.settings import ExportSettings
    from storage.errors import StorageError

    if not (data / "decisions").exists():
        make_days(data, rows, 5, days=10)
    total = sum(path.stat().st_size for path in data.rglob("*.parquet"))
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            size = 0
            for path in data.glob("datasets/**/*"):
                with suppress(FileNotFoundError):
                    size += path.stat().st_size
            peak[0] = max(peak[0], size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        with suppress(StorageError):
            manifest = export_dataset(
                data, "should_respond", ExportSettings(limit=limit), now=START + timedelta(days=11)
            )
            print(f"dataset {manifest.dataset_id}: {manifest.rows} rows, dropped {manifest.dropped}")
    finally:
        done.set()
        watcher.join()
    seconds = time.perf_counter() - start
    print(f"{rows:,} decisions, {total / 1e6:,.0f} MB")
    print(f"export of {limit:,}: {seconds:.1f} s, scratch {peak[0] / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("day", "export"))
    parser.add_argument("--rows", type=int)
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--only", nargs="+", default=[], help="of `day`: nothing, compaction, erasure")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--data", type=Path, help="a folder to keep the log in")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = args.data or Path(scratch) / "data"
        if args.what == "day":
            bench_day(data, args.rows or 5_000_000, args.files, args.only)
        else:
            bench_export(data, args.rows or 600_000, args.limit)


if __name__ == "__main__":
    main()
