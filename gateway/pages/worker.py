"""The process that renders the page: it reads the log and the ledger, which may take seconds, beside the event loop.

It is started for the first page and ends after `idle_s` without one. It is asked one thing at a time; what takes too
long is killed with it, and so is what is under way when the gateway ends. Both directions carry JSON, each message
after its length (8 bytes, big-endian).
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from gateway.errors import RequestRefused

PROJECT = Path(__file__).resolve().parents[2]
MAX_BYTES = 16 << 20
IDLE_S = 900.0
_START_S = 60.0
# Not `-m`: the current folder may hold a `console` of its own, and has to stay, for its reasoning.toml.
_START = f"import sys; sys.path.insert(0, {str(PROJECT)!r}); from console.__main__ import main; main()"


class PageWorker:
    """One process, one question at a time: an action that takes minutes has another (`Pages.actor`)."""

    def __init__(self, data: Path, *, idle_s: float = IDLE_S) -> None:
        self._data = data
        self._idle_s = idle_s
        self._lock = asyncio.Lock()
        self._process: Process | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def ask(self, question: Mapping[str, Any], *, seconds: float) -> dict[str, Any]:
        """What `console.app.respond` answers. Raises `RequestRefused` (503) where it takes longer, or dies."""
        async with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            try:
                process = await self._start()
                async with asyncio.timeout(seconds):
                    return await _exchange(process, orjson.dumps(question))
            except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
                await self.close()
                late = isinstance(error, TimeoutError)
                why = (
                    f"took longer than {seconds:g} s"
                    if late
                    else "ended (it needs the extra `pipeline`; the gateway's log says more)"
                )
                raise RequestRefused(503, "api_error", f"the page's process {why}; try again") from None
            except asyncio.CancelledError:  # half a message may be on its way
                await self.close()
                raise
            finally:
                self._timer = asyncio.get_running_loop().call_later(self._idle_s, self._end)

    async def close(self) -> None:
        """End the process, whatever it does."""
        process = self._end()
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _end(self) -> Process | None:
        """Close its input, at which it ends by itself."""
        process, self._process = self._process, None
        if self._timer is not None:
            self._timer.cancel()
        if process is not None and process.stdin is not None:
            process.stdin.close()
        return process

    async def _start(self) -> Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        async with asyncio.timeout(_START_S):
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", _START, str(self._data)),
                stdin=PIPE,
                stdout=PIPE,
                start_new_session=True,  # Ctrl-C is the gateway's to handle
            )
        return self._process


async def _exchange(process: Process, question: bytes) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(len(question).to_bytes(8, "big") + question)
    await process.stdin.drain()
    size = int.from_bytes(await process.stdout.readexactly(8), "big")
    if size > MAX_BYTES:
        raise OSError(f"an answer of {size:,} bytes")
    answer: dict[str, Any] = orjson.loads(await process.stdout.readexactly(size))
    return answer
