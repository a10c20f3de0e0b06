from __future__ import annotations

import contextlib
import itertools
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import orjson
import pytest

from reasoning.config import Config, load_config
from reasoning.io.segments import read_segment
from reasoning.serving.routes import Arm, Route, Routes, write_routes

CONTEXT = {"agent_name": "Bot", "messages": [{"speaker": "Ann", "text": "hi Bot"}, {"speaker": "Bob", "text": "hm"}]}


class Request:
    """One request as the server got it."""

    def __init__(self, head: bytes, body: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.path = lines[0].split(" ")[1]
        self.headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}
        self.json: dict[str, Any] = orjson.loads(body)


class ModelServer:
    """A chat server whose connection handler a test chooses: `answer(request, connection)` may do what it wants."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self.released = threading.Event()  # ends handlers that hang
        self.answer: Callable[[Request, socket.socket], None] = says("<response><action>IGNORE</action></response>")
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                outer.connections += 1
                rest = b""
                while True:
                    while b"\r\n\r\n" not in rest:
                        got = self.request.recv(65536)
                        if not got:
                            return
                        rest += got
                    head, _, rest = rest.partition(b"\r\n\r\n")
                    length = next(
                        int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
                    )
                    while len(rest) < length:
                        rest += self.request.recv(65536)
                    request = Request(head, rest[:length])
                    rest = rest[length:]
                    outer.requests.append(request)
                    try:
                        outer.answer(request, self.request)
                    except (OSError, Hangup):
                        return

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def hang(self, request: Request, connection: socket.socket) -> None:
        self.released.wait(30)
        raise Hangup


class Hangup(Exception):
    """Close the connection now."""


def http(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


def completion(text: str, tokens: list[str] | None = None, logprobs: list[float] | None = None) -> bytes:
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if tokens is not None:
        choice["logprobs"] = {"tokens": tokens, "token_logprobs": logprobs, "token_ids": [0] * len(tokens)}
    return orjson.dumps({"choices": [choice], "usage": {"prompt_tokens": 1000, "completion_tokens": 10}})


def says(text: str, tokens: list[str] | None = None, logprobs: list[float] | None = None) -> Callable[..., None]:
    """A handler that answers with one completion."""
    return sends(http(completion(text, tokens, logprobs)))


def sends(raw: bytes) -> Callable[..., None]:
    return lambda request, connection: connection.sendall(raw)


def events(*texts: str, end: bytes = b"data: [DONE]\n\n") -> bytes:
    """A server-sent stream of chunks, as the whole response of a connection that then closes."""
    chunks = [b"data: " + orjson.dumps({"choices": [{"index": 0, "delta": {"content": t}}]}) + b"\n\n" for t in texts]
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" + b"".join(chunks) + end


def streams(*texts: str, end: bytes = b"data: [DONE]\n\n") -> Callable[..., None]:
    def answer(request: Request, connection: socket.socket) -> None:
        connection.sendall(events(*texts, end=end))
        raise Hangup

    return answer


@pytest.fixture
def server() -> Iterator[ModelServer]:
    found = ModelServer()
    yield found
    found.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def config(data: Path) -> Config:
    return load_config(data, env={})


@pytest.fixture
def route(data: Path, server: ModelServer) -> Callable[..., Routes]:
    """Write the routes of a data folder: all decision types go to the server's model, if not told otherwise."""

    def write(*arms: Arm, minutes: float = 60, now: datetime | None = None, **options: Any) -> Routes:
        now = now or datetime.now(UTC)
        arms = arms or (Arm("custom", "custom", 1.0, model="acme/small", base_url=server.url),)
        options = {"deadline_ms": 5000, "experiment": "try", "salt": "s", **options}
        types = ("should_respond", "planning", "coding")
        routes = Routes(now, now + timedelta(minutes=minutes), {name: Route(arms, **options) for name in types})
        write_routes(data / "routes.json", routes)
        return routes

    return write


def rows(data: Path) -> list[dict[str, Any]]:
    """All records in the spool, oldest first; not one bad line."""
    found = []
    for path in sorted((data / "spool").iterdir()):
        segment = read_segment(path)
        found += [row for _, row in segment.lines]
        assert not segment.bad, segment.bad
    return found


@contextlib.contextmanager
def at_bytecode(nth: int, file: str, act: Callable[[], None]) -> Iterator[list[int]]:
    """Call `act` once before the n-th bytecode that is run in `file`, as a signal handler would be. Gives where."""
    reached: list[int] = []
    count = itertools.count()

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename != file:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and next(count) == nth:
            reached.append(frame.f_lineno)
            sys.settrace(None)
            act()
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 gives these events only if some frame asked before
    sys.settrace(trace)
    try:
        yield reached
    finally:
        sys.settrace(before)
