"""The small parts of the client: breaker, confidence, redaction, shadow pool."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.error_text import describe_error
from reasoning.errors import CallFailed
from reasoning.ids import uuid7
from reasoning.io.sse import EventDecoder, StreamedCompletion
from reasoning.records import Decision, encode_record
from reasoning.serving import shadow
from reasoning.serving.breaker import CircuitBreaker
from reasoning.serving.completion import Completion, measure_confidence, read_completion
from reasoning.serving.shadow import ShadowTasks, ShadowThreads
from tests.reasoning.conftest import at_bytecode, completion


class TestBreaker:
    def test_it_opens_probes_and_closes(self) -> None:
        now = [0.0]
        breaker = CircuitBreaker(2, 10.0, lambda: now[0])
        for _ in range(2):
            assert breaker.allow() and breaker.state == "closed"
            breaker.fail()
        assert breaker.state == "open" and not breaker.allow()
        now[0] = 10.0
        assert breaker.allow() and breaker.state == "half_open"
        assert not breaker.allow()  # one probe
        breaker.fail()
        now[0] = 29.9
        assert not breaker.allow()  # a failed probe doubled the wait
        now[0] = 30.0
        assert breaker.allow()
        breaker.release()
        assert breaker.allow()
        breaker.succeed()
        assert breaker.state == "closed" and breaker.allow()

    def test_a_success_between_failures_keeps_it_closed(self) -> None:
        breaker = CircuitBreaker(2, 10.0)
        for _ in range(5):
            breaker.fail()
            breaker.succeed()
        assert breaker.state == "closed"

    def test_the_wait_has_a_bound(self) -> None:
        now = [0.0]
        breaker = CircuitBreaker(1, 1.0, lambda: now[0])
        breaker.fail()
        for _ in range(30):
            now[0] += 10.0
            assert breaker.allow()
            breaker.fail()


class TestConfidence:
    XML = ("<response><action>", "RES", "POND", "</action></response>")

    def test_it_is_the_probability_of_the_deciding_tokens(self) -> None:
        found = Completion("".join(self.XML), self.XML, (-9.0, -0.1, -0.2, -0.05))
        assert measure_confidence("label", found) == pytest.approx(math.exp(-0.35))

    def test_json_and_plans(self) -> None:
        tokens = ['{"actions": ', '["A"', "]", "}"]
        found = Completion("".join(tokens), tokens, [-9.0, -0.1, -0.2, -0.4])
        assert measure_confidence("plan", found) == pytest.approx(math.exp(-0.7))
        tokens = ["<actions>", "", "</actions>", "x"]
        empty = Completion("".join(tokens), tokens, [-9.0, -9.0, -0.5, -9.0])
        assert measure_confidence("plan", empty) == pytest.approx(math.exp(-0.5))

    def test_code_is_judged_per_token(self) -> None:
        assert measure_confidence("code", Completion("ab", ["a", "b"], [-0.2, -0.4])) == pytest.approx(math.exp(-0.3))

    @pytest.mark.parametrize(
        ("tokens", "logprobs"),
        [
            ((), ()),
            (("other", "text"), (-0.1, -0.1)),
            (XML, (-0.1, None, -0.1, -0.1)),
            (XML, (-0.1, "x", -0.1, -0.1)),
            (XML, (-0.1,)),
        ],
    )
    def test_what_was_not_measured_is_none(self, tokens: Any, logprobs: Any) -> None:
        assert measure_confidence("label", Completion("".join(self.XML), tokens, logprobs)) is None

    @given(st.lists(st.floats(allow_nan=True) | st.none(), min_size=4, max_size=4))
    def test_it_is_a_probability_or_none(self, logprobs: list[float | None]) -> None:
        for answer in ("label", "plan", "code"):
            found = measure_confidence(answer, Completion("".join(self.XML), self.XML, logprobs))  # type: ignore[arg-type]
            assert found is None or 0 <= found <= 1

    def test_openai_writes_log_probabilities_otherwise(self) -> None:
        raw = completion("ab").replace(
            b'"finish_reason"', b'"logprobs":{"content":[{"token":"ab","logprob":-0.5}]},"finish_reason"'
        )
        found = read_completion(200, raw)
        assert (found.tokens, found.token_logprobs, found.input_tokens) == (["ab"], [-0.5], 1000)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def with_another_value(data: st.DataObject, value: Any) -> Any:
    """`value`, a part of which is any JSON at all."""
    parts = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    if not parts or data.draw(st.integers(0, 9)) == 0:
        return data.draw(JSON)
    key, part = data.draw(st.sampled_from(parts))
    changed = value.copy()
    changed[key] = with_another_value(data, part)
    return changed


def _chunk(text: str, **choice: str) -> bytes:
    return json.dumps({"choices": [{"delta": {"content": text}, **choice}]}).encode()


class TestStreams:
    """What the specification of server-sent events allows and servers do; the gateway has the same decoder."""

    @pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
    @pytest.mark.parametrize("step", [1, 2, 7, 10_000])
    def test_line_ends_marks_and_values_of_several_lines(self, end: bytes, step: int) -> None:
        split = _chunk("b", finish_reason="stop").replace(b", ", b",\ndata: ")
        lines = b"\xef\xbb\xbfid: 1\ndata:" + _chunk("a") + b"\n\n: ping\n\nevent: chunk\ndata: " + split + b"\n\n"
        body = (lines + b"data: [DONE]\n\n").replace(b"\n", end)
        streamed = StreamedCompletion()
        assert "".join(streamed.feed(body[at : at + step]) for at in range(0, len(body), step)) == "ab"
        assert (streamed.completion().text, streamed.completion().finish_reason) == ("ab", "stop")

    def test_a_piece_is_there_with_the_carriage_return_that_ends_it(self) -> None:
        assert StreamedCompletion().feed(b"data: " + _chunk("a") + b"\r\r") == "a"

    def test_nothing_after_the_end_counts(self) -> None:
        streamed = StreamedCompletion()
        streamed.feed(
            b"data: " + _chunk("a", finish_reason="stop") + b"\n\ndata: [DONE]\n\ndata: " + _chunk("b") + b"\n\n"
        )
        assert streamed.completion().text == "a"

    @pytest.mark.parametrize("piece", [b"x" * (1 << 20), b"\ndata: " + b"x" * (1 << 20)])
    def test_an_event_without_an_end_fills_no_memory(self, piece: bytes) -> None:
        streamed = StreamedCompletion()
        with pytest.raises(CallFailed, match="an event of more than"):
            for _ in range(20):
                streamed.feed(b"data: " + piece)

    def test_a_long_event_in_small_pieces_takes_linear_time(self) -> None:
        def seconds(size: int) -> float:
            decoder, started = EventDecoder(), time.process_time()
            for _ in range(size // 256):
                decoder.feed(b"x" * 256)
            return time.process_time() - started

        assert seconds(4 << 20) < 32 * max(seconds(1 << 19), 0.002)  # 8 times as much; copied again each time, 64 times

    @pytest.mark.parametrize(
        "body", [b'{"choices":[' + b"[]," * (1 << 20) + b"0]}", b'{"a":"' + b"x" * (9 << 20) + b'"}']
    )
    def test_an_answer_that_is_too_large_is_not_parsed(self, body: bytes) -> None:
        with pytest.raises(CallFailed, match="are read"):
            read_completion(200, body)
        with pytest.raises(CallFailed):
            StreamedCompletion().feed(b"data: " + body + b"\n\n")


class TestWhateverAServerSays:
    @given(st.data())
    def test_an_answer_is_read_or_refused(self, data: st.DataObject) -> None:
        answer = orjson.loads(completion("<action>A</action>", ["<action>A</action>"], [-0.5]))
        said = with_another_value(data, answer | {"usage": {"prompt_tokens": 1, "completion_tokens": 2}})
        self.check(lambda: read_completion(200, json.dumps(said).encode()))

    @given(st.data(), st.integers(0, 200))
    def test_a_stream_is_read_or_refused(self, data: st.DataObject, cut: int) -> None:
        chunk = {
            "choices": [
                {
                    "delta": {"content": "<action>A</action>"},
                    "finish_reason": "stop",
                    "logprobs": {"content": [{"token": "<action>A</action>", "logprob": -0.5}]},
                }
            ],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2},
        }
        event = b"data: %b\n\n" % json.dumps(with_another_value(data, chunk)).encode()
        streamed = StreamedCompletion()

        def read() -> Completion:
            try:
                assert isinstance(streamed.feed(event[:cut]) + streamed.feed(event[cut:]), str)
            finally:
                streamed.so_far()  # what an abandoned stream is recorded with
            return streamed.completion()

        self.check(read)

    def check(self, read: Callable[[], Completion]) -> None:
        try:
            found = read()
        except CallFailed:
            return
        confidence = measure_confidence("label", found)
        now = datetime.now(UTC)
        row = Decision(uuid7(now), uuid7(now), now, "should_respond", "custom", True, [], confidence=confidence)
        row.completion, row.input_tokens, row.output_tokens = found.text, found.input_tokens, found.output_tokens
        encode_record(row)


class TestRedaction:
    @pytest.mark.parametrize(
        "secret",
        [
            "Authorization: Bearer abc.def-ghi",
            "api_key=abc.def-ghi",
            "'token': 'abc.def-ghi'",
            "https://user:abc.def-ghi@host/x",
            "sk-abc_def-ghi12345",
            "plain abc.def-ghi",
        ],
    )
    def test_secrets_do_not_stay(self, secret: str) -> None:
        text = describe_error(ValueError(f"failed: {secret} !"), "plain abc.def-ghi")
        assert "def-ghi" not in text and text.startswith("ValueError: failed: ") and text.endswith(" !")

    @pytest.mark.parametrize("text", ["redis://:def-ghi@h", "amqp://u:a/def-ghi@b@h/v", '{"password": "def-ghi"}'])
    def test_passwords_do_not_stay(self, text: str) -> None:
        for said in (text, repr(text)):
            assert "def-ghi" not in describe_error(ValueError(said))

    @pytest.mark.parametrize(
        "piece", [" ", "\n", "token ", "token=", "//a:", "//", "a-", "eyJ", "sk-", "@", '\\"', "password"]
    )
    def test_a_long_error_takes_no_longer_than_its_length(self, piece: str) -> None:
        begun = time.perf_counter()
        describe_error(ValueError("password" + piece * (1_000_000 // len(piece))))
        assert time.perf_counter() - begun < 0.2

    def test_ordinary_words_stay(self) -> None:
        assert describe_error(ValueError("no messages for agent 7")) == "ValueError: no messages for agent 7"

    def test_it_is_short_and_never_fails(self) -> None:
        class Bad(Exception):
            def __str__(self) -> str:
                raise RuntimeError

        assert "a1" not in describe_error(ValueError("token: " + " " * 3990 + "sk-" + "a1" * 20))  # cut in its middle
        assert describe_error(Bad()) == "Bad" and len(describe_error(ValueError("x" * 9999))) == 500


class Counts(Counter[str]):
    """Counts what a pool tells it."""

    def __call__(self, outcome: str) -> None:
        self[outcome] += 1


class TestShadowThreads:
    def test_what_was_taken_is_done_before_it_closes(self) -> None:
        counts = Counts()
        pool, done = ShadowThreads(2, 50, counts), []
        for i in range(50):
            assert pool.submit(lambda i=i: done.append(i))
        assert pool.close(30) == 0 and sorted(done) == list(range(50))
        assert pool.submit(lambda: done.append(99)) and pool.close(30) == 0 and done[-1] == 99
        assert counts == {"taken": 51, "done": 51}

    def test_failing_work_harms_nothing(self) -> None:
        counts = Counts()
        pool, done = ShadowThreads(1, 10, counts), []
        pool.submit(lambda: 1 // 0)
        pool.submit(lambda: done.append(1))
        assert pool.close(30) == 0 and done == [1]
        assert counts == {"taken": 2, "failed": 1, "done": 1}

    def test_a_signal_handler_may_submit_in_the_middle_of_a_submit(self) -> None:
        at, reached = 0, True
        while reached:
            pool, done = ShadowThreads(1, 10, Counts()), []

            def act(pool: ShadowThreads = pool, done: list[int] = done) -> None:
                assert pool.submit(partial(done.append, 1))

            with at_bytecode(at, shadow.__file__, act) as reached:
                assert pool.submit(partial(done.append, 0))
            assert pool.close(30) == 0 and sorted(done) == ([0, 1] if reached else [0])
            at += 1
        assert at > 50

    def test_close_does_not_wait_longer_than_it_is_told(self) -> None:
        counts = Counts()
        pool, release = ShadowThreads(1, 10, counts), threading.Event()
        started = threading.Event()
        pool.submit(lambda: (started.set(), release.wait(30)))
        started.wait(30)
        for _ in range(5):
            pool.submit(lambda: None)
        assert pool.close(0.01) == 5
        assert counts == {"taken": 6, "dropped": 5}
        release.set()

    def test_the_limit_holds_for_what_waits_and_what_is_done_together(self) -> None:
        counts, release = Counts(), threading.Event()
        pool = ShadowThreads(2, 3, counts)
        assert [pool.submit(lambda: release.wait(30)) for _ in range(7)] == [True] * 5 + [False] * 2
        release.set()
        assert pool.close(30) == 0 and counts == {"taken": 5, "dropped": 2, "done": 5}
        assert pool.submit(lambda: None) and pool.close(30) == 0  # room again


class TestShadowTasks:
    async def test_tasks_have_the_limits_and_the_counts_of_threads(self) -> None:
        counts, release, at_once = Counts(), asyncio.Event(), [0, 0]

        async def work() -> None:
            at_once[0] += 1
            at_once[1] = max(at_once)
            await release.wait()
            at_once[0] -= 1

        pool = ShadowTasks(2, 3, counts)
        assert [pool.submit(work) for _ in range(7)] == [True] * 5 + [False] * 2
        await asyncio.sleep(0)
        release.set()
        assert await pool.close(30) == 0 and at_once[1] == 2
        assert counts == {"taken": 5, "dropped": 2, "done": 5}

    async def test_failing_work_harms_nothing_and_late_work_is_dropped(self) -> None:
        counts = Counts()
        pool = ShadowTasks(1, 10, counts)

        async def fail() -> None:
            raise LookupError("mine")

        pool.submit(fail)
        for _ in range(2):
            pool.submit(lambda: asyncio.sleep(60))
        await asyncio.sleep(0.01)
        assert await pool.close(0) == 2
        assert counts == {"taken": 3, "failed": 1, "dropped": 2}
