"""What one request may cost in memory and time, shown on a gateway in a process of its own."""

from __future__ import annotations

import asyncio
import gzip
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import brotli
import orjson
import pytest

from gateway.errors import RequestRefused
from gateway.http.bodies import MAX_VALUES
from gateway.http.budget import Budget
from reasoning.io.bounded import MAX_VALUES as MAX_PARSED_VALUES
from reasoning.io.bounded import count_values
from reasoning.serving.routes import Arm, Route, Routes, write_routes
from tests.gateway.conftest import TOKEN, Start
from tests.gateway.scripted import (
    ANTHROPIC_MESSAGE,
    DONE,
    Script,
    Scripted,
    chat_answer,
    chat_chunk,
    json,
    stream,
    whole,
)

MB = 1 << 20
HEADERS = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
START = b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"hello"}],"metadata":{"x":['


def filled(item: bytes, size: int) -> bytes:
    """A request of `size` bytes that holds as many of `item` as fit."""
    return START + item * ((size - len(START)) // len(item)) + b"0]}}"


def values(item: bytes, count: int) -> bytes:
    """A request of about `count` values."""
    each = count_values(item)
    return START + item * (count // each - 20) + b"0]}}"


@asynccontextmanager
async def gateway(data: Path, upstream: Scripted) -> AsyncIterator[tuple[str, int]]:
    """A gateway in a process of its own; its URL and process id."""
    env = {
        **os.environ,
        "REASONING_GATEWAY_TOKEN": TOKEN,
        "REASONING_ANTHROPIC_URL": upstream.url,
        "REASONING_OPENAI_URL": upstream.url,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "--data", str(data), "--port", "0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=env,
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        found = re.search(rb"http://\S+", line)
        assert found, line
        yield found[0].decode(), process.pid
    finally:
        process.terminate()
        await process.wait()


def peak_mb(pid: int) -> float:
    """The most memory that a process has held (Linux: VmHWM)."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1024


class Health:
    """Asks `/healthz` every 10 ms on its own connection, and keeps the longest time that an answer took."""

    def __init__(self, url: str) -> None:
        self._url, self.longest = url, 0.0

    async def __aenter__(self) -> Health:
        self._http = aiohttp.ClientSession()
        self._task = asyncio.create_task(self._ask())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._http.close()

    async def _ask(self) -> None:
        while True:
            started = time.perf_counter()
            async with self._http.get(self._url + "/healthz") as response:
                await response.read()
            self.longest = max(self.longest, time.perf_counter() - started)
            await asyncio.sleep(0.01)


NESTED = b'{"messages":' + b"[" * 900 + b"]" * 900 + b"}"
BOMBS: dict[str, tuple[bytes, dict[str, str], set[int]]] = {
    "29 KB of gzip, lists": (gzip.compress(filled(b"[],", 31 * MB)), {"content-encoding": "gzip"}, {413}),
    "objects, brotli": (brotli.compress(filled(b"{},", 31 * MB), quality=2), {"content-encoding": "br"}, {413}),
    "as they are": (filled(b'{"a":1},', 31 * MB), {}, {413}),
    "as many values as are parsed": (values(b'{"b":[]},', MAX_PARSED_VALUES), {}, {200}),
    "one text": (filled(b'"' + b"x" * (7 * MB) + b'",', 8 * MB - 1000), {}, {200}),
    "one wide text": (filled(b'"' + b"x" * (7 * MB) + "\U0001f600".encode() + b'",', 8 * MB - 1000), {}, {200}),
    "a large picture": (filled(b'"' + b"x" * (30 * MB) + b'",', 31 * MB), {}, {200}),
    "nested": (NESTED, {}, {200}),
}


async def test_bombs_hold_neither_memory_nor_the_loop(tmp_path: Path) -> None:
    # 29 KB of gzip held 851 MB and the loop for 4.4 s.
    async with (
        Scripted(json(ANTHROPIC_MESSAGE)) as upstream,
        gateway(tmp_path, upstream) as (url, pid),
        aiohttp.ClientSession() as http,
    ):

        async def post(body: bytes, headers: dict[str, str]) -> int:
            async with http.post(url + "/v1/messages", data=body, headers=HEADERS | headers) as response:
                await response.read()
                return response.status

        assert await post(START + b"0]}}", {}) == 200
        before = peak_mb(pid)
        for name, (body, headers, statuses) in BOMBS.items():
            async with Health(url) as health:
                got = await asyncio.gather(*(post(body, headers) for _ in range(3)))
            assert set(got) <= statuses, (name, got)
            assert health.longest < 0.1 * _patience(), (name, health.longest)
        assert peak_mb(pid) - before < 300


def _patience() -> float:
    """Other processes of a busy machine take a share of the time."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1) * 2)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def test_the_budget_refuses_what_does_not_fit_and_nothing_small(start: Start) -> None:
    running = await start(body_budget_mb=1.0)
    gate = asyncio.Event()

    async def slow(seen: object, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await json(ANTHROPIC_MESSAGE)(seen, writer)  # type: ignore[arg-type]

    running.anthropic.script = slow
    text = b'"' + b"x" * 300_000 + b'",'
    body = filled(text, 310_000)

    async def post(path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        return await running.ask("POST", path, data=body)

    tasks = []
    for count in (1, 2):
        tasks.append(asyncio.create_task(post("/v1/messages", body)))
        await _until(lambda: len(running.anthropic.seen) == count)  # noqa: B023 - awaited within the loop
    more = filled(b'"' + b"x" * 500_000 + b'",', 510_000)
    for path in ("/v1/messages", "/v1/chat/completions", "/v1/embeddings"):
        status, headers, answer = await post(path, more)
        assert (status, headers.get("retry-after"), answer[:0]) == (503, "1", b""), (path, answer)
        assert "body_budget_mb" in orjson.loads(answer)["error"]["message"]
    small = asyncio.create_task(post("/v1/messages", START + b"0]}}"))
    await _until(lambda: len(running.anthropic.seen) == 3)
    gate.set()
    assert [(await task)[0] for task in (*tasks, small)] == [200] * 3
    assert (await post("/v1/messages", body))[0] == 200
    assert running.gateway.budget.used == 0


@pytest.mark.parametrize("path", ["/v1/decide/should_respond", "/v1/feedback"])
async def test_own_doors_refuse_what_has_too_many_values(start: Start, path: str) -> None:
    running = await start()
    for body in (filled(b"[],", 2 * MB), filled(b'"' + b"x" * (9 * MB) + b'",', 10 * MB)):
        status, _, answer = await running.ask("POST", path, data=body)
        assert (status, orjson.loads(answer)["error"]["type"]) == (413, "request_too_large")
    assert running.gateway.budget.used == 0


async def test_what_is_nested_deeply_passes_unread_wherever_it_stands(start: Start) -> None:
    running = await start()
    running.route()
    running.anthropic.script = running.openai.script = json({})
    deep = b"[" * 300 + b"]" * 300
    tree = b'{"a":' * 300 + b"1" + b"}" * 300
    for value in (deep, tree):
        for body in (
            b'{"model":"m","max_tokens":9,"tools":[{"name":"Bash","input_schema":%b}],'
            b'"messages":[{"role":"user","content":"fix the code"}]}' % value,
            b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":%b}]}' % value,
            b'{"model":"m","max_tokens":9,"system":%b,"messages":[{"role":"user","content":"fix the code"}]}' % value,
            b'{"model":"m","input":%b}' % value,
        ):
            for path in ("/v1/messages", "/v1/chat/completions", "/v1/responses"):
                status, _, _ = await running.ask("POST", path, data=body)
                assert status == 200
                assert (running.openai if path != "/v1/messages" else running.anthropic).last.body == body
    assert running.model.seen == []


def test_a_budget_counts_back() -> None:
    budget = Budget(100)
    budget.take(60)
    with pytest.raises(RequestRefused):
        budget.take(41)
    budget.take(40)
    budget.give(100)
    assert budget.used == 0


def test_long_honest_texts_are_not_taken_for_bombs() -> None:
    code = Path(__file__).read_bytes()
    assert count_values(orjson.dumps(code.decode())) * (4 * MB // len(code)) < MAX_VALUES


CODING = {
    "model": "m",
    "max_tokens": 9999,
    "tools": [{"name": name, "input_schema": {"type": "object"}} for name in ("Bash", "Edit", "Read")],
}
LISTS = b'{"choices":[' + b"[]," * (2 * MB) + b"0]}"
THINKS = "text <think> " + "<think>" * 8000
FENCES = "```\n" * 14_000
WORST_ANSWERS: dict[str, tuple[Script, Script]] = {  # of the model, and of Anthropic where the model's is none
    "lists": (whole(200, LISTS), whole(200, LISTS)),
    "code blocks": (json(chat_answer(FENCES)), json(ANTHROPIC_MESSAGE)),
    "recorded": (whole(500, b"{}"), json(ANTHROPIC_MESSAGE | {"content": [{"type": "text", "text": FENCES}]})),
    "thoughts in pieces": (
        stream(*(chat_chunk(content=THINKS[at : at + 8]) for at in range(0, len(THINKS), 8)), DONE),
        json(ANTHROPIC_MESSAGE),
    ),
}


async def test_the_worst_answers_do_not_hold_the_loop(tmp_path: Path) -> None:
    # 6 MB of lists held it for 2 s, 56 KB of an open thought in pieces of 4 characters for 12 s.
    async with (
        Scripted() as upstream,
        Scripted() as model,
        gateway(tmp_path, upstream) as (url, _),
        aiohttp.ClientSession() as http,
    ):
        now = datetime.now(UTC)
        arm = Arm("custom", "custom", weight=1.0, model="ep/coder", base_url=model.url)
        route = Route((arm,), deadline_ms=20_000.0, experiment="e")
        routes = Routes(now - timedelta(seconds=1), now + timedelta(hours=1), {"coding": route})
        write_routes(tmp_path / "routes.json", routes)
        for name, (model.script, upstream.script) in WORST_ANSWERS.items():
            longest = []
            for trial in range(3):  # the shortest counts: other processes of a busy machine take a share of the time
                question = {"role": "user", "content": f"fix the code: {name} {trial}"}
                body = orjson.dumps(CODING | {"messages": [question], "stream": "pieces" in name})
                posted = http.post(url + "/v1/messages", data=body, headers=HEADERS)
                async with Health(url) as health, posted as response:
                    assert response.status == 200
                    await response.read()
                longest.append(health.longest)
            assert min(longest) < 0.1 * _patience(), (name, longest)
            assert model.seen, name
