"""The two records of the log: a decision (one per answer) and a feedback on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any, Literal, TypedDict
from uuid import UUID

import orjson

from reasoning.errors import FallbackReason as FallbackReason
from reasoning.errors import RecordError

SCHEMA_VERSION = 1

Source = Literal["original", "custom"]
FeedbackKind = Literal["metric", "demonstration", "comment"]


class Message(TypedDict):
    """One chat message."""

    role: str
    content: str


@dataclass  # without slots: its `__dict__` is nearly the JSON object already, a copy of which is cheap
class Decision:
    """One answer to one question. Columns and units: docs/concepts/architecture.md, "Records"."""

    decision_id: UUID
    request_id: UUID
    ts: datetime
    decision_type: str
    source: Source
    served: bool
    messages: list[Message]
    agent_id: str | None = None
    room_id: str | None = None
    episode_id: str | None = None
    subject_ids: list[str] = field(default_factory=list)
    model: str | None = None
    config_hash: str | None = None
    experiment: str | None = None
    arm: str | None = None
    arm_probability: float | None = None
    tools: list[dict[str, Any]] | None = None
    completion: str | None = None
    decision: dict[str, Any] | None = None
    confidence: float | None = None
    valid: bool = True
    fallback_reason: FallbackReason | None = None
    error: str | None = None
    latency_ms: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    fallback_model: str | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    price_source: str | None = None
    probabilities: dict[str, dict[str, float]] | None = None
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Feedback:
    """What was learned later about a decision or an episode. Exactly one of the two ids is set."""

    feedback_id: UUID
    ts: datetime
    metric: str
    value: float | bool | str
    kind: FeedbackKind = "metric"
    decision_id: UUID | None = None
    episode_id: str | None = None
    author: str | None = None


_FIELDS = {
    "decision": frozenset(f.name for f in fields(Decision)),
    "feedback": frozenset(f.name for f in fields(Feedback)),
}
_REQUIRED = {
    "decision": ("decision_id", "request_id", "ts", "decision_type", "source", "served", "messages"),
    "feedback": ("feedback_id", "ts", "metric", "value"),
}


_DECISION_TEXTS = (
    *("agent_id", "room_id", "episode_id", "model", "config_hash", "experiment", "arm"),
    *("completion", "fallback_reason", "error", "fallback_model", "price_source"),
)
_TEXT_TYPES = frozenset((str, type(None)))
# Landing knows a line of ours by its start, and then parses it with its neighbours.
_START = {kind: b'{"record":"%b","schema":%d,' % (kind.encode(), SCHEMA_VERSION) for kind in _FIELDS}


def encode_record(record: Decision | Feedback) -> bytes:
    """The JSON of a record, as a segment line holds it (without the CRC).

    Every value has its column's type: times are RFC 3339 in UTC, and the columns that hold JSON text (`tools`,
    `decision`, `tags`, a feedback's `value`) are JSON *text* here too, so landing copies them as they are.

    A lone surrogate has no place in UTF-8, hence in no Parquet file: it is kept as the six characters of its escape,
    for instance `\\ud83d`. What cannot be kept (NaN, a naive time, a number where the column is text) raises
    `RecordError` naming the field.
    """
    try:
        return _encode(record)
    except TypeError:  # orjson's JSONEncodeError is one
        pass
    escaped = replace(record, **{f.name: _escape_surrogates(getattr(record, f.name)) for f in fields(record)})
    try:
        return _encode(escaped)
    except TypeError as error:
        raise RecordError(f"{_unencodable(escaped)}: {error}") from None


def decode_record(payload: bytes) -> dict[str, Any]:
    """The fields of one encoded record as they are on the wire (see `encode_record`), with `record` and `schema`.

    Raises `RecordError` for what is not a record of a schema known here. A record of an older schema is returned as
    it is: the reader supplies the columns that it lacks.
    """
    try:
        row = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise RecordError(f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise RecordError(f"a record is a JSON object, not a {type(row).__name__}")
    kind, schema = row.get("record"), row.get("schema")
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise RecordError(f"record: {kind!r} is neither 'decision' nor 'feedback'")
    if type(schema) is not int or not 1 <= schema <= SCHEMA_VERSION:
        raise RecordError(f"schema: {schema!r} is not known here (1..{SCHEMA_VERSION}); upgrade custom-reasoning")
    for name in _REQUIRED[kind]:
        if row.get(name) is None:
            raise RecordError(f"{name}: missing in a {kind}")
    if kind == "feedback" and (row.get("decision_id") is None) == (row.get("episode_id") is None):
        raise RecordError("decision_id, episode_id: a feedback has exactly one of the two")
    return row


def parse_record(payload: bytes) -> Decision | Feedback:
    """The dataclass of one encoded record: the inverse of `encode_record`. Raises `RecordError`."""
    row = decode_record(payload)
    kind = row["record"]
    parsers: dict[str, Callable[[Any], Any]] = {
        "decision_id": UUID,
        "request_id": UUID,
        "feedback_id": UUID,
        "ts": datetime.fromisoformat,
        "tools": orjson.loads,
        "decision": orjson.loads,
        "tags": orjson.loads,
        "probabilities": orjson.loads,
        "value": orjson.loads,
    }
    values = {}
    for name, value in row.items():
        if name in _FIELDS[kind]:
            try:
                values[name] = parsers[name](value) if name in parsers and value is not None else value
            except (ValueError, TypeError, AttributeError) as error:
                raise RecordError(f"{name}: {error}") from None
    return Decision(**values) if kind == "decision" else Feedback(**values)


def _encode(record: Decision | Feedback) -> bytes:
    if isinstance(record, Decision):
        return _START["decision"] + orjson.dumps(_decision_wire(record), option=orjson.OPT_UTC_Z)[1:]
    return _START["feedback"] + orjson.dumps(_feedback_wire(record), option=orjson.OPT_UTC_Z)[1:]


def _decision_wire(d: Decision) -> dict[str, Any]:
    text = _TEXT_TYPES
    if not (
        type(d.decision_type) is type(d.source) is str
        and type(d.agent_id) in text
        and type(d.room_id) in text
        and type(d.episode_id) in text
        and type(d.model) in text
        and type(d.config_hash) in text
        and type(d.experiment) in text
        and type(d.arm) in text
        and type(d.completion) in text
        and type(d.fallback_reason) in text
        and type(d.error) in text
        and type(d.fallback_model) in text
        and type(d.price_source) in text
    ):  # in line, for it is half as long as a loop, which names the field
        _check_texts(d, ("decision_type", "source"), required=True)
        _check_texts(d, _DECISION_TEXTS)
    if not math.isfinite((d.arm_probability or 0) + (d.confidence or 0) + (d.latency_ms or 0) + (d.cost_usd or 0)):
        _check_finite(d, ("arm_probability", "confidence", "latency_ms", "cost_usd"))
    for message in d.messages:
        if type(message["role"]) is not str or type(message["content"]) is not str:
            raise RecordError("messages: role and content are text")
    for subject in d.subject_ids:
        if not isinstance(subject, str):
            raise RecordError(f"subject_ids: text is needed, not {type(subject).__name__}")
    wire = d.__dict__.copy()  # a fifth of what a display with two more keys takes
    if d.ts.tzinfo is not UTC:
        wire["ts"] = _utc(d.ts)
    wire["tags"] = _json_text(d.tags) if d.tags else "{}"
    if d.decision is not None:
        wire["decision"] = _json_text(d.decision)
    if d.tools is not None:
        wire["tools"] = _json_text(d.tools)
    if d.probabilities is not None:
        wire["probabilities"] = _json_text(d.probabilities)
    return wire


def _feedback_wire(f: Feedback) -> dict[str, Any]:
    _check_texts(f, ("metric", "kind"), required=True)
    _check_texts(f, ("episode_id", "author"))
    if (f.decision_id is None) == (f.episode_id is None):
        raise RecordError("decision_id, episode_id: a feedback has exactly one of the two")
    if not isinstance(f.value, (bool, int, float, str)):
        raise RecordError(f"value: a number, a boolean or text is needed, not {type(f.value).__name__}")
    _check_finite(f, () if isinstance(f.value, str) else ("value",))
    return {
        "feedback_id": f.feedback_id,
        "decision_id": f.decision_id,
        "episode_id": f.episode_id,
        "ts": _utc(f.ts),
        "metric": f.metric,
        "value": _json_text(f.value),
        "kind": f.kind,
        "author": f.author,
    }


def _utc(ts: datetime) -> datetime:
    if ts.tzinfo is UTC:
        return ts
    if ts.tzinfo is None:
        raise RecordError(f"ts: {ts.isoformat()} is naive; give it a time zone")
    return ts.astimezone(UTC)


def _json_text(value: Any) -> str:
    return orjson.dumps(value).decode()


def _check_texts(record: Decision | Feedback, names: tuple[str, ...], *, required: bool = False) -> None:
    for name in names:
        value = getattr(record, name)
        if not isinstance(value, str) and (required or value is not None):
            raise RecordError(f"{name}: text is needed, not {type(value).__name__}")


def _check_finite(record: Decision | Feedback, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(record, name)
        if value is not None and not math.isfinite(value):  # orjson would write null
            raise RecordError(f"{name}: {value!r} is not a finite number")


def _escape_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_escape_surrogates(k): _escape_surrogates(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_escape_surrogates(v) for v in value]
    return value


def _unencodable(record: Decision | Feedback) -> str:
    for f in fields(record):
        try:
            orjson.dumps(getattr(record, f.name))
        except TypeError:
            return f.name
    return "record"
