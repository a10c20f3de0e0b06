"""What agents meet: broken routes, odd answers, odd originals, folders that vanish, other kinds of processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from reasoning import AsyncDecisionClient, DecisionClient, core
from reasoning.config import Config, load_config
from reasoning.errors import RoutesError
from reasoning.io import spool
from reasoning.io.spool import SegmentWriter
from reasoning.serving import breaker, model_calls
from reasoning.serving.lease import RoutesLease
from reasoning.serving.routes import Arm, parse_routes
from reasoning.serving.shadow import ShadowThreads
from tests.reasoning.conftest import CONTEXT, ModelServer, Request, completion, http, rows, says, sends
from tests.reasoning.test_spool import at_bytecode, read_all
from tests.reasoning.writers import decide_in_child, record

Write = Callable[..., Any]
IGNORE = "<response><action>IGNORE</action></response>"
KEY = "tgp_v1_0123456789abcdef"


def rule(context: Any) -> str:
    return "RESPOND"


class TestRoutes:
    @pytest.mark.parametrize(
        ("change", "error"),
        [
            (lambda text: text[: len(text) // 2], "not JSON"),
            (lambda text: b"", "not JSON"),
            (lambda text: b"\xff\xfe" + text, "not JSON"),
            (lambda text: b"[" * 100_000, "not JSON"),
            (lambda text: text.replace(b'"version": 1', b'"version": 2'), "version: 2 is not 1"),
            (lambda text: text.replace(b'"deadline_ms": 5000', b'"deadline_ms": 0'), "deadline_ms: must be above 0"),
            (lambda text: text.replace(b'"deadline_ms": 5000', b'"deadline_ms": 1e300'), "at most a day"),
            (lambda text: text.replace(b"http://127.0.0.1", b"http://[half"), "base_url: needs an http"),
            (lambda text: text.replace(b"http://127.0.0.1", b"http://127.0.0.1:99999999"), "base_url: needs an http"),
            (lambda text: text.replace(b'expires_at": "2', b'expires_at": "0001-01-01T00+14", "x": "'), "not a time"),
        ],
    )
    def test_a_file_that_is_none(
        self, data: Path, server: ModelServer, route: Write, change: Callable[[bytes], bytes], error: str
    ) -> None:
        route()
        file = data / "routes.json"
        good = file.read_bytes()
        assert change(good) != good
        file.write_bytes(change(good))
        with DecisionClient(data) as client:
            assert client.decide_should_respond(CONTEXT, rule).fallback_reason == "no_route"
            assert error in client.stats()["routes_error"] and str(file) in client.stats()["routes_error"]
            file.unlink()
            file.mkdir()  # and one that is a folder
            assert client.decide_should_respond(CONTEXT, rule).fallback_reason == "no_route"
            assert "directory" in client.stats()["routes_error"]
            file.rmdir()
            file.write_bytes(good)
            assert client.decide_should_respond(CONTEXT, rule).source == "custom"
            assert client.stats()["routes_error"] is None

    def test_fields_of_a_newer_writer_are_passed_over(self, data: Path, server: ModelServer, route: Write) -> None:
        route()
        raw = orjson.loads((data / "routes.json").read_bytes())
        raw["new"] = raw["routes"]["planning"]["new"] = raw["routes"]["should_respond"]["arms"][0]["new"] = [1]
        (data / "routes.json").write_bytes(orjson.dumps(raw))
        with DecisionClient(data) as client:
            assert client.decide_should_respond(CONTEXT, rule).source == "custom"

    def test_any_error_of_the_file_is_no_route(self, data: Path, route: Write, monkeypatch: Any) -> None:
        route()
        monkeypatch.setattr("reasoning.serving.lease.read_routes", lambda path: [][0])
        assert RoutesLease(data / "routes.json", time.time).find("planning", 0.0) == (None, "no_route")

    def test_a_file_that_could_not_be_read_is_read_again(self, data: Path, route: Write) -> None:
        route()
        lease = RoutesLease(data / "routes.json", time.time)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            assert lease.find("planning", 0.0) == (None, "no_route")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert lease.error == f"{data / 'routes.json'}: Too many open files"
        assert lease.find("planning", 0.0)[1] is None and lease.error is None

    def test_a_clock_that_is_set_back_does_not_lengthen_a_lease(
        self, data: Path, route: Write, monkeypatch: Any
    ) -> None:
        wall, mono, real = [time.time()], [100.0], time.time
        monkeypatch.setattr("reasoning.serving.lease.time.monotonic", lambda: mono[0])
        route(minutes=10, now=datetime.fromtimestamp(wall[0] - 540, UTC))  # one minute of it is left
        lease = RoutesLease(data / "routes.json", real)
        assert lease.find("planning", wall[0])[1] is None
        wall[0] -= 3600
        mono[0] += 59
        assert lease.find("planning", wall[0])[1] is None
        mono[0] += 2
        assert lease.find("planning", wall[0])[1] == "lease_expired"
        assert lease.find("planning", wall[0] + 7200)[1] == "lease_expired"  # and forward

    def test_a_base_url_beyond_this_machine_with_a_port_that_is_none(self) -> None:
        arm = {"name": "a", "source": "custom", "weight": 1, "model": "m", "base_url": "https://host.example:0x50"}
        raw = {"version": 1, "issued_at": "2026-01-01T00:00:00Z", "expires_at": "2026-01-01T01:00:00Z"}
        with pytest.raises(RoutesError, match=r"arms\[0\]\.base_url"):
            parse_routes(orjson.dumps(raw | {"routes": {"planning": {"arms": [arm]}}}))


class TestAnswers:
    @pytest.mark.parametrize(
        ("body", "confidence"),
        [
            (completion(IGNORE), None),
            (completion(IGNORE).replace(b'"finish', b'"logprobs": {"content": [{"text": 1}]}, "finish'), None),
            (completion(IGNORE, [IGNORE], ["x"]), None),  # type: ignore[list-item]
            (completion(IGNORE, [IGNORE], [None]), None),  # type: ignore[list-item]
            (completion(IGNORE, [IGNORE], [-1e400]), None),
            (completion(IGNORE, [IGNORE], [5.0]), 1.0),
        ],
    )
    def test_log_probabilities_that_are_none_cost_the_confidence_and_not_the_answer(
        self, data: Path, server: ModelServer, route: Write, body: bytes, confidence: float | None
    ) -> None:
        route()
        server.answer = sends(http(body))
        with DecisionClient(data) as client:
            answer = client.decide_should_respond(CONTEXT, rule)
        assert (answer.source, answer.confidence) == ("custom", confidence)

    @pytest.mark.parametrize(
        ("size", "reason"),
        [(8000, None), (8192, "unparseable"), (7 << 20, "unparseable"), (9 << 20, "unparseable")],
    )
    def test_an_answer_of_more_than_16_bytes_a_token_is_none(
        self, data: Path, server: ModelServer, route: Write, size: int, reason: str | None
    ) -> None:
        route(deadline_ms=60_000)
        text = f"<response><reasoning>{'x' * size}</reasoning><action>IGNORE</action></response>"
        server.answer = says(text)
        with DecisionClient(data) as client:
            answer = client.decide_should_respond(CONTEXT, rule)
            assert client.stats()["records"]["dropped"] == {}
        assert answer.fallback_reason == reason
        assert (answer.source == "custom") is (reason is None)
        (first, *_) = rows(data)
        if answer.source == "custom":
            assert first["completion"] == text
        else:
            assert ("are read" if size > 8 << 20 else "too long") in first["error"]

    @pytest.mark.parametrize("stream", [False, True])
    def test_an_echo_of_the_key_is_neither_recorded_nor_logged(
        self, data: Path, server: ModelServer, route: Write, monkeypatch: Any, caplog: Any, stream: bool
    ) -> None:
        route()
        monkeypatch.setattr("reasoning.serving.model_calls.api_key_for", lambda *_: KEY)

        def echo(request: Request, connection: socket.socket) -> None:
            told = request.headers["authorization"]
            connection.sendall(http(orjson.dumps({"error": {"message": f"no access with {told}, {KEY}!"}}), 401))

        server.answer = echo
        with DecisionClient(config=load_config(data, env={"TOGETHER_API_KEY": KEY})) as client:
            if stream:
                list(client.decide_coding({"prompt": "p"}, lambda _: {"code": "x"}, stream=True))
            else:
                assert client.decide_should_respond(CONTEXT, rule).fallback_reason == "provider_error"
            assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
            kept = str(rows(data)) + caplog.text + str(client.stats()) + repr(client.config)
        assert "HTTP 401 no access with" in kept and KEY not in kept

    def test_a_deadline_of_a_millisecond(self, data: Path, server: ModelServer, route: Write) -> None:
        server.answer = server.hang
        route(deadline_ms=1)
        with DecisionClient(data) as client:
            assert client.decide_should_respond(CONTEXT, rule).fallback_reason == "timeout"

    def test_a_connection_that_its_server_closed_meanwhile_is_not_used(
        self, data: Path, server: ModelServer, route: Write
    ) -> None:
        route()
        closed = threading.Event()

        def once(request: Request, connection: socket.socket) -> None:
            connection.sendall(http(completion(IGNORE)))
            connection.shutdown(socket.SHUT_RDWR)
            closed.set()

        server.answer = once
        with DecisionClient(data) as client:
            for _ in range(5):
                assert client.decide_should_respond(CONTEXT, rule).source == "custom"
                assert closed.wait(10)
                closed.clear()
        assert server.connections == 5


class TestOriginals:
    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration, Exception])
    def test_whatever_it_raises_passes(self, data: Path, error: type[BaseException]) -> None:
        def broken(_: Any) -> str:
            raise error("mine")

        with DecisionClient(data) as client:
            with pytest.raises(error, match="mine"):
                client.decide_should_respond(CONTEXT, broken)
            assert client.decide_should_respond(CONTEXT, rule).decision == {"action": "RESPOND"}

    def test_an_object_that_does_anything_passes_as_it_is(self, data: Path) -> None:
        class Odd(dict[str, Any]):
            def get(self, *_: Any) -> Any:
                raise ZeroDivisionError

        class Vague:
            def __eq__(self, other: object) -> bool:
                raise ValueError("the truth value of an array is ambiguous")

            __hash__ = None  # type: ignore[assignment]

        with DecisionClient(data) as client:
            for odd in (Odd(action="RESPOND"), {"action": Vague()}):
                assert client.decide_should_respond(CONTEXT, lambda _, odd=odd: odd).decision is odd
        assert [row["valid"] for row in rows(data)] == [False, False]

    def test_a_stream_of_its_own_that_is_read_no_further_is_closed_and_recorded(self, data: Path) -> None:
        closed = []

        def pieces(_: Any) -> Iterator[str]:
            try:
                yield from ("a", "b")
            finally:
                closed.append("sync")

        async def apieces(_: Any) -> AsyncIterator[str]:
            try:
                for piece in ("a", "b"):
                    yield piece
            finally:
                closed.append("async")

        async def run() -> None:
            async with AsyncDecisionClient(data) as client:
                stream = await client.decide_coding({"prompt": "p"}, apieces, stream=True)
                assert await anext(aiter(stream)) == "a"
                await stream.aclose()
                assert closed == ["sync", "async"]

        with DecisionClient(data) as client:
            stream = client.decide_coding({"prompt": "p"}, pieces, stream=True)
            assert next(iter(stream)) == "a"
            stream.close()
            assert client.stats()["streams"] == {"abandoned": 1}
        asyncio.run(run())
        for row in rows(data):
            assert (row["completion"], row["served"], row["valid"]) == ("a", True, False)
            assert row["error"] == "abandoned: the agent read no further"


class TestSignals:
    def test_a_handler_may_decide_at_every_bytecode_of_a_decision(
        self, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(spool, "_datasync", lambda fd: None)
        for module in (core, model_calls, breaker):
            at, reached = 0, [0]
            while reached:
                client = DecisionClient(config=Config(data))
                arm = Arm("a", "custom", 1.0, model="m", base_url="http://127.0.0.1:1")

                def decide(client: DecisionClient = client, arm: Arm = arm) -> None:
                    if client._core.calls.may_call(arm):
                        client._core.calls.release(arm)
                    client.decide_should_respond(CONTEXT, rule)

                with at_bytecode(at, str(module.__file__), decide) as reached:  # would hang here, on a lock of its own
                    decide()
                assert client._core.calls._server(arm).breaker.state == "closed"
                client.close()
                at += 1 if module is breaker else 7
            assert at > 20
        assert len({row["decision_id"] for row in rows(data)}) == len(rows(data)) > 100


class TestFolders:
    def test_one_that_is_deleted_is_counted_and_made_anew(self, tmp_path: Path, caplog: Any) -> None:
        writer = SegmentWriter(tmp_path / "spool", sync_interval=0.01)
        assert all(writer.write(record(i)) for i in range(3))
        shutil.rmtree(tmp_path / "spool")
        while not writer.dropped:
            time.sleep(0.005)
        assert writer.dropped == {"deleted": 3} and writer.written == 0
        while writer._fd is not None:
            time.sleep(0.005)
        assert writer.write(record(3))
        writer.close()
        assert read_all(tmp_path / "spool") == ([3], []) and "was deleted with 3 records" in caplog.text

    def test_no_thread_is_to_be_had(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def start(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", start)
        assert ShadowThreads(2, 2, [].append).submit(lambda: None) is False


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_of_multiprocessing(data: Path, server: ModelServer, route: Write, method: str) -> None:
    route(minutes=60, now=datetime.now(UTC) - timedelta(minutes=1))
    client = DecisionClient(data)
    assert client.decide_should_respond(CONTEXT, rule).source == "custom"
    context = multiprocessing.get_context(method)
    children = [context.Process(target=decide_in_child, args=(str(data), CONTEXT)) for n in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    assert client.decide_should_respond(CONTEXT, rule).source == "custom"
    client.close()
    assert len(rows(data)) == 2 + 2 * 5


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_in_a_call_passes_and_says_nothing_about_the_model(
    data: Path, server: ModelServer, route: Write
) -> None:
    def interrupt(request: Request, connection: socket.socket) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        server.hang(request, connection)

    server.answer = interrupt
    route(deadline_ms=60_000)
    with DecisionClient(config=Config(data, breaker_failures=1)) as client:
        with pytest.raises(KeyboardInterrupt):
            client.decide_should_respond(CONTEXT, rule)
        assert list(client.stats()["breakers"].values()) == ["closed"]
        server.answer = says(IGNORE)
        assert client.decide_should_respond(CONTEXT, rule).source == "custom"
