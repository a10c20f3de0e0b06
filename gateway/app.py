"""The gateway as an ASGI application: admission, routing to the endpoint, and accounting of each request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.client import GatewayClient
from gateway.coding.classify import load_classifier
from gateway.coding.model import CodingModel
from gateway.coding.sessions import Sessions
from gateway.decisions import api as decisions
from gateway.decisions.episodes import Episodes
from gateway.decisions.forced import ForcedTypes, read_templates
from gateway.decisions.owners import open_owners
from gateway.decisions.prompts import read_kinds
from gateway.decisions.typed import answer_typed
from gateway.errors import RequestRefused, UpstreamError
from gateway.http.budget import Budget
from gateway.http.companies import choose_protocol, guess_protocol
from gateway.http.exchange import MAX_BODY_BYTES, ClientGone, Exchange, Receive, Send
from gateway.http.forward import error_of, forward
from gateway.http.paths import is_allowed
from gateway.http.security import NOBODY, PROBES, Guard
from gateway.http.upstream import Pool, open_session
from gateway.operations import answer
from gateway.ops import pages
from gateway.ops.logs import AccessLog, log
from gateway.ops.metrics import Metrics
from gateway.ops.record import Recorder
from gateway.ops.tracing import Tracer, open_tracer
from gateway.pages import http as people
from gateway.pages.worker import PageWorker
from gateway.protocols import PROTOCOLS
from gateway.protocols.port import Protocol
from gateway.protocols.table import make_table
from gateway.settings import Key, Settings, UpstreamSettings, load_settings
from gateway.state import State
from gateway.store import Store
from prices.models import load_library
from reasoning.config import Config, load_config
from reasoning.errors import ReasoningError
from reasoning.serving.shadow import ShadowTasks

OWN_PAGES = {
    b"/healthz": pages.healthz,
    b"/readyz": pages.readyz,
    b"/metrics": pages.metrics,
    b"/stats": pages.stats,
    b"/openapi.json": pages.openapi,
    b"/docs": pages.docs,
}
STATISTICS = frozenset({b"/metrics", b"/stats"})
UPGRADE = "reasoning.upgrade"
"""In a scope: the protocol that a request wants to change to, where it does not work without (see `gateway.server`)."""
NO_UPGRADE = "only HTTP/1.1 is spoken here, no WebSocket; send a plain request, its answer can be streamed"


class Gateway:
    """The ASGI application. `state` is there between the lifespan's start and its end."""

    def __init__(self, config: Config, settings: Settings) -> None:
        self.config = config
        self.settings = settings
        self.protocols = settings.protocols
        self.guard = Guard(settings)
        self.budget = Budget(int(settings.body_budget_mb * (1 << 20)))
        self.active = 0
        self.draining = False
        self.state: State
        self.access_log = AccessLog() if settings.log_requests else None
        self.worker = PageWorker(config.data)
        self.actor = PageWorker(config.data)
        self._tracer: Tracer = open_tracer(config.redaction.region)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._request(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1003})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[State]:
        """Open what the endpoints share, and close it. The lifespan does; tests may as well."""
        config, settings = self.config, self.settings
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(open_session(settings))
            metrics = Metrics()
            recorder = Recorder(config.spool, metrics, max_bytes=int(settings.record_queue_mb * (1 << 20)))
            stack.push_async_callback(asyncio.to_thread, recorder.close)
            store = Store(config.data / "gateway.sqlite")
            stack.callback(store.close)
            shadows = ShadowTasks(config.shadow_workers, config.shadow_queue, metrics.count_shadow)
            stack.push_async_callback(shadows.close)
            owners = open_owners(config.data / "gateway.secret")
            client = GatewayClient(config, recorder, owners, decisions=settings.record)
            stack.push_async_callback(client.close)
            stack.callback(self._tracer.close)
            stack.push_async_callback(self.worker.close)
            stack.push_async_callback(self.actor.close)
            if self.access_log is not None:
                stack.callback(self.access_log.flush)
            self.state = State(
                config=config,
                settings=settings,
                http=http,
                pools={
                    protocol.name: Pool(
                        protocol.name,
                        settings.upstreams.get(protocol.name) or (UpstreamSettings(protocol.url),),
                        repeatable=protocol.repeatable,
                    )
                    for protocol in settings.protocols.protocols
                },
                metrics=metrics,
                recorder=recorder,
                sessions=Sessions(store),
                shadows=shadows,
                classifier=load_classifier(settings.coding_classifier, settings.coding_threshold),
                coding=CodingModel(
                    config, http, idle_timeout_s=settings.coding_idle_timeout_s, tools=settings.coding_tools
                ),
                prompt_kinds=read_kinds(settings.prompts, config.decision_types),
                forced=ForcedTypes(
                    read_templates(settings.forced_templates), client.question_type, after=settings.forced_after
                ),
                client=client,
                episodes=Episodes(store),
                owners=owners,
            )
            await asyncio.to_thread(load_library, [pool.url for pool in self.state.pools.values()])
            yield self.state

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            async with self.running():
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except ReasoningError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.shutdown.complete"})

    async def _request(self, scope: Any, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, NOBODY, self.budget)
        self.active += 1
        try:
            exchange.admission = self.guard.admit(scope)
            if self.active > self.settings.max_concurrency and exchange.admission.key is not None:
                raise RequestRefused(529, "overloaded_error", "too many requests under way; try again in a moment")
            if UPGRADE in scope:
                raise RequestRefused(426, "invalid_request_error", NO_UPGRADE)
            with self._tracer.span(exchange):
                await self._route(exchange)
        except ClientGone:
            exchange.gone = True
        except RequestRefused as error:
            await self._fail(exchange, error.status, error.type, error.message)
        except UpstreamError as error:
            exchange.reason = "upstream_error"
            refusal = exchange.refusal
            told = (refusal.status, refusal.type, refusal.message) if refusal else error_of(error)
            await self._fail(exchange, *told)
        except ReasoningError as error:
            if exchange.status:
                raise
            await exchange.reply(decisions.error_status(error), decisions.error_body(error))
        except Exception:
            log.exception("a request failed", extra={"fields": {"request_id": exchange.request_id}})
            await self._fail(exchange, 500, "api_error", "the gateway failed; the log has the request's id")
        finally:
            self.active -= 1
            exchange.drop()
            self._account(exchange)

    async def _route(self, exchange: Exchange) -> None:
        path = exchange.path
        own, key = OWN_PAGES.get(path), exchange.admission.key
        if own is not None and exchange.method in ("GET", "HEAD"):
            exchange.route = path.decode().strip("/")
            if path in STATISTICS and not (key is not None and key.stats):
                raise _forbidden(key, f"the statistics of {path.decode()}", "`stats = true`")
            await own(self, exchange)
            return
        if path.startswith(people.PREFIX):
            exchange.route = "pages"
            live = await pages.collect_stats(self) if key is not None else {}
            await people.serve(self, exchange, live)
            return
        if path == b"/dashboard" and exchange.method in ("GET", "HEAD"):  # its address before 0.4
            exchange.route = "pages"
            await people.shell(exchange)
            return
        probe = path in PROBES and exchange.method in ("GET", "HEAD")
        if key is None or (
            probe and not is_allowed(key.paths, exchange.method, path, self.protocols.administration)
        ):  # a probe, or a person
            exchange.route = "probe"
            await (people.shell(exchange) if exchange.method == "GET" else exchange.reply(200, b"{}"))
            return
        path = self.protocols.aliases.get(path, path)
        if path == b"/v1/feedback" or path.startswith(b"/v1/decide/"):
            if "decisions" not in key.protocols:
                raise _forbidden(key, path.decode("latin-1"), '`decisions = true`, and "decisions" in `protocols`,')
            await self._decisions(exchange, path)
            return
        if not is_allowed(key.paths, exchange.method, path, self.protocols.administration):
            raise _forbidden(key, f"{exchange.method} {path.decode('latin-1')}", "an entry of `paths`")
        protocol = exchange.protocol = choose_protocol(self.protocols, path, exchange.query, exchange.admission)
        if protocol.name not in key.protocols:
            raise _forbidden(key, f"what is {protocol.name}'s", f'"{protocol.name}" in `protocols`')
        operation = protocol.operation(path) if exchange.method == "POST" else None
        typed = protocol.typed_operation(path) if exchange.method == "POST" else None
        if typed is not None:
            await answer_typed(self.state, exchange, typed, path)
        elif operation is None:
            await self._pass(exchange, protocol, path)
        else:
            await answer(self.state, exchange, operation, path)

    async def _decisions(self, exchange: Exchange, path: bytes) -> None:
        if exchange.method != "POST":
            raise RequestRefused(405, "invalid_request_error", "POST is what this path takes; see /docs")
        if path == b"/v1/feedback":
            await decisions.feedback(self.state, exchange)
        else:
            await decisions.decide(self.state, exchange, path.removeprefix(b"/v1/decide/").decode("latin-1"))

    async def _pass(self, exchange: Exchange, protocol: Protocol, path: bytes) -> None:
        """Every other path, to the API that it belongs to."""
        limit = next((limit for prefix, limit in protocol.large_bodies if path.startswith(prefix)), MAX_BODY_BYTES)
        if not exchange.has_body:
            await exchange.read(0)
            body: Any = None
        elif limit > MAX_BODY_BYTES:
            body = exchange.stream(limit)
        else:
            body = await exchange.read(limit)
        await forward(exchange, self.state.http, self.state.pools[protocol.name], path=path, body=body)

    async def _fail(self, exchange: Exchange, status: int, type: str, message: str) -> None:
        """An error of our own in the shape of the API that was asked; after the answer began, a cut connection."""
        if exchange.status:
            return
        headers = [(b"x-should-retry", b"true")] if status in (502, 503, 504, 529) else []
        if status in (503, 529):
            headers.append((b"retry-after", b"1"))
        if status == 405:
            headers.append((b"allow", b"POST"))
        if status == 426:  # RFC 9110, 15.5.22: it names what is spoken here
            headers += [(b"upgrade", b"HTTP/1.1"), (b"connection", b"upgrade")]
        if status in (400, 413, 414, 431):
            headers.append((b"connection", b"close"))  # where the next request begins is in doubt
        path = self.protocols.aliases.get(exchange.path, exchange.path)
        protocol = exchange.protocol or guess_protocol(self.protocols, path, exchange.admission)
        status, body = protocol.error(status, type, message, exchange.request_id)
        await exchange.reply(status, body, headers)

    def _account(self, exchange: Exchange) -> None:
        now = time.perf_counter()
        latency = now - exchange.started_at
        first = None if exchange.first_byte_at is None else exchange.first_byte_at - exchange.started_at
        status = exchange.status or 499
        if exchange.gone:
            self.state.metrics.disconnects.inc()
        self.state.metrics.answered(exchange.route, exchange.served_by, status, latency, first)
        if self.access_log is not None:
            line = {
                "time": datetime.now(UTC),
                "message": "request",
                "request_id": exchange.request_id,
                "key": exchange.admission.key.name if exchange.admission.key else None,
                "method": exchange.method,
                "route": exchange.route,
                "status": status,
                "served_by": exchange.served_by,
                "kind": exchange.kind,
                "reason": exchange.reason,
                "client_gone": exchange.gone,
                "bytes_out": exchange.bytes_out,
                "latency_ms": round(latency * 1000, 3),
                "first_byte_ms": None if first is None else round(first * 1000, 3),
            }
            self.access_log.add(line)


def _forbidden(key: Key | None, what: str, needed: str) -> RequestRefused:
    if key is not None and key.operator:
        remedy = "the operator's key may not; make a key in [gateway.keys] with"
    else:
        remedy = f"[gateway.keys.{key.name if key else '<name>'}] needs"
    return RequestRefused(403, "permission_error", f"this key is not for {what}; {remedy} {needed}")


def create_app(data: Path | str | None = None, protocols: Iterable[Protocol] = PROTOCOLS) -> Gateway:
    """The application for `data` (default: the configured data folder), speaking `protocols`.

    Raises `reasoning.errors.ConfigError` or `gateway.errors.GatewayConfigError`.
    """
    config = load_config(data)
    return Gateway(config, load_settings(config.data, protocols=make_table(protocols)))
