"""The application and the server process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from emulator.api import (
    account,
    adapters,
    admin,
    completions,
    deployments,
    endpoints,
    files,
    fine_tunes,
    models,
    offers,
)
from emulator.billing.catalog import load_catalog
from emulator.errors import ApiError, StartError
from emulator.origins import SameOriginMiddleware
from emulator.world.clock import Clock
from emulator.world.context import Emulator, Settings
from emulator.world.faults import FaultMiddleware, Faults
from emulator.world.forms import set_forms
from emulator.world.scheduler import Scheduler
from emulator.world.serving import TRAINERS, ModelCache
from emulator.world.state import State

_PROJECT = "/v2/projects/{project}"
_ENDPOINT = _PROJECT + "/endpoints/{endpoint}"
_DEPLOYMENT = _ENDPOINT + "/deployments/{deployment}"
_ADAPTER = _DEPLOYMENT + "/adapters/{adapter}"
_FINE_TUNE = "/v1/fine-tunes/{fine_tune}"


def _route(method: str, path: str, handler: Any) -> Route:
    return Route(path, handler, methods=[method])


ROUTES = [
    _route("POST", "/v1/chat/completions", completions.create_chat_completion),
    _route("GET", "/v3/whoami", account.whoami),
    _route("GET", "/v1/projects", account.list_projects),
    _route("POST", "/v1/endpoints", endpoints.refuse_v1_endpoint),
    _route("GET", "/v1/models", offers.list_serverless_models),
    _route("GET", "/v1/billing/usage", account.list_billing_usage),
    _route("GET", "/v1/files", files.list_files),
    _route("POST", "/v1/files", files.create_file),
    _route("POST", "/v1/files/multipart/initiate", files.initiate_multipart),
    _route("POST", "/v1/files/multipart/complete", files.complete_multipart),
    _route("POST", "/v1/files/multipart/abort", files.abort_multipart),
    _route("GET", "/v1/files/{file}", files.retrieve_file),
    _route("DELETE", "/v1/files/{file}", files.delete_file),
    _route("POST", "/v1/files/{file}/preprocess", files.preprocess_file),
    _route("GET", "/v1/files/{file}/content", files.retrieve_file_content),
    _route("PUT", "/blobs/{file}", files.put_blob),
    _route("PUT", "/blobs/{file}/parts/{part:int}", files.put_part),
    _route("GET", "/v1/fine-tunes/models/limits", fine_tunes.retrieve_limits),
    _route("POST", "/v1/fine-tunes/estimate-price", fine_tunes.estimate_price),
    _route("GET", "/v1/fine-tunes", fine_tunes.list_fine_tunes),
    _route("POST", "/v1/fine-tunes", fine_tunes.create_fine_tune),
    _route("GET", _FINE_TUNE, fine_tunes.retrieve_fine_tune),
    _route("DELETE", _FINE_TUNE, fine_tunes.delete_fine_tune),
    _route("GET", _FINE_TUNE + "/events", fine_tunes.list_events),
    _route("GET", _FINE_TUNE + "/checkpoints", fine_tunes.list_checkpoints),
    _route("GET", _FINE_TUNE + "/metrics", fine_tunes.list_metrics),
    _route("POST", _FINE_TUNE + "/cancel", fine_tunes.cancel_fine_tune),
    _route("GET", "/v1/finetune/download", fine_tunes.download_model),
    _route("GET", "/v2/supported-models", offers.list_supported_models),
    _route("GET", "/v2/supported-models/{model:path}", offers.retrieve_supported_model),
    _route("GET", "/v2/public/inference-instance-types", offers.list_instance_types),
    _route("GET", "/v2/public/inference-instance-types/{instance_type}", offers.retrieve_instance_type),
    _route("GET", "/v2/organizations/{organization}/endpoints", endpoints.list_endpoints),
    _route("GET", "/v2/organizations/{organization}/models", models.list_models),
    _route("GET", _PROJECT + "/models", models.list_models),
    _route("GET", _PROJECT + "/models/{model}", models.retrieve_model),
    _route("PATCH", _PROJECT + "/models/{model}", models.update_model),
    _route("DELETE", _PROJECT + "/models/{model}", models.delete_model),
    _route("GET", _PROJECT + "/models/{model}/revisions", models.list_model_revisions),
    _route("GET", _PROJECT + "/models/{model}/files", models.list_model_files),
    _route("GET", _PROJECT + "/configs", offers.list_configs),
    _route("GET", _PROJECT + "/configs/{config}", offers.retrieve_config),
    _route("GET", _PROJECT + "/placement-profiles", account.list_placement_profiles),
    _route("GET", _PROJECT + "/endpoints", endpoints.list_endpoints),
    _route("POST", _PROJECT + "/endpoints", endpoints.create_endpoint),
    _route("GET", _ENDPOINT, endpoints.retrieve_endpoint),
    _route("PATCH", _ENDPOINT, endpoints.update_endpoint),
    _route("DELETE", _ENDPOINT, endpoints.delete_endpoint),
    _route("GET", _ENDPOINT + "/analytics", endpoints.retrieve_analytics),
    *(
        _route("GET", f"{_ENDPOINT}/{name}", endpoints.list_nothing)
        for name in ("abExperiments", "shadowExperiments", "rollouts", "events")
    ),
    _route("GET", _ENDPOINT + "/deployments", deployments.list_deployments),
    _route("POST", _ENDPOINT + "/deployments", deployments.create_deployment),
    _route("GET", _DEPLOYMENT, deployments.retrieve_deployment),
    _route("PATCH", _DEPLOYMENT, deployments.update_deployment),
    _route("DELETE", _DEPLOYMENT, deployments.delete_deployment),
    _route("GET", _DEPLOYMENT + "/adapters", adapters.list_adapters),
    _route("POST", _DEPLOYMENT + "/adapters", adapters.create_adapter),
    _route("GET", _ADAPTER, adapters.retrieve_adapter),
    _route("PATCH", _ADAPTER, adapters.update_adapter),
    _route("DELETE", _ADAPTER, adapters.delete_adapter),
    _route("GET", "/emulator/healthz", admin.check_health),
    _route("GET", "/emulator/clock", admin.read_clock),
    _route("POST", "/emulator/clock", admin.set_clock),
    _route("GET", "/emulator/faults", admin.list_faults),
    _route("POST", "/emulator/faults", admin.order_faults),
    _route("DELETE", "/emulator/faults", admin.clear_faults),
    _route("GET", "/emulator/forms", admin.list_forms),
    _route("POST", "/emulator/forms", admin.choose_forms),
    _route("DELETE", "/emulator/forms", admin.reset_forms),
    _route("GET", "/emulator/bill", admin.read_bill),
    _route("POST", "/emulator/bill", admin.set_bill_form),
    _route("POST", "/emulator/balance", admin.set_balance),
]


def create_app(data: Path, *, settings: Settings | None = None, now: datetime | None = None) -> Starlette:
    """The ASGI application over the data folder `data`, which no other process may use at the time.

    `now` sets the clock. Raises `StartError` when the folder cannot be opened or an unknown trainer is named.
    """
    settings = settings or Settings()
    if settings.trainer not in TRAINERS:
        raise StartError(f"unknown trainer {settings.trainer!r}; there are {', '.join(TRAINERS)}")
    state = State(data.absolute())  # trainings run in another working directory
    emulator = Emulator(
        settings=settings,
        state=state,
        clock=Clock(state),
        catalog=load_catalog(),
        faults=Faults(state),
        models=ModelCache(state.models),
        disk=ThreadPoolExecutor(4, thread_name_prefix="disk"),
    )
    if settings.forms:
        set_forms(state, dict(settings.forms))
    if now is not None:
        emulator.clock.set(now)
    app = Starlette(
        routes=ROUTES,
        lifespan=_lifespan,
        middleware=[
            Middleware(DateMiddleware, clock=emulator.clock),
            Middleware(SameOriginMiddleware, hosts=settings.allowed_hosts),
            Middleware(AuthorizationMiddleware),
            Middleware(FaultMiddleware, faults=emulator.faults),
        ],
        exception_handlers={
            ApiError: _answer_api_error,
            HTTPException: _answer_http_error,
            sqlite3.OperationalError: _answer_database_error,
            Exception: _answer_bug,
        },
    )
    app.router.redirect_slashes = False
    app.state.emulator = emulator
    app.state.scheduler = Scheduler(emulator)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    emulator: Emulator = app.state.emulator
    scheduler: Scheduler = app.state.scheduler
    files.resume_processing(emulator)
    scheduler.resume()
    deployments.warm_deployed(emulator)
    try:
        yield
    finally:
        await scheduler.close()
        emulator.models.close()
        emulator.disk.shutdown(cancel_futures=True)
        emulator.state.close()


class DateMiddleware:
    """Every answer tells the time by the emulator's clock."""

    def __init__(self, app: ASGIApp, clock: Clock) -> None:
        self.app = app
        self.clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_dated(message: Message) -> None:
            if message["type"] == "http.response.start":
                date = format_datetime(self.clock.now(), usegmt=True).encode()
                message = {**message, "headers": [*message.get("headers", ()), (b"date", date)]}
            await send(message)

        await self.app(scope, receive, send_dated if scope["type"] == "http" else send)


class AuthorizationMiddleware:
    """Any non-empty bearer is good; the emulator's own routes and upload addresses need none."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["path"].startswith(("/emulator/", "/blobs/")):
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            scheme, _, key = given.partition(b" ")
            if scheme.lower() != b"bearer" or not key.strip():
                message = "No API key. Send it as Authorization: Bearer <key>; the emulator takes any."
                error = ApiError(401, message, code="missing_api_key", kind="invalid_request_error")
                # Whatever the path: the gate in front of the APIs answers in the v1 shape.
                await JSONResponse(error.body("/v1"), status_code=401)(scope, receive, send)
                return
        await self.app(scope, receive, send)


async def _answer_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(request.url.path), status_code=error.status, headers=error.headers)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}; docs/guides/emulator.md lists the routes"
    return await _answer_api_error(request, ApiError(error.status_code, message))


async def _answer_database_error(request: Request, error: Exception) -> Response:
    full = getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE)
    message = f"the emulator's database could not be written: {error}" + ("; free some space" if full else "")
    return await _answer_api_error(request, ApiError(507 if full else 500, message))


async def _answer_bug(request: Request, error: Exception) -> Response:
    return await _answer_api_error(request, ApiError(500, f"the emulator failed: {type(error).__name__}: {error}"))


class _Protocol(HttpToolsProtocol):
    """Hands the transport to the application, so that a lost response can be lost for real."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {"emulator.transport": self.transport}  # type: ignore[dict-item]


class _Server(uvicorn.Server):
    """Prints its address when it is ready."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if sockets and not self.should_exit:
            host, port = sockets[0].getsockname()[:2]
            print(f"http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)


def run(
    data: Path, *, port: int, host: str = "127.0.0.1", settings: Settings | None = None, now: datetime | None = None
) -> None:
    """Serve until SIGTERM or SIGINT. Port 0 takes a free one; the address is printed when the server is ready.

    Raises `StartError` when the port or the data folder is in use.
    """
    settings = settings or Settings()
    settings = replace(settings, allowed_hosts=(*settings.allowed_hosts, host))
    with _bind(host, port) as listener, _lock(data):
        app = create_app(data, settings=settings, now=now)
        config = uvicorn.Config(
            app,
            http=_Protocol,
            log_level="warning",
            access_log=False,
            date_header=False,
            lifespan="on",
            timeout_graceful_shutdown=2,
        )
        # uvicorn stops cleanly on SIGTERM and then raises it again, which would end this process with an error.
        signal.signal(signal.SIGTERM, lambda *_: None)
        with contextlib.suppress(KeyboardInterrupt):
            _Server(config).run(sockets=[listener])


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio sets TCP_NODELAY only then; without it each answer waits 40 ms for an ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise StartError(f"port {port} on {host} is in use; give another --port, or 0 for a free one") from error
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


@contextlib.contextmanager
def _lock(data: Path) -> Iterator[None]:
    """Own the data folder: two processes on one SQLite would bill and train twice."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        handle = (data / "emulator.lock").open("w")
    except OSError as error:
        raise StartError(f"cannot write to the data folder {data}: {error.strerror}; give another --data") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StartError(f"another emulator uses the data folder {data}; give another --data") from error
        yield
