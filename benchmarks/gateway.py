"""The gateway against a bare reverse proxy and its peers, in one run: `python benchmarks/gateway.py`.

Everything talks to one scripted upstream in a process of its own; the load comes from another. Every figure is the
median of `--rounds` rounds in which all targets take turns, so that a noisy machine is noisy for all. CPU is the target
process's own time per request. Peers are left out unless their commands are given:

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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

TOKEN = "benchmark-token-0123456789"
CLOCK = os.sysconf("SC_CLK_TCK")
PAD = "All work and no play makes a dull benchmark. "


def body(text: str, *, tools: bool, stream: bool, model: str = "claude-bench") -> bytes:
    """A request of about 6.5 KB; with `tools` it is coding."""
    request: dict[str, Any] = {
        "model": model,
        "max_tokens": 100,
        "messages": [{"role": "user", "content": text + PAD * 120}],
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
STREAM_PAUSE_S = 0.02


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
            if b'"stream": true' in content[-200:] or b'"stream":true' in content:
                self.streaming = asyncio.ensure_future(self.stream())
            else:
                answer = COMPLETION if b"/chat/completions" in head[:80] else MESSAGE
                self.transport.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                    % (len(answer), answer)
                )

    async def stream(self) -> None:
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for start in (0, 5, 15):
            part = b"".join(EVENTS[start : {0: 5, 5: 15, 15: None}[start]])
            self.transport.write(b"%x\r\n%b\r\n" % (len(part), part))
            await asyncio.sleep(STREAM_PAUSE_S)
        self.transport.write(b"0\r\n\r\n")


def run_upstream(port: int) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=2048)
        await server.serve_forever()

    import uvloop

    uvloop.run(main())


def run_bare_proxy(port: int, upstream: str) -> None:
    """The yardstick: the reverse proxy that one would write in thirty lines."""
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
    pid: int = 0
    path: str = "/v1/messages"
    model: str = "claude-bench"

    def request(self, content: bytes) -> bytes:
        return (
            f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAuthorization: Bearer {TOKEN}\r\n"
            f"anthropic-version: 2026-10-21\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        ).encode() + content


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[float, float, int]:
    """Seconds to the body's first byte and to its end, and the body's size. Raises when it is no whole 200."""
    start = time.perf_counter()
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head[:20]:
        raise RuntimeError(f"{head[:300]!r} {await reader.read(500)!r}")
    lower = head.lower()
    if (at := lower.find(b"content-length:")) >= 0:
        length = int(lower[at + 15 :].split(b"\r\n", 1)[0])
        await reader.readexactly(length)
        first = time.perf_counter()
        return first - start, first - start, length
    size, first = 0, 0.0
    while length := int(await reader.readuntil(b"\r\n"), 16):
        first = first or time.perf_counter()
        await reader.readexactly(length + 2)
        size += length
    await reader.readexactly(2)
    return first - start, time.perf_counter() - start, size


async def load(
    target: Target, content: bytes, clients: int, seconds: float, count: int | None = None
) -> dict[str, float]:
    """Latencies (ms), requests a second, and the target's CPU per request (ms)."""
    request = target.request(content)
    firsts: list[float] = []
    totals: list[float] = []
    left = [count if count is not None else 1 << 60]
    ends = time.perf_counter() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        try:
            while time.perf_counter() < ends and left[0] > 0:
                left[0] -= 1
                first, total, _ = await ask(reader, writer, request)
                firsts.append(first)
                totals.append(total)
        finally:
            writer.close()

    cpu, start = cpu_s(target.pid), time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    elapsed = time.perf_counter() - start
    return {
        "p50": statistics.median(totals) * 1000,
        "first": statistics.median(firsts) * 1000,
        "rps": len(totals) / elapsed,
        "cpu": (cpu_s(target.pid) - cpu) / len(totals) * 1000,
    }


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and its threads, with its children's."""
    total = 0.0
    for process in [pid, *children(pid)] if pid else []:
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / CLOCK
        except (FileNotFoundError, ProcessLookupError):
            continue
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
def process(*command: str, cwd: Path, **env: str) -> Iterator[int]:
    with (cwd / f"{Path(command[0]).name}-{time.monotonic_ns()}.log").open("wb") as log:
        child = subprocess.Popen(
            command, cwd=cwd, env={**os.environ, **env}, stdout=log, stderr=log, start_new_session=True
        )
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
    from reasoning.routes import Arm, Route, Routes, write_routes

    now = datetime.now(UTC)
    arm = Arm("custom", "custom", weight=1.0, model="coder", base_url=upstream)
    write_routes(
        data / "routes.json", Routes(now, now + timedelta(hours=6), {"coding": Route((arm,), deadline_ms=20000)})
    )


async def measure(targets: list[Target], options: argparse.Namespace) -> None:
    direct = targets[0]
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    cases: dict[str, tuple[bool, bool, int]] = {
        "pass-through, 1 client": (False, False, 1),
        "pass-through, 32 clients": (False, False, 32),
        "stream, 1 client": (False, True, 1),
        "stream, 16 clients": (False, True, 16),
        "translating, 32 clients": (True, False, 32),
    }
    for round_no in range(options.rounds):
        for case, (coding, streamed, clients) in cases.items():
            for target in targets:
                if coding and target.name in ("direct", "bare aiohttp proxy", "claude-code-router"):
                    continue
                model = "coder" if coding and target.name == "LiteLLM" else target.model
                text = "Fix the code. " if coding else "Good morning. "
                content = body(text, tools=coding, stream=streamed, model=model)
                await load(target, content, clients, 60, count=max(clients, 5))  # warm
                result = await load(target, content, clients, options.seconds)
                found.setdefault((case, target.name), []).append(result)
        print(f"round {round_no + 1} of {options.rounds} done", file=sys.stderr, flush=True)

    def median(case: str, name: str, key: str) -> float:
        return statistics.median(result[key] for result in found[case, name])

    print("| case | target | p50 ms | added ms | first byte, added ms | requests/s | CPU ms/request |")
    print("|---|---|---|---|---|---|---|")
    for case in cases:
        for target in targets:
            if (case, target.name) not in found:
                continue
            base = {k: median(case, direct.name, k) if (case, direct.name) in found else 0.0 for k in ("p50", "first")}
            row = {key: median(case, target.name, key) for key in ("p50", "first", "rps", "cpu")}
            added = f"{row['p50'] - base['p50']:.2f}" if base["p50"] else "-"
            first = f"{row['first'] - base['first']:.2f}" if base["first"] else "-"
            figures = f"{row['p50']:.2f} | {added} | {first} | {row['rps']:.0f} | {row['cpu']:.3f}"
            print(f"| {case} | {target.name} | {figures} |")

    gateway = next(target for target in targets if target.name == "gateway")
    content = body("Good morning. ", tools=False, stream=False)
    await load(gateway, content, 32, 600, count=max(options.requests // 10, 100))
    before = rss_mb(gateway.pid)
    await load(gateway, content, 32, 600, count=options.requests)
    print(f"\nmemory: {before:.1f} MB, after {options.requests} more requests {rss_mb(gateway.pid):.1f} MB")
    request = gateway.request(body("Good morning. ", tools=False, stream=True))

    async def one() -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        try:
            return (await ask(reader, writer, request))[2] == len(STREAM)
        finally:
            writer.close()

    whole = await asyncio.gather(*(one() for _ in range(500)), return_exceptions=True)
    print(f"500 concurrent streams: {sum(result is True for result in whole)} whole")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of load for each target and case in a round")
    parser.add_argument("--requests", type=int, default=100_000, help="for the memory figure")
    parser.add_argument("--litellm", type=Path)
    parser.add_argument("--ccr", type=Path)
    options = parser.parse_args()
    upstream_port = free_port()
    upstream = f"http://127.0.0.1:{upstream_port}"
    with tempfile.TemporaryDirectory() as folder, child(run_upstream, upstream_port) as upstream_pid:
        work = Path(folder)
        wait_for(upstream_port)
        bare_port, gateway_port = free_port(), free_port()
        data = work / "data"
        data.mkdir()
        write_coding_route(data, upstream)
        (data / "reasoning.toml").write_text("")
        environment = {"REASONING_GATEWAY_TOKEN": TOKEN, "REASONING_ANTHROPIC_URL": upstream}
        environment |= {"REASONING_CONFIG": str(data / "reasoning.toml")}
        command = (sys.executable, "-m", "gateway", "--data", str(data), "--port", str(gateway_port))
        with child(run_bare_proxy, bare_port, upstream) as bare_pid, process(*command, cwd=data, **environment) as pid:
            wait_for(bare_port)
            wait_for(gateway_port)
            targets = [
                Target("direct", upstream_port, upstream_pid),
                Target("bare aiohttp proxy", bare_port, bare_pid),
                Target("gateway", gateway_port, pid),
            ]
            with peers(options, work, upstream) as more:
                asyncio.run(measure(targets + more, options))


@contextmanager
def peers(options: argparse.Namespace, work: Path, upstream: str) -> Iterator[list[Target]]:
    """LiteLLM and claude-code-router, each by its own documentation."""
    from contextlib import ExitStack

    found = []
    with ExitStack() as stack:
        if options.litellm:
            port = free_port()
            config = {
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
            pid = stack.enter_context(process(*command, cwd=work, **environment))
            wait_for(port)
            found.append(Target("LiteLLM", port, pid))
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
            config = {
                "PORT": port,
                "HOST": "127.0.0.1",
                "LOG": False,
                "APIKEY": TOKEN,
                "Providers": [provider],
                "Router": {"default": "bench,claude-bench"},
            }
            (home / ".claude-code-router/config.json").write_text(json.dumps(config))
            pid = stack.enter_context(process(str(options.ccr.absolute()), "start", cwd=home, HOME=str(home)))
            wait_for(port)
            found.append(Target("claude-code-router", port, pid))
        yield found


if __name__ == "__main__":
    main()
