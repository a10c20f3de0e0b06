"""Structured logs: one JSON object a line, of facts about requests, never of their contents or keys.

They are written in a thread: who reads them may be slow, or have gone, and no answer waits for that.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import orjson

from reasoning.error_text import describe_error

log = logging.getLogger("gateway")


class JsonFormatter(logging.Formatter):
    """A record as one line. `extra={"fields": {...}}` gives it more keys. Exceptions come without their trace."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = describe_error(record.exc_info[1])
        return orjson.dumps(line, default=str).decode()


class AccessLog:
    """One line a request, gathered and written `interval_s` apart: `logging` alone would cost more than the request."""

    def __init__(self, write: Callable[[bytes], object] | None = None, interval_s: float = 0.2) -> None:
        self._write = write or stderr.write
        self._interval_s = interval_s
        self._lines: list[dict[str, Any]] = []

    def add(self, line: dict[str, Any]) -> None:
        """Call it in the event loop."""
        if not self._lines:
            asyncio.get_running_loop().call_later(self._interval_s, self.flush)
        self._lines.append(line)

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            self._write(b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines))


class Sink:
    """Writes to a file descriptor in a thread. What waits beyond `max_bytes` is left out, and that is told."""

    def __init__(self, descriptor: int, max_bytes: int = 4 << 20) -> None:
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._waiting = 0
        self._left_out = 0
        self._texts: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def write(self, text: bytes) -> None:
        """Never blocks."""
        with self._lock:
            if self._waiting + len(text) > self._max_bytes:
                self._left_out += text.count(b"\n")
                return
            self._waiting += len(text)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="gateway-log", daemon=True)
                self._thread.start()
        self._texts.put(text)

    def flush(self, seconds: float = 1.0) -> None:
        """Wait so long for what waits to be written."""
        ends = time.monotonic() + seconds
        while self._waiting and time.monotonic() < ends:
            time.sleep(0.005)

    def _run(self) -> None:
        while True:
            text = self._texts.get()
            self._put(text)
            with self._lock:
                self._waiting -= len(text)
                left_out, self._left_out = self._left_out, 0
            if left_out:
                line = {"time": datetime.now(UTC), "level": "warning", "message": f"{left_out} log lines left out"}
                self._put(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))

    def _put(self, text: bytes) -> None:
        rest = memoryview(text)
        with suppress(OSError):  # nobody reads it any more
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]


stderr = Sink(2)
"""Where the logs of this process go."""
atexit.register(stderr.flush)


class _SinkHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            stderr.write(self.format(record).encode("utf-8", "replace") + b"\n")
        except Exception:
            self.handleError(record)


def configure_logs() -> None:
    """Send the logs of this process to stderr as JSON lines."""
    handler = _SinkHandler()
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("gateway", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.INFO)
