"""One rule of `Host` and `Origin` in three servers.

The emulator imports nothing of ours, the command does not import the emulator, and the gateway answers by its own
rules for tokens, so each has its own few lines. Here they are asked the same, so that they cannot drift apart.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cli.prefect_server import SameOriginOnly
from emulator.origins import LOOPBACK, SameOriginMiddleware
from gateway.errors import RequestRefused
from gateway.http.security import Guard
from gateway.settings import Settings, load_settings

HOSTS = [
    ([b"127.0.0.1"], True),
    ([b"127.0.0.1:4200"], True),
    ([b"localhost:80"], True),
    ([b"LOCALHOST"], True),
    ([b"[::1]"], True),
    ([b"[::1]:4200"], True),
    ([b"evil.example"], False),
    ([b"evil.example:4200"], False),
    ([b"127.0.0.1.evil.example"], False),
    ([b"localhost@evil.example"], False),
    ([b"evil.example/127.0.0.1"], False),
    ([b"127.0.0.1:4200:80"], False),
    ([b"127.0.0.1:port"], False),
    ([b"[::1"], False),
    ([b""], False),
    ([], False),
    ([b"127.0.0.1", b"evil.example"], False),
    ([b"localhost", b"localhost"], False),
]
ORIGINS = [
    ([], True),
    ([b"http://127.0.0.1:4200"], True),
    ([b"https://127.0.0.1:4200"], True),
    ([b"HTTP://127.0.0.1:4200"], True),
    ([b"http://127.0.0.1"], False),
    ([b"http://127.0.0.1:1"], False),
    ([b"http://evil.example"], False),
    ([b"null"], False),
    ([b""], False),
    ([b"http://127.0.0.1:4200", b"http://evil.example"], False),
]


def passes(middleware: type[Any], headers: list[tuple[bytes, bytes]], **options: Any) -> bool:
    """Does a middleware let a request through to the application? What it refuses has to be a 403."""
    statuses, reached = [], []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
    asyncio.run(middleware(app, **options)(scope, None, send))
    assert reached or statuses == [403]
    return bool(reached)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return load_settings(tmp_path_factory.mktemp("gateway"), Path("none.toml"), {})


@pytest.mark.parametrize(("hosts", "good"), HOSTS)
def test_a_host_is_judged_alike_everywhere(settings: Settings, hosts: list[bytes], good: bool) -> None:
    headers = [(b"host", host) for host in hosts]
    assert passes(SameOriginOnly, headers) is good
    assert passes(SameOriginMiddleware, headers, hosts=LOOPBACK) is good
    scope = {"method": "GET", "raw_path": b"/healthz", "query_string": b"", "headers": headers}
    try:
        Guard(settings).admit(scope)
        admitted = True
    except RequestRefused as error:
        assert error.status in (400, 403)
        admitted = False
    assert admitted is good


@pytest.mark.parametrize(("origins", "good"), ORIGINS)
def test_an_origin_is_judged_alike_where_no_token_is_needed(origins: list[bytes], good: bool) -> None:
    headers = [(b"host", b"127.0.0.1:4200"), *((b"origin", origin) for origin in origins)]
    assert passes(SameOriginOnly, headers) is good
    assert passes(SameOriginMiddleware, headers, hosts=LOOPBACK) is good
