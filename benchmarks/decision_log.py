"""Landing and the queries over the decision log, beside the bare libraries doing the same.

    python -m benchmarks.decision_log [--backlog 30000 120000] [--rows 200000] [--memory-limit 1GB] [--seed 0]

Landing runs in a process of its own for every size of the backlog: records a second by the wall and by the processor,
and the peak of memory, which should not grow with the backlog. Beside it `pyarrow.json` parses the same lines (their
CRC cut off) and writes them to one file: no checks, no partitions, no quarantine, nothing exactly once. The queries run
over `--rows` decisions, beside the same query on a bare DuckDB that globs the files. The medians of three runs.
"""

from __future__ import annotations

import argparse
import json
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
from typing import Any

import duckdb

import storage
from reasoning.ids import uuid7
from reasoning.records import Decision
from reasoning.spool import SegmentWriter
from storage.compact import compact_decisions
from storage.land import land_decisions

START = datetime(2026, 11, 1, tzinfo=UTC)
DAYS = 5

# name, the query over the views, the same over a glob
QUERIES = [
    (
        "daily cost per model",
        "SELECT date, model, sum(cost_usd) FROM {decisions} WHERE source = 'custom' GROUP BY ALL",
    ),
    (
        "fallback rate",
        "SELECT date, avg((fallback_reason IS NOT NULL)::INT) FROM {decisions} WHERE served GROUP BY ALL",
    ),
    ("p95 latency", "SELECT model, quantile_cont(latency_ms, 0.95) FROM {decisions} GROUP BY ALL"),
    ("look-up by id", "SELECT * FROM {decisions} WHERE decision_id = '{known}'::UUID"),
    ("last message of each", "SELECT max(length(messages[-1].content)) FROM {decisions}"),
    (
        "labels of one day",
        "SELECT label_source, count(*), max(length(messages[1].content)) FROM labelled_decisions "
        "WHERE decision_type = 'should_respond' AND date = DATE '2026-11-02' GROUP BY ALL",
    ),
    ("labels of all", "SELECT label_source, count(*), count(label) FROM labelled_decisions GROUP BY ALL"),
]


def write_backlog(data: Path, rows: int, seed: int) -> int:
    """Decisions of about 2.9 KB, as in the reference, over five days. Returns the bytes."""
    rng = random.Random(seed)
    words = [f"{rng.getrandbits(40):x}" for _ in range(4000)]
    system = {"role": "system", "content": " ".join(rng.choices(words, k=60))}
    writer = SegmentWriter(data / "spool")
    for n in range(rows):
        ts = START + timedelta(seconds=n * DAYS * 86_400 / rows)
        custom = n % 2 == 0
        writer.write(
            Decision(
                decision_id=uuid7(ts),
                request_id=uuid7(ts),
                ts=ts,
                decision_type=("should_respond", "planning")[n % 10 == 0],
                source="custom" if custom else "original",
                served=True,
                messages=[system, {"role": "user", "content": " ".join(rng.choices(words, k=130))}],
                agent_id="agent",
                episode_id=f"episode-{n // 20}",
                model="slug/model" if custom else None,
                completion="<response><action>RESPOND</action></response>",
                decision={"action": "RESPOND"},
                confidence=rng.random() if custom else None,
                fallback_reason=None if custom or n % 7 else "timeout",
                latency_ms=rng.expovariate(0.01),
                input_tokens=700,
                output_tokens=20,
                cost_usd=0.00002 if custom else None,
            )
        )
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


def bench_queries(rows: int, memory_limit: str, seed: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch)
        for part in range(0, rows, 500_000):  # so that the spool stays small
            write_backlog(data, min(500_000, rows - part), seed + part)
            land_decisions(data)
        start = time.perf_counter()
        report = compact_decisions(data, memory_limit=memory_limit)
        seconds = time.perf_counter() - start
        print(f"\ncompaction: {report.bytes_before / 1e6:.0f} MB of Parquet in {seconds:.1f} s, limit {memory_limit}")
        print(f"\n{'query, ' + format(rows, ',') + ' rows':28}{'views s':>9}{'bare s':>9}{'ratio':>7}")
        bare = duckdb.connect(config={"memory_limit": memory_limit})
        glob = f"read_parquet('{data}/decisions/**/*.parquet', hive_partitioning = true)"
        with storage.connect(data, memory_limit=memory_limit) as con:
            ((known,),) = con.execute(f"SELECT decision_id FROM decisions LIMIT 1 OFFSET {rows // 2}").fetchall()
            for name, query in QUERIES:
                ours = _seconds(con, query.format(decisions="decisions", known=known))
                if "labelled_decisions" in query:
                    print(f"{name:28}{ours:9.3f}")
                    continue
                theirs = _seconds(bare, query.format(decisions=glob, known=known))
                print(f"{name:28}{ours:9.3f}{theirs:9.3f}{ours / theirs:7.2f}")


def _seconds(con: Any, query: str) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        con.execute(query).fetchall()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backlog", type=int, nargs="+", default=[30_000, 120_000], help="records to land")
    parser.add_argument("--rows", type=int, default=200_000, help="decisions to query; the reference has 5000000")
    parser.add_argument("--memory-limit", default="1GB")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "DATA"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        what, data = args.measure
        run = land_decisions if what == "land" else land_bare
        print(json.dumps(measure(lambda: run(Path(data)))))
        return
    bench_landing(args.backlog, args.seed)
    bench_queries(args.rows, args.memory_limit, args.seed)


if __name__ == "__main__":
    main()
