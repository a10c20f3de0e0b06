"""What the decision client costs its agent, beside what people would use instead. All in one run.

    python benchmarks/client.py              # about a minute; the peers get environments of their own, of uv or of pip

* *Added by the client*: `DecisionClient.decide` against the bare call of the same HTTP library, with the same body to
  the same canned server, alternating call by call. So that it can be seen what is whose: the client's transport alone,
  and the client alone, its transport handing out a canned answer. The route has two arms, and episodes that are drawn
  to the model.
* *Recording*: one record of about 2.9 KB, the time in the caller, one process. The floor is one bare `write` of it.
* Peers record the same messages. langfuse and OpenTelemetry send to a sink on loopback from their own threads.

Figures depend on the machine and on what else it does: compare within a run. CPU is what the whole process spent.
"""

from __future__ import annotations

import argparse
import http.server
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PEERS = {
    "langfuse": ["langfuse"],
    "opentelemetry": ["opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"],
}
CONTEXT = {
    "agent_name": "Eliza",
    "messages": [
        {"speaker": f"Speaker {i % 4}", "text": "the quick brown fox jumps over the lazy dog " * 2} for i in range(20)
    ],
}


class Times:
    """Durations of one thing, in seconds."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.each: list[float] = []
        self.cpu = 0.0

    def us(self, quantile: float) -> float:
        """A quantile in microseconds."""
        ordered = sorted(self.each)
        return ordered[min(int(len(ordered) * quantile), len(ordered) - 1)] * 1e6

    def row(self) -> str:
        """As a line of the table of recorders."""
        rate = len(self.each) / sum(self.each)
        cpu = self.cpu / len(self.each) * 1e6
        return f"| {self.name} | {self.us(0.5):.1f} | {self.us(0.99):.0f} | {rate:,.0f} | {cpu:.1f} |"


def repeat(name: str, action: Callable[[], Any], count: int) -> Times:
    """Time `action` so many times, after a tenth of them to warm up."""
    for _ in range(count // 10):
        action()
    times = Times(name)
    cpu = time.process_time()
    for _ in range(count):
        started = time.perf_counter()
        action()
        times.each.append(time.perf_counter() - started)
    times.cpu = time.process_time() - cpu
    return times


def record() -> Any:
    """The record of one decision, about 2.9 KB as JSON."""
    from reasoning.decision_types import DECISION_TYPES
    from reasoning.ids import uuid7
    from reasoning.records import Decision

    now = datetime.now(UTC)
    messages = DECISION_TYPES["should_respond"].render(CONTEXT)
    answer = {"decision": {"action": "RESPOND"}, "completion": "<response><action>RESPOND</action></response>"}
    ids: dict[str, Any] = {"episode_id": "e", "room_id": "r", "agent_id": "a", "subject_ids": ["Ann", "Bob"]}
    return Decision(uuid7(now), uuid7(now), now, "should_respond", "original", True, messages, **ids, **answer)


def recorders(scratch: Path, count: int) -> list[Times]:
    """Ours, its floor, and what the standard library offers."""
    from reasoning.io.segments import frame_line
    from reasoning.io.spool import SegmentWriter
    from reasoning.records import encode_record

    made = record()
    line = frame_line(encode_record(made))
    print(f"(a record is {len(line):,} bytes)")
    found = []
    fd = os.open(scratch / "floor", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    found.append(repeat("the floor: one bare write", lambda: os.write(fd, line), count))
    os.close(fd)
    writer = SegmentWriter(scratch / "spool")
    found.append(repeat("**reasoning segment**, synced every second", lambda: writer.write(made), count))
    writer.close()
    assert not writer.dropped, writer.dropped
    logger = logging.getLogger("peer")
    logger.propagate = False
    handler = logging.FileHandler(scratch / "log.jsonl")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    row = json.loads(line[9:])
    found.append(repeat("stdlib logging, JSON", lambda: logger.info(json.dumps(row)), count))
    handler.close()
    connection = sqlite3.connect(scratch / "log.sqlite", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("CREATE TABLE decisions (id TEXT PRIMARY KEY, row TEXT)")
    ids = iter(range(10**9))
    insert = "INSERT INTO decisions VALUES (?, ?)"
    found.append(repeat("SQLite WAL", lambda: connection.execute(insert, (next(ids), json.dumps(row))), count // 4))
    connection.close()
    return found


def peer(name: str, count: int) -> Times:
    """In the environment of a peer: the time of recording one decision in the caller."""
    messages, answer = record_messages(), "<response><action>RESPOND</action></response>"
    sink = Sink()
    if name == "langfuse":
        from langfuse import Langfuse

        client = Langfuse(public_key="pk", secret_key="sk", host=sink.url, base_url=sink.url)

        def one() -> None:
            generation = client.start_observation(
                name="should_respond", as_type="generation", model="acme/small", input=messages, output=answer
            )
            generation.end()

        return repeat("langfuse SDK", one, count)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{sink.url}/v1/traces")))
    tracer = provider.get_tracer("benchmark")

    def span() -> None:
        with tracer.start_as_current_span("should_respond") as current:
            current.set_attribute("gen_ai.input.messages", json.dumps(messages))
            current.set_attribute("gen_ai.output.messages", answer)
            current.set_attribute("gen_ai.request.model", "acme/small")

    return repeat("OpenTelemetry span, OTLP/HTTP", span, count)


def record_messages() -> list[dict[str, str]]:
    """The messages of `record`, written out, since a peer's environment has no client."""
    transcript = "\n".join(f"{m['speaker']}: {m['text']}" for m in CONTEXT["messages"])  # type: ignore[index]
    return [{"role": "system", "content": "You are Eliza." * 20}, {"role": "user", "content": transcript}]


class Sink:
    """Takes whatever is posted to it."""

    def __init__(self) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()


class Canned:
    """A transport whose answer is there already."""

    def post(self, *_: Any) -> tuple[int, bytes]:
        from benchmarks.chat_server import COMPLETION

        return 200, COMPLETION

    def close(self) -> None:
        pass


def decide_with(client: Any, episodes: list[str]) -> Callable[[], Any]:
    """Ask for a decision, one episode after the other."""
    at = iter(range(10**9))

    def decide() -> Any:
        return client.decide_should_respond(CONTEXT, lambda _: "IGNORE", episode_id=episodes[next(at) % len(episodes)])

    return decide


def calls(scratch: Path, count: int) -> None:
    """Print what the client adds to a call."""
    import asyncio

    import httpcore2

    from reasoning import AsyncDecisionClient, DecisionClient
    from reasoning.decision_types import DECISION_TYPES
    from reasoning.io.transport import Transport
    from reasoning.serving.completion import request_body
    from reasoning.serving.routes import Arm, Route, Routes, choose_arm, write_routes

    with subprocess.Popen([sys.executable, str(HERE / "chat_server.py")], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            base_url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
            arm = Arm("custom", "custom", 0.9, model="acme/small", base_url=base_url, input_usd_per_mtok="0.48")
            route = Route((arm, Arm("original", "original", 0.1)), deadline_ms=10_000, salt="s")
            now = datetime.now(UTC)
            write_routes(scratch / "routes.json", Routes(now, now + timedelta(hours=1), {"should_respond": route}))
            episodes = [name for name in map(str, range(100)) if choose_arm(route, name)[0] is arm]
            kind = DECISION_TYPES["should_respond"]
            body = request_body(arm, kind, kind.render(CONTEXT))
            headers = {"Authorization": "Bearer local", "Content-Type": "application/json"}
            url = f"{base_url}/v1/chat/completions"
            pool, transport = httpcore2.ConnectionPool(), Transport()
            with DecisionClient(scratch) as client, DecisionClient(scratch) as alone:
                alone._transport = Canned()  # type: ignore[assignment]
                actions = {
                    "bare httpcore2 call": lambda: pool.request("POST", url, headers=headers, content=body),
                    "the client's transport": lambda: transport.post(
                        url, ((b"Authorization", b"Bearer local"),), body, 10.0
                    ),
                    "**DecisionClient.decide**": decide_with(client, episodes),
                    "the client alone (canned answer)": decide_with(alone, episodes),
                }
                found = alternate(actions, count)
                assert client.stats()["served"] == {"custom": count + WARM}, client.stats()
            found += asyncio.run(async_calls(AsyncDecisionClient(scratch), episodes, url, headers, body, count))
        finally:
            server.kill()
    print("| call | p50 us | p99 us | CPU us |\n|---|---|---|---|")
    for times in found:
        print(f"| {times.name} | {times.us(0.5):.0f} | {times.us(0.99):.0f} | {times.cpu / count * 1e6:.0f} |")
    for name, bare, ours in (("the client", found[0], found[2]), ("the async client", found[4], found[5])):
        added = [ours.us(quantile) - bare.us(quantile) for quantile in (0.5, 0.99)]
        print(f"| **added by {name}** | {added[0]:.0f} | {added[1]:.0f} | {(ours.cpu - bare.cpu) / count * 1e6:.0f} |")
    print()


WARM = 200


def alternate(actions: dict[str, Callable[[], Any]], count: int) -> list[Times]:
    """Time the actions in turn, so that all of them meet the same machine. CPU is of this thread."""
    found = [Times(name) for name in actions]
    for i in range(count + WARM):
        for times, action in zip(found, actions.values(), strict=True):
            cpu, started = time.thread_time(), time.perf_counter()
            action()
            if i >= WARM:
                times.each.append(time.perf_counter() - started)
                times.cpu += time.thread_time() - cpu
    return found


async def async_calls(
    client: Any, episodes: list[str], url: str, headers: dict[str, str], body: bytes, count: int
) -> list[Times]:
    """The same of the async client."""
    import httpcore2

    bare, ours = Times("bare async httpcore2 call"), Times("**AsyncDecisionClient.decide**")
    decide = decide_with(client, episodes)
    async with client, httpcore2.AsyncConnectionPool() as pool:
        for i in range(count + WARM):
            for times in (bare, ours):
                cpu, started = time.thread_time(), time.perf_counter()
                await (decide() if times is ours else pool.request("POST", url, headers=headers, content=body))
                if i >= WARM:
                    times.each.append(time.perf_counter() - started)
                    times.cpu += time.thread_time() - cpu
    return [bare, ours]


def cpu_ms(python: str, statement: str) -> float:
    """The least CPU time of fifteen runs of a statement, in milliseconds, the interpreter's own start included."""
    import resource

    least = float("inf")
    for _ in range(15):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([python, "-c", statement], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        least = min(least, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return least * 1000


def environment(place: Path, *packages: str) -> str:
    """The python of a new environment that holds the packages; by uv where there is one, else by venv and pip."""
    python = str(place / "bin" / "python")
    if uv := shutil.which("uv"):
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(place)], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--compile-bytecode", "--python", python, *packages], check=True)
    else:
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


def package(scratch: Path) -> None:
    """Print what an installation of the wheel weighs, and what importing it costs."""
    place = scratch / "installed"
    python = environment(place, str(HERE.parent))
    (site,) = place.glob("lib/*/site-packages")
    ours = [folder for folder in site.iterdir() if not folder.name.startswith(("pip", "setuptools", "_distutils"))]
    files = [file for folder in ours for file in (folder, *folder.rglob("*")) if file.is_file()]
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    nothing, imported = cpu_ms(python, "pass"), cpu_ms(python, "import reasoning")
    print("\n| the wheel | |\n|---|---|")
    print(f"| installed with its dependencies, byte code included | {megabytes:.1f} MB |")
    print(
        f"| `import reasoning`, CPU (without the interpreter's start: {nothing:.0f} ms) | {imported - nothing:.0f} ms |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="records a recorder; calls are a fifth of it")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        times = peer(arguments.peer, arguments.count)
        print(times.row(), flush=True)
        os._exit(0)  # without waiting for what its threads still have to send
    sys.path.insert(0, str(HERE.parent))
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        peers = {one: environment(scratch / one, *packages) for one, packages in PEERS.items()}
        calls(scratch, arguments.count // 5)
        print("| recording one decision, in the caller | p50 us | p99 us | records/s | CPU us |\n|---|---|---|---|---|")
        for times in recorders(scratch, arguments.count):
            print(times.row(), flush=True)
        for one, python in peers.items():
            command = [python, __file__, "--peer", one, "--count", str(max(arguments.count // 5, 100))]
            done = subprocess.run(command, capture_output=True, text=True)
            print(done.stdout.strip() or f"| {one} | failed: {done.stderr.strip().splitlines()[-1:]} |", flush=True)
        package(scratch)


if __name__ == "__main__":
    main()
