"""Serving the gateway: uvicorn with limits on what a client may send before it is known, and a drain on SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
import socket
import sys
from contextlib import suppress
from types import FrameType
from typing import Any, Literal

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.app import UPGRADE, Gateway
from gateway.http.security import MAX_HEADER_BYTES
from gateway.ops.logs import configure_logs, log
from gateway.protocols import PROTOCOLS
from gateway.settings import Settings

GRACE_S = 600
"""How long answers under way may take after SIGTERM."""

MIN_BODY_RATE = 8 << 10
"""Bytes a second that a body may come at, once `body_timeout_s` is over."""

GARBAGE_THRESHOLD = 10_000
"""Objects made and not yet freed before Python looks for cycles: with its own 700 it does at every third request."""


class StrictProtocol(HttpToolsProtocol):
    """What uvicorn gets wrong: it gathers a head without end; trailers become headers (RFC 9110, 6.5.1); a request
    that offers another protocol, as Java's client does (h2c), loses its body; HTTP/1.0 is answered in chunks; and a
    client may take for ever to send a request, or to read its answer.
    """

    _reads: Literal["nothing", "head", "body"] | None = "nothing"  # what is to come; None while it is answered
    _since = 0.0  # when what is being read began, by the loop's clock
    _last = 0.0  # when the last piece of a body came
    _body_bytes = 0
    _full_since: float | None = None  # when what waits for the client to read it became too much
    _parts = 0  # of requests that came so far: heads and pieces of bodies
    _silent_bytes = 0  # received since the last of them
    _declines = False  # just now, what a request offers
    _wanted = b""  # the protocol that it offers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = self.loop.time()

    def overdue(self, now: float, settings: Settings) -> Literal["head", "body", "answer"] | None:
        """What has taken too long to come or to go, if anything has."""
        head_s, body_s = settings.head_timeout_s, settings.body_timeout_s
        if self._full_since is not None and now - self._full_since > settings.write_timeout_s:
            return "answer"
        if self._reads in ("nothing", "head"):
            answering = self.cycle is not None and not self.cycle.response_complete
            return "head" if now - self._since > head_s and not answering else None
        if self._reads == "body":
            if self.flow.read_paused:  # it is we who keep it waiting
                self._since, self._last = self._since + now - self._last, now
            slow = now - self._since > body_s + self._body_bytes / MIN_BODY_RATE
            return "body" if slow or now - self._last > body_s else None
        return None

    def pause_writing(self) -> None:
        self._full_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._full_since = None
        super().resume_writing()

    def give_up(self) -> None:
        """Close the connection of a request that did not come in time, or whose answer nobody reads."""
        if self._full_since is not None:
            self.transport.abort()  # to close it is to wait until all is read
            return
        answered = self._reads == "body" and self.cycle.response_started
        if self._reads != "nothing" and not answered and not self.transport.is_closing():
            self.transport.write(_TIMED_OUT)
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        parts, self._data = self._parts, data  # see `_unsupported_upgrade_warning`
        super().data_received(data)
        self._data = b""
        if self._reads is None and self.cycle is not None and self.cycle.response_complete:
            # Empty lines, with which uvicorn's own patience began anew.
            self._reads, self._since = "nothing", self.loop.time()
        if self._parts != parts:
            self._silent_bytes = 0
            return
        self._silent_bytes += len(data)
        if self._silent_bytes > 4 * MAX_HEADER_BYTES:  # uvicorn would gather all of it before we see any
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._reads, self._since = "head", self.loop.time()

    def on_header(self, name: bytes, value: bytes) -> None:
        # A request's scope is made when its head begins, and given to a cycle when that is whole: the rest is trailers.
        if self.cycle is None or self.cycle.scope is not self.scope:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._parts += 1
        self._reads, self._body_bytes = "body", 0
        self._since = self._last = self.loop.time()
        if self.parser.should_upgrade():
            self._wanted = b",".join(value for name, value in self.headers if name == b"upgrade")
            self._head = self.parser.get_method(), self.url, self.parser.get_http_version().encode(), self.headers
            return  # see `_unsupported_upgrade_warning`
        if self._declines and not _does_without(self._wanted):
            self.scope[UPGRADE] = self._wanted  # type: ignore[literal-required]
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0":
            self.cycle.send = _UntilClose(self.cycle).send  # type: ignore[method-assign]

    def on_body(self, body: bytes) -> None:
        self._parts += 1
        self._body_bytes += len(body)
        self._last = self.loop.time()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._reads = None
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """The parser has stopped at the end of a head that offers another protocol. We do not take it up, so this is a
        request of HTTP/1.1 like others (RFC 9110, 7.8): a new parser gets it, without the offer. What makes no sense
        without the other protocol (a WebSocket) is told so with a 426 at once."""
        error = sys.exc_info()[1]
        assert isinstance(error, httptools.HttpParserUpgrade)
        method, url, version, headers = self._head
        if method == b"CONNECT" or self._declines:  # a tunnel, or two offers at once
            self.send_400_response("This is no proxy, and speaks HTTP/1.1 only.")
            return
        lines = b"".join(b"%b: %b\r\n" % header for header in headers if header[0] != b"upgrade")
        self.parser = httptools.HttpRequestParser(self)
        self._declines = True
        super().data_received(b"%b %b HTTP/%b\r\n%b\r\n" % (method, url, version, lines) + self._data[error.args[0] :])
        self._declines = False


_OFFERS = (b"h2c", b"h2", b"http/", b"tls/")


def _does_without(wanted: bytes) -> bool:
    """Is it an offer only, as of another HTTP, and the request complete without it?"""
    return all(protocol.strip().lower().startswith(_OFFERS) for protocol in wanted.split(b",") if protocol.strip())


_TIMED_OUT_BODY = PROTOCOLS[0].error(408, "timeout_error", "the request did not come in time", None)[1]
_TIMED_OUT = (
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
) % (len(_TIMED_OUT_BODY), _TIMED_OUT_BODY)


class _UntilClose:
    """Sends an answer of unknown length to an HTTP/1.0 client, which knows no chunks: until the connection closes."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._send = cycle.send
        self._unknown = False

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._unknown = not any(name == b"content-length" for name, _ in message["headers"])
            if self._unknown:
                self._cycle.chunked_encoding = False
        elif self._unknown:
            self._cycle.expected_content_length = len(message["body"])
        await self._send(message)


class Server(uvicorn.Server):
    """On SIGTERM `/readyz` says no for `drain_s`, so that a load balancer turns away first; then the port closes and
    the answers under way are finished. Ten times a second it looks for what takes too long to come or to go."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway

    async def on_tick(self, counter: int) -> bool:
        now, settings = asyncio.get_running_loop().time(), self._gateway.settings
        for connection in list(self.server_state.connections):
            assert isinstance(connection, StrictProtocol)
            if part := connection.overdue(now, settings):
                self._gateway.state.metrics.timeouts.labels(part).inc()
                connection.give_up()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        drain_s = self._gateway.settings.drain_s
        if sig == signal.SIGTERM and drain_s and not self._gateway.draining:
            self._gateway.draining = True
            self._captured_signals.append(sig)
            loop = asyncio.get_running_loop()
            loop.call_soon_threadsafe(loop.call_later, drain_s, self._stop)
            return
        self._gateway.draining = True
        super().handle_exit(sig, frame)

    def _stop(self) -> None:
        self.should_exit = True


class _Lasting(Server):
    """Of a process that does nothing else."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what is there now stays: no need to look through it for garbage ever again
        gc.set_threshold(GARBAGE_THRESHOLD)


def configure(gateway: Gateway, host: str = "127.0.0.1", port: int = 8001) -> uvicorn.Config:
    """uvicorn as the gateway needs it: no header of its own, no access log, no other protocol."""
    return uvicorn.Config(
        gateway,
        host=host,
        port=port,
        http=StrictProtocol,
        ws="none",
        lifespan="on",
        loop="auto",
        interface="asgi3",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=2048,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_S,
    )


def serve(gateway: Gateway, host: str = "127.0.0.1", port: int = 8001) -> None:
    """Serve until a signal. The address is logged when the gateway is ready."""
    configure_logs()
    _raise_file_limit()
    if host not in ("127.0.0.1", "::1", "localhost"):
        log.warning("listening beyond this machine: put TLS in front", extra={"fields": {"host": host}})
    server = _Lasting(configure(gateway, host, port), gateway)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named: asyncio turns Nagle off only for sockets that say they are TCP.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise SystemExit(f"error: {host}:{port}: {error.strerror}; choose another --port") from None
        bound = listener.getsockname()[1]
        listener.listen(2048)
        shown = f"[{host}]" if ":" in host else host
        print(f"gateway: http://{shown}:{bound}", flush=True)
        with suppress(KeyboardInterrupt):  # uvicorn stops in order, and then raises the signal again
            server.run(sockets=[listener])


def _raise_file_limit() -> None:
    """Let there be as many connections as the system lets this user have; many shells begin with 1024 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # macOS: "unlimited" is more than it takes
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
