"""Demonstrations at landing: is each an answer of the type of its decision?

Who writes one may not know the decision's type (`POST /v1/feedback` has its id alone). Landing does, where the decision
is in the log already or among the segments that land with it. A demonstration of a decision that is in neither stays as
it is: exports check it again.
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
from storage.landed import row_ids
from storage.layout import Layout
from storage.table import live_files

# How a decision's line begins that a client of ours wrote; of another writer's, the type is found once it has landed.
_DECISION = re.compile(
    rb'"record":"decision","schema":\d+,"decision_id":"([0-9a-f-]{36})","request_id":"[^"]*","ts":"[^"]*",'
    rb'"decision_type":"([^"\\]{1,100})"'
)


def has_demonstrations(feedback: pa.Table) -> bool:
    """Is there a demonstration of a decision among the rows?"""
    return bool(pc.any(_shown(feedback)).as_py())


def find_wrong_demonstrations(layout: Layout, segments: Iterable[Path], feedback: pa.Table) -> dict[int, str]:
    """The rows, by their number, whose demonstration is no answer of its decision's type, and why."""
    rows = pc.indices_nonzero(_shown(feedback)).to_pylist()
    shown = feedback.take(rows)
    ids = [UUID(bytes=value) for value in row_ids("decisions", shown).to_pylist()]
    types = _types_of(layout, segments, set(ids))
    try:
        declared: Mapping[str, DecisionType] = load_config(layout.data).decision_types
    except ConfigError:  # of no concern to landing
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
        raise UnparseableAnswer("the right answer is an object, and this is no JSON") from None


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
