"""Parse segment lines into Arrow tables, one per partition.

`pyarrow.json` parses thousands of lines in one call against the explicit schema, and the checks of
`storage.log.schema.partition_of` and `to_table` run on whole columns. Lines that this fast path cannot decide are
passed to those two functions one by one, which also give the reason. Both paths accept the same lines and produce the
same rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from zlib import crc32

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from reasoning.errors import SegmentError
from reasoning.io.segments import check_line, parse_line
from reasoning.records import SCHEMA_VERSION
from storage.log.schema import (
    KINDS,
    SCHEMAS,
    SOURCES,
    WRITTEN_JSON,
    PartitionKey,
    SchemaViolation,
    all_true,
    check_decision_type,
    check_json_texts,
    parse_times,
    parse_uuids,
    partition_of,
    to_table,
    uuid_days,
)

# What `storage.erasure.erase` leaves of a line, filled up with blanks to its length. Parsing passes over it.
ERASED = b'{"record":"erased"}'

# How our own writer begins a record. As each line begins so, no line can be the inside of another's object: as many
# objects as lines means one a line, which pyarrow.json by itself does not ask for.
_STARTS = {
    "decisions": b'{"record":"decision","schema":%d,' % SCHEMA_VERSION,
    "feedback": b'{"record":"feedback","schema":%d,' % SCHEMA_VERSION,
}
_REQUIRED = {
    "decisions": ("decision_id", "request_id", "ts", "decision_type", "source", "served", "messages"),
    "feedback": ("feedback_id", "ts", "metric", "value", "kind"),
}
# A quote within JSON text is escaped, so what a record quotes of another one does not look like the beginning of one.
_FRAME = re.compile(rb'[0-9a-f]{8} (?=\{")')
_DAYS = -719_162, 2_932_896  # 0001-01-01 and 9999-12-31, in days after 1970


class Batch(NamedTuple):
    """Rows of one partition, in the order of their lines. `lines` has for every row the index of its line."""

    key: PartitionKey
    table: pa.Table
    lines: list[int]


Parsed = tuple[list[Batch], dict[int, str]]  # the rows, and by index the reason why a line is none


class _NotCertain(Exception):
    """The fast path cannot decide these lines: check each one."""


def parse_lines(lines: Sequence[bytes]) -> Parsed:
    """The rows of these lines by partition, and the reason for each rejected line, by index.

    A line without a newline is torn. Lines blanked by erasure are neither rows nor rejected.
    """
    together: dict[str, tuple[list[int], list[bytes]]] = {table: ([], []) for table in _STARTS}
    apart = []
    for number, line in enumerate(lines):
        payload = line[9:-1]
        if line[-1:] == b"\n" and line[:9] == b"%08x " % crc32(payload):
            for table, start in _STARTS.items():
                if payload.startswith(start):
                    numbers, payloads = together[table]
                    numbers.append(number)
                    payloads.append(payload)
                    break
            else:
                apart.append(number)
        else:
            apart.append(number)
    batches: list[Batch] = []
    for table, (numbers, payloads) in together.items():
        if numbers:
            try:
                batches += _parse_together(table, numbers, payloads)
            except (_NotCertain, SchemaViolation, ValueError, pa.ArrowException):
                apart += numbers
    more, rejected = _parse_apart(lines, sorted(apart))
    return batches + more, rejected


def find_buried(line: bytes) -> int | None:
    """The position in a damaged line where an intact one begins: the newline between the two is damaged.

    The damaged byte belongs to the first line, which is rejected; the second line is complete.
    """
    if line.endswith(b"\n") and not _is_sound(line):
        for match in _FRAME.finditer(line, 1):
            if _is_sound(line[match.start() :]):
                return match.start()
    return None


def _is_sound(line: bytes) -> bool:
    try:
        check_line(line)
    except SegmentError:
        return False
    return True


def _parse_together(table: str, numbers: list[int], payloads: list[bytes]) -> list[Batch]:
    text = b"\n".join(payloads)
    # As one block: the chunks of several would have to be copied together. Landing parses two batches at a time.
    read = pj.ReadOptions(use_threads=False, block_size=len(text) + 1)
    parsed = pj.read_json(pa.BufferReader(text), read_options=read, parse_options=_PARSE_OPTIONS[table])
    _require(len(parsed) == len(payloads))
    parsed.validate(full=True)  # UTF-8
    columns: dict[str, pa.Array] = {name: parsed[name].combine_chunks() for name in parsed.column_names}
    for name in _REQUIRED[table]:
        _require(not columns[name].null_count)
    labels = _CHECKS[table](columns)
    arrays = [_convert(columns.get(field.name), field, len(parsed)) for field in SCHEMAS[table]]
    rows = pa.Table.from_arrays(arrays, schema=SCHEMAS[table])
    batches: list[Batch] = []
    distinct = labels.unique()
    for label in distinct.to_pylist():
        date, _, decision_type = label.partition(" ")
        key = PartitionKey(table, decision_type or None, date)
        if len(distinct) == 1:
            batches.append(Batch(key, rows, numbers))
        else:
            chosen = pc.equal(labels, label)
            batches.append(Batch(key, rows.filter(chosen), pa.array(numbers).filter(chosen).to_pylist()))
    return batches


def _check_decisions(columns: dict[str, pa.Array]) -> pa.Array:
    """The checks of `partition_of` on a batch of decisions; `<date> <decision_type>` of each."""
    days = uuid_days("decision_id", columns["decision_id"])
    _require(days.equals(uuid_days("request_id", columns["request_id"])))
    _require(days.equals(_days(columns["ts"])))
    _require(all_true(pc.is_in(columns["source"], pa.array(SOURCES))))
    for decision_type in columns["decision_type"].unique().to_pylist():
        check_decision_type(decision_type)
    check_json_texts("decisions", {name: columns[name].unique().to_pylist() for name in WRITTEN_JSON})
    messages = columns["messages"].flatten()
    _require(not (messages.null_count or messages.field(0).null_count or messages.field(1).null_count))
    return pc.binary_join_element_wise(_dates(days), columns["decision_type"], " ")


def _check_feedback(columns: dict[str, pa.Array]) -> pa.Array:
    """The checks of `decode_record` and `partition_of` on a batch of feedback; the date of each."""
    of_decision = columns["decision_id"].is_valid()
    _require(all_true(pc.xor(of_decision, columns["episode_id"].is_valid())))
    _require(all_true(pc.is_in(columns["kind"], pa.array(KINDS))))
    check_json_texts("feedback", {"value": columns["value"].unique().to_pylist()})
    of_ts = _days(columns["ts"])
    _require(pc.min(of_ts).as_py() >= _DAYS[0])
    days = pc.coalesce(uuid_days("decision_id", columns["decision_id"]), of_ts)
    _require(pc.max(days).as_py() <= _DAYS[1])
    return _dates(days)


_CHECKS = {"decisions": _check_decisions, "feedback": _check_feedback}


def _require(condition: bool) -> None:
    if not condition:
        raise _NotCertain


def _days(ts: pa.Array) -> pa.Array:
    """Days after 1970, in UTC."""
    _require(all_true(pc.ends_with(ts, "Z")))
    return parse_times(ts).cast(pa.date32()).cast(pa.int32()).cast(pa.int64())


def _dates(days: pa.Array) -> pa.Array:
    return days.cast(pa.int32()).cast(pa.date32()).cast(pa.string())


def _convert(column: pa.Array | None, field: pa.Field, rows: int) -> pa.Array:
    """A column as pyarrow.json parsed it in the type of the table. None is `extra`, which these records have not."""
    if column is None:
        return pa.nulls(rows, field.type)
    if field.type == pa.uuid():
        return parse_uuids(column)
    if pa.types.is_timestamp(field.type):
        return parse_times(column)
    if pa.types.is_floating(field.type):
        _require(all_true(pc.is_finite(column)))  # pyarrow.json takes NaN, which is not JSON
    return column


def _wire_schema(table: str) -> pa.Schema:
    """Of a record's JSON: ids and times are text, and `extra` is for what has no column (so there is nothing odd)."""
    text = pa.uuid(), SCHEMAS["decisions"].field("ts").type
    fields = [
        (field.name, pa.string() if field.type in text else field.type)
        for field in SCHEMAS[table]
        if field.name != "extra"
    ]
    partitions = [("decision_type", pa.string())] if table == "decisions" else []
    return pa.schema([("record", pa.string()), ("schema", pa.int64()), *partitions, *fields])


_PARSE_OPTIONS = {
    table: pj.ParseOptions(explicit_schema=_wire_schema(table), unexpected_field_behavior="error") for table in SCHEMAS
}


def _parse_apart(lines: Sequence[bytes], numbers: Iterable[int]) -> Parsed:
    rejected: dict[int, str] = {}
    by_key: dict[PartitionKey, list[tuple[int, dict[str, Any]]]] = {}
    for number in numbers:
        line = lines[number]
        try:
            if not line.endswith(b"\n"):
                raise SegmentError("torn: no newline at the end")
            if not check_line(line).startswith(ERASED):
                row = parse_line(line)
                by_key.setdefault(partition_of(row), []).append((number, row))
        except (SegmentError, SchemaViolation) as error:
            rejected[number] = str(error)
        except TypeError as error:  # of `decode_record`, for a `record` that is a list or an object
            rejected[number] = f"no record: {error}"
    batches: list[Batch] = []
    for key, rows in by_key.items():
        batches += _batches(key, rows, rejected)
    return batches, rejected


def _batches(key: PartitionKey, rows: list[tuple[int, dict[str, Any]]], rejected: dict[int, str]) -> Iterator[Batch]:
    """The rows as Arrow tables without those that do not fit, which are found by bisection."""
    try:
        yield Batch(key, to_table(key.table, [row for _, row in rows]), [number for number, _ in rows])
    except SchemaViolation as error:
        if len(rows) == 1:
            rejected[rows[0][0]] = str(error)
            return
        middle = len(rows) // 2
        yield from _batches(key, rows[:middle], rejected)
        yield from _batches(key, rows[middle:], rejected)
