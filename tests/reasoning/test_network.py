"""Proxies and TLS, for real: a proxy that forwards and tunnels, certificates of an authority of our own."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from reasoning import Answer, AsyncDecisionClient, DecisionClient
from reasoning.config import load_config
from reasoning.serving.routes import Arm
from tests.reasoning.conftest import CONTEXT, ModelServer, rows

Write = Callable[..., Any]
Ask = Callable[..., list[Answer]]
KEY = "tgp_v1_0123456789abcdef"


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, data: Path) -> Ask:
    """Decide so many times with one client, sync or async."""

    def decide(times: int = 1, **env: str) -> list[Answer]:
        config = load_config(data, env=env)

        async def run() -> list[Answer]:
            async with AsyncDecisionClient(config=config) as client:
                return [await client.decide_should_respond(CONTEXT, lambda _: "STOP") for _ in range(times)]

        if request.param == "async":
            return asyncio.run(run())
        with DecisionClient(config=config) as client:
            return [client.decide_should_respond(CONTEXT, lambda _: "STOP") for _ in range(times)]

    return decide


class Proxy:
    """An HTTP proxy that sends everything to one place, whatever name it is asked for."""

    def __init__(self, target: tuple[str, int], credentials: str | None = None) -> None:
        self.heads: list[str] = []
        wanted = "Proxy-Authorization: Basic " + base64.b64encode((credentials or "").encode()).decode()
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                received = b""
                while b"\r\n\r\n" not in received:
                    if not (got := self.request.recv(65536)):
                        return
                    received += got
                head = received.partition(b"\r\n\r\n")[0]
                outer.heads.append(head.decode())
                if credentials and wanted not in head.decode().split("\r\n"):
                    self.request.sendall(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")
                    return
                with socket.create_connection(target) as onward:
                    if head.startswith(b"CONNECT "):
                        self.request.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                    else:
                        onward.sendall(received)
                    threading.Thread(target=pump, args=(onward, self.request), daemon=True).start()
                    pump(self.request, onward)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads, self._server.block_on_close = True, False
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)


class Tls(socketserver.ThreadingTCPServer):
    """TLS before a server that speaks none. With `hang`, it takes the connection and never shakes hands."""

    daemon_threads, block_on_close = True, False

    def __init__(self, authority: trustme.CA, target: tuple[str, int], hang: threading.Event | None = None) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost", "model.test").configure_cert(context)

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                if hang:
                    hang.wait(30)
                    return
                with (
                    contextlib.suppress(OSError),
                    context.wrap_socket(self.request, server_side=True) as inside,
                    socket.create_connection(target) as onward,
                ):
                    threading.Thread(target=pump, args=(onward, inside), daemon=True).start()
                    pump(inside, onward)

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


def address(server: ModelServer) -> tuple[str, int]:
    host, _, port = server.url.removeprefix("http://").partition(":")
    return host, int(port)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))


@pytest.fixture
def tls(authority: trustme.CA, server: ModelServer) -> Iterator[Tls]:
    with Tls(authority, address(server)) as found:
        yield found
        found.shutdown()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def arm(url: str) -> Arm:
    return Arm("custom", "custom", 1.0, model="m", base_url=url)


class TestProxies:
    @pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
    def test_the_one_of_the_environment_is_used_and_kept_open(
        self, data: Path, server: ModelServer, route: Write, ask: Ask, monkeypatch: Any, variable: str
    ) -> None:
        proxy = Proxy(address(server))
        monkeypatch.setenv(variable, proxy.address if variable == "HTTP_PROXY" else f"http://{proxy.address}")
        route(arm("http://model.test"))
        assert [a.source for a in ask(3, TOGETHER_API_KEY=KEY)] == ["custom"] * 3
        proxy.close()
        (head,) = proxy.heads
        assert head.startswith("POST http://model.test/v1/chat/completions HTTP/1.1\r\nHost: model.test\r\n")
        assert KEY not in head  # neither Together nor the provider that the operator named

    def test_hosts_of_no_proxy_and_this_machine_are_asked_directly(
        self, data: Path, server: ModelServer, route: Write, ask: Ask, monkeypatch: Any
    ) -> None:
        proxy = Proxy(address(server))
        monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
        monkeypatch.setenv("no_proxy", "other.test,.model.invalid")
        route(arm("http://a.model.invalid"))
        assert ask()[0].fallback_reason == "provider_error"  # there is no such host
        route()
        assert ask()[0].source == "custom"
        proxy.close()
        assert proxy.heads == []

    def test_credentials(
        self, data: Path, server: ModelServer, route: Write, ask: Ask, monkeypatch: Any, caplog: Any
    ) -> None:
        proxy = Proxy(address(server), "ann:p@ss word")
        route(arm("http://model.test"))
        monkeypatch.setenv("http_proxy", f"http://ann:p%40ss%20word@{proxy.address}")
        assert ask()[0].source == "custom"
        monkeypatch.setenv("http_proxy", f"http://ann:hunter2hunter2@{proxy.address}")
        assert ask()[0].fallback_reason == "provider_error"
        proxy.close()
        assert "HTTP 407" in next(r["error"] for r in rows(data) if r["error"])
        assert "hunter2" not in str(rows(data)) + caplog.text

    def test_https_goes_through_a_tunnel(
        self, data: Path, server: ModelServer, route: Write, ask: Ask, monkeypatch: Any, tls: Tls, trusted: None
    ) -> None:
        proxy = Proxy(("127.0.0.1", tls.server_address[1]), "u:p")
        monkeypatch.setenv("https_proxy", f"http://u:p@{proxy.address}")
        route(arm("https://model.test"))
        answers = ask(3, TOGETHER_API_KEY=KEY, REASONING_PROVIDER_URL="https://model.test/v1")
        assert [a.source for a in answers] == ["custom"] * 3
        proxy.close()
        (head,) = proxy.heads
        assert head.startswith("CONNECT model.test:443 ") and KEY not in head
        assert {r.headers["authorization"] for r in server.requests} == {f"Bearer {KEY}"}

    def test_one_that_refuses_to_tunnel(
        self, data: Path, server: ModelServer, route: Write, ask: Ask, monkeypatch: Any, trusted: None
    ) -> None:
        proxy = Proxy(address(server), "u:p")
        monkeypatch.setenv("https_proxy", f"http://{proxy.address}")
        route(arm("https://model.test"))
        assert ask()[0].fallback_reason == "provider_error"
        proxy.close()
        assert "407" in rows(data)[0]["error"]

    def test_one_that_is_none(self, data: Path, server: ModelServer, route: Write, ask: Ask, monkeypatch: Any) -> None:
        route(arm("http://model.test"))
        for value in ("http://127.0.0.1:1", "nonsense://x", "http://[half", "http://x:port"):
            monkeypatch.setenv("http_proxy", value)
            assert ask()[0].fallback_reason == "provider_error"


class TestTls:
    def test_an_authority_of_our_own(
        self, data: Path, server: ModelServer, route: Write, ask: Ask, tls: Tls, trusted: None
    ) -> None:
        route(arm(f"https://localhost:{tls.server_address[1]}"))
        assert [a.source for a in ask(3)] == ["custom"] * 3
        assert server.connections == 1  # kept alive
        assert server.requests[0].headers["host"] == f"localhost:{tls.server_address[1]}"

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
    def test_a_certificate_of_nobody_or_of_another_is_refused(
        self, data: Path, server: ModelServer, route: Write, ask: Ask, tls: Tls, host: str, request: Any
    ) -> None:
        if host == "127.0.0.1":
            request.getfixturevalue("trusted")  # the authority is right, the name is wrong
        route(arm(f"https://{host}:{tls.server_address[1]}"))
        assert ask()[0].fallback_reason == "provider_error"
        assert "CERTIFICATE_VERIFY_FAILED" in rows(data)[0]["error"].upper() and not server.requests

    def test_authorities_that_cannot_be_read(
        self, data: Path, route: Write, ask: Ask, tls: Tls, monkeypatch: Any, tmp_path: Path
    ) -> None:
        route(arm(f"https://localhost:{tls.server_address[1]}"))
        (tmp_path / "broken.pem").write_text("no certificate")
        for name in ("missing.pem", "broken.pem"):
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / name))
            assert ask()[0].fallback_reason == "provider_error"
        errors = [row["error"] for row in rows(data) if row["source"] == "custom"]
        assert len(errors) == 2 and all("SSL_CERT_FILE" in error for error in errors)

    def test_a_handshake_that_hangs_is_covered_by_the_deadline(
        self, data: Path, server: ModelServer, route: Write, ask: Ask, authority: trustme.CA, trusted: None
    ) -> None:
        with Tls(authority, address(server), hang=server.released) as silent:
            route(arm(f"https://localhost:{silent.server_address[1]}"), deadline_ms=100)
            assert ask()[0].fallback_reason == "timeout"
            silent.shutdown()
