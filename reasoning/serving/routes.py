"""`routes.json`: which arms answer each decision type, until when. A lease that guard_costs renews."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

import orjson

from reasoning.errors import RoutesError
from reasoning.records import Source

ROUTES_VERSION = 1

MAX_LEASE = timedelta(hours=1)
"""A longer lease is not followed: no guard writes one, and a wrong clock must not give a dead guard's routes hours."""

CLOCK_TOLERANCE = timedelta(minutes=5)
"""Two machines' clocks may differ by so much. A lease from further in the future is not followed."""

Logprobs = Literal["count", "flag", "none"]
"""How a server is asked for log-probabilities.

`count`: `"logprobs": 1`, as Together takes it. `flag`: `"logprobs": true`, as OpenAI, vLLM, llama-server and SGLang do.
`none`: not at all.
"""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of answering. Prices are US dollars a million tokens, as decimal text.

    `model` is the model's name in the decision log and in the ledger; `request_model` is its name at its server, where
    that is another. `key_variable` is the name of the environment variable that holds the server's API key, never the
    key itself: see `reasoning.config.api_key_for`. `logprobs` is how the server is asked for log-probabilities.
    """

    name: str
    source: Source
    weight: float = 0.0
    mode: Literal["live", "shadow"] = "live"
    model: str | None = None
    base_url: str | None = None
    config_hash: str | None = None
    input_usd_per_mtok: str = "0"
    output_usd_per_mtok: str = "0"
    request_model: str | None = None
    key_variable: str | None = None
    logprobs: Logprobs = "count"

    @property
    def asked_as(self) -> str | None:
        """The `model` of a request."""
        return self.request_model or self.model

    def cost_usd(self, input_tokens: int, output_tokens: int) -> float:
        """What so many tokens cost at this arm, in US dollars."""
        price = float(self.input_usd_per_mtok) * input_tokens + float(self.output_usd_per_mtok) * output_tokens
        return price / 1_000_000


@dataclass(frozen=True, slots=True)
class Route:
    """The arms of one decision type. `deadline_ms` covers a custom call from connect to the last byte."""

    arms: tuple[Arm, ...]
    deadline_ms: float = 800.0
    min_confidence: float = 0.0
    experiment: str | None = None
    salt: str = ""


@dataclass(frozen=True, slots=True)
class Routes:
    """All routes, valid from `issued_at` until `expires_at` (aware, UTC)."""

    issued_at: datetime
    expires_at: datetime
    routes: Mapping[str, Route] = field(default_factory=dict)
    version: int = ROUTES_VERSION

    def in_force(self, now: datetime) -> bool:
        """May the routes be followed at `now`? Not before they were issued, nor for longer than `MAX_LEASE`."""
        return self.refusal() is None and self.issued_at - CLOCK_TOLERANCE <= now < self.expires_at

    def refusal(self) -> str | None:
        """Why no client follows this lease, whatever the time is; None where clients may."""
        length = self.expires_at - self.issued_at
        if length <= MAX_LEASE + CLOCK_TOLERANCE:  # of who dates it back a little, so that it holds at once
            return None
        return f"a lease of {length}: at most {MAX_LEASE} is followed; the guard's next tick renews it"


def choose_arm(route: Route, key: str) -> tuple[Arm, float]:
    """Draw the live arm for `key`: the same one every time, with probability weight / sum of live weights.

    The draw is the first 8 bytes of SHA-256(salt NUL key) as a fraction of 2**64, so that any language can repeat it.
    Raises `RoutesError` when no live arm has weight.
    """
    live = [arm for arm in route.arms if arm.mode == "live" and arm.weight > 0]
    if not live:
        raise RoutesError(f"experiment {route.experiment!r} has no live arm with a weight")
    if len(live) == 1:
        return live[0], 1.0
    total = sum(arm.weight for arm in live)
    point = _draw(route.salt, key) * total
    for arm in live[:-1]:
        point -= arm.weight
        if point < 0:
            return arm, arm.weight / total
    return live[-1], live[-1].weight / total


@functools.lru_cache(maxsize=1024)  # an episode asks many questions
def _draw(salt: str, key: str) -> float:
    import hashlib  # an agent without experiments need not load OpenSSL

    digest = hashlib.sha256(f"{salt}\0{key}".encode("utf-8", "backslashreplace")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def read_routes(path: Path | str) -> Routes:
    """Read and validate a routes file.

    Raises `RoutesError`, naming the place, or caused by an OSError; FileNotFoundError when there is none.
    """
    path = Path(path)
    try:
        return parse_routes(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RoutesError(f"{path}: {error.strerror}") from error
    except RoutesError as error:
        raise RoutesError(f"{path}: {error}") from None


def parse_routes(text: bytes) -> Routes:
    """The routes in the JSON of a routes file. Raises `RoutesError`."""
    try:
        raw = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RoutesError(f"not JSON: {error}") from None
    _expect(isinstance(raw, dict), "", "an object is needed")
    _expect(raw.get("version") == ROUTES_VERSION, "version", f"{raw.get('version')!r} is not {ROUTES_VERSION}")
    routes = raw.get("routes", {})
    _expect(isinstance(routes, dict), "routes", "an object is needed")
    return Routes(
        issued_at=_time(raw, "issued_at"),
        expires_at=_time(raw, "expires_at"),
        routes={name: _route(f"routes.{name}", value) for name, value in routes.items()},
    )


def format_routes(routes: Routes) -> bytes:
    """The JSON of a routes file. Raises `RoutesError` for routes that `parse_routes` would refuse."""
    raw = asdict(routes)
    for name in ("issued_at", "expires_at"):
        raw[name] = raw[name].astimezone(UTC).isoformat().replace("+00:00", "Z")
    for route in raw["routes"].values():
        route["arms"] = [{k: v for k, v in arm.items() if v is not None} for arm in route["arms"]]
    text = orjson.dumps(raw, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    parse_routes(text)
    return text


def write_routes(path: Path | str, routes: Routes) -> None:
    """Replace a routes file atomically (temporary file, fsync, rename, fsync of the folder).

    Raises `RoutesError` for routes that `read_routes` would refuse, and OSError with the old file left in place.
    """
    import tempfile  # agents only read

    path, text = Path(path), format_routes(routes)
    path.parent.mkdir(0o700, parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(text)
            file.flush()
            # It holds no secret: where the folder is open to agents of other users, so is the file.
            os.fchmod(file.fileno(), 0o600 | (path.parent.stat().st_mode & 0o044))
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _route(place: str, raw: Any) -> Route:
    _expect(isinstance(raw, dict), place, "an object is needed")
    arms = raw.get("arms")
    _expect(isinstance(arms, list) and bool(arms), f"{place}.arms", "a list with at least one arm is needed")
    parsed = tuple(_arm(f"{place}.arms[{i}]", arm) for i, arm in enumerate(arms))
    names = [arm.name for arm in parsed]
    _expect(len(set(names)) == len(names), f"{place}.arms", "two arms have one name")
    deadline_ms = _number(place, raw, "deadline_ms", 800.0)
    _expect(0 < deadline_ms <= 86_400_000, f"{place}.deadline_ms", "must be above 0 milliseconds, and at most a day")
    min_confidence = _number(place, raw, "min_confidence", 0.0)
    _expect(0 <= min_confidence <= 1, f"{place}.min_confidence", "must be within 0..1")
    return Route(
        arms=parsed,
        deadline_ms=deadline_ms,
        min_confidence=min_confidence,
        experiment=_text(place, raw, "experiment"),
        salt=_text(place, raw, "salt") or "",
    )


def _arm(place: str, raw: Any) -> Arm:
    _expect(isinstance(raw, dict), place, "an object is needed")
    name = _text(place, raw, "name")
    _expect(bool(name), f"{place}.name", "is missing")
    source, mode = raw.get("source"), raw.get("mode", "live")
    _expect(source in ("original", "custom"), f"{place}.source", f"{source!r} is neither 'original' nor 'custom'")
    _expect(mode in ("live", "shadow"), f"{place}.mode", f"{mode!r} is neither 'live' nor 'shadow'")
    weight = _number(place, raw, "weight", 0.0)
    _expect(weight >= 0, f"{place}.weight", "must not be negative")
    model, base_url = _text(place, raw, "model"), _text(place, raw, "base_url")
    if source == "custom":
        _expect(bool(model), f"{place}.model", "a custom arm needs a model")
        _expect(_is_server(base_url or ""), f"{place}.base_url", "needs an http(s) URL")
        _expect(not (base_url or "").rstrip("/").endswith("/v1"), f"{place}.base_url", "must not end in /v1")
    logprobs = raw.get("logprobs", "count")
    _expect(logprobs in get_args(Logprobs), f"{place}.logprobs", f"{logprobs!r} is none of count, flag, none")
    return Arm(
        name=str(name),
        source=source,
        weight=weight,
        mode=mode,
        model=model,
        base_url=base_url.rstrip("/") if base_url else None,
        config_hash=_text(place, raw, "config_hash"),
        input_usd_per_mtok=_price(place, raw, "input_usd_per_mtok"),
        output_usd_per_mtok=_price(place, raw, "output_usd_per_mtok"),
        request_model=_text(place, raw, "request_model"),
        key_variable=_text(place, raw, "key_variable"),
        logprobs=logprobs,
    )


def _expect(condition: bool, place: str, problem: str) -> None:
    if not condition:
        raise RoutesError(f"{place}: {problem}" if place else problem)


def _text(place: str, raw: dict[str, Any], key: str) -> str | None:
    value = raw.get(key)
    _expect(value is None or isinstance(value, str), f"{place}.{key}", "text is needed")
    return value


def _number(place: str, raw: dict[str, Any], key: str, default: float) -> float:
    value = raw.get(key, default)
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    _expect(good, f"{place}.{key}", f"{value!r} is not a number")
    return float(value)


def _is_server(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isascii()
    except ValueError:
        return False


def _price(place: str, raw: dict[str, Any], key: str) -> str:
    value = raw.get(key, "0")
    try:
        good = isinstance(value, str) and 0 <= float(value) < math.inf
    except ValueError:
        good = False
    _expect(good, f"{place}.{key}", f'{value!r} is not a decimal as text, such as "0.48"')
    return str(value)


def _time(raw: dict[str, Any], key: str) -> datetime:
    try:
        value = datetime.fromisoformat(raw[key])
        in_utc = value.astimezone(UTC)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise RoutesError(f"{key}: {raw.get(key)!r} is not a time such as 2026-11-22T10:00:00Z") from None
    _expect(value.tzinfo is not None, key, "needs a time zone, such as Z")
    return in_utc
