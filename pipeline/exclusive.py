"""One run of a kind at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.ledger.ledger import open_ledger


@contextmanager
def exclusive_run(data: Path, flow: str, if_busy: str) -> Iterator[bool]:
    """Hold the lock of a flow in this installation; yields False when another holds it and `if_busy` is `skip`.

    Not Prefect's concurrency limits: their CANCEL_NEW cancels the run a person started when it meets a tick, ENQUEUE
    piles ticks up, and a slot outlives the kill -9 of who held it. This lock ends with its process.
    """
    with open_ledger(data) as ledger, ledger.exclusive(f"flow-{flow}", wait=if_busy == "wait") as ours:
        yield ours
