"""Lines parsed together and lines parsed one by one: the same rows, the same refusals."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.ids import uuid7
from reasoning.io.segments import frame_line
from storage.log import batches
from storage.log.batches import ERASED, Batch, parse_lines
from tests.storage.logs import NOON, make_days, make_decision, make_feedback, to_line

DECISION = to_line(
    make_decision(
        subject_ids=["ann"], tools=[{"a": 1}], tags={"k": "v"}, confidence=0.5, input_tokens=1, cost_usd=0.1, model="m"
    )
)
FEEDBACK = to_line(make_feedback(decision_id=uuid7(NOON)))
OF_EPISODE = to_line(make_feedback(episode_id="e", author="ann"))


def rows(found: list[Batch]) -> dict[int, tuple[Any, ...]]:
    """Partition and values by line."""
    return dict(
        sorted(
            (line, (batch.key, list(row.items())))
            for batch in found
            for line, row in zip(batch.lines, batch.table.to_pylist(), strict=True)
        )
    )


def parse_both(lines: Sequence[bytes]) -> tuple[dict[int, tuple[Any, ...]], dict[int, str]]:
    found, rejected = parse_lines(lines)
    found_apart, rejected_apart = batches._parse_apart(lines, range(len(lines)))
    assert rejected == rejected_apart
    assert repr(rows(found)) == repr(rows(found_apart))  # repr: -0.0 is not 0.0
    for batch in (*found, *found_apart):
        batch.table.validate(full=True)
    return rows(found), rejected


def test_ordinary_lines_are_parsed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or landing would be slow and nobody would know."""
    lines = [to_line(d) for d in [*make_days(2, 3), make_decision(decision_type="planning", decision=None)]]
    lines += [DECISION, FEEDBACK, OF_EPISODE, to_line(make_feedback(episode_id="e", value="a\0\n🎉"))]
    lines += [b"garbage\n", frame_line(ERASED.ljust(300))]
    expected = parse_both(lines)
    apart: list[int] = []
    parse_apart = batches._parse_apart
    monkeypatch.setattr(
        batches, "_parse_apart", lambda lines, numbers: apart.extend(numbers) or parse_apart(lines, numbers)
    )
    found, rejected = parse_lines(lines)
    assert apart == [len(lines) - 2, len(lines) - 1]
    assert (rows(found), rejected) == expected
    assert set(rows(found)) == set(range(len(lines) - 2))
    assert list(rejected) == [len(lines) - 2]
    assert len({batch.key for batch in found}) == len(found) == 4


@pytest.mark.parametrize(
    "inside",
    [
        b'"agent_id":"a","agent_id":"b"',
        b'"latency_ms":NaN',
        b'"latency_ms":1e999',
        b'"latency_ms":-Infinity',
        b'"latency_ms":-0.0',
        b'"input_tokens":1.0',
        b'"input_tokens":1e2',
        b'"input_tokens":9223372036854775808',
        b'"cost_usd":123456789012345678901234567890',
        b'"agent_id":"\\ud83d"',
        b'"agent_id":"\\udc00"',
        b'"agent_id":"\xff"',
        b'"agent_id":"\xed\xa0\x80"',
        b'"agent_id":"\x01"',
        b'"agent_id":"\\u0000"',
        b'"agent_id":1,',
        b'"messages":[{"role":"u","content":"c","name":"n"}]',
        b'"messages":[null]',
        b'"messages":[{"content":"c","role":"u"}]',
        b'"subject_ids":[null,"a"]',
        b'"tags":"{\\"a\\":NaN}"',
        b'"record":"feedback"',
        b'"extra":"{}"',
        b'"mood":{"record":"decision","schema":1}',
    ],
)
def test_json_at_the_edge(inside: bytes) -> None:
    name = inside.partition(b":")[0]
    fields = [b"%b:%b" % (orjson.dumps(k), orjson.dumps(v)) for k, v in orjson.loads(DECISION[9:]).items()]
    payload = b"{%b}" % b",".join([f for f in fields if not f.startswith(name + b":")] + [inside])
    others = [to_line(d) for d in make_days(1, 2)]
    found, rejected = parse_both([others[0], frame_line(payload), others[1]])
    assert {0, 2} <= set(found)
    assert len(found) + len(rejected) == 3


@pytest.mark.parametrize("line", [FEEDBACK, OF_EPISODE])
def test_a_time_before_the_first_date_is_refused(line: bytes) -> None:
    """Nobody would see the row: a partition of the year 0000 is none."""
    lines = [frame_line(line[9:-1].replace(b"2026-11-20T", day)) for day in (b"0000-12-31T", b"0001-01-01T")]
    found, rejected = parse_both(lines)
    assert list(found) == [1]
    assert rejected == {0: "ts: '0000-12-31T12:00:00Z' is out of range: the first year is 0001"}


def test_an_object_is_a_line_and_a_line_an_object() -> None:
    """pyarrow.json by itself takes an object over two lines, and two objects in a line."""
    one, two = (to_line(decision)[9:-1] for decision in make_days(1, 2))
    cut = one.index(b'{"role"')
    lines = [frame_line(part) for part in (one[:cut], one[cut:], one + two, b"", b"  ", b"[]", two)]
    found, rejected = parse_both(lines)
    assert list(found) == [6]
    assert list(rejected) == [0, 1, 2, 3, 4, 5]


JSON = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5)
VALUES = st.one_of(
    JSON,
    st.lists(JSON, max_size=2),
    st.lists(st.fixed_dictionaries({}, optional={"role": JSON, "content": JSON, "name": JSON}), max_size=2),
    st.sampled_from([str(uuid7(NOON + timedelta(days=days))) for days in (-400, -1, 0, 1)]),
    st.sampled_from(["00000000-0000-4000-8000-000000000000", "ffffffff-ffff-7fff-8000-000000000000"]),
    st.sampled_from(["2026-11-20T12:00:00Z", "2026-11-21T00:00:00.5Z", "2026-11-20", "2026-11-20T12:00:00+01:00", "Z"]),
    st.sampled_from(["{}", "[]", "[1]", '{"a":"b"}', "null", "NaN", "1", '"x"', "original", "custom", "metric", "a/b"]),
)
CHANGES = st.dictionaries(
    st.sampled_from([*orjson.loads(DECISION[9:]), *orjson.loads(FEEDBACK[9:]), "extra", "mood"]),
    VALUES | st.just(...),
    max_size=2,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([DECISION, FEEDBACK, OF_EPISODE]), CHANGES), min_size=1, max_size=4))
def test_both_ways_agree_whatever_the_record(records: list[tuple[bytes, dict[str, Any]]]) -> None:
    lines = []
    for line, changes in records:
        row = {**orjson.loads(line[9:]), **changes}
        lines.append(frame_line(orjson.dumps({name: value for name, value in row.items() if value is not ...})))
    parse_both(lines)


def test_a_table_is_of_the_schema_either_way() -> None:
    (together,), _ = parse_lines([DECISION])
    (apart,), _ = batches._parse_apart([DECISION], [0])
    assert together.table.schema == apart.table.schema
    assert together.table.equals(pa.Table.from_batches(apart.table.to_batches()))
