"""Serving the gateway: uvicorn with limits on what a client may send before it is known, and a drain on SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
from types import FrameType
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.app import Gateway
from gateway.logs import configure_logs, log
from gateway.security import MAX_HEADER_BYTES

GRACE_S = 600
"""How long answers under way may take after SIGTERM."""

GARBAGE_THRESHOLD = 10_000
"""Objects made and not yet freed before Python looks for cycles: with its own 700 it does at every third request."""


class StrictProtocol(HttpToolsProtocol):
    """What uvicorn gets wrong: it gathers a head without end; trailers become headers (RFC 9110, 6.5.1); a request
    that offers another protocol, as Java's client does (h2c), loses its body; HTTP/1.0 is answered in chunks.
    """

    _parts = 0  # of requests that came so far: heads and pieces of bodies
    _silent_bytes = 0  # received since the last of them
    _declines = False  # just now, what a request offers

    def data_received(self, data: bytes) -> None:
        parts, self._data = self._parts, data  # see `_unsupported_upgrade_warning`
        super().data_received(data)
        self._data = b""
        if self._parts != parts:
            self._silent_bytes = 0
            return
        self._silent_bytes += len(data)
        if self._silent_bytes > 4 * MAX_HEADER_BYTES:  # uvicorn would gather all of it before we see any
            self.transport.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        # A request's scope is made when its head begins, and given to a cycle when that is whole: the rest is trailers.
        if self.cycle is None or self.cycle.scope is not self.scope:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._parts += 1
        if self.parser.should_upgrade():
            self._head = self.parser.get_method(), self.url, self.parser.get_http_version().encode(), self.headers
            return  # see `_unsupported_upgrade_warning`
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0":
            self.cycle.send = _UntilClose(self.cycle).send  # type: ignore[method-assign]

    def on_body(self, body: bytes) -> None:
        self._parts += 1
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """The parser has stopped at the end of a head that offers another protocol. We do not take it up, so this is a
        request of HTTP/1.1 like others (RFC 9110, 7.8): a new parser gets it, without the offer."""
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
    """On SIGTERM `/readyz` says no for `drain_s`, so that a load balancer turns away first; then the door closes and
    the answers under way are finished."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway

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
        server.run(sockets=[listener])
