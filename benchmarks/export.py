"""How long an export takes and how much memory: `python benchmarks/export.py [rows] [limit]`.

Writes a log of so many labelled decisions (made-up talk, in conversations of ten) with the real writer, lands it, and
exports it in a process of its own, whose peak memory is read from the kernel.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from reasoning.decision_types import get_decision_type
from reasoning.ids import uuid7
from reasoning.io.spool import SegmentWriter
from reasoning.records import Decision, Feedback
from storage.layout import Layout
from storage.log.land import land_decisions

# The records have fixed dates and land in any year.
os.environ |= {"REASONING_MAX_DAYS_AHEAD": "36500", "REASONING_MAX_DAYS_BEHIND": "36500"}
START = datetime(2026, 1, 1, tzinfo=UTC)

_EXPORT = """
import json, resource, sys, time
from datetime import datetime
steps, begun = {}, time.perf_counter()
def progress(event):
    steps[event.what] = time.perf_counter() - begun
from quality.dataset.export import export_dataset
from quality.settings import ExportSettings
data, now, limit = sys.argv[1], datetime.fromisoformat(sys.argv[2]), int(sys.argv[3])
manifest = export_dataset(data, "should_respond", ExportSettings(limit=limit), now=now, progress=progress)
print(json.dumps({"seconds": time.perf_counter() - begun, "until_end_of_step": steps, "rows": manifest.rows,
                  "dropped": manifest.dropped, "leaks": manifest.as_dict()["leaks"],
                  "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def write_log(data: Path, rows: int) -> None:
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randrange(2, 9))) for _ in range(5000)]
    kind = get_decision_type("should_respond")
    layout = Layout(data).create()
    writer = SegmentWriter(layout.spool, max_age=1e9)
    for number in range(rows // 10):
        talk: list[dict[str, str]] = []
        for turn in range(10):
            ts = START + timedelta(minutes=5 * number, seconds=20 * turn)
            talk.append(
                {"speaker": f"p{rng.randrange(4)}", "text": " ".join(rng.choices(words, k=rng.randrange(8, 30)))}
            )
            action = "RESPOND" if rng.random() < 0.4 else "IGNORE"
            decision = Decision(
                decision_id=uuid7(ts),
                request_id=uuid7(ts),
                ts=ts,
                decision_type="should_respond",
                source="original",
                served=True,
                messages=kind.render({"agent_name": "Ada", "messages": talk}),
                episode_id=f"talk-{number}",
                completion=kind.format_answer("IGNORE"),
                decision={"action": "IGNORE"},
                latency_ms=1.0,
            )
            writer.write(decision)
            writer.write(
                Feedback(
                    feedback_id=uuid7(ts),
                    ts=ts + timedelta(seconds=30),
                    metric="demonstration",
                    value=json.dumps({"action": action}),
                    kind="demonstration",
                    decision_id=decision.decision_id,
                )
            )
    writer.close()
    land_decisions(data)


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    limits = [int(sys.argv[2])] if len(sys.argv) > 2 else [10_000, rows]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        begun = time.perf_counter()
        write_log(data, rows)
        size = sum(path.stat().st_size for path in data.rglob("*.parquet")) / 1e6
        print(
            f"{rows:,} decisions written and landed in {time.perf_counter() - begun:.0f} s ({size:.0f} MB of Parquet)"
        )
        now = START + timedelta(minutes=rows)
        for limit in limits:
            done = subprocess.run(
                [sys.executable, "-c", _EXPORT, str(data), now.isoformat(), str(limit)], capture_output=True, text=True
            )
            print(f"limit {limit:,}:", done.stdout or done.stderr)


if __name__ == "__main__":
    main()
