"""Serving the gateway: uvicorn with limits on what a client may send before it is known, and a drain on SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from types import FrameType

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.app import Gateway
from gateway.logs import configure_logs, log
from gateway.security import MAX_HEADER_BYTES

GRACE_S = 600
"""How long answers under way may take after SIGTERM."""

GARBAGE_THRESHOLD = 10_000
"""Objects made and not yet freed before Python looks for cycles: with its own 700 it does at every third request."""


class LimitedProtocol(HttpToolsProtocol):
    """Cuts off a client that sends headers without end: uvicorn would gather all of them before we see any."""

    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # A request's scope is made when its head begins, and given to a cycle when the head is whole.
        if self.scope is None or (self.cycle is not None and self.cycle.scope is self.scope):
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        if self._head_bytes > 4 * MAX_HEADER_BYTES:
            self.transport.close()


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
        http=LimitedProtocol,
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
