"""Structured logs: one JSON object a line, of facts about requests, never of their contents or keys."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson

from reasoning.redact import describe_error

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
        self._write = write or _write_stderr
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


def _write_stderr(text: bytes) -> None:
    sys.stderr.buffer.write(text)
    sys.stderr.buffer.flush()


def configure_logs() -> None:
    """Send the logs of this process to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("gateway", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.INFO)
