"""A published dataset: its manifest, which accounts for every row, and the rows of its splits."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow.parquet as pq

from quality.dataset.funnel import Leaks
from quality.dataset.readiness import DataVerdict
from quality.dataset.splits import SPLITS
from reasoning.decision_types import get_decision_type
from storage.errors import DatasetError

if TYPE_CHECKING:
    from reasoning.config import Config


@dataclass(frozen=True, slots=True)
class SplitSummary:
    """One split: its file, the half-open stretch of time it was cut from, and what is in it."""

    rows: int
    episodes: int
    first: str | None
    last: str | None
    answers: dict[str, int]
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is in a dataset and where it came from. `selected` = rows in all splits + the sum of `dropped`.

    `answers` counts each label of the rows that were fit (`labelled`), of those that were neither duplicates nor over
    the limit (`distinct`), and of those in the splits (`kept`): how far removing rows has shifted their shares. It is
    empty for answer forms other than labels, and in datasets of before version 3. Times are RFC 3339 in UTC. `path` is
    the dataset's folder, whose name is `dataset_id`: the start of the SHA-256 of `manifest.json` as it was published.
    (An erasure takes rows out of a dataset, and leaves its name.)
    """

    decision_type: str
    query: dict[str, Any]
    config_hash: str
    selected: int
    dropped: dict[str, int]
    faults: dict[str, int]
    redactions: dict[str, int]
    label_sources: dict[str, int]
    splits: dict[str, SplitSummary]
    validation_from: str
    holdout_from: str
    leaks: Leaks
    rows_sha256: str
    quality: dict[str, Any]
    answers: dict[str, dict[str, int]] = field(default_factory=dict)
    dataset_id: str = field(default="", compare=False)
    path: Path = field(default=Path(), compare=False)
    verdict: DataVerdict | None = field(default=None, compare=False)

    @property
    def rows(self) -> int:
        """Rows in all splits."""
        return sum(split.rows for split in self.splits.values())

    def as_dict(self) -> dict[str, Any]:
        """What `manifest.json` holds."""
        content = asdict(self)
        for derived in ("dataset_id", "path", "verdict"):
            del content[derived]
        return content


def read_manifest(dataset: Path | str) -> Manifest:
    """The manifest of a published dataset. Raises `DatasetError` where a file is not what the manifest says."""
    dataset = Path(dataset)
    try:
        fields = orjson.loads((dataset / "manifest.json").read_bytes())
        fields["splits"] = {name: SplitSummary(**split) for name, split in fields["splits"].items()}
        fields["leaks"] = Leaks(**fields["leaks"])
        manifest = Manifest(**fields)
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise DatasetError(f"{dataset} is not a dataset: its manifest.json cannot be read ({error})") from error
    expected = {f"{name}.jsonl": split.sha256 for name, split in manifest.splits.items()}
    for name, sha256 in {**expected, "rows.parquet": manifest.rows_sha256}.items():
        try:
            found = hash_file(dataset / name)
        except OSError as error:
            raise DatasetError(
                f"{dataset / name} cannot be read ({error.strerror}); export the dataset again"
            ) from error
        if found != sha256:
            raise DatasetError(f"{dataset / name} is not the file that the manifest names; export the dataset again")
    return replace(manifest, dataset_id=dataset.name, path=dataset)


@dataclass(frozen=True, slots=True)
class DatasetRow:
    """One line of a split, with what the side file knows of it. `messages` are without the answer, which is `label`."""

    split: str
    line: int
    decision_id: str
    episode: str
    ts: datetime
    label_source: str
    messages: list[dict[str, str]]
    label: dict[str, Any]
    original: dict[str, Any] | None
    original_latency_ms: float | None
    original_cost_usd: float | None


def read_rows(dataset: Path | str, split: str, *, config: Config | None = None) -> list[DatasetRow]:
    """The rows of one split of a published dataset, in the file's order. Raises `DatasetError`."""
    manifest = read_manifest(dataset)
    if split not in SPLITS:
        raise DatasetError(f"{split!r} is no split: {', '.join(SPLITS)}")
    kind = get_decision_type(manifest.decision_type, config)
    side = pq.read_table(manifest.path / "rows.parquet", filters=[("split", "=", split)]).to_pylist()
    rows = []
    with (manifest.path / f"{split}.jsonl").open("rb") as file:
        for known, line in zip(side, file, strict=True):
            messages = orjson.loads(line)["messages"]
            rows.append(
                DatasetRow(
                    split=split,
                    line=known["line"],
                    decision_id=known["decision_id"],
                    episode=known["episode_id"] or known["decision_id"],
                    ts=known["ts"],
                    label_source=known["label_source"],
                    messages=messages[:-1],
                    label=kind.parse_reply(messages[-1]["content"], messages[:-1]),
                    original=None if known["original"] is None else orjson.loads(known["original"]),
                    original_latency_ms=known["original_latency_ms"],
                    original_cost_usd=known["original_cost_usd"],
                )
            )
    return rows


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
