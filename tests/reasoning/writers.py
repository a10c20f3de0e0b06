"""What the spool's tests write, importable in a child process within milliseconds."""

from __future__ import annotations

import itertools
import os
import sys
from datetime import UTC, datetime
from typing import Any

from reasoning.ids import uuid7
from reasoning.io.spool import SegmentWriter
from reasoning.records import Feedback


def record(i: int = 0, size: int = 0) -> Feedback:
    now = datetime.fromtimestamp(1_700_000_000 + i, UTC)
    return Feedback(uuid7(now), now, "n", f"{i}:" + "x" * size, "comment", episode_id="e")


def write_for_ever(folder: str, start: int) -> None:
    """Tell on stdout, a line each, what was acknowledged."""
    writer = SegmentWriter(folder, max_bytes=20_000, sync_interval=0.01)
    for i in itertools.count(start):
        if writer.write(record(i, i % 3000)):
            os.write(1, b"%d\n" % i)


def decide_in_child(data: str, context: Any) -> None:
    """Let a client of this process be given a model's answers."""
    from reasoning import DecisionClient

    client = DecisionClient(data)
    for _ in range(5):
        assert client.decide_should_respond(context, lambda _: "RESPOND").source == "custom"
    client.close()  # multiprocessing ends its children without atexit


if __name__ == "__main__":
    write_for_ever(sys.argv[1], int(sys.argv[2]))
