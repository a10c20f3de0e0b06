"""Landing: every sound line becomes one row, everything else is quarantined with the reason."""

from __future__ import annotations

import errno
import fcntl
import io
import itertools
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import storage
from reasoning.ids import uuid7
from reasoning.io.segments import frame_line
from reasoning.io.spool import SegmentWriter
from storage.errors import DataFolderBusy, DataFolderError, LandingError
from storage.layout import Layout
from storage.locks import data_lock
from storage.log import land
from storage.log.batches import Parsed
from storage.log.land import land_decisions
from storage.log.quarantine import read_quarantine
from storage.log.reland import reland_quarantine
from tests.storage.logs import (
    NOON,
    landed_ids,
    list_parquet,
    make_days,
    make_decision,
    make_feedback,
    segment_id,
    to_line,
    write_lines,
    write_segment,
)


def run_python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )


def quarantined(data: Path) -> list[tuple[str, bytes]]:
    return [
        (entry["reason"], raw)
        for path in sorted((data / "quarantine").iterdir())
        for entry, raw in read_quarantine(path)
    ]


def test_every_column_comes_back_as_it_was_written(tmp_path: Path) -> None:
    decision = make_decision(
        NOON + timedelta(microseconds=123456),
        room_id="room",
        episode_id="episode",
        subject_ids=["ann", "bob"],
        source="custom",
        served=False,
        model="slug/name",
        config_hash="c0ffee",
        experiment="e",
        arm="custom",
        arm_probability=0.25,
        tools=[{"type": "function"}],
        confidence=0.75,
        valid=False,
        fallback_reason="timeout",
        error="TimeoutError: late",
        input_tokens=12,
        output_tokens=3,
        cost_usd=0.0001,
        tags={"k": "v"},
    )
    write_segment(tmp_path, [decision])
    report = land_decisions(tmp_path)
    assert (report.segments, report.decisions, report.feedback, report.quarantined) == (1, 1, 0, {})
    result = storage.sql(tmp_path, "SELECT * FROM decisions")
    row = dict(zip(result.columns, result.rows[0], strict=True))
    assert row.pop("date") == NOON.date()
    assert row.pop("extra") is None
    assert orjson.loads(row.pop("tools")) == decision.tools
    assert orjson.loads(row.pop("tags")) == decision.tags
    assert orjson.loads(row.pop("decision")) == decision.decision
    for name, value in row.items():
        assert value == getattr(decision, name), name
    assert not list((tmp_path / "spool").iterdir())


def test_rows_go_to_the_partition_of_their_type_and_day(tmp_path: Path) -> None:
    decisions = [*make_days(2, 2), make_decision(decision_type="planning")]
    late = [
        make_feedback(NOON + timedelta(days=9), decision_id=decisions[0].decision_id, value=value) for value in (1, 0)
    ]
    of_episode = make_feedback(NOON + timedelta(days=9), episode_id="e")
    write_segment(tmp_path, [*decisions, *late, of_episode])
    land_decisions(tmp_path)
    folders = {str(path.parent.relative_to(tmp_path)) for path in list_parquet(tmp_path)}
    assert folders == {
        "decisions/decision_type=planning/date=2026-11-20",
        "decisions/decision_type=should_respond/date=2026-11-20",
        "decisions/decision_type=should_respond/date=2026-11-21",
        "feedback/date=2026-11-20",  # of the decision, nine days before
        "feedback/date=2026-11-29",
    }


def test_landing_an_empty_spool_again_changes_nothing(tmp_path: Path) -> None:
    write_segment(tmp_path, [make_decision()])
    land_decisions(tmp_path)
    before = list_parquet(tmp_path)
    report = land_decisions(tmp_path)
    assert report.segments == report.decisions == 0
    assert list_parquet(tmp_path) == before


def test_many_small_segments_share_files(tmp_path: Path) -> None:
    decisions = make_days(1, 30)
    for decision in decisions:
        write_segment(tmp_path, [decision])
    assert land_decisions(tmp_path).segments == 30
    assert len(list_parquet(tmp_path)) == 1
    assert landed_ids(tmp_path) == sorted(d.decision_id for d in decisions)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"garbage\n", "no frame"),
        (b"00000000 {}\n", "CRC mismatch"),
        (frame_line(b"{nope"), "no record"),
        (frame_line(b'{"record":"decision","schema":1}'), "no record"),
        (frame_line(b'{"record":"decision","schema":99}'), "no record"),
        (frame_line(b'{"record":[],"schema":1}'), "no record"),
        (to_line(make_decision())[:-1], "torn"),
        (to_line(make_decision(decision_type="../../etc")), "decision_type"),
        (to_line(make_decision(decision_type="a/b")), "decision_type"),
        (to_line(make_decision(source="oracle")), "source"),
        (to_line(make_decision(decision_id=UUID(int=5))), "decision_id"),
        (to_line(make_decision(request_id=uuid7(NOON + timedelta(days=1)))), "ts"),
        (to_line(make_decision(ts=NOON + timedelta(days=1), decision_id=uuid7(NOON))), "ts"),
        (to_line(make_feedback(decision_id=UUID(int=5))), "decision_id"),
        (to_line(make_feedback(episode_id="e", kind="gossip")), "kind"),
    ],
)
def test_a_bad_line_is_quarantined_and_its_neighbours_land(tmp_path: Path, line: bytes, reason: str) -> None:
    good = make_days(1, 2)
    write_lines(tmp_path, [to_line(good[0]), to_line(good[1]), line])
    report = land_decisions(tmp_path)
    assert report.quarantined == {reason: 1}
    assert landed_ids(tmp_path) == sorted(d.decision_id for d in good)
    ((found, raw),) = quarantined(tmp_path)
    assert found.startswith(reason)
    assert raw == line.removesuffix(b"\n")


def edit(line: bytes, **values: object) -> bytes:
    return frame_line(orjson.dumps({**orjson.loads(line[9:]), **values}))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("latency_ms", "fast"),
        ("latency_ms", True),
        ("input_tokens", 1.5),
        ("input_tokens", 2**63),
        ("agent_id", 7),
        ("served", "yes"),
        ("served", 1),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "user", "content": None}]),
        ("messages", "hello"),
        ("subject_ids", "ann"),
        ("subject_ids", [1]),
        ("decision", '"text"'),
        ("decision", "{broken"),
        ("decision", {"action": "RESPOND"}),
        ("tags", "[]"),
        ("tools", "{}"),
        ("ts", "2026-11-20T12:00:00+00:00"),
        ("ts", "2026-11-20T99:00:00Z"),
        ("ts", 5),
        ("decision_type", 5),
        ("decision_id", "not an id"),
        ("episode_id", ["e"]),
        ("extra", 5),
        ("extra", "mine"),
        ("extra", "[]"),
        ("messages", {}),
        ("messages", ""),
    ],
)
def test_a_value_of_the_wrong_type_is_quarantined_alone(tmp_path: Path, column: str, value: object) -> None:
    lines = [to_line(decision) for decision in make_days(1, 7)]
    bad = edit(lines[3], **{column: value})
    write_lines(tmp_path, [*lines[:3], bad, *lines[4:]])
    report = land_decisions(tmp_path)
    assert (report.decisions, report.quarantined) == (6, {column: 1})
    assert quarantined(tmp_path)[0][1] == bad[:-1]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'"latency_ms":1.5', b'"latency_ms":NaN', "no record"),
        (b'"latency_ms":1.5', b'"latency_ms":1e999', "no record"),
        (b'"input_tokens":null', b'"input_tokens":9223372036854775808', "input_tokens"),
        (b'"ts":"2026-11-20T12:00:03Z"', b'"ts":"2026-11-20T12:00:03"', "ts"),
        (b'"ts":"2026-11-20T12:00:03Z"', b'"ts":"2026-11-20T12:00:03.123456789Z"', "ts"),
        (b'"tags":"{}"', b'"tags":"' + b"[" * 5000 + b'"', "tags"),
        (b'"tags":"{}"', b'"mood":' + b"[" * 5000 + b"]" * 5000, "no record"),
        (b'"tags":"{}"', rb'"tags":"{\"a\":\"\\ud83d\"}"', "tags"),
        (b'"tags":"{}"', rb'"mood":1,"extra":"{\"mood\":2}"', "extra"),
    ],
)
def test_json_that_no_column_can_hold_is_quarantined_alone(tmp_path: Path, old: bytes, new: bytes, reason: str) -> None:
    lines = [to_line(decision) for decision in make_days(1, 7)]
    assert old in lines[3]
    write_lines(tmp_path, [*lines[:3], frame_line(lines[3][9:-1].replace(old, new)), *lines[4:]])
    report = land_decisions(tmp_path)
    assert (report.decisions, report.quarantined) == (6, {reason: 1})


def test_numbers_and_nesting_at_the_edge_land(tmp_path: Path) -> None:
    deep = "{" + '"a":{' * 900 + "}" * 901
    line = to_line(make_decision(input_tokens=2**63 - 1, latency_ms=1e308))
    write_lines(tmp_path, [edit(line, decision='{"action":123456789012345678901234567890}', tags=deep)])
    assert land_decisions(tmp_path).quarantined == {}
    assert storage.sql(tmp_path, "SELECT input_tokens, latency_ms, decision, tags FROM decisions").rows == [
        (2**63 - 1, 1e308, '{"action":123456789012345678901234567890}', deep)
    ]


def test_a_missing_column_is_null_and_an_unknown_key_is_kept(tmp_path: Path) -> None:
    row = orjson.loads(to_line(make_decision())[9:])
    del row["tags"], row["latency_ms"], row["valid"]
    row["mood"] = {"x": [1]}
    write_lines(tmp_path, [frame_line(orjson.dumps(row))])
    assert land_decisions(tmp_path).quarantined == {}
    assert storage.sql(tmp_path, "SELECT tags, latency_ms, valid, extra FROM decisions").rows == [
        (None, None, None, '{"mood":{"x":[1]}}')
    ]


@pytest.mark.parametrize(
    ("changes", "extra"),
    [
        ({"extra": None}, None),
        ({"extra": '{"a": 1}'}, '{"a": 1}'),
        ({"extra": '{"a": 1}', "mood": 2}, '{"a":1,"mood":2}'),
        (
            {"messages": [{"role": "user", "content": "c"}, {"role": "user", "content": "d", "name": "Ann"}]},
            '{"messages":[{},{"name":"Ann"}]}',
        ),
        (
            {"messages": [{"role": "tool", "content": "c", "calls": [1]}], "mood": 2},
            '{"messages":[{"calls":[1]}],"mood":2}',
        ),
    ],
)
def test_what_has_no_column_is_kept_in_extra(tmp_path: Path, changes: dict[str, Any], extra: str | None) -> None:
    line = edit(to_line(make_decision()), **changes)
    write_lines(tmp_path, [line, line])
    report = land_decisions(tmp_path)
    assert (report.decisions, report.duplicates, report.quarantined) == (1, 1, {})
    assert storage.sql(tmp_path, "SELECT extra FROM decisions").rows == [(extra,)]


def test_messages_of_the_client_lose_nothing(tmp_path: Path) -> None:
    message: Any = {"role": "assistant", "content": "", "tool_calls": [{"name": "look"}]}  # of a renderer of the user's
    write_segment(tmp_path, [make_decision(messages=[message])])
    assert land_decisions(tmp_path).decisions == 1
    assert storage.sql(tmp_path, "SELECT messages, extra FROM decisions").rows == [
        ([{"role": "assistant", "content": ""}], '{"messages":[{"tool_calls":[{"name":"look"}]}]}')
    ]


def test_feedback_of_no_kind_is_a_metric(tmp_path: Path) -> None:
    decision = make_decision()
    row = orjson.loads(to_line(make_feedback(decision_id=decision.decision_id))[9:])
    del row["kind"]
    write_lines(tmp_path, [to_line(decision), frame_line(orjson.dumps(row))])
    land_decisions(tmp_path)
    assert storage.sql(tmp_path, "SELECT feedback FROM labelled_decisions").rows == [({"rating": 1.0},)]


def test_every_truncation_of_a_segment_keeps_its_whole_lines(tmp_path: Path) -> None:
    length = len(to_line(make_decision()))
    expected = set()
    for cut in range(length - 1, 2 * length + 1):
        decisions = make_days(1, 2)
        content = b"".join(to_line(d) for d in decisions)[:cut]
        write_lines(tmp_path, [content])
        expected.update(d.decision_id for d in decisions[: content.count(b"\n")])
    report = land_decisions(tmp_path)
    assert report.segments == length + 2
    ids = landed_ids(tmp_path)
    assert len(ids) == len(expected)
    assert set(ids) == expected
    assert sum(report.quarantined.values()) == len(quarantined(tmp_path))


def test_a_bit_flip_at_every_place_is_detected_and_the_rest_kept(tmp_path: Path) -> None:
    length = len(to_line(make_decision()))
    expected = set()
    for place in range(length):
        decisions = make_days(1, 3)
        lines = [to_line(d) for d in decisions]
        flipped = bytearray(lines[1])
        flipped[place] ^= 1 << place % 8
        write_lines(tmp_path, [lines[0], bytes(flipped), lines[2]])
        expected |= {decisions[0].decision_id, decisions[2].decision_id}
    report = land_decisions(tmp_path)
    ids = landed_ids(tmp_path)
    assert len(ids) == len(expected)
    assert set(ids) == expected
    assert sum(report.quarantined.values()) == len(quarantined(tmp_path)) >= length


def test_lines_whose_newlines_are_damaged_leave_the_others_whole(tmp_path: Path) -> None:
    decisions = make_days(1, 7)
    lines = [to_line(decision) for decision in decisions]
    damaged = [line[:-1] + b"\x8a" if n in (1, 2, 4) else line for n, line in enumerate(lines)]
    segment = write_lines(tmp_path, [*damaged, lines[0]]).stem  # the last one has landed: read again to compare
    report = land_decisions(tmp_path)
    assert (report.quarantined, report.duplicates) == ({"torn": 2}, 1)
    assert landed_ids(tmp_path) == sorted(decisions[n].decision_id for n in (0, 3, 5, 6))
    content = b"".join(damaged)
    for entry, raw in read_quarantine(tmp_path / "quarantine" / f"{segment}.jsonl"):
        assert content[entry["offset"] :].startswith(raw)
        assert raw in (damaged[1] + damaged[2], damaged[4])


def test_the_segment_of_a_dead_writer_is_taken_over_and_a_living_ones_left(tmp_path: Path) -> None:
    decision = make_decision()
    dead = write_lines(tmp_path, [to_line(decision), to_line(make_decision())[:50]], suffix=".open")
    writer = SegmentWriter(tmp_path / "spool")
    writer.write(make_decision())
    report = land_decisions(tmp_path)
    assert (report.taken_over, report.decisions, report.quarantined) == (1, 1, {"torn": 1})
    assert landed_ids(tmp_path) == [decision.decision_id]
    assert not dead.exists()
    writer.close()
    assert land_decisions(tmp_path).decisions == 1


def test_an_empty_segment_waits_until_its_writer_cannot_be_starting(tmp_path: Path) -> None:
    path = write_lines(tmp_path, [], suffix=".open")
    land_decisions(tmp_path)
    assert path.exists()
    os.utime(path, (0, 0))
    land_decisions(tmp_path)
    assert not path.exists()


def test_late_rows_skewed_clocks_and_a_clock_that_jumps_back(tmp_path: Path) -> None:
    now = datetime(2026, 11, 22, tzinfo=UTC)
    times = [now, now - timedelta(days=400), now + timedelta(days=3), datetime(1970, 1, 1, tzinfo=UTC), now]
    ticks = iter([now.timestamp(), 0.0, now.timestamp() + 9e6, now.timestamp() - 9e6] * 9)
    writers = [SegmentWriter(tmp_path / "spool", clock=lambda: next(ticks), max_bytes=700) for _ in range(2)]
    decisions = [make_decision(ts) for ts in times]
    for n, decision in enumerate(decisions):
        assert writers[n % 2].write(decision)
    for writer in writers:
        writer.close()
    # What is too far ahead waits in the quarantine until its time has come.
    assert land_decisions(tmp_path, now=now).quarantined == {"clock": 1}
    assert reland_quarantine(tmp_path, now=now).kept == {"clock": 1}
    assert landed_ids(tmp_path) == sorted(d.decision_id for d in decisions if d.ts <= now)
    assert reland_quarantine(tmp_path, now=now + timedelta(days=1, hours=1)).relanded == 1
    assert landed_ids(tmp_path) == sorted(d.decision_id for d in decisions)
    assert [r[0] for r in storage.sql(tmp_path, "SELECT ts FROM decisions ORDER BY ts").rows] == sorted(times)


@pytest.mark.parametrize("size", [20_000, 2_000_000])
def test_large_records_land(tmp_path: Path, size: int) -> None:
    decisions = [
        make_decision(NOON + timedelta(seconds=n), messages=[{"role": "user", "content": f"{n}" * size}])
        for n in range(5)
    ]
    write_segment(tmp_path, decisions)
    assert land_decisions(tmp_path).decisions == 5
    rows = storage.sql(tmp_path, "SELECT messages[1].content FROM decisions ORDER BY ts").rows
    assert [row[0] for row in rows] == [d.messages[0]["content"] for d in decisions]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8")) | st.sampled_from(["\0", "a\0b", "🎉👩‍👩‍👧", "\u2028\r\n", "'\"\\", "‮"]),
        min_size=1,
        max_size=20,
    )
)
def test_any_text_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    data = tmp_path_factory.mktemp("data")
    write_segment(
        data,
        [
            make_decision(
                NOON + timedelta(seconds=n),
                messages=[{"role": "user", "content": text}],
                episode_id=text,
                decision={"action": text},
                tags={text: text},
                subject_ids=[text],
            )
            for n, text in enumerate(texts)
        ],
    )
    assert land_decisions(data).quarantined == {}
    rows = storage.sql(
        data, "SELECT messages[1].content, episode_id, decision, subject_ids[1], tags FROM decisions ORDER BY ts"
    )
    for (content, episode, decision, subject, tags), text in zip(rows.rows, texts, strict=True):
        assert content == episode == subject == text
        assert orjson.loads(decision) == {"action": text}
        assert orjson.loads(tags) == {text: text}


def test_a_lone_surrogate_is_kept_as_its_escape_or_refused_with_a_reason(tmp_path: Path) -> None:
    write_segment(tmp_path, [make_decision(episode_id="a\ud83db")])
    write_lines(tmp_path, [frame_line(to_line(make_decision(episode_id="@@"))[9:-1].replace(b"@@", rb"\ud83d"))])
    report = land_decisions(tmp_path)
    assert storage.sql(tmp_path, "SELECT episode_id FROM decisions").rows == [("a\\ud83db",)]
    assert report.quarantined == {"no record": 1}


def test_progress_ends_at_the_size_of_the_backlog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(land, "_CHUNK_BYTES", 10_000)
    write_segment(tmp_path, make_days(1, 100))
    size = sum(path.stat().st_size for path in (tmp_path / "spool").iterdir())
    seen: list[tuple[int, int]] = []
    land_decisions(tmp_path, progress=lambda event: seen.append((event.done, event.total)))
    assert len(seen) > 1
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)


def test_chunks_that_are_parsed_side_by_side_keep_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(land, "_CHUNK_BYTES", 2000)
    real, waits = land.parse_lines, itertools.cycle([0.01, 0.0])

    def parse_late(lines: list[bytes]) -> Parsed:
        time.sleep(next(waits))  # every second chunk is done before the one ahead of it
        return real(lines)

    monkeypatch.setattr(land, "parse_lines", parse_late)
    lines = [to_line(decision) for decision in make_days(1, 60)]
    bad = {9: b"first\n", 30: b"second\n", 59: b"third\n"}
    write_lines(tmp_path, [bad.get(n, line) for n, line in enumerate(lines)])
    report = land_decisions(tmp_path)
    assert (report.decisions, report.quarantined) == (57, {"no frame": 3})
    (path,) = (tmp_path / "quarantine").iterdir()
    assert [(entry["line"], raw + b"\n") for entry, raw in read_quarantine(path)] == [
        (n + 1, line) for n, line in bad.items()
    ]


def test_a_missing_or_foreign_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFolderError, match="there is no data folder"):
        land_decisions(tmp_path / "nowhere")
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(DataFolderError, match="is not a data folder"):
        land_decisions(tmp_path)
    with pytest.raises(DataFolderError, match="is not a folder"):
        land_decisions(tmp_path / "thesis.doc")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.doc"]


def test_a_busy_folder_names_its_holder(tmp_path: Path) -> None:
    with (
        data_lock(Layout(tmp_path).create(), "compaction"),
        pytest.raises(DataFolderBusy, match=rf"compaction \(process {os.getpid()}\)"),
    ):
        land_decisions(tmp_path, lock_timeout=0)
    land_decisions(tmp_path, lock_timeout=0)


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for the disk: the kernel refuses to let a file grow, as on a full one."""
    decisions = make_days(1, 3000)
    for decision in decisions:
        decision.messages[0]["content"] = os.urandom(700).hex()
    write_segment(tmp_path, decisions)
    before = {path.name: path.read_bytes() for path in (tmp_path / "spool").iterdir()}
    done = run_python(
        "import resource, signal, sys; from storage.log.land import land_decisions\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n"
        "land_decisions(sys.argv[1])",
        tmp_path,
    )
    assert "LandingError" in done.stderr
    assert "free some space and land again" in done.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "spool").iterdir()} == before
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".parquet", ".tmp")]
    assert land_decisions(tmp_path).decisions == 3000
    assert landed_ids(tmp_path) == sorted(d.decision_id for d in decisions)


def test_a_segment_that_was_landed_already_is_not_landed_twice(tmp_path: Path) -> None:
    """As after a kill between the rename of the rows and the unlinking of the segment."""
    write_segment(tmp_path, [*make_days(2, 3), make_feedback(episode_id="e")])
    (path,) = (tmp_path / "spool").iterdir()
    content = path.read_bytes()
    land_decisions(tmp_path)
    path.write_bytes(content)
    report = land_decisions(tmp_path)
    assert (report.segments, report.decisions, report.feedback, report.duplicates) == (1, 0, 0, 7)
    assert len(landed_ids(tmp_path)) == 6


def test_half_a_landing_is_finished(tmp_path: Path) -> None:
    """Of two partitions one was committed before the kill; others came to the spool since."""
    write_segment(tmp_path, make_days(2, 3))
    (path,) = (tmp_path / "spool").iterdir()
    content = path.read_bytes()
    land_decisions(tmp_path)
    list_parquet(tmp_path)[1].unlink()
    path.write_bytes(content)
    write_segment(tmp_path, make_days(2, 1))
    report = land_decisions(tmp_path)
    assert report.decisions == 3 + 2
    ids = landed_ids(tmp_path)
    assert len(ids) == len(set(ids)) == 8


def test_the_lock_is_free_once_its_holder_is_killed(tmp_path: Path) -> None:
    layout = Layout(tmp_path).create()
    script = (
        "import sys; from storage.layout import Layout; from storage.locks import data_lock\n"
        "with data_lock(Layout(sys.argv[1]), 'landing'): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DataFolderBusy, match=rf"landing \(process {holder.pid}\)"):
            land_decisions(tmp_path, lock_timeout=0)
        holder.kill()
    with layout.lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    land_decisions(tmp_path, lock_timeout=5)


@pytest.mark.parametrize("suffix", [".seal", ".open"])
def test_segments_of_another_user_hold_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """Agents make their segments readable for themselves alone. The tests may run as root, who can read all."""
    mine, theirs = make_days(1, 2)
    write_lines(tmp_path, [to_line(mine)])
    path = write_lines(tmp_path, [to_line(theirs)], segment_id(0, NOON - timedelta(days=1)), suffix)
    real_open, real_access = os.open, os.access

    def open_(name: Path, *arguments: object, **keywords: object) -> int:
        if name == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(name))
        return real_open(name, *arguments, **keywords)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_)
        patch.setattr(os, "access", lambda name, mode: name != path and real_access(name, mode))
        for _ in range(2):
            with pytest.raises(LandingError, match=rf"cannot be read \(1, the first is {path.stem}: Permission"):
                land_decisions(tmp_path)
            assert landed_ids(tmp_path) == [mine.decision_id]
    land_decisions(tmp_path)
    assert len(landed_ids(tmp_path)) == 2


@pytest.mark.parametrize("reads", [0, 1])
def test_a_segment_that_the_disk_does_not_give_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: int
) -> None:
    records = make_days(1, 3)
    paths = [
        write_lines(tmp_path, [to_line(record)], segment_id(0, NOON - timedelta(hours=hours)))
        for hours, record in enumerate(records)
    ]
    broken = paths[1]
    real_open = io.open

    class BadSector(io.BufferedReader):
        left = reads

        def readlines(self, hint: int = -1, /) -> list[bytes]:
            self.left -= 1
            return super().readlines(hint) if self.left >= 0 else self.read()  # type: ignore[return-value]

        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    def open_(path: object, mode: str = "r", *arguments: object, **keywords: object) -> object:
        if path == broken and mode == "rb":
            return BadSector(io.FileIO(broken))
        return real_open(path, mode, *arguments, **keywords)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", open_)
        for _ in range(2):
            with pytest.raises(LandingError, match=rf"\(1, the first is {broken.stem}: Input/output error\).*disk"):
                land_decisions(tmp_path)
            assert landed_ids(tmp_path) == sorted(record.decision_id for record in (records[0], records[2]))
            assert list((tmp_path / "quarantine").iterdir()) == []
    assert land_decisions(tmp_path).segments == 1
    assert len(landed_ids(tmp_path)) == 3
