"""Orders to fail: the ways in which the real service fails, on demand.

An order is `{"kind", "match", "times", ...}`. `match` is "METHOD /path"; either part may hold the wildcards of
`fnmatch`, and a kind that can strike in one place only has that place as its default. `times` is how often it strikes
(default 1).

===================  ==========================================================================================
kind                 effect on the matched request
===================  ==========================================================================================
lost_response        the work is done, then the connection is closed without one byte of an answer
hang                 nothing is done and nothing is answered until the client goes away
<400..599>           nothing is done; that status. `retry_after` (seconds) and `should_retry` set the headers
slow                 done and answered after `seconds` (of the machine's clock)
slow_cold_start      a deployment's create or update: its new replicas take `seconds` (default 1200) to be ready
no_capacity          a deployment's create or update: no hardware; DEGRADED, for `seconds` or for good
training_error       a fine-tune's create: the job starts, then ends in `error`
training_user_error  the same, but in `user_error`
training_slow        the job pauses `seconds` (of the machine's clock) at each report of progress
training_crash       the training process is killed at its first report of progress: the job ends in `error`
===================  ==========================================================================================
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from emulator.errors import ApiError
from emulator.state import State

_DEPLOYMENT_WRITES = "P* /v2/projects/*/endpoints/*/deployments*"
_JOB_CREATION = "POST /v1/fine-tunes"
_DEFAULT_MATCHES = {
    "slow_cold_start": _DEPLOYMENT_WRITES,
    "no_capacity": _DEPLOYMENT_WRITES,
    "training_error": _JOB_CREATION,
    "training_user_error": _JOB_CREATION,
    "training_slow": _JOB_CREATION,
    "training_crash": _JOB_CREATION,
}
_ANY_REQUEST = ("lost_response", "hang", "slow")
_OPTIONS = {"seconds", "retry_after", "should_retry", "message"}


@dataclass(frozen=True)
class Fault:
    """An order that has just struck."""

    kind: str
    options: dict[str, Any]

    def seconds(self, default: float | None = None) -> float | None:
        value = self.options.get("seconds", default)
        return None if value is None else float(value)


class Faults:
    """The open orders; they survive a restart."""

    def __init__(self, state: State) -> None:
        self._state = state

    def order(self, order: Any) -> None:
        """Add one order. Raises `ApiError` (400) on an unknown kind, match or option."""
        if not isinstance(order, dict):
            raise ApiError(400, f"a fault order is an object with kind, match and times, not {order!r}")
        kind = str(order.get("kind", ""))
        is_status = kind.isdigit() and 400 <= int(kind) <= 599
        if not is_status and kind not in _ANY_REQUEST and kind not in _DEFAULT_MATCHES:
            known = ", ".join((*_ANY_REQUEST, *_DEFAULT_MATCHES))
            raise ApiError(400, f"unknown fault kind {kind!r}; known: {known}, or a status of 400 to 599")
        method, _, path = str(order.get("match") or _DEFAULT_MATCHES.get(kind, "")).partition(" ")
        if not path.startswith(("/", "*")):
            raise ApiError(400, f'fault {kind} needs "match": "METHOD /path" (wildcards * and ? are allowed)')
        times = order.get("times", 1)
        if not isinstance(times, int) or times < 1:
            raise ApiError(400, f"times is a whole number from 1, not {times!r}")
        options = {key: value for key, value in order.items() if key not in ("kind", "match", "times")}
        if unknown := sorted(set(options) - _OPTIONS):
            raise ApiError(400, f"unknown keys in a fault order: {', '.join(unknown)}")
        self._state.insert(
            "faults", method=method.upper(), path=path, kind=kind, remaining=times, options=json.dumps(options)
        )

    def clear(self) -> None:
        self._state.execute("DELETE FROM faults")

    def list(self) -> list[dict[str, Any]]:
        return [
            {"match": f"{row['method']} {row['path']}", "kind": row["kind"], "times": row["remaining"]}
            | json.loads(row["options"])
            for row in self._state.rows("SELECT * FROM faults ORDER BY sequence")
        ]

    def strike(self, method: str, path: str, *, kinds: tuple[str, ...] | None = None) -> Fault | None:
        """Take the oldest order that matches; `kinds` limits it, by default to those that any request can meet."""
        for row in self._state.rows("SELECT * FROM faults ORDER BY sequence"):
            kind = row["kind"]
            wanted = kind in kinds if kinds else kind in _ANY_REQUEST or kind.isdigit()
            if wanted and fnmatchcase(method, row["method"]) and fnmatchcase(path, row["path"]):
                with self._state.transaction():
                    self._state.execute(
                        "UPDATE faults SET remaining = remaining - 1 WHERE sequence = ?", row["sequence"]
                    )
                    self._state.execute("DELETE FROM faults WHERE remaining < 1")
                return Fault(kind, json.loads(row["options"]))
        return None


class FaultMiddleware:
    """Strikes requests with the orders that any request can meet."""

    def __init__(self, app: ASGIApp, faults: Faults) -> None:
        self.app = app
        self.faults = faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = None
        if scope["type"] == "http" and not scope["path"].startswith("/emulator/"):
            fault = self.faults.strike(scope["method"], scope["path"])
        if fault is None:
            await self.app(scope, receive, send)
        elif fault.kind == "hang":
            while (await receive())["type"] != "http.disconnect":
                pass
        elif fault.kind == "lost_response":
            await self._lose_response(scope, receive, send)
        elif fault.kind == "slow":
            await asyncio.sleep(fault.seconds(1.0) or 0.0)
            await self.app(scope, receive, send)
        else:
            await _refuse(fault, scope)(scope, receive, send)

    async def _lose_response(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def swallow(message: Message) -> None:
            pass

        await self.app(scope, receive, swallow)
        transport = scope["extensions"].get("emulator.transport")
        if transport is None:
            raise RuntimeError("a lost response needs the emulator's own server (emulator.server.run)")
        transport.abort()
        while (await receive())["type"] != "http.disconnect":
            pass


def _refuse(fault: Fault, scope: Scope) -> JSONResponse:
    headers = {}
    if "retry_after" in fault.options:
        headers["retry-after"] = str(fault.options["retry_after"])
    if "should_retry" in fault.options:
        headers["x-should-retry"] = "true" if fault.options["should_retry"] else "false"
    message = str(fault.options.get("message", f"ordered fault {fault.kind}"))
    error = ApiError(int(fault.kind), message, code="emulator_fault")
    return JSONResponse(error.body(scope["path"]), status_code=error.status, headers=headers)
