"""An HTTP server whose every byte a test decides, and helpers for what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson


@dataclass
class Seen:
    """A request as it came over the wire."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(found) <= 1, f"{name} came {len(found)} times"
        return found[0] if found else None

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


Script = Callable[[Seen, asyncio.StreamWriter], Awaitable[None]]


class Scripted:
    """Answers each request by `script` (or by the next of `scripts`), and keeps what it saw in `seen`."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script
        self.scripts: list[Script] = []
        self.seen: list[Seen] = []
        self.connections = 0
        self.url = ""

    async def __aenter__(self) -> Scripted:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 26)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._tasks: set[asyncio.Task[None]] = set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def last(self) -> Seen:
        return self.seen[-1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while (seen := await _read_request(reader)) is not None:
                self.seen.append(seen)
                script = self.scripts.pop(0) if self.scripts else self.script
                assert script is not None, f"no script for {seen.method} {seen.target}"
                watcher = asyncio.ensure_future(_watch(reader, seen))
                try:
                    await script(seen, writer)
                    await writer.drain()
                except ConnectionError:
                    seen.closed.set()
                    raise
                finally:
                    watcher.cancel()
                if writer.is_closing():
                    return
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # a cancelled one as well: asyncio would log it
        finally:
            writer.close()
            self._tasks.discard(task)


async def _watch(reader: asyncio.StreamReader, seen: Seen) -> None:
    while not reader.at_eof() and reader.exception() is None:
        await asyncio.sleep(0.005)
    seen.closed.set()


async def _read_request(reader: asyncio.StreamReader) -> Seen | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = [(line.partition(":")[0], line.partition(":")[2].strip()) for line in lines]
    lower = {name.lower(): value for name, value in headers}
    if lower.get("transfer-encoding") == "chunked":
        body = b""
        while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    else:
        body = await reader.readexactly(int(lower.get("content-length", 0)))
    return Seen(method, target, headers, body)


def whole(status: int, body: bytes, *headers: tuple[str, str], content_type: str = "application/json") -> Script:
    async def script(seen: Seen, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status} X", f"content-type: {content_type}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers]
        writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (b"" if seen.method == "HEAD" else body))

    return script


def json(value: Any, status: int = 200, *headers: tuple[str, str]) -> Script:
    return whole(status, orjson.dumps(value), *headers)


def stream(*chunks: bytes, end: bool = True, content_type: str = "text/event-stream", pause: float = 0.0) -> Script:
    """A chunked answer. Without `end` the connection is cut after the last chunk."""

    async def script(seen: Seen, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\nrequest-id: req_up\r\n"
        writer.write(head.encode() + b"transfer-encoding: chunked\r\n\r\n")
        for chunk in chunks:
            writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await writer.drain()
            await asyncio.sleep(pause)
        if end:
            writer.write(b"0\r\n\r\n")
        else:
            writer.close()

    return script


async def cut(seen: Seen, writer: asyncio.StreamWriter) -> None:
    """No answer at all."""
    writer.close()


async def hang(seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Silence until the other side goes."""
    await seen.closed.wait()
    writer.close()


def chat_chunk(**fields: Any) -> bytes:
    """One event of a chat stream. `content`, `tool_calls`, `finish_reason`, `usage`, or any of the chunk's own keys."""
    delta = {key: fields.pop(key) for key in ("content", "tool_calls", "reasoning", "role") if key in fields}
    choice = {"index": 0, "delta": delta, "finish_reason": fields.pop("finish_reason", None)}
    return b"data: " + orjson.dumps({"object": "chat.completion.chunk", "choices": [choice], **fields}) + b"\n\n"


DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 20, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 8}}


def chat_stream(*pieces: str, finish: str = "stop") -> list[bytes]:
    return [*(chat_chunk(content=piece) for piece in pieces), chat_chunk(finish_reason=finish, usage=USAGE), DONE]


def chat_answer(content: str | None = "Done.", tool_calls: Any = None, finish: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": content, "tool_calls": tool_calls or []}
    return {
        "id": "c1",
        "object": "chat.completion",
        "model": "ep/coder",
        "choices": [{"index": 0, "finish_reason": finish, "message": message}],
        "usage": USAGE,
    }


ANTHROPIC_MESSAGE = {
    "id": "msg_upstream",
    "type": "message",
    "role": "assistant",
    "model": "claude-upstream",
    "content": [{"type": "text", "text": "Explained.\n\n```python\nprint(1)\n```"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 11, "output_tokens": 7},
}


def message_events(message: dict[str, Any]) -> list[bytes]:
    """The events in which Anthropic streams a message, one block after the other."""
    usage = message["usage"]
    start = message | {"content": [], "stop_reason": None, "usage": usage | {"output_tokens": 1}}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": start}, {"type": "ping"}]
    for index, block in enumerate(message["content"]):
        deltas: list[dict[str, Any]] = []
        match block["type"]:
            case "text":
                begun, deltas = block | {"text": ""}, [{"type": "text_delta", "text": t} for t in block["text"]]
            case "thinking":
                begun = {"type": "thinking", "thinking": "", "signature": ""}
                deltas = [{"type": "thinking_delta", "thinking": block["thinking"]}]
                deltas.append({"type": "signature_delta", "signature": block["signature"]})
            case _:
                begun, told = block | {"input": {}}, orjson.dumps(block["input"]).decode()
                deltas = [{"type": "input_json_delta", "partial_json": t} for t in ("", told[:3], told[3:])]
        events.append({"type": "content_block_start", "index": index, "content_block": begun})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    ended = {"stop_reason": message["stop_reason"], "stop_sequence": message["stop_sequence"]}
    events.append({"type": "message_delta", "delta": ended, "usage": {"output_tokens": usage["output_tokens"]}})
    events.append({"type": "message_stop"})
    return [b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event)) for event in events]


def anthropic_stream(text: str = "hello") -> bytes:
    from gateway.protocols.answers import OwnAnswer
    from gateway.protocols.anthropic import MESSAGES

    return MESSAGES.write(OwnAnswer(text, "claude-upstream", 11, 7), {"stream": True})[1]
