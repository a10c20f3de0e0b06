"""What the processes do that the fault tests start and kill. All are forked from one that has the imports done."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import orjson

import storage.erasure.datasets
import storage.erasure.erase
import storage.log.compact
import storage.log.land
import storage.log.quarantine
import storage.log.replace
from reasoning.io.spool import SegmentWriter
from storage.erasure.erase import erase_subject
from storage.errors import DataFolderBusy
from storage.layout import Layout
from storage.locks import data_lock
from storage.log.compact import compact_decisions
from storage.log.expire import expire_decisions
from storage.log.land import land_decisions, list_segments
from storage.log.replace import recover
from storage.log.rewrite import rewrite_partition
from storage.log.table import list_partitions
from tests.forkserver import CONTEXT
from tests.storage.logs import make_decision, segment_id


@contextmanager
def started(role: Callable[..., None], *arguments: object) -> Iterator[BaseProcess]:
    """A process that has begun to play the role, killed at the end."""
    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_play, args=(there, role, *arguments), daemon=True)
    process.start()
    there.close()
    try:
        assert here.recv() == "ready"  # EOFError when it died
        yield process
    finally:
        process.kill()
        process.join()
        here.close()


def _play(ready: Connection, role: Callable[..., None], *arguments: object) -> None:
    ready.send("ready")
    role(*arguments)


FORGOTTEN = "ann"  # whom `erase` erases: of every eighth decision, which `write` does not acknowledge


def write(data: Path, acknowledged: Path) -> None:
    """Record for ever; an id is acknowledged, by one write to a file of its own, after `write` returned True."""
    writer = SegmentWriter(data / "spool", max_bytes=20_000, sync_interval=0.05)
    fd = os.open(acknowledged, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    n = 0
    while True:
        n += 1
        ts = datetime.now(UTC) - timedelta(days=n % 3)
        decision = make_decision(ts, decision_type=("planning", "should_respond")[n % 2], episode_id="x" * (n % 700))
        if n % 8 == 0:
            decision.subject_ids = [FORGOTTEN]
            writer.write(decision)
        elif writer.write(decision):
            os.write(fd, decision.decision_id.bytes)


def land(data: Path) -> None:
    while True:
        try:
            land_decisions(data, lock_timeout=5)
        except DataFolderBusy:
            continue


def copy(data: Path, scratch: Path) -> None:
    """Put copies of segments into the spool under other names, some cut short, as a clumsy backup would."""
    rng = random.Random()
    temporary = scratch / f"copy-{os.getpid()}"
    while True:
        for path in list_segments(Layout(data), ".open", ".seal"):
            with suppress(FileNotFoundError):
                content = path.read_bytes()
                temporary.write_bytes(content[: rng.choice([len(content), rng.randrange(len(content) + 1)])])
                temporary.rename(data / "spool" / f"{segment_id(9)}.seal")
            time.sleep(0.02)
        time.sleep(0.02)


def compact(data: Path, method: str) -> None:
    methods = itertools.cycle(["exchange", "manifest"] if method == "both" else [method])
    while True:
        try:
            compact_decisions(data, method=next(methods), lock_timeout=5)  # type: ignore[arg-type]
        except DataFolderBusy:
            continue


def erase(data: Path) -> None:
    while True:
        try:
            erase_subject(data, FORGOTTEN, threads=1, lock_timeout=5)
        except DataFolderBusy:
            continue


def expire(data: Path) -> None:
    while True:
        try:
            expire_decisions(data, retention_days=3650, lock_timeout=5)
        except DataFolderBusy:
            continue


def read(data: Path, reads: int, rows: int, out: Path) -> None:
    """Count `rows` decisions so often; how often that was right, wrong or failed is written to `out`."""
    counts = Counter[str]()
    for _ in range(reads):
        try:
            found = storage.sql(
                data, "SELECT count(*), count(DISTINCT decision_id), count(messages) FROM decisions", threads=1
            )
        except Exception as error:
            counts[repr(error)] += 1
        else:
            counts["right" if found.rows == [(rows, rows, rows)] else f"wrong: {found.rows}"] += 1
    out.write_bytes(orjson.dumps(counts))


def churn(data: Path, method: str) -> None:
    """Rewrite every partition over and over, although it is one file already."""
    layout = Layout(data)
    with storage.connect(data, threads=1) as con:
        while True:
            for key in list_partitions(layout, "decisions"):
                with data_lock(layout, "churning"):
                    recover(layout)
                    rewrite_partition(con, layout, key, method=method)  # type: ignore[arg-type]


def erase_until(data: Path, subject_id: str, step: int) -> None:
    """Erase, and be killed by SIGKILL before the step of this number (from 0)."""
    steps = itertools.count()

    def killing(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **keywords: object) -> object:
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return call

    for module, name in (
        (storage.erasure.erase, "write_atomic"),
        (storage.erasure.erase, "erase_lines"),
        (storage.erasure.datasets, "replace_folder"),
        (storage.erasure.erase, "erase_quarantine"),
        (storage.erasure.erase, "commit"),
        (storage.erasure.erase, "erase_spool"),
    ):
        setattr(module, name, killing(getattr(module, name)))
    storage.erasure.erase.erase_subject(data, subject_id, threads=1)


def rewrite_until(data: Path, verb: str, method: str, step: str) -> None:
    """Compact, or erase `ann`, and be killed by SIGKILL before the first call of the function `step`."""

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    for module in (storage.log.compact, storage.erasure.erase, storage.log.replace):
        if hasattr(module, step):
            setattr(module, step, die)
    if verb == "compact":
        compact_decisions(data, method=method, threads=1)  # type: ignore[arg-type]
    else:
        erase_subject(data, "ann", threads=1)


def land_until(data: Path, step: str, log: str) -> None:
    """Land, and be killed by SIGKILL at the commit (`sync`: before it) or at the first `unlink` of a segment after."""
    if log:
        os.environ["REASONING_LOG"] = log

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if step == "sync":
        storage.log.land._Landing._reject_conflicts = die  # type: ignore[method-assign]
    elif step == "unlink":
        storage.log.quarantine.QuarantineWriter.commit = die  # type: ignore[method-assign]
    land_decisions(data, lock_timeout=60)
