"""Columns of the decision log, and the checks that a record passes on its way in.

Evolution: a column is only ever added, never renamed, retyped or reused. A record or a file that lacks a column reads
as NULL there. A key that no column is named after (a newer client's) is kept in `extra`, a JSON object; what messages
have beside role and content as well, as a list under `messages` there. A record of a `schema` number newer than ours
may *mean* something else: it is quarantined, and lands after an upgrade (`storage.log.reland`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.compute as pc

_MESSAGE = frozenset({"role", "content"})
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_TIME = pa.timestamp("us", tz="UTC")

# `decision_type` and `date` are not in the files: they are the names of the folders (Hive partitions).
DECISIONS = pa.schema(
    [
        ("decision_id", pa.uuid()),
        ("request_id", pa.uuid()),
        ("ts", _TIME),
        ("agent_id", pa.string()),
        ("room_id", pa.string()),
        ("episode_id", pa.string()),
        ("subject_ids", pa.list_(pa.string())),
        ("source", pa.string()),
        ("served", pa.bool_()),
        ("model", pa.string()),
        ("config_hash", pa.string()),
        ("experiment", pa.string()),
        ("arm", pa.string()),
        ("arm_probability", pa.float64()),
        ("messages", _MESSAGES),
        ("tools", pa.string()),
        ("completion", pa.string()),
        ("decision", pa.string()),
        ("confidence", pa.float64()),
        ("valid", pa.bool_()),
        ("fallback_reason", pa.string()),
        ("error", pa.string()),
        ("latency_ms", pa.float64()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("cost_usd", pa.float64()),
        ("fallback_model", pa.string()),
        ("cache_read_tokens", pa.int64()),
        ("cache_write_tokens", pa.int64()),
        ("reasoning_tokens", pa.int64()),
        ("price_source", pa.string()),
        ("probabilities", pa.string()),
        ("tags", pa.string()),
        ("extra", pa.string()),
    ]
)
FEEDBACK = pa.schema(
    [
        ("feedback_id", pa.uuid()),
        ("decision_id", pa.uuid()),
        ("episode_id", pa.string()),
        ("ts", _TIME),
        ("metric", pa.string()),
        ("value", pa.string()),
        ("kind", pa.string()),
        ("author", pa.string()),
        ("extra", pa.string()),
    ]
)
SCHEMAS = {"decisions": DECISIONS, "feedback": FEEDBACK}
# The folders' names, outermost first, with their DuckDB types.
PARTITIONS = {"decisions": {"decision_type": "VARCHAR", "date": "DATE"}, "feedback": {"date": "DATE"}}

# A decision type is the name of a folder and is written in SQL and on command lines.
DECISION_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")

SOURCES = ("original", "custom")
KINDS = ("metric", "demonstration", "comment")
# Columns of JSON text, and what JSON it is.
_JSON: dict[str, dict[str, type | tuple[type, ...]]] = {
    "decisions": {"decision": dict, "tools": list, "tags": dict, "extra": dict, "probabilities": dict},
    "feedback": {"value": (bool, int, float, str), "extra": dict},
}
WRITTEN_JSON = ("decision", "tools", "tags", "probabilities")
"""Those of a decision that its writer gives."""

_FRAME = frozenset({"record", "schema"})
_KNOWN = {
    "decision": frozenset(DECISIONS.names) | _FRAME | {"decision_type"},
    "feedback": frozenset(FEEDBACK.names) | _FRAME,
}
_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")
_UUID7 = "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-7[0-9a-fA-F]{3}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_MS = 86_400_000


class SchemaViolation(Exception):
    """A record does not fit its table. The message starts with the column."""


class PartitionKey(NamedTuple):
    """Which folder a row belongs to. `decision_type` is None for feedback."""

    table: str
    decision_type: str | None
    date: str

    @property
    def folder(self) -> str:
        """Relative to the data folder."""
        middle = f"/decision_type={self.decision_type}" if self.decision_type is not None else ""
        return f"{self.table}{middle}/date={self.date}"


def partition_of(row: dict[str, Any]) -> PartitionKey:
    """The partition of a record as `reasoning.io.segments.parse_line` gives it, its ids, names and JSON texts checked.

    A decision's date is that of its ids and its `ts`, which agree; so feedback, which has only the decision's id,
    finds the same date. An episode's feedback goes by its own `ts`. Raises `SchemaViolation`.
    """
    kind = row["record"]
    _keep_extra(row, kind)
    ts = row["ts"]
    if type(ts) is not str or ts[-1:] != "Z":
        raise SchemaViolation(f"ts: {ts!r:.60} is not a time in UTC (RFC 3339 with Z)")
    if ts.startswith("0000"):  # pyarrow takes it, but there is no such date in Python, and none of a partition
        raise SchemaViolation(f"ts: {ts!r:.60} is out of range: the first year is 0001")
    if kind == "decision":
        date = _id_date("decision_id", row["decision_id"])
        if date != _id_date("request_id", row["request_id"]) or date != ts[:10]:
            raise SchemaViolation(
                f"ts: {ts!r:.60}, decision_id and request_id are of different days; ids are UUIDv7 of the record's ts"
            )
        check_decision_type(row["decision_type"])
        if row["source"] not in SOURCES:
            raise SchemaViolation(f"source: {row['source']!r:.60} is neither 'original' nor 'custom'")
        check_json_texts("decisions", {name: [row.get(name)] for name in WRITTEN_JSON})
        return PartitionKey("decisions", row["decision_type"], date)
    if row.setdefault("kind", "metric") not in KINDS:
        raise SchemaViolation(f"kind: {row['kind']!r:.60} is not metric, demonstration or comment")
    check_json_texts("feedback", {"value": [row["value"]]})
    if row.get("decision_id") is None:
        return PartitionKey("feedback", None, ts[:10])
    return PartitionKey("feedback", None, _id_date("decision_id", row["decision_id"]))


def _keep_extra(row: dict[str, Any], kind: str) -> None:
    """Put into `extra` all that there is no column for, beside what the record has there itself."""
    unknown = {name: row.pop(name) for name in row.keys() - _KNOWN[kind]}
    if beside := _beside_messages(row.get("messages")):
        unknown["messages"] = beside
    own = row.get("extra")
    if own is not None:
        check_json_texts("decisions" if kind == "decision" else "feedback", {"extra": [own]})
    if unknown:
        kept = {} if own is None else orjson.loads(own)
        if twice := kept.keys() & unknown.keys():
            raise SchemaViolation(f"extra: {min(twice)!r:.60} is in it, and a key of the record that belongs there")
        row["extra"] = orjson.dumps(kept | unknown, option=orjson.OPT_SORT_KEYS).decode()


def _beside_messages(messages: Any) -> list[dict[str, Any]] | None:
    """What each message has that its column has no place for (a name, calls of tools), or None where none has."""
    for message in messages if type(messages) is list else ():
        if type(message) is dict and len(message) > len(_MESSAGE):
            break
    else:  # a loop, as this is asked of every record that is not parsed with others
        return None
    return [
        {name: value for name, value in message.items() if name not in _MESSAGE} if type(message) is dict else {}
        for message in messages
    ]


def _id_date(column: str, value: Any) -> str:
    if type(value) is not str or not _UUID.fullmatch(value) or value[14] != "7":
        raise SchemaViolation(f"{column}: {value!r:.60} is not a UUIDv7")
    return _date(int(value[:8] + value[9:13], 16) // _DAY_MS)


def _date(day: int) -> str:
    date = _dates.get(day)
    if date is None:
        try:
            date = (_EPOCH + timedelta(days=day)).date().isoformat()
        except OverflowError:
            raise SchemaViolation(f"decision_id: its time, {day} days after 1970, is out of range") from None
        if len(_dates) > 10_000:
            _dates.clear()
        _dates[day] = date
    return date


_dates: dict[int, str] = {}


def check_decision_type(value: Any) -> None:
    """Raise `SchemaViolation` unless this may name a folder."""
    if type(value) is not str or not DECISION_TYPE.fullmatch(value):
        raise SchemaViolation(f"decision_type: {value!r:.60} is not letters, digits, '_', '.', '-' (<= 100)")


def check_json_texts(table: str, texts: dict[str, Iterable[Any]]) -> None:
    """Raise `SchemaViolation` unless the values of these columns are NULL or JSON text of the column's kind."""
    for column, values in texts.items():
        kind = _JSON[table][column]
        for text in values:
            if text is None:
                continue
            try:
                value = orjson.loads(text)
            except (orjson.JSONDecodeError, TypeError) as error:
                raise SchemaViolation(f"{column}: not JSON text: {error}") from None
            if not isinstance(value, kind):
                raise SchemaViolation(f"{column}: JSON of the wrong kind ({type(value).__name__})")


def to_table(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Records of one kind, checked by `partition_of`, as an Arrow table of `SCHEMAS[name]`.

    Raises `SchemaViolation` naming the column when any of the rows does not fit; which row it was is not known.
    """
    schema = SCHEMAS[name]
    arrays = []
    for column, values in zip(schema, _columns(name, rows), strict=True):
        try:
            arrays.append(_BUILDERS[column.type](values))
        except (pa.ArrowException, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise SchemaViolation(f"{column.name}: {str(error) or type(error).__name__:.200}") from None
    return pa.Table.from_arrays(arrays, schema=schema)


def _columns(name: str, rows: list[dict[str, Any]]) -> Iterable[Sequence[Any]]:
    for row in rows:
        row.setdefault("extra", None)
    try:
        # As our own writer's rows are, with every key: several times as fast as asking each row for each.
        return zip(*map(_GETTERS[name], rows), strict=True)
    except KeyError:
        return [[row.get(column) for row in rows] for column in SCHEMAS[name].names]


_GETTERS = {name: itemgetter(*schema.names) for name, schema in SCHEMAS.items()}


def all_true(mask: pa.Array) -> bool:
    """Whether no value is false; NULL is not."""
    return bool(pc.all(mask, min_count=0).as_py())


def parse_uuids(texts: pa.Array) -> pa.Array:
    """Texts as UUIDs. Raises ValueError naming one that is none."""
    fits = pc.match_substring_regex(texts, f"^{_UUID.pattern}$")
    if not all_true(fits):
        raise ValueError(f"{texts.filter(pc.invert(fits))[0].as_py()!r:.60} is not a UUID")
    digits = "".join(pc.replace_substring(texts.fill_null("0" * 32), "-", "").to_pylist())
    binary = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), len(texts), [None, pa.py_buffer(bytes.fromhex(digits))]
    )
    if texts.null_count:
        binary = pc.if_else(texts.is_valid(), binary, None)
    return pa.ExtensionArray.from_storage(pa.uuid(), binary)


def uuid_days(column: str, texts: pa.Array) -> pa.Array:
    """Days after 1970 that are in UUIDv7s, as int64. Raises `SchemaViolation` when one is none."""
    if not all_true(pc.match_substring_regex(texts, _UUID7)):
        raise SchemaViolation(f"{column}: not all are UUIDv7")
    first, rest = pc.utf8_slice_codeunits(texts, 0, 8), pc.utf8_slice_codeunits(texts, 9, 13)
    return pc.divide(pc.binary_join_element_wise("0x", first, rest, "").cast(pa.int64()), _DAY_MS)


def parse_times(texts: pa.Array) -> pa.Array:
    """RFC 3339 texts as times in UTC. Raises `pyarrow.ArrowInvalid`."""
    return texts.cast(_TIME)


def _numbers(kind: pa.DataType, types: frozenset[type]) -> Callable[[Sequence[Any]], pa.Array]:
    def build(values: Sequence[Any]) -> pa.Array:
        wrong = set(map(type, values)) - types  # pa.array() would take true for 1.0, and cut 1.5 to 1
        if wrong:
            raise TypeError(f"{kind} is needed, not {wrong.pop().__name__}")
        return pa.array(values, kind)

    return build


def _texts(values: Sequence[Any]) -> pa.Array:
    return pa.array(values, pa.string())


def _text_lists(values: Sequence[Any]) -> pa.Array:
    if not {list, type(None)}.issuperset(map(type, values)):  # pa.array() would take a text for a list of characters
        raise TypeError("a list of texts is needed")
    return pa.array(values, pa.list_(pa.string()))


def _messages(values: Sequence[Any]) -> pa.Array:
    # Flat lists and offsets: four times as fast as pa.array() of dicts.
    roles: list[str] = []
    contents: list[str] = []
    offsets = [0]
    if not {list}.issuperset(map(type, values)):  # an empty text or object would pass for no messages
        raise TypeError("a list of messages is needed")
    for messages in values:
        for message in messages:
            roles.append(message["role"])
            contents.append(message["content"])
        offsets.append(len(roles))
    texts = pa.array(roles, pa.string()), pa.array(contents, pa.string())
    if texts[0].null_count or texts[1].null_count:
        raise TypeError("a message's role and content are text, not null")
    struct = pa.StructArray.from_arrays(texts, fields=list(_MESSAGES.value_type))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), struct, type=_MESSAGES)


_BUILDERS: dict[pa.DataType, Callable[[Sequence[Any]], pa.Array]] = {
    pa.uuid(): lambda values: parse_uuids(_texts(values)),
    _TIME: lambda values: parse_times(_texts(values)),
    pa.string(): _texts,
    pa.bool_(): lambda values: pa.array(values, pa.bool_()),
    pa.float64(): _numbers(pa.float64(), frozenset({float, int, type(None)})),
    pa.int64(): _numbers(pa.int64(), frozenset({int, type(None)})),
    pa.list_(pa.string()): _text_lists,
    _MESSAGES: _messages,
}


def sql_columns(name: str) -> Iterable[tuple[str, str]]:
    """Name and DuckDB type of every column of a table, partitions last."""
    for column in SCHEMAS[name]:
        yield column.name, _SQL_TYPES[column.type]
    yield from PARTITIONS[name].items()


_SQL_TYPES = {
    pa.uuid(): "UUID",
    _TIME: "TIMESTAMPTZ",
    pa.string(): "VARCHAR",
    pa.bool_(): "BOOLEAN",
    pa.float64(): "DOUBLE",
    pa.int64(): "BIGINT",
    pa.list_(pa.string()): "VARCHAR[]",
    _MESSAGES: "STRUCT(role VARCHAR, content VARCHAR)[]",
}
