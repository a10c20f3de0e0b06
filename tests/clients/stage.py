"""A gateway as users start it, between scripted servers and a real client."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from gateway.http.sse import encode_event
from gateway.protocols.answers import OwnAnswer
from gateway.protocols.anthropic import MESSAGES
from reasoning.serving.routes import Arm, Route, Routes, write_routes
from tests.gateway import scripted
from tests.gateway.scripted import Scripted, Seen

TOKEN = "clients-token-0123456789"


@dataclass
class Stage:
    """The gateway's address, and the servers behind it."""

    url: str
    data: Path
    anthropic: Scripted
    openai: Scripted
    model: Scripted

    def route(self, *decision_types: str) -> None:
        """Send these decision types to the scripted model; none withdraws all routes."""
        now = datetime.now(UTC)
        arm = Arm("custom", "custom", weight=1.0, model="ep/coder", base_url=self.model.url)
        route = Route((arm,), deadline_ms=10_000.0)
        write_routes(
            self.data / "routes.json", Routes(now, now + timedelta(hours=1), dict.fromkeys(decision_types, route))
        )

    async def stats(self) -> dict[str, Any]:
        async with (
            aiohttp.ClientSession() as http,
            http.get(self.url + "/stats", headers={"x-api-key": TOKEN}) as response,
        ):
            return dict(await response.json())


@asynccontextmanager
async def staged(data: Path, **env: str) -> AsyncIterator[Stage]:
    """Start it all; end it all."""
    data.mkdir(parents=True, exist_ok=True)
    async with Scripted(claude) as anthropic, Scripted() as openai, Scripted() as model:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", "--data", str(data), "--port", "0"),
            stdout=asyncio.subprocess.PIPE,
            stderr=(data / "gateway.log").open("w"),
            env={
                **os.environ,
                "REASONING_GATEWAY_TOKEN": TOKEN,
                "REASONING_ANTHROPIC_URL": anthropic.url,
                "REASONING_OPENAI_URL": openai.url,
                **env,
            },
        )
        try:
            assert process.stdout is not None
            line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
            assert line.startswith("gateway: "), (data / "gateway.log").read_text()
            yield Stage(line.removeprefix("gateway: ").strip(), data, anthropic, openai, model)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), 20)
            except TimeoutError:
                process.kill()


async def claude(seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Anthropic, as far as these clients need it: it says `from anthropic`, whole or streamed."""
    if not seen.target.startswith("/v1/messages") or seen.method != "POST":
        await scripted.whole(200, b"{}")(seen, writer)
        return
    if "count_tokens" in seen.target:
        await scripted.json({"input_tokens": 100})(seen, writer)
        return
    streamed = bool(seen.json.get("stream"))
    kind, body = MESSAGES.write(OwnAnswer("from anthropic", "claude-scripted", 10, 3), {"stream": streamed})
    await scripted.whole(200, body, content_type=kind.decode())(seen, writer)


def claude_start() -> bytes:
    """The first event of an answer of Anthropic's."""
    message: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-scripted"}
    message |= {
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 0},
    }
    return encode_event("message_start", {"type": "message_start", "message": message})


def claude_tool(name: str, arguments: dict[str, Any]) -> scripted.Script:
    """A streamed answer of Anthropic's that calls one tool."""
    block = {"type": "tool_use", "id": "toolu_01Scripted", "name": name, "input": {}}
    events: list[dict[str, Any]] = [
        {"type": "content_block_start", "index": 0, "content_block": block},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "input_json_delta", "partial_json": orjson.dumps(arguments).decode()},
        },
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use", "stop_sequence": None},
            "usage": {"output_tokens": 3},
        },
        {"type": "message_stop"},
    ]
    return scripted.stream(claude_start(), *(encode_event(event["type"], event) for event in events))
