"""Landing and the queries over the decision log, beside the bare libraries doing the same.

    python -m benchmarks.decision_log landing [--backlog 30000 120000] [--seed 0]
    python -m benchmarks.decision_log queries [--rows 200000] [--memory-limit 1GB] [--data FOLDER] [--seed 0]

Landing runs in a process of its own for every size of the backlog: records a second by the wall and by the processor,
and the peak of memory, which should not grow with the backlog. Beside it `pyarrow.json` parses the same lines (their
CRC cut off) and writes them to one file: no checks, no partitions, no quarantine, nothing exactly once.

The queries run over a log of a month, landed and compacted, with 0.9 KB of text a decision, as that of the reference
figures (5,000,000 decisions, memory limit 1 GB); beside it the same query on a bare DuckDB that globs the files. Both
in turn, `--repeat` times; the medians of the wall, and the processor's seconds of the view's, which tell on a busy
machine. `--data` keeps the log for another run: to fill it takes minutes for each million.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb

import storage
from reasoning.ids import uuid7
from reasoning.io.spool import SegmentWriter
from reasoning.records import Decision, Feedback, Message
from storage.layout import Layout
from storage.log.compact import compact_decisions
from storage.log.land import land_decisions

# The records have fixed dates and land in any year.
os.environ |= {"REASONING_MAX_DAYS_AHEAD": "36500", "REASONING_MAX_DAYS_BEHIND": "36500"}
START = datetime(2026, 11, 1, tzinfo=UTC)
DAYS = 30
HALF = "2026-11-16"

# What it is, the reference's seconds for 5,000,000 rows, and the query. `{decisions}` is the view, or a glob.
# The queries that need a view of ours have nothing beside them.
QUERIES = [
    (
        "daily cost per model",
        0.36,
        "SELECT date, model, sum(cost_usd) FROM {decisions} WHERE source = 'custom' GROUP BY ALL",
    ),
    (
        "fallback rate",
        0.12,
        "SELECT date, avg((fallback_reason IS NOT NULL)::INT) FROM {decisions} WHERE served GROUP BY ALL",
    ),
    ("p95 latency", 1.35, "SELECT model, quantile_cont(latency_ms, 0.95) FROM {decisions} GROUP BY ALL"),
    ("look-up by id", 0.06, "SELECT * FROM {decisions} WHERE decision_id = '{known}'::UUID"),
    (
        "text by role",
        2.9,
        "SELECT m.role, sum(length(m.content)) FROM (SELECT unnest(messages) AS m FROM {decisions}) GROUP BY ALL",
    ),
    (
        "exact duplicates, by the whole prompt",
        None,  # 1.2 s there, by a column of hashes that our log has not
        "SELECT count(*) FROM (SELECT DISTINCT ON (decision_type, hash(messages)) decision_id FROM {decisions})",
    ),
    (
        "a fifth as JSON lines",
        5.1,
        "COPY (SELECT messages, decision, completion FROM {decisions} WHERE date <= DATE '2026-11-06') "
        "TO '{out}' (FORMAT json)",
    ),
    (
        "filter, deduplicate, stratify, export",
        18.0,
        # In two steps: a DISTINCT that carries the messages along needs more than 1 GB.
        f"COPY (SELECT messages, decision FROM {{decisions}} WHERE date < DATE '{HALF}' AND decision_id IN ("
        "  SELECT decision_id FROM ("
        "    SELECT DISTINCT ON (md5_number(messages::VARCHAR)) decision_id, decision FROM {decisions}"
        f"    WHERE decision_type = 'should_respond' AND valid AND served AND date < DATE '{HALF}'"
        "  ) QUALIFY row_number() OVER (PARTITION BY decision ORDER BY hash(decision_id)) <= {rows} * 57 // 3000"
        ")) TO '{out}' (FORMAT json)",
    ),
    (
        "feedback of a day",
        0.07,
        "SELECT metric, count(*), count(f.value) FROM decisions AS d JOIN feedback AS f USING (date, decision_id) "
        f"WHERE date = DATE '{HALF}' GROUP BY ALL",
    ),
    (
        "labels of one day",
        None,
        "SELECT label_source, count(*), max(length(messages[1].content)) FROM labelled_decisions "
        f"WHERE decision_type = 'should_respond' AND date = DATE '{HALF}' GROUP BY ALL",
    ),
    ("labels of all", None, "SELECT label_source, count(*), count(label) FROM labelled_decisions GROUP BY ALL"),
]


def write_backlog(
    data: Path, rows: int, seed: int, *, first: int = 0, total: int | None = None, words: tuple[int, int] = (60, 130)
) -> int:
    """Decisions over a month, `rows` of `total` from the `first`; every twentieth gets feedback. Returns the bytes.

    `words` are those of the system's and of the user's message: by default a record has 2.9 KB, as in the reference.
    """
    rng = random.Random(seed)
    lexicon = [f"{rng.getrandbits(40):x}" for _ in range(4000)]
    rng.seed(f"{seed} {first}")
    system: Message = {"role": "system", "content": " ".join(lexicon[: words[0]])}
    writer = SegmentWriter(data / "spool")
    for n in range(first, first + rows):
        ts = START + timedelta(seconds=n * DAYS * 86_400 / (total or rows))
        custom = n % 2 == 0
        decision = Decision(
            decision_id=uuid7(ts),
            request_id=uuid7(ts),
            ts=ts,
            decision_type=("should_respond", "planning")[n % 10 == 0],
            source="custom" if custom else "original",
            served=True,
            messages=[system, {"role": "user", "content": " ".join(rng.choices(lexicon, k=words[1]))}],
            agent_id="agent",
            episode_id=f"episode-{n // 20}",
            model="slug/model" if custom else None,
            completion="<response><action>RESPOND</action></response>",
            decision={"action": ("RESPOND", "IGNORE", "STOP")[n % 3]},
            confidence=rng.random() if custom else None,
            fallback_reason=None if custom or n % 7 else "timeout",
            latency_ms=rng.expovariate(0.01),
            input_tokens=700,
            output_tokens=20,
            cost_usd=0.00002 if custom else None,
        )
        writer.write(decision)
        if n % 20 == 0:
            writer.write(Feedback(uuid7(ts), ts, "rating", rng.random(), decision_id=decision.decision_id))
    writer.close()
    return sum(path.stat().st_size for path in (data / "spool").iterdir())


def measure(run: Callable[[], object]) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_mb": after.ru_maxrss / 1024,
        "idle_mb": before.ru_maxrss / 1024,
    }


def land_bare(data: Path) -> None:
    import pyarrow as pa
    import pyarrow.json as pj
    import pyarrow.parquet as pq

    writer = None
    for path in sorted((data / "spool").iterdir()):
        lines = b"".join(line[9:] for line in path.read_bytes().splitlines(keepends=True))
        table = pj.read_json(pa.BufferReader(lines))
        writer = writer or pq.ParquetWriter(
            data / "bare.parquet", table.schema, compression="zstd", compression_level=3
        )
        writer.write_table(table.cast(writer.schema), row_group_size=20_000)
    if writer:
        writer.close()


def in_own_process(what: str, data: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.decision_log", "--measure", what, str(data)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def bench_landing(sizes: list[int], seed: int) -> None:
    heads = ("records", 9), ("MB", 7), ("records/s", 11), ("per CPU s", 11), ("MB/s", 7), ("peak MB", 9), ("idle MB", 9)
    print(f"{'landing':24}" + "".join(f"{head:>{width}}" for head, width in heads))
    for rows in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            data = Path(scratch)
            size = write_backlog(data, rows, seed) / 1e6
            for name, what in (("pyarrow.json, bare", "bare"), ("land_decisions", "land")):
                m = in_own_process(what, data)
                print(
                    f"{name:24}{rows:9,}{size:7.0f}{rows / m['seconds']:11,.0f}{rows / m['cpu_seconds']:11,.0f}"
                    f"{size / m['seconds']:7.0f}{m['peak_mb']:9.0f}{m['idle_mb']:9.0f}"
                )


def fill(data: Path, rows: int, memory_limit: str, seed: int) -> None:
    """Write, land and compact, a part at a time so that the spool stays small. Goes on where it was interrupted."""
    part = 250_000
    while (first := _count(data)) < rows:
        write_backlog(data, min(part, rows - first), seed, first=first, total=rows, words=(24, 55))
        land_decisions(data)
        print(f"\r{_count(data):,} of {rows:,} decisions", end="", file=sys.stderr, flush=True)
    start = time.perf_counter()
    report = compact_decisions(data, memory_limit=memory_limit)
    print(f"\ncompaction: {report.bytes_before / 1e6:,.0f} MB of Parquet in {time.perf_counter() - start:.1f} s")


def _count(data: Path) -> int:
    Layout(data).create()
    return storage.sql(data, "SELECT count(*) FROM decisions").rows[0][0]


def bench_queries(data: Path, rows: int, memory_limit: str, seed: int, repeat: int) -> None:
    fill(data, rows, memory_limit, seed)
    size = sum(path.stat().st_size for path in data.rglob("*.parquet")) / 1e6
    print(f"\n{rows:,} decisions, {size:,.0f} MB on disk, memory limit {memory_limit}\n")
    print(f"{'query':40}{'reference':>10}{'views':>9}{'to it':>7}{'CPU':>9}{'bare':>9}{'CPU':>9}{'to bare':>9}")
    glob = f"read_parquet('{data}/decisions/**/*.parquet', hive_partitioning = true)"
    bare = duckdb.connect(config={"memory_limit": memory_limit})
    with storage.connect(data, memory_limit=memory_limit) as con, tempfile.TemporaryDirectory() as scratch:
        ((known,),) = con.execute(f"SELECT decision_id FROM decisions LIMIT 1 OFFSET {rows // 2}").fetchall()
        values = {"known": known, "rows": rows, "out": f"{scratch}/out.jsonl"}
        for name, reference, query in QUERIES:
            pair = [(con, "decisions")] + ([(bare, glob)] if "{decisions}" in query else [])
            taken: list[list[tuple[float, float]]] = [[] for _ in pair]
            for _ in range(repeat):
                for times, (each, decisions) in zip(taken, pair, strict=True):
                    start = time.perf_counter(), time.process_time()
                    each.execute(query.format(decisions=decisions, **values)).fetchall()
                    times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
            (wall, cpu), *bares = (
                [statistics.median(column) for column in zip(*times, strict=True)] for times in taken
            )
            row = f"{name:40}" + (f"{reference:10.2f}" if reference else " " * 10) + f"{wall:9.3f}"
            row += (f"{wall / reference:7.2f}" if reference else " " * 7) + f"{cpu:9.3f}"
            for bare_wall, bare_cpu in bares:
                row += f"{bare_wall:9.3f}{bare_cpu:9.3f}{cpu / bare_cpu:9.2f}"
            print(row, flush=True)
    print(f"\npeak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("landing", "queries"), help="both, if none is named")
    parser.add_argument("--backlog", type=int, nargs="+", default=[30_000, 120_000], help="records to land")
    parser.add_argument("--rows", type=int, default=200_000, help="decisions to query; the reference has 5000000")
    parser.add_argument("--memory-limit", default="1GB")
    parser.add_argument("--data", type=Path, help="a folder to keep the log to query in")
    parser.add_argument("--repeat", type=int, default=3, help="times that each query runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "DATA"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        what, data = args.measure
        run = land_decisions if what == "land" else land_bare
        print(json.dumps(measure(lambda: run(Path(data)))))
        return
    if args.what != "queries":
        bench_landing(args.backlog, args.seed)
    if args.what != "landing":
        with tempfile.TemporaryDirectory() as scratch:
            bench_queries(args.data or Path(scratch), args.rows, args.memory_limit, args.seed, args.repeat)


if __name__ == "__main__":
    main()
