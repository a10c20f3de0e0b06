"""Validate demonstrations at landing against the type of their decision.

Their writer may not know the decision's type (`POST /v1/feedback` carries only its id). Landing knows it if the
decision is already in the log or lands in the same run. Other demonstrations are kept; exports check them again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from uuid import UUID

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reasoning.config import load_config
from reasoning.decision_types import DECISION_TYPES, DecisionType, check_demonstration
from reasoning.errors import ConfigError, UnparseableAnswer
from storage.layout import Layout
from storage.log.landed import row_ids
from storage.log.table import live_files

# How a decision's line begins that a client of ours wrote; of another writer's, the type is found once it has landed.
_DECISION = re.compile(
    rb'"record":"decision","schema":\d+,"decision_id":"([0-9a-f-]{36})","request_id":"[^"]*","ts":"[^"]*",'
    rb'"decision_type":"([^"\\]{1,100})"'
)


def has_demonstrations(feedback: pa.Table) -> bool:
    """Is there a demonstration of a decision among the rows?"""
    return bool(pc.any(_shown(feedback)).as_py())


def find_wrong_demonstrations(layout: Layout, segments: Iterable[Path], feedback: pa.Table) -> dict[int, str]:
    """The reason for each row, by number, whose demonstration is invalid for its decision's type."""
    rows = pc.indices_nonzero(_shown(feedback)).to_pylist()
    shown = feedback.take(rows)
    ids = [UUID(bytes=value) for value in row_ids("decisions", shown).to_pylist()]
    types = _types_of(layout, segments, set(ids))
    try:
        declared: Mapping[str, DecisionType] = load_config(layout.data).decision_types
    except ConfigError:  # not checked at landing
        declared = DECISION_TYPES
    found = {}
    for row, decision_id, value in zip(rows, ids, shown["value"].to_pylist(), strict=True):
        if (kind := declared.get(types.get(decision_id, ""))) is None:
            continue
        try:
            check_demonstration(_read(value), [kind])
        except UnparseableAnswer as error:
            found[row] = f"demonstration: {str(error)[:300]}"
    return found


def _shown(feedback: pa.Table) -> pa.ChunkedArray:
    return pc.and_(pc.equal(feedback["kind"], "demonstration"), pc.is_valid(feedback["decision_id"]))


def _read(value: str) -> object:
    """A feedback's value is JSON; a demonstration's is text, which is JSON of an object."""
    try:
        read = orjson.loads(value)
        return orjson.loads(read) if isinstance(read, str) else read
    except orjson.JSONDecodeError:
        raise UnparseableAnswer("a demonstration must be a JSON object, and this is not JSON") from None


def _types_of(layout: Layout, segments: Iterable[Path], ids: set[UUID]) -> dict[UUID, str]:
    wanted = {str(each).encode() for each in ids}
    types: dict[UUID, str] = {}
    for segment in segments:
        with segment.open("rb") as file:
            for line in file:
                if (match := _DECISION.search(line, 0, 400)) and match[1] in wanted:
                    types[UUID(match[1].decode())] = match[2].decode()
    missing = pa.array([each.bytes for each in ids - types.keys()], pa.binary(16))
    dates = {_day(each) for each in ids - types.keys()}
    for date in dates:
        for folder in (layout.data / "decisions").glob(f"decision_type=*/date={date}"):
            for path in live_files(folder):
                known = row_ids("decisions", pq.read_table(path, columns=["decision_id"], partitioning=None))
                for value in known.filter(pc.is_in(known, value_set=missing)).to_pylist():
                    types[UUID(bytes=value)] = folder.parent.name.removeprefix("decision_type=")
    return types


def _day(decision_id: UUID) -> str:
    """The date of a UUIDv7, which is that of its decision's partition."""
    return str(pa.scalar(decision_id.int >> 80, pa.timestamp("ms")).cast(pa.date32()).as_py())
