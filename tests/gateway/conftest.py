"""A gateway on a real port, with scripted servers in the places of Anthropic, OpenAI and the model's provider."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvicorn.server

from gateway.app import Gateway
from gateway.server import Server, configure
from gateway.settings import Settings, UpstreamSettings, load_settings
from reasoning.config import Config, load_config
from reasoning.io.segments import read_segment
from reasoning.serving.routes import Arm, Route, Routes, write_routes
from tests.gateway.scripted import Scripted

TOKEN = "gateway-token-0123456789"
UPSTREAM_KEY = "sk-upstream-secret"


@dataclass
class Running:
    """A gateway that serves, and what stands around it."""

    gateway: Gateway
    url: str
    data: Path
    anthropic: Scripted
    openai: Scripted
    model: Scripted
    google: Scripted
    http: aiohttp.ClientSession
    token: str = TOKEN
    headers: dict[str, str] = field(default_factory=lambda: {"authorization": f"Bearer {TOKEN}"})

    async def ask(
        self, method: str, path: str, *, headers: dict[str, str] | None = None, **options: Any
    ) -> tuple[int, Any, bytes]:
        """Status, headers and body. The gateway's token is sent unless `headers` are given."""
        from yarl import URL

        url = URL(self.url + path, encoded=True)
        async with self.http.request(
            method, url, headers=self.headers if headers is None else headers, allow_redirects=False, **options
        ) as response:
            return response.status, response.headers, await response.read()

    def route(
        self, decision_type: str = "coding", *, weight: float = 1.0, expires_in: float = 3600, **options: Any
    ) -> None:
        """Write routes that send `decision_type` to the scripted model."""
        arms = options.pop("arms", None) or (
            Arm("custom", "custom", weight=weight, model="ep/coder", base_url=self.model.url, input_usd_per_mtok="1"),
            Arm("original", "original", weight=1.0 - weight),
        )
        now = datetime.now(UTC)
        route = Route(arms, deadline_ms=options.pop("deadline_ms", 2000.0), experiment="exp", **options)
        write_routes(
            self.data / "routes.json",
            Routes(now - timedelta(seconds=1), now + timedelta(seconds=expires_in), {decision_type: route}),
        )

    async def records(self) -> list[dict[str, Any]]:
        """Everything recorded so far. The gateway's recorder is closed for it."""
        await asyncio.to_thread(self.gateway.state.recorder.close)
        await self.gateway.state.client.close()
        rows = []
        for path in sorted((self.data / "spool").glob("*.*")):
            rows += [row for _, row in read_segment(path).lines]
        return rows


Start = Callable[..., Awaitable[Running]]


class _Impatient:
    """`asyncio` for uvicorn's server, which looks only every 100 ms whether it has to do or to end something."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01))


uvicorn.server.asyncio = _Impatient()  # type: ignore[assignment,attr-defined]


@asynccontextmanager
async def serving(gateway: Gateway) -> AsyncIterator[str]:
    """Serve a gateway on a free port of this machine; its URL."""
    config = configure(gateway)
    config.timeout_graceful_shutdown = 1
    server = Server(config, gateway)
    # Named as TCP, as the gateway's own: asyncio leaves Nagle's delay of 40 ms on for others.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(512)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            while not server.started:
                if task.done():
                    task.result()
                    raise AssertionError("the gateway did not start")
                await asyncio.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """`await start(**settings)` gives a `Running` gateway."""
    async with AsyncExitStack() as stack:

        async def begin(*, config: dict[str, Any] | None = None, **settings: Any) -> Running:
            anthropic = await stack.enter_async_context(Scripted())
            openai = await stack.enter_async_context(Scripted())
            model = await stack.enter_async_context(Scripted())
            google = await stack.enter_async_context(Scripted())
            data = tmp_path / f"data{len(list(tmp_path.iterdir()))}"
            data.mkdir()
            env = {"REASONING_GATEWAY_TOKEN": TOKEN}
            base = load_settings(data, tmp_path / "none.toml", env)
            made: Settings = replace(
                base,
                **{
                    "upstreams": {
                        "anthropic": (UpstreamSettings(anthropic.url, api_key=UPSTREAM_KEY),),
                        "openai": (UpstreamSettings(openai.url, api_key=UPSTREAM_KEY),),
                        "typesafe": (UpstreamSettings(openai.url, api_key=UPSTREAM_KEY),),
                        "gemini": (UpstreamSettings(google.url, api_key=UPSTREAM_KEY),),
                    },
                    "log_requests": False,
                    **settings,
                },
            )
            loaded: Config = replace(load_config(data, env={}), **(config or {}))
            gateway = Gateway(loaded, made)
            url = await stack.enter_async_context(serving(gateway))
            http = await stack.enter_async_context(
                aiohttp.ClientSession(
                    auto_decompress=False, max_field_size=64 << 10, connector=aiohttp.TCPConnector(limit=0)
                )
            )
            return Running(gateway, url, data, anthropic, openai, model, google, http)

        yield begin
