"""The gateway against a bare reverse proxy and its peers, in one run: `python benchmarks/gateway.py`.

Everything talks to one scripted upstream in a process of its own; the load comes from this one. The targets take turns,
a slice of `--seconds` each, in another order every round, so that a noisy machine is noisy for all. What is compared is
compared within a round (added time against `direct`, ratios against the bare proxy and LiteLLM); the table has the
medians over `--rounds`. CPU is the target's own time for a request, user and system, all threads and children: what
other work on the machine distorts least. `--pin` gives the target under test the last CPU to itself and the load and
the upstream the others, for every target alike; without it the kernel places them. The gateway runs as in production:
it writes its access log and records what it should; the peers run without logs.

    --case TEXT      only the cases that have TEXT in their name. Streams are paced by the upstream (40 ms each) but for
                     those `at once`, of which it sends all it has: their requests/s are the gateway's own
    --memory N       instead: N mixed requests, and the resident memory at every tenth of them
    --streams N      instead: N streams at once, and how many came whole
    --litellm PATH   the `litellm` of an environment with litellm[proxy], byte-compiled; run as its documentation says
                     for production: one worker, no verbose logs, no database
    --ccr PATH       the `ccr` of npm's @musistudio/claude-code-router
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

TOKEN = "benchmark-token-0123456789"
BARE = "bare aiohttp proxy"
MARK = "#########"  # becomes the request's number: no two conversations are the same
PAD = "All work and no play makes a dull benchmark. "


def body(text: str, *, tools: bool, stream: bool, model: str = "claude-bench") -> bytes:
    """A request of about 6.5 KB; with `tools` it is coding: the turns of one session, which ask the same."""
    request: dict[str, Any] = {
        "model": model,
        "max_tokens": 100,
        "messages": [{"role": "user", "content": ("" if tools else MARK) + text + PAD * 120}],
    }
    if tools:
        schema = {"type": "object", "properties": {"path": {"type": "string"}}}
        request["tools"] = [{"name": name, "description": PAD * 4, "input_schema": schema} for name in ("Bash", "Edit")]
    if stream:
        request["stream"] = True
    return json.dumps(request).encode()


MESSAGE = json.dumps(
    {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-bench",
        "content": [{"type": "text", "text": PAD * 4}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 10},
    }
).encode()
COMPLETION = json.dumps(
    {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "coder",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": PAD * 4}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20},
    }
).encode()
EVENTS = [
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","type":"message","role":"assistant",'
    b'"model":"c","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":1,"output_tokens":0}}}\n\n',
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
    b'"content_block":{"type":"text","text":""}}\n\n',
    *[
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        b'"delta":{"type":"text_delta","text":"word "}}\n\n'
    ]
    * 20,
    b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n',
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},'
    b'"usage":{"output_tokens":20}}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
]
STREAM = b"".join(EVENTS)


def chat_event(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return (
        b"data: %b\n\n"
        % json.dumps(
            {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "coder", "choices": [choice]}
        ).encode()
    )


CHAT_EVENTS = [
    *(
        chat_event({"role": "assistant", "content": ""}),
        *[chat_event({"content": "word "})] * 20,
        chat_event({}, "stop"),
    ),
    b"data: [DONE]\n\n",
]
STREAM_PAUSE_S = 0.02
AT_ONCE = "At once. "  # in a request: its stream comes without pauses, so that whoever passes it on is what is measured


class Upstream(asyncio.Protocol):
    """Anthropic's and OpenAI's server at once, as cheap as Python has it: it looks at no more than it must."""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            content, self.buffer = self.buffer[end + 4 : end + 4 + length], self.buffer[end + 4 + length :]
            chat = b"/chat/completions" in head[:80]
            if b'"stream": true' in content[-200:] or b'"stream":true' in content:
                pause_s = 0.0 if AT_ONCE.encode() in content[:2000] else STREAM_PAUSE_S
                self.streaming = asyncio.ensure_future(self.stream(CHAT_EVENTS if chat else EVENTS, pause_s))
            else:
                answer = COMPLETION if chat else MESSAGE
                self.transport.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                    % (len(answer), answer)
                )

    async def stream(self, events: list[bytes], pause_s: float) -> None:
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for start in (0, 5, 15):
            part = b"".join(events[start : {0: 5, 5: 15, 15: None}[start]])
            if start:
                await asyncio.sleep(pause_s)
            if self.transport.is_closing():
                return
            end = b"0\r\n\r\n" if start == 15 else b""
            self.transport.write(b"%x\r\n%b\r\n%b" % (len(part), part, end))


def run_upstream(port: int, cpus: set[int]) -> None:
    os.sched_setaffinity(0, cpus)

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=2048)
        await server.serve_forever()

    import uvloop

    uvloop.run(main())


def run_bare_proxy(port: int, upstream: str, cpus: set[int]) -> None:
    """The yardstick: the reverse proxy that one would write in thirty lines."""
    os.sched_setaffinity(0, cpus)
    import uvloop
    from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

    skip = {"host", "content-length", "connection", "transfer-encoding", "keep-alive"}

    async def handle(request: web.Request) -> web.StreamResponse:
        content = await request.read()
        headers = [(k, v) for k, v in request.headers.items() if k.lower() not in skip]
        async with request.app["session"].request(
            request.method, upstream + request.path_qs, headers=headers, data=content, allow_redirects=False
        ) as answer:
            out = web.StreamResponse(status=answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in skip:
                    out.headers.add(name, value)
            if (length := answer.headers.get("content-length")) is not None:
                out.content_length = int(length)
            await out.prepare(request)
            async for chunk in answer.content.iter_any():
                await out.write(chunk)
            await out.write_eof()
            return out

    async def session(app: web.Application) -> Any:
        connector = TCPConnector(limit=0)
        async with ClientSession(
            auto_decompress=False, connector=connector, timeout=ClientTimeout(total=None)
        ) as opened:
            app["session"] = opened
            yield

    uvloop.install()
    app = web.Application(client_max_size=32 << 20)
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", handle)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


@dataclass
class Target:
    """Something to be measured."""

    name: str
    port: int
    pid: int
    translates: bool = False
    path: str = "/v1/messages"
    model: str = "claude-bench"

    def request(self, content: bytes) -> bytes:
        return (
            f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAuthorization: Bearer {TOKEN}\r\n"
            f"anthropic-version: 2026-10-21\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        ).encode() + content


class Client(asyncio.Protocol):
    """One connection: sends requests one after the other and times their answers. It costs less than any target."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.buffer, self.body_at, self.length, self.first = bytearray(), -1, -1, 0.0
        self.answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.body_at < 0:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            self.body_at = end + 4
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            self.length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else -1
        if not self.first and len(self.buffer) > self.body_at:
            self.first = time.perf_counter()
        whole = (
            len(self.buffer) - self.body_at >= self.length
            if self.length >= 0
            else self.buffer.endswith(b"\r\n0\r\n\r\n")
        )
        if whole and not self.answer.done():
            self.answer.set_result(time.perf_counter())

    def connection_lost(self, error: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_exception(ConnectionError(f"cut off after {bytes(self.buffer)[:300]!r}"))

    async def ask(self, request: bytes) -> tuple[float, float]:
        """Seconds to the body's first byte and to its end. Raises when it is no whole 200."""
        self.buffer, self.body_at, self.first = bytearray(), -1, 0.0
        self.answer = asyncio.get_running_loop().create_future()
        start = time.perf_counter()
        self.transport.write(request)
        ended = await self.answer
        if b" 200 " not in self.buffer[:20]:
            raise RuntimeError(bytes(self.buffer)[:500])
        return self.first - start, ended - start

    def body(self) -> bytes:
        """The last answer's body, taken out of its chunks."""
        rest = bytes(self.buffer[self.body_at :])
        if self.length >= 0:
            return rest
        parts: list[bytes] = []
        while True:
            size, _, rest = rest.partition(b"\r\n")
            if not (length := int(size, 16)):
                return b"".join(parts)
            parts.append(rest[:length])
            rest = rest[length + 2 :]


async def connect(target: Target) -> Client:
    _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", target.port)
    return client


async def load(
    target: Target, content: bytes, clients: int, seconds: float, count: int | None = None
) -> dict[str, float]:
    """Latencies (ms), requests a second, and the target's CPU per request (ms)."""
    request, mark = target.request(content), MARK.encode()
    firsts: list[float] = []
    totals: list[float] = []
    left = [count if count is not None else 1 << 60]
    ends = time.perf_counter() + seconds

    async def one(client: Client) -> None:
        try:
            while time.perf_counter() < ends and left[0] > 0:
                left[0] -= 1
                first, total = await client.ask(request.replace(mark, b"%09d" % len(totals), 1))
                firsts.append(first)
                totals.append(total)
        finally:
            client.transport.close()

    opened = [await connect(target) for _ in range(clients)]
    cpu, start = cpu_s(target.pid), time.perf_counter()
    await asyncio.gather(*(one(client) for client in opened))
    elapsed = time.perf_counter() - start
    return {
        "p50": statistics.median(totals) * 1000,
        "first": statistics.median(firsts) * 1000,
        "rps": len(totals) / elapsed,
        "cpu": (cpu_s(target.pid) - cpu) / len(totals) * 1000,
    }


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and its threads, with its children's, by their clocks (clock_getcpuclockid(3))."""
    total = 0.0
    for process in [pid, *children(pid)]:
        with suppress(OSError):
            total += time.clock_gettime(~process << 3 | 2)
    return total


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *children(int(child))]
    return found


def rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(port: int, seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"error: nothing listens on port {port} after {seconds:.0f} s")


@contextmanager
def process(*command: str, cwd: Path, cpus: set[int], **env: str) -> Iterator[int]:
    with (cwd / f"{Path(command[0]).name}-{time.monotonic_ns()}.log").open("wb") as log:
        # A group to be killed as one, but no session of its own: Linux shares the CPU out between sessions.
        child = subprocess.Popen(command, cwd=cwd, env={**os.environ, **env}, stdout=log, stderr=log, process_group=0)
        os.sched_setaffinity(child.pid, cpus)
        try:
            yield child.pid
        finally:
            os.killpg(child.pid, signal.SIGTERM)
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)


@contextmanager
def child(run: Any, *arguments: Any) -> Iterator[int]:
    process = multiprocessing.get_context("spawn").Process(target=run, args=arguments, daemon=True)
    process.start()
    try:
        yield process.pid or 0
    finally:
        process.terminate()
        process.join(5)


def write_coding_route(data: Path, upstream: str) -> None:
    from reasoning.serving.routes import Arm, Route, Routes, write_routes

    now = datetime.now(UTC)
    arm = Arm("custom", "custom", weight=1.0, model="coder", base_url=upstream)
    write_routes(
        data / "routes.json", Routes(now, now + timedelta(hours=1), {"coding": Route((arm,), deadline_ms=20000)})
    )


CASES: dict[str, tuple[bool, Literal["whole", "paced", "at once"], int]] = {  # coding, answer, clients
    "pass-through, 1 client": (False, "whole", 1),
    "pass-through, 32 clients": (False, "whole", 32),
    "stream, 1 client": (False, "paced", 1),
    "stream, 16 clients": (False, "paced", 16),
    "translating, 1 client": (True, "whole", 1),
    "translating, 32 clients": (True, "whole", 32),
    "translating stream, 16 clients": (True, "paced", 16),
    "translating stream at once, 16 clients": (True, "at once", 16),
}
Figures = dict[str, float]


def request_body(target: Target, *, coding: bool, streamed: bool, mark: str = "") -> bytes:
    model = "coder" if coding and target.name == "LiteLLM" else target.model
    text = "Fix the code. " if coding else "Good morning. "
    return body(f"{mark}{text}", tools=coding, stream=streamed, model=model)


async def measure(targets: list[Target], options: argparse.Namespace) -> None:
    cases = {name: case for name, case in CASES.items() if options.case in name}
    rounds: list[dict[tuple[str, str], Figures]] = []
    for number in range(options.rounds):
        found: dict[tuple[str, str], Figures] = {}
        turn = number % len(targets)
        for case, (coding, answer, clients) in cases.items():
            for target in targets[turn:] + targets[:turn]:
                if coding and not target.translates:
                    continue
                mark = AT_ONCE if answer == "at once" else ""
                content = request_body(target, coding=coding, streamed=answer != "whole", mark=mark)
                await load(target, content, clients, 60, count=max(clients, 5))  # warm
                found[case, target.name] = await load(target, content, clients, options.seconds)
        rounds.append(found)
        print(f"round {number + 1} of {options.rounds} done", file=sys.stderr, flush=True)

    def median(case: str, name: str, figure: Callable[[Figures, Figures], float], base: str = "direct") -> str:
        """Of `figure(target's, base's)` in each round."""
        both = [(found[case, name], found.get((case, base))) for found in rounds if (case, name) in found]
        values = [figure(mine, base) for mine, base in both if base is not None]
        return f"{statistics.median(values):.2f}" if values else "-"

    columns: dict[str, tuple[Callable[[Figures, Figures], float], str | None]] = {
        "p50 ms": (lambda mine, _: mine["p50"], None),
        "added ms": (lambda mine, direct: mine["p50"] - direct["p50"], "direct"),
        "first byte, added ms": (lambda mine, direct: mine["first"] - direct["first"], "direct"),
        "requests/s": (lambda mine, _: mine["rps"], None),
        "of the bare proxy's": (lambda mine, bare: mine["rps"] / bare["rps"], BARE),
        "times LiteLLM's": (lambda mine, peer: mine["rps"] / peer["rps"], "LiteLLM"),
        "CPU ms/request": (lambda mine, _: mine["cpu"], None),
    }
    print("| case | target |", " | ".join(columns), "|")
    print("|---" * (len(columns) + 2) + "|")
    for case in cases:
        for target in targets:
            if (case, target.name) in rounds[0]:
                row = (median(case, target.name, figure, base or target.name) for figure, base in columns.values())
                print(f"| {case} | {target.name} |", " | ".join(row), "|")


async def memory(gateway: Target, total: int) -> None:
    """Resident memory during whole and streamed, passed and translated requests.

    In the first fifth each begins a session, which fills what is kept of sessions and prompts; then each fifth does.
    """
    mixed = [(coding, streamed) for coding in (False, True) for streamed in (False, True)]
    done = 0

    async def one(client: Client) -> None:
        nonlocal done
        while done < total:
            done += 1
            number = done
            coding, streamed = mixed[number % 4]
            mark = f"Conversation {number}. " if number % 5 == 0 or number <= total // 5 else ""
            await client.ask(gateway.request(request_body(gateway, coding=coding, streamed=streamed, mark=mark)))
            if number % (total // 10) == 0:
                print(f"{number:>8} requests: {rss_mb(gateway.pid):.1f} MB", flush=True)

    opened = [await connect(gateway) for _ in range(64)]
    await asyncio.gather(*(one(client) for client in opened))
    for client in opened:
        client.transport.close()


async def streams(gateway: Target, total: int) -> None:
    """As many streams at once, half of them translated: how many come whole."""

    async def one(coding: bool) -> bool:
        client = await connect(gateway)
        await client.ask(gateway.request(request_body(gateway, coding=coding, streamed=True)))
        got = client.body()
        client.transport.close()
        if coding:
            return got.count(b"word ") == 20 and got.rstrip().endswith(b'data: {"type":"message_stop"}')
        return got == STREAM

    whole = await asyncio.gather(*(one(number % 2 == 1) for number in range(total)), return_exceptions=True)
    print(f"{total} concurrent streams: {sum(result is True for result in whole)} whole")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of load for each target and case in a round")
    parser.add_argument("--case", default="")
    parser.add_argument("--pin", action="store_true")
    parser.add_argument("--memory", type=int)
    parser.add_argument("--streams", type=int)
    parser.add_argument("--litellm", type=Path)
    parser.add_argument("--ccr", type=Path)
    options = parser.parse_args()
    import uvloop

    cpus = sorted(os.sched_getaffinity(0))
    pinned = options.pin and len(cpus) > 1
    ours, theirs = (set(cpus[:-1]), {cpus[-1]}) if pinned else (set(cpus), set(cpus))
    os.sched_setaffinity(0, ours)
    upstream_port, bare_port, gateway_port = free_port(), free_port(), free_port()
    upstream = f"http://127.0.0.1:{upstream_port}"
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        work = Path(folder)
        data = work / "data"
        data.mkdir()
        write_coding_route(data, upstream)
        (data / "reasoning.toml").write_text("")
        environment = {"REASONING_GATEWAY_TOKEN": TOKEN, "REASONING_ANTHROPIC_URL": upstream}
        environment |= {"REASONING_CONFIG": str(data / "reasoning.toml")}
        command = (sys.executable, "-m", "gateway", "--data", str(data), "--port", str(gateway_port))
        targets = [
            Target("direct", upstream_port, stack.enter_context(child(run_upstream, upstream_port, ours))),
            Target(BARE, bare_port, stack.enter_context(child(run_bare_proxy, bare_port, upstream, theirs))),
            Target(
                "gateway",
                gateway_port,
                stack.enter_context(process(*command, cwd=data, cpus=theirs, **environment)),
                translates=True,
            ),
        ]
        for target in targets:
            wait_for(target.port)
        if options.memory:
            uvloop.run(memory(targets[2], options.memory))
        elif options.streams:
            uvloop.run(streams(targets[2], options.streams))
        else:
            with peers(options, work, upstream, theirs) as more:
                uvloop.run(measure(targets + more, options))


@contextmanager
def peers(options: argparse.Namespace, work: Path, upstream: str, cpus: set[int]) -> Iterator[list[Target]]:
    """LiteLLM and claude-code-router, each by its own documentation."""
    found = []
    with ExitStack() as stack:
        if options.litellm:
            port = free_port()
            config: dict[str, Any] = {
                "model_list": [
                    {
                        "model_name": "claude-bench",
                        "litellm_params": {"model": "anthropic/claude-bench", "api_base": upstream, "api_key": "k"},
                    },
                    {
                        "model_name": "coder",
                        "litellm_params": {"model": "together_ai/coder", "api_base": f"{upstream}/v1", "api_key": "k"},
                    },
                ],
                "general_settings": {"master_key": TOKEN},
                "litellm_settings": {"request_timeout": 600, "set_verbose": False, "json_logs": True},
            }
            (work / "litellm.json").write_text(json.dumps(config))
            environment = {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
            command = (
                str(options.litellm.absolute()),
                "--config",
                "litellm.json",
                "--port",
                str(port),
                "--host",
                "127.0.0.1",
                "--num_workers",
                "1",
            )
            pid = stack.enter_context(process(*command, cwd=work, cpus=cpus, **environment))
            wait_for(port)
            found.append(Target("LiteLLM", port, pid, translates=True))
        if options.ccr:
            port = free_port()
            home = work / "ccr"
            (home / ".claude-code-router").mkdir(parents=True)
            provider = {
                "name": "bench",
                "api_base_url": f"{upstream}/v1/messages",
                "api_key": "k",
                "models": ["claude-bench"],
                "transformer": {"use": ["Anthropic"]},
            }
            settings = {
                "PORT": port,
                "HOST": "127.0.0.1",
                "LOG": False,
                "APIKEY": TOKEN,
                "Providers": [provider],
                "Router": {"default": "bench,claude-bench"},
            }
            (home / ".claude-code-router/config.json").write_text(json.dumps(settings))
            router = (str(options.ccr.absolute()), "start")
            pid = stack.enter_context(process(*router, cwd=home, cpus=cpus, HOME=str(home)))
            wait_for(port)
            found.append(Target("claude-code-router", port, pid))
        yield found


if __name__ == "__main__":
    main()
