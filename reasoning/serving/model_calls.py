"""Calls of models, without the waiting: which arm answers, whether it may be asked now, and what a call's end says.

The sync client, the async client and the gateway all go the same way and do only the input and output themselves::

    draw -> admit (or may_call) -> target -> [the caller's own I/O] -> settle or release, exactly once

Failures are `CallFailed`; what they say about the server is `server_health` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import orjson

from reasoning.config import Config, api_key_for
from reasoning.errors import CallFailed, ConfigError, RoutesError
from reasoning.io.bounded import TooLarge, load_bounded
from reasoning.records import FallbackReason
from reasoning.serving.breaker import CircuitBreaker
from reasoning.serving.lease import RoutesLease
from reasoning.serving.routes import Arm, Route, choose_arm

PATH = "/v1/chat/completions"

REQUEST_ERRORS = frozenset({400, 409, 413, 422})
"""HTTP statuses about one request (too long a context, a tool's schema). They say nothing about the model's health."""

BYTES_PER_TOKEN = 16
"""More than an answer has for each of the tokens that it may have. A longer one is unparseable."""

Place = tuple[str | None, str | None]
"""Base URL and model: what one circuit breaker is about."""


class Choice(NamedTuple):
    """How a question is to be answered. `reason` says why no model may; None where `drawn` decides.

    `probability` is that of the drawn arm. `error` is the detail of `reason`, for the log.
    """

    route: Route | None = None
    drawn: Arm | None = None
    probability: float | None = None
    reason: FallbackReason | None = None
    error: str | None = None

    @property
    def asks_model(self) -> bool:
        return self.reason is None and self.drawn is not None and self.drawn.source == "custom"


class Target(NamedTuple):
    """Where an arm is asked: its URL, the API key that this place may see, and the headers that carry the key."""

    url: str
    api_key: str | None
    headers: tuple[tuple[bytes, bytes], ...]


class _Server(NamedTuple):
    """One model at one place. Of calls under way there is one item each: append and pop are atomic, += is not."""

    breaker: CircuitBreaker
    under_way: list[None]


class ModelCalls:
    """The routes in force; and for each place and model a circuit breaker and a count of calls. Thread-safe."""

    def __init__(self, config: Config, clock: Callable[[], float]) -> None:
        self.lease = RoutesLease(config.routes, clock)
        self._config = config
        self._clock = clock
        self._targets: dict[tuple[str, str | None], Target] = {}
        self.reset()

    def reset(self) -> None:
        """As new, for a forked child, which inherits no lock that a thread may have held."""
        self._servers: dict[Place, _Server] = {}

    def find_route(self, decision_type: str, now: float | None = None) -> tuple[Route | None, FallbackReason | None]:
        """The route of a decision type at `now` (seconds since the epoch), or why none is in force."""
        if not self._config.enabled:
            return None, "disabled"
        return self.lease.find(decision_type, self._clock() if now is None else now)

    def draw(self, decision_type: str, key: str, now: float | None = None) -> Choice:
        """Which arm answers `key`. Nothing is reserved yet: where it asks a model, `admit` follows."""
        route, reason = self.find_route(decision_type, now)
        if route is None:
            return Choice(reason=reason, error=self.lease.error)
        try:
            drawn, probability = choose_arm(route, key)
            return Choice(route, drawn, probability, None, self.lease.error)
        except RoutesError as error:
            return Choice(route, reason="no_route", error=str(error))

    def admit(self, choice: Choice) -> Arm | None:
        """The arm to ask, reserved by `may_call`; None where no breaker lets a call through.

        Live arms of one model at several places are replicas: the least busy one in proportion to its weight is asked,
        the drawn one where they are equal, another one where a breaker is open.
        """
        drawn, route = choice.drawn, choice.route
        if drawn is None or route is None:
            return None
        replicas = [
            arm
            for arm in route.arms
            if arm.model == drawn.model and arm.source == "custom" and arm.mode == "live" and arm.weight > 0
        ]
        if len(replicas) > 1:
            replicas.sort(key=lambda arm: (len(self._server(arm).under_way) / arm.weight, arm is not drawn))
        for arm in replicas:
            if self.may_call(arm):
                return arm
        return None

    def may_call(self, arm: Arm) -> bool:
        """Does the arm's breaker let a call through? Then it is counted as under way: `settle` or `release` follows."""
        server = self._server(arm)
        if not server.breaker.allow():
            return False
        server.under_way.append(None)
        return True

    def target(self, arm: Arm) -> Target:
        """Where `arm` is asked. Raises `CallFailed` (`disabled`) where it needs a key that it may not be sent."""
        base_url = arm.base_url or ""
        found = self._targets.get((base_url, arm.key_variable))
        if found is None:
            try:
                key = api_key_for(self._config, base_url, arm.key_variable)
            except ConfigError as error:
                raise CallFailed("disabled", str(error)) from None
            headers = ((b"Authorization", f"Bearer {key}".encode()),) if key else ()
            found = self._targets[base_url, arm.key_variable] = Target(f"{base_url}{PATH}", key, headers)
        return found

    def settle(self, arm: Arm, failure: CallFailed | None = None) -> None:
        """A call that `may_call` let through has ended: with an answer that is served, or with `failure`."""
        server = self._server(arm)
        _leave(server)
        health = server_health(failure)
        if health == "well":
            server.breaker.succeed()
        elif health == "ill":
            server.breaker.fail()
        else:
            server.breaker.release()

    def release(self, arm: Arm) -> None:
        """A call that `may_call` let through was given up (a cancellation): that says nothing about the model."""
        server = self._server(arm)
        _leave(server)
        server.breaker.release()

    def states(self) -> dict[Place, str]:
        """The state of each breaker, by base URL and model."""
        return {place: server.breaker.state for place, server in list(self._servers.items())}

    def _server(self, arm: Arm) -> _Server:
        place = arm.base_url, arm.model
        server = self._servers.get(place)
        if server is None:
            new = CircuitBreaker(self._config.breaker_failures, self._config.breaker_seconds)
            server = self._servers.setdefault(place, _Server(new, []))
        return server


def _leave(server: _Server) -> None:
    """Count a call as ended. A forked child may end one that began before the fork, of which `reset` kept nothing."""
    try:  # noqa: SIM105 - `suppress` costs half a microsecond
        server.under_way.pop()
    except IndexError:
        pass


def server_health(failure: CallFailed | None) -> Literal["well", "ill", "unknown"]:
    """What the end of a call says about the server. Of None, an answer that was served: `well`.

    A whole answer with status 200 comes of a healthy server, whatever its model wrote. What was wrong with one request,
    or was never sent, says nothing. All else is the server's, the account's or the network's: 401, 403, 404, 429, 5xx,
    a connection that fails, silence, what is no chat completion.
    """
    if failure is None:
        return "well"
    if failure.reason == "disabled" or failure.status in REQUEST_ERRORS:
        return "unknown"
    return "well" if failure.reason in ("unparseable", "low_confidence") else "ill"


def failed_status(status: int, body: bytes = b"") -> CallFailed:
    """The error that an HTTP status means: 402 is `over_budget`, 408 and 504 are `timeout`, else `provider_error`.

    The server's own message is told where `body` has one.
    """
    try:
        error = load_bounded(body)
        error = error.get("error", error)
        message = str(error.get("message", "") if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        message = ""
    reason: FallbackReason = "over_budget" if status == 402 else "timeout" if status in (408, 504) else "provider_error"
    return CallFailed(reason, f"HTTP {status} {message}".strip(), status)


def failed_io(error: Exception, detail: str) -> CallFailed:
    """What an error of reading or writing means: silence is `timeout`, else `provider_error`. `detail` is told."""
    if isinstance(error, CallFailed):
        return error
    return CallFailed("timeout" if isinstance(error, TimeoutError) else "provider_error", detail)


def check_size(size: int, limit: int) -> None:
    """Raises `CallFailed` (`unparseable`) for an answer of more bytes than are read of one."""
    if size > limit:
        raise CallFailed("unparseable", f"the answer is longer than {limit >> 20} MB")


def load_answer(body: bytes) -> Any:
    """The JSON of a whole answer. Raises `CallFailed`: too large is `unparseable`, no JSON is `provider_error`."""
    try:
        return load_bounded(body)
    except TooLarge as error:
        raise CallFailed("unparseable", str(error)) from None
    except orjson.JSONDecodeError:
        raise CallFailed("provider_error", "not a chat completion: it is not JSON") from None
