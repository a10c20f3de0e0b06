from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from reasoning.errors import RecordError
from reasoning.ids import uuid7
from reasoning.records import Decision, Feedback, decode_record, encode_record, parse_record

NOW = datetime(2026, 11, 22, 10, 0, 0, 123456, tzinfo=UTC)
ID = uuid7(NOW)
any_text = st.text(st.characters())  # with NUL, emoji and lone surrogates
kept_text = st.text(st.characters(exclude_categories=["Cs"]))
optional = st.none() | kept_text
number = st.none() | st.floats(allow_nan=False, allow_infinity=False)
count = st.none() | st.integers(0, 2**53)

decisions = st.builds(
    Decision,
    decision_id=st.just(ID),
    request_id=st.just(ID),
    ts=st.datetimes(datetime(1970, 1, 2), datetime(9999, 1, 1), timezones=st.just(UTC)),
    decision_type=kept_text,
    source=st.sampled_from(["original", "custom"]),
    served=st.booleans(),
    messages=st.lists(st.fixed_dictionaries({"role": kept_text, "content": kept_text})),
    agent_id=optional,
    episode_id=optional,
    subject_ids=st.lists(kept_text),
    arm_probability=number,
    tools=st.none() | st.lists(st.dictionaries(kept_text, kept_text)),
    completion=optional,
    decision=st.none() | st.dictionaries(kept_text, kept_text | st.lists(kept_text)),
    confidence=number,
    valid=st.booleans(),
    error=optional,
    latency_ms=number,
    input_tokens=count,
    tags=st.dictionaries(kept_text, kept_text),
)


def a_decision(**changes: Any) -> Decision:
    made = Decision(ID, ID, NOW, "should_respond", "original", True, [{"role": "user", "content": "hi"}])
    return replace(made, **changes)


@settings(suppress_health_check=[HealthCheck.too_slow])  # of a busy machine, not of the strategy
@given(decisions)
@example(a_decision(completion="\x00 \U0001f600 \u2028 " + "x" * 2_000_000))
def test_a_decision_comes_back_as_it_was(decision: Decision) -> None:
    assert parse_record(encode_record(decision)) == decision


@given(
    kept_text,
    st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | kept_text,
)
def test_a_feedback_comes_back_as_it_was(metric: str, value: Any) -> None:
    feedback = Feedback(ID, NOW, metric, value, "comment", decision_id=ID)
    assert parse_record(encode_record(feedback)) == feedback


@given(any_text, st.dictionaries(any_text, any_text))
def test_any_text_is_kept_with_its_surrogates_escaped(text: str, decision: dict[str, str]) -> None:
    row = decode_record(encode_record(a_decision(completion=text, decision=decision)))
    assert row["completion"] == text.encode("utf-8", "backslashreplace").decode()
    orjson.loads(row["decision"])


def test_columns_of_json_are_text_on_the_wire() -> None:
    row = decode_record(encode_record(a_decision(decision={"action": "RESPOND"}, tags={"a": "b"}, tools=[{"x": 1}])))
    assert (row["decision"], row["tags"], row["tools"]) == ('{"action":"RESPOND"}', '{"a":"b"}', '[{"x":1}]')
    assert row["ts"] == "2026-11-22T10:00:00.123456Z"
    assert decode_record(encode_record(Feedback(ID, NOW, "m", True, decision_id=ID)))["value"] == "true"


def test_another_time_zone_is_written_as_utc() -> None:
    there = NOW.astimezone(timezone(timedelta(hours=9)))
    assert decode_record(encode_record(a_decision(ts=there)))["ts"].startswith("2026-11-22T10:00:00")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"ts": datetime(2026, 1, 1)}, "ts"),
        ({"confidence": float("nan")}, "confidence"),
        ({"latency_ms": float("inf")}, "latency_ms"),
        ({"episode_id": 7}, "episode_id"),
        ({"decision_type": None}, "decision_type"),
        ({"messages": [{"role": "user", "content": None}]}, "messages"),
        ({"subject_ids": [1]}, "subject_ids"),
        ({"decision": {"a": {1, 2}}}, "decision"),
        ({"input_tokens": 2**80}, "input_tokens"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(RecordError, match=f"^{named}: "):
        encode_record(a_decision(**changes))


@pytest.mark.parametrize(
    "feedback",
    [
        Feedback(ID, NOW, "m", 1.0),
        Feedback(ID, NOW, "m", 1.0, decision_id=ID, episode_id="e"),
        Feedback(ID, NOW, "m", float("nan"), decision_id=ID),
        Feedback(ID, NOW, "m", [1], decision_id=ID),  # type: ignore[arg-type]
    ],
)
def test_a_feedback_that_is_none_is_refused(feedback: Feedback) -> None:
    with pytest.raises(RecordError, match=r"decision_id, episode_id|value"):
        encode_record(feedback)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"{", "not JSON"),
        (b"[]", "object"),
        (b'{"record":"vote","schema":1}', "neither"),
        (b'{"record":"decision","schema":99}', "upgrade"),
        (b'{"record":"decision","schema":true}', "schema"),
        (b'{"record":"decision","schema":1}', "decision_id: missing"),
        (b'{"record":"feedback","schema":1,"feedback_id":"x","ts":"x","metric":"m","value":"1"}', "exactly one"),
    ],
)
def test_what_is_no_record_is_refused_with_the_reason(payload: bytes, reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        decode_record(payload)


@pytest.mark.parametrize("kind", [[], {}, 1, None, "decisions"])
def test_a_record_of_no_known_kind_is_refused(kind: object) -> None:
    with pytest.raises(RecordError, match="is neither 'decision' nor 'feedback'"):
        decode_record(orjson.dumps({"record": kind, "schema": 1}))
