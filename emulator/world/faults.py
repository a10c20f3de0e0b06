"""Orders to fail: the ways in which the real service fails, on demand.

An order is `{"kind", "match", "times", ...}`. `match` is "METHOD /path"; either part may hold the wildcards of
`fnmatch`, and a kind that can strike in one place only has that place as its default. `times` is how often it strikes
(default 1).

===================  ==========================================================================================
kind                 effect on the matched request
===================  ==========================================================================================
lost_response        the work is done, then the connection is closed without one byte of an answer
twice                the work is done twice, as when a proxy repeats what it got no answer to; the second is answered
body                 nothing is done; `status` (200) with `body` (an HTML page) and `content_type` (text/html)
truncated            done and answered, but of the body only the first `bytes` (default: half of it) come
cut                  done, then the connection is closed in the middle of the body
<200..299>           done and answered, with that status instead; 204 has no body
<300..399>           nothing is done; redirected to `location` (default: the same address)
hang                 nothing is done and nothing is answered until the client goes away
<400..599>           nothing is done; that status. `retry_after` (seconds) and `should_retry` set the headers
slow                 done and answered after `seconds` (of the machine's clock)
slow_cold_start      a deployment's create or update: its new replicas take `seconds` (default 1200) to be ready
no_capacity          a deployment's create or update: no hardware; DEGRADED, for `seconds` or for good
slow_adapter         an adapter's attachment: it takes `seconds` (default 600) to load
adapter_error        an adapter's attachment: it does not load, and ends as FAILED
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

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from emulator.errors import ApiError
from emulator.world.state import State

_DEPLOYMENT_WRITES = "P* /v2/projects/*/endpoints/*/deployments*"
_ATTACHMENT = "POST /v2/projects/*/endpoints/*/deployments/*/adapters"
_JOB_CREATION = "POST /v1/fine-tunes"
_DEFAULT_MATCHES = {
    "slow_cold_start": _DEPLOYMENT_WRITES,
    "no_capacity": _DEPLOYMENT_WRITES,
    "slow_adapter": _ATTACHMENT,
    "adapter_error": _ATTACHMENT,
    "training_error": _JOB_CREATION,
    "training_user_error": _JOB_CREATION,
    "training_slow": _JOB_CREATION,
    "training_crash": _JOB_CREATION,
}
_ANY_REQUEST = ("lost_response", "hang", "slow", "twice", "body", "truncated", "cut")
_OPTIONS = {
    *("seconds", "retry_after", "should_retry", "message"),
    *("status", "body", "content_type", "bytes", "location"),
}
_PAGE = "<!doctype html><html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"


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
        is_status = kind.isdigit() and 200 <= int(kind) <= 599
        if not is_status and kind not in _ANY_REQUEST and kind not in _DEFAULT_MATCHES:
            known = ", ".join((*_ANY_REQUEST, *_DEFAULT_MATCHES))
            raise ApiError(400, f"unknown fault kind {kind!r}; known: {known}, or a status of 200 to 599")
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
        elif fault.kind == "twice":
            await self._do_twice(scope, receive, send)
        elif fault.kind == "body":
            await _answer_body(fault)(scope, receive, send)
        elif fault.kind in ("truncated", "cut") or fault.kind.startswith("2"):
            await self._change_answer(fault, scope, receive, send)
        elif fault.kind.startswith("3"):
            await _redirect(fault, scope)(scope, receive, send)
        else:
            await _refuse(fault, scope)(scope, receive, send)

    async def _do_twice(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read_body(receive)
        await self.app(dict(scope), _replay(body, receive), _swallow)
        await self.app(scope, _replay(body, receive), send)

    async def _change_answer(self, fault: Fault, scope: Scope, receive: Receive, send: Send) -> None:
        """Do the work, then answer with another status, or less of the body."""
        start: dict[str, Any] = {}
        body = bytearray()

        async def keep(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))

        await self.app(scope, receive, keep)
        kept = len(body)
        if fault.kind in ("truncated", "cut"):
            kept = int(fault.options.get("bytes", len(body) // 2))
        elif fault.kind == "204":
            kept = 0
        told = len(body) if fault.kind == "cut" else kept
        headers = [(name, value) for name, value in start["headers"] if name != b"content-length"]
        if fault.kind != "204":
            headers.append((b"content-length", str(told).encode()))
        start |= {"headers": headers} | ({"status": int(fault.kind)} if fault.kind.isdigit() else {})
        await send(start)
        await send({"type": "http.response.body", "body": bytes(body[:kept]), "more_body": fault.kind == "cut"})
        if fault.kind == "cut":
            await asyncio.sleep(0)  # so that what there is of it leaves
            _transport(scope).abort()

    async def _lose_response(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, _swallow)
        _transport(scope).abort()
        while (await receive())["type"] != "http.disconnect":
            pass


async def _swallow(message: Message) -> None:
    pass


def _transport(scope: Scope) -> Any:
    transport = scope["extensions"].get("emulator.transport")
    if transport is None:
        raise RuntimeError("a lost response needs the emulator's own server (emulator.server.run)")
    return transport


async def _read_body(receive: Receive) -> bytes:
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was read already."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _answer_body(fault: Fault) -> Response:
    return Response(
        str(fault.options.get("body", _PAGE)),
        status_code=int(fault.options.get("status", 200)),
        media_type=str(fault.options.get("content_type", "text/html")),
    )


def _redirect(fault: Fault, scope: Scope) -> Response:
    query = scope["query_string"].decode()
    location = str(fault.options.get("location") or scope["path"] + (f"?{query}" if query else ""))
    return Response(status_code=int(fault.kind), headers={"location": location})


def _refuse(fault: Fault, scope: Scope) -> JSONResponse:
    headers = {}
    if "retry_after" in fault.options:
        headers["retry-after"] = str(fault.options["retry_after"])
    if "should_retry" in fault.options:
        headers["x-should-retry"] = "true" if fault.options["should_retry"] else "false"
    message = str(fault.options.get("message", f"ordered fault {fault.kind}"))
    error = ApiError(int(fault.kind), message, code="emulator_fault")
    return JSONResponse(error.body(scope["path"]), status_code=error.status, headers=headers)
