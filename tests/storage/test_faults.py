"""Kills, failing I/O and readers beside a constant compactor: nothing lost, doubled or corrupt. Long by `torture`."""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import storage
from reasoning.io.spool import SegmentWriter
from storage.erasure.erase import erase_subject
from storage.errors import StorageError
from storage.layout import Layout
from storage.log import replace
from storage.log.compact import compact_decisions
from storage.log.land import land_decisions
from storage.log.quarantine import read_quarantine
from tests.disks import small_disk
from tests.storage import faults
from tests.storage.logs import (
    NOON,
    landed_ids,
    list_parquet,
    make_days,
    make_decision,
    write_segment,
)
from tests.storage.survival import VERBS, check_survived, fill


def check_against(data: Path, acknowledged: set[UUID]) -> dict[str, int]:
    """Land and compact what the kills left; count what is lost, doubled and extra."""
    land_decisions(data)
    compact_decisions(data)
    land_decisions(data)
    ids = landed_ids(data)
    for path in list_parquet(data):
        pq.read_table(path)
    reasons = {
        entry["reason"].partition(":")[0]
        for path in (data / "quarantine").iterdir()
        for entry, _ in read_quarantine(path)
    }
    assert reasons <= {"torn"}
    assert not [path for path in data.rglob("*") if path.suffix in (".tmp", ".seal", ".open") and path.stat().st_size]
    forgotten = storage.sql(data, "SELECT decision_id FROM decisions WHERE len(subject_ids) > 0").rows
    return {
        "acknowledged": len(acknowledged),
        "lost": len(acknowledged - set(ids)),
        "doubled": len(ids) - len(set(ids)),
        "extra": len(set(ids) - acknowledged - {row[0] for row in forgotten}),
    }


def kill_for(
    folder: Path, writer_kills: int, method: str, seed: int, *, others: tuple[str, ...] = ("lander", "compactor")
) -> Counter[str]:
    """Two writers, killed so many times in turn, beside others that are killed as often. Counts of what came of it."""
    rng = random.Random(seed)
    data = folder / "data"
    Layout(data).create()
    acks = folder / "acks"
    acks.mkdir()
    counts: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:

        def start(name: str) -> BaseProcess:
            roles: dict[str, tuple[Callable[..., None], tuple[object, ...]]] = {
                "writer": (faults.write, (data, acks / str(rng.random()))),
                "lander": (faults.land, (data,)),
                "copier": (faults.copy, (data, folder)),
                "compactor": (faults.compact, (data, method)),
                "eraser": (faults.erase, (data,)),
                "expirer": (faults.expire, (data,)),
            }
            role, arguments = roles[name.partition(" ")[0]]
            return stack.enter_context(faults.started(role, *arguments))

        running = {name: start(name) for name in ("writer 1", "writer 2", *others)}
        for n in range(writer_kills):
            for name in (f"writer {n % 2 + 1}", rng.choice(others)):
                time.sleep(rng.random() * 0.15)
                assert running[name].is_alive(), f"{name} died by itself"
                running[name].kill()
                running[name].join()
                running[name] = start(name)
                counts[f"{name.partition(' ')[0]}s killed"] += 1
    acknowledged = {
        UUID(bytes=content[at : at + 16])
        for path in acks.iterdir()
        for content in [path.read_bytes()]
        for at in range(0, len(content) - 15, 16)
    }
    if "eraser" in others:
        erase_subject(data, faults.FORGOTTEN)
        assert storage.sql(data, "SELECT count(*) FROM decisions WHERE len(subject_ids) > 0").rows == [(0,)]
    counts.update(check_against(data, acknowledged))
    return counts


def test_kills_of_everybody(tmp_path: Path) -> None:
    counts = kill_for(
        tmp_path, 3, "both", seed=1, others=("lander 1", "lander 2", "copier", "compactor", "eraser", "expirer")
    )
    assert counts["acknowledged"] > 0
    assert (counts["lost"], counts["doubled"]) == (0, 0)


@pytest.mark.torture
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("method", "others", "share"),
    [
        ("exchange", ("lander", "copier", "compactor"), 0.4),
        ("manifest", ("lander", "copier", "compactor"), 0.4),
        ("both", ("lander", "copier", "compactor", "eraser"), 0.2),
    ],
)
def test_a_thousand_kills(tmp_path: Path, method: str, others: tuple[str, ...], share: float) -> None:
    """`TORTURE_KILLS` writers in all (by default 1,000), and as many of the others."""
    left = round(share * int(os.environ.get("TORTURE_KILLS", "1000")))
    total: Counter[str] = Counter()
    for seed in range(-(-left // 50)):  # a new folder from time to time, or compaction takes all the time
        folder = tmp_path / str(seed)
        folder.mkdir()
        total += kill_for(folder, min(50, left - 50 * seed), method, seed, others=others)
        shutil.rmtree(folder)
        print(method, *others, dict(total), flush=True)
        assert not total["lost"] and not total["doubled"]


class FailingCalls:
    """Every call of Python's that reaches the disk, counted; the Nth fails. (`test_disk_faults` has those in C.)"""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int) -> None:
        self.count = 0
        self.fail_at = fail_at
        self.failed: str | None = None
        for name in ("open", "fsync", "rename", "replace", "unlink", "mkdir", "rmdir", "pwrite", "scandir", "listdir"):
            monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name)))
        monkeypatch.setattr(io, "open", self.wrap_open(io.open))  # Path.open
        monkeypatch.setattr(builtins, "open", self.wrap_open(builtins.open))
        monkeypatch.setattr(pq.ParquetWriter, "write_table", self.wrap("write_table", pq.ParquetWriter.write_table))
        monkeypatch.setattr(pq.ParquetWriter, "close", self.wrap("close", pq.ParquetWriter.close))
        monkeypatch.setattr(replace, "exchange", self.wrap("exchange", replace.exchange))

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self.count += 1
            if self.count == self.fail_at:
                self.failed = name
                raise OSError(errno.EIO, "Input/output error")
            return function(*arguments, **keywords)

        return call

    def wrap_open(self, function: Callable[..., Any]) -> Callable[..., Any]:
        counted = self.wrap("open()", function)

        def call(path: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
            file = counted(path, mode, *arguments, **keywords)
            return file if set(mode) <= set("rbt") else FailingFile(file, self)

        return call


class FailingFile:
    """A file that is written to."""

    def __init__(self, file: Any, calls: FailingCalls) -> None:
        self._file = file
        self.write = calls.wrap("write", file.write)
        self.flush = calls.wrap("flush", file.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __iter__(self) -> Any:
        return iter(self._file)

    def __enter__(self) -> FailingFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def fail_each(tmp_path: Path, verb: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    template = tmp_path / "template"
    filled = fill(template)
    failed: Counter[str] = Counter()
    with storage.connect(template) as con:
        for n in range(1, 10_000, step):
            data = tmp_path / str(n)
            shutil.copytree(template, data)
            with monkeypatch.context() as patch:
                calls = FailingCalls(patch, n)
                with contextlib.suppress(OSError, StorageError, pa.ArrowException):
                    VERBS[verb](data)
                assert calls.failed or calls.count < n
            try:
                check_survived(con, data, filled, verb)
            except (AssertionError, StorageError) as error:
                raise AssertionError(f"{verb}, call {n}: {calls.failed} failed") from error
            if not calls.failed:
                break
            failed[calls.failed] += 1
            shutil.rmtree(data)
    assert failed.total() > 2
    print(verb, failed.total(), "failures survived", dict(failed))


@pytest.mark.parametrize(
    ("verb", "step"), [("land", 17), ("compact", 41), ("erase", 47), ("expire", 23), ("reland", 23)]
)
def test_calls_to_the_disk_failing(tmp_path: Path, verb: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_each(tmp_path, verb, step, monkeypatch)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("verb", VERBS)
def test_every_call_to_the_disk_failing(tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_each(tmp_path, verb, 1, monkeypatch)


def read_beside_a_compactor(folder: Path, method: str, reads: int) -> Counter[str]:
    """Two processes that read so often together, while a third rewrites every partition for ever."""
    data = folder / "data"
    write_segment(
        data, [make_decision(d.ts, decision_type=kind) for kind in ("a", "b") for d in make_days(3, 50, NOON)]
    )
    land_decisions(data)
    with contextlib.ExitStack() as stack:
        compactor = stack.enter_context(faults.started(faults.churn, data, method))
        outs = [folder / "reader-1", folder / "reader-2"]
        readers = [stack.enter_context(faults.started(faults.read, data, reads // 2, 300, out)) for out in outs]
        for reader in readers:
            reader.join()
        assert compactor.is_alive()
    return sum((Counter(orjson.loads(out.read_bytes())) for out in outs), Counter())


@pytest.mark.parametrize("method", ["exchange", "manifest"])
def test_readers_beside_a_constant_compactor(tmp_path: Path, method: str) -> None:
    assert read_beside_a_compactor(tmp_path, method, 16) == {"right": 16}


@pytest.mark.torture
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("method", ["exchange", "manifest"])
def test_ten_thousand_reads_beside_a_constant_compactor(tmp_path: Path, method: str) -> None:
    reads = int(os.environ.get("TORTURE_READS", "10000")) // 2
    counts = read_beside_a_compactor(tmp_path, method, reads)
    print(method, dict(counts), flush=True)
    assert counts == {"right": reads}


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    with small_disk(tmp_path, 8) as disk:
        decisions = make_days(1, 700)
        for decision in decisions:
            decision.completion = os.urandom(1800).hex()
        writer = SegmentWriter(disk / "data" / "spool")
        kept = [d.decision_id for d in decisions if writer.write(d)]
        writer.close()
        filler = disk / "filler"
        filler.write_bytes(b"")
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with pytest.raises(StorageError, match="disk is full"):
            land_decisions(disk / "data")
        assert list((disk / "data" / "spool").glob("*.seal"))
        filler.unlink()
        land_decisions(disk / "data")
        assert landed_ids(disk / "data") == sorted(kept)
