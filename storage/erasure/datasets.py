"""Erasure from exported datasets: find the lines about a person and rewrite the datasets without them.

A line belongs to the person if its decision is being erased from the log, or if `subject_ids` in `rows.parquet` names
them, so lines of expired decisions are found too. Older datasets lack that column. For their expired rows the text of
the line decides; lines that it does not decide are counted.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import DatasetError
from storage.files import remove_abandoned, remove_tree, replace_folder, sync, write_atomic
from storage.layout import Layout
from storage.log.views import literal_path

DatasetLine = tuple[str, int]  # (split, number from 0)

_STAGED = ".erase-"
_EXPORTING = ".export-"  # of `quality.dataset.export`, whose owner holds a lock on it


@dataclass
class DatasetLines:
    """The lines of the person by dataset folder, and the number of undecidable lines in each."""

    found: dict[Path, list[DatasetLine]] = field(default_factory=dict)
    undecided: dict[Path, int] = field(default_factory=dict)


def dataset_name(folder: Path) -> str:
    """`<decision_type>/<dataset_id>`."""
    return f"{folder.parent.name}/{folder.name}"


def list_datasets(layout: Layout) -> list[Path]:
    """The folders of all datasets, sorted; also of those that have lost their `rows.parquet` or their manifest."""
    parts = (layout.datasets.glob(f"*/[!.]*/{part}") for part in ("rows.parquet", "manifest.json", "*.jsonl"))
    return sorted({path.parent for path in chain.from_iterable(parts)})


@contextmanager
def _reading(dataset: Path) -> Iterator[None]:
    """Raise DatasetError where a part of a dataset cannot be read."""
    try:
        yield
    except (OSError, ValueError, pa.ArrowException, duckdb.Error) as error:
        raise DatasetError(
            f"the dataset {dataset} cannot be read ({error}), so nobody can be erased from it: put back what is "
            "damaged, or delete the folder, and run the same again"
        ) from error


def find_lines(con: duckdb.DuckDBPyConnection, layout: Layout, subject_id: str) -> DatasetLines:
    """Search every dataset.

    For a connection with the tables `subject`, `erased` and `taught` of `storage.erasure.erase`. Leftovers of killed
    exports and erasures are removed, because nothing would search them again.
    """
    for stale in layout.datasets.glob(f"*/{_STAGED}*"):
        remove_tree(stale)
    remove_abandoned(layout.datasets.glob(f"*/{_EXPORTING}*"))
    lines = DatasetLines()
    for dataset in list_datasets(layout):
        with _reading(dataset):
            found, rest = _search(con, dataset, subject_id)
        if rest:
            lines.undecided[dataset] = rest
        if found:
            lines.found[dataset] = found
    return lines


def _search(con: duckdb.DuckDBPyConnection, dataset: Path, subject_id: str) -> tuple[list[DatasetLine], int]:
    """The lines of the person in one dataset, and the number of undecidable lines."""
    _check_manifest(dataset / "manifest.json")
    side, rest = dataset / "rows.parquet", 0
    file, names = [literal_path(side)], pq.read_schema(side).names
    named = "list_contains(subject_ids, (SELECT id FROM subject))" if "subject_ids" in names else "false"
    found = con.execute(
        f"""
        SELECT split, line FROM read_parquet($1, hive_partitioning = false)
        WHERE decision_id::UUID IN (SELECT decision_id FROM erased)
           OR request_id::UUID IN (SELECT request_id FROM erased)
           OR label_source = 'demonstration' AND request_id::UUID IN (SELECT request_id FROM taught)
           OR {named}
        """,  # noqa: S608 - constants
        file,
    ).fetchall()
    if "subject_ids" not in names:
        unknown = con.execute(
            """
            SELECT split, line FROM read_parquet($1, hive_partitioning = false)
            WHERE decision_id::UUID NOT IN (SELECT decision_id FROM decisions)
              AND decision_id::UUID NOT IN (SELECT decision_id FROM erased)
            """,
            file,
        ).fetchall()
        named_in_text = _naming(dataset, set(unknown) - set(found), subject_id)
        found += named_in_text
        rest = len(set(unknown) - set(found))
    for split in {split for split, _ in found}:
        (dataset / f"{split}.jsonl").stat()
    return found, rest


def _check_manifest(path: Path) -> None:
    """Raise ValueError unless it has what erasing amends, before anything is changed."""
    manifest = orjson.loads(path.read_bytes())
    parts = [manifest.get(name) for name in ("splits", "dropped")] if isinstance(manifest, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{path.name} is not a dataset's manifest")


def _naming(dataset: Path, lines: set[DatasetLine], subject_id: str) -> list[DatasetLine]:
    """Those of the lines in whose text the person's id stands as a word of its own."""
    name = re.compile(rf"(?<!\w){re.escape(orjson.dumps(subject_id)[1:-1].decode())}(?!\w)")
    found = []
    for split in {split for split, _ in lines}:
        with (dataset / f"{split}.jsonl").open(encoding="utf-8") as file:
            found += [(split, n) for n, text in enumerate(file) if (split, n) in lines and name.search(text)]
    return found


def erase_faults(dataset: Path, subject_id: str) -> None:
    """Remove from the manifest the reasons of invalid rows that name the person."""
    path = dataset / "manifest.json"
    manifest = orjson.loads(path.read_bytes())
    if any(subject_id in fault for fault in manifest.get("faults", {})):
        _forget_faults(manifest)
        write_atomic(path, _dump(manifest))


def _forget_faults(manifest: dict[str, Any]) -> None:
    if faults := sum(manifest.get("faults", {}).values()):
        manifest["faults"] = {"not kept since an erasure": faults}


def erase_lines(dataset: Path, lines: list[DatasetLine]) -> None:
    """Put a copy of a dataset without these lines in its place. The manifest counts them as dropped: `erased`."""
    staged = dataset.parent / f"{_STAGED}{uuid4().hex}"
    try:
        shutil.copytree(dataset, staged)
        side = _drop_rows(pq.read_table(staged / "rows.parquet"), set(lines))
        pq.write_table(side, staged / "rows.parquet", compression="zstd")
        hashes = {}
        for split in {split for split, _ in lines}:
            gone = {line for name, line in lines if name == split}
            hashes[split] = _drop_lines(staged / f"{split}.jsonl", gone)
        _amend_manifest(staged / "manifest.json", hashes, side, len(lines))
        for path in (*staged.rglob("*"), staged):
            sync(path)
        replace_folder(staged, dataset)
    finally:
        remove_tree(staged)


def _drop_rows(side: pa.Table, gone: set[DatasetLine]) -> pa.Table:
    """The side file without these rows; the lines of each split are renumbered from 0."""
    pairs = list(zip(side["split"].to_pylist(), side["line"].to_pylist(), strict=True))
    kept = side.filter(pa.array([pair not in gone for pair in pairs], pa.bool_()))
    seen: Counter[str] = Counter()
    lines = []
    for name in kept["split"].to_pylist():
        lines.append(seen[name])
        seen[name] += 1
    at = kept.column_names.index("line")
    return kept.set_column(at, kept.schema.field(at), pa.array(lines, kept.schema.field(at).type))


def _drop_lines(path: Path, gone: set[int]) -> str:
    """Rewrite a file without these lines; its SHA-256."""
    with path.open("rb") as file:
        content = b"".join(line for number, line in enumerate(file) if number not in gone)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _amend_manifest(path: Path, hashes: dict[str, str], side: pa.Table, erased: int) -> None:
    manifest = orjson.loads(path.read_bytes())
    rows = side.select(["split", "episode_id", "request_id", "ts"]).to_pylist()
    for name, sha256 in hashes.items():
        mine = [row for row in rows if row["split"] == name]
        times = sorted(row["ts"] for row in mine)
        manifest["splits"][name].update(
            rows=len(mine),
            episodes=len({row["episode_id"] or row["request_id"] for row in mine}),
            first=f"{times[0]:%Y-%m-%dT%H:%M:%S.%fZ}" if times else None,
            last=f"{times[-1]:%Y-%m-%dT%H:%M:%S.%fZ}" if times else None,
            sha256=sha256,
            answers={},  # the most frequent answers are texts of rows, perhaps of those
        )
    _forget_faults(manifest)  # they may quote a row, and whose it was is not known
    manifest["rows_sha256"] = hashlib.sha256(path.with_name("rows.parquet").read_bytes()).hexdigest()
    manifest["label_sources"] = dict(sorted(Counter(side["label_source"].to_pylist()).items()))
    manifest["dropped"]["erased"] = manifest["dropped"].get("erased", 0) + erased
    path.write_bytes(_dump(manifest))


def _dump(manifest: dict[str, Any]) -> bytes:
    return orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"
