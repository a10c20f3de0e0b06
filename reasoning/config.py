"""The client's configuration: arguments, then `REASONING_*` variables, then `reasoning.toml`, then defaults.

Nothing has to be configured: without any of them decisions are logged to `./reasoning-data` and the original is served.

=========================  ==============================  =====================================================
environment                reasoning.toml                  meaning (default)
=========================  ==============================  =====================================================
`REASONING_CONFIG`                                         the file itself (`./reasoning.toml` when there is one)
`REASONING_DATA`           `data`                          the data folder (`./reasoning-data`)
`REASONING_AGENT_ID`       `agent_id`                      written into every decision (none)
`REASONING_ENABLED`        `enabled`                       false: never ask a custom model (true)
`REASONING_PROVIDER_URL`   `provider_url`                  a provider other than Together that gets the API key
`TOGETHER_API_KEY`         never in a file                 the API key (none)
                           `[client]`                      see `Config`
                           `[decision_types.<name>]`       see `_decision_type`
=========================  ==============================  =====================================================

Tables that are not named here belong to the other rooms.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from reasoning.decision_types import DECISION_TYPES, DecisionType
from reasoning.errors import ConfigError

_TOGETHER_DOMAINS = ("together.ai", "together.xyz")
_KEYS = ("data", "agent_id", "enabled", "provider_url")
_TABLES = ("client", "decision_types")
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_. -]*")


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a client needs to know. Make it with `load_config`, which validates."""

    data: Path
    agent_id: str | None = None
    api_key: str | None = field(default=None, repr=False)
    provider_url: str | None = None
    enabled: bool = True
    decision_types: Mapping[str, DecisionType] = field(default_factory=lambda: dict(DECISION_TYPES))
    breaker_failures: int = 5
    """So many failures in a row stop the calls to a model."""
    breaker_seconds: float = 30.0
    """Until one probe is let through; doubles with every failed probe, up to ten times."""
    shadow_workers: int = 2
    """Background threads (tasks, in the async client) that ask shadow arms."""
    shadow_queue: int = 100
    """Shadow questions that may wait; more are dropped and counted."""

    @property
    def routes(self) -> Path:
        """The routes file."""
        return self.data / "routes.json"

    @property
    def spool(self) -> Path:
        """Where segments are written."""
        return self.data / "spool"


def load_config(
    data: Path | str | None = None, path: Path | str | None = None, env: Mapping[str, str] = os.environ
) -> Config:
    """The configuration, validated. `data` and `path` override the environment. Raises `ConfigError`."""
    path = path or env.get("REASONING_CONFIG")
    file = Path(path) if path else Path("reasoning.toml")
    raw = _read_toml(file) if path or file.is_file() else {}
    _refuse_unknown(file, raw)
    client = _table(file, raw, "client")
    settings: dict[str, tuple[type, float, float]] = {
        "breaker_failures": (int, 1, 1_000_000),
        "breaker_seconds": (float, 0, 86_400),
        "shadow_workers": (int, 1, 256),
        "shadow_queue": (int, 1, 1_000_000),
    }
    for name in client:
        _refuse_name(f"{file}: [client] {name}", name, tuple(settings))
    numbers = {name: _number(f"{file}: [client] {name}", client[name], *settings[name]) for name in client}
    folder = data or env.get("REASONING_DATA")
    if not folder:
        folder = file.parent / _text(f"{file}: data", raw.get("data", "reasoning-data"))
    provider_url = env.get("REASONING_PROVIDER_URL") or raw.get("provider_url")
    where = "REASONING_PROVIDER_URL" if env.get("REASONING_PROVIDER_URL") else f"{file}: provider_url"
    api_key = env.get("TOGETHER_API_KEY") or None
    if api_key and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
        raise ConfigError("TOGETHER_API_KEY: holds a blank, a line break or a letter that no key has; copy it anew")
    agent_id = env.get("REASONING_AGENT_ID") or raw.get("agent_id")
    return Config(
        data=Path(folder).absolute(),
        agent_id=None if agent_id is None else _text(f"{file}: agent_id", agent_id),
        api_key=api_key,
        provider_url=None if provider_url is None else _url(where, provider_url),
        enabled=_switch("REASONING_ENABLED", env["REASONING_ENABLED"])
        if env.get("REASONING_ENABLED")
        else _switch(f"{file}: enabled", raw.get("enabled", True)),
        decision_types=_decision_types(file, _table(file, raw, "decision_types")),
        **numbers,
    )


def api_key_for(config: Config, base_url: str) -> str | None:
    """The key that the server at `base_url` may see.

    A loopback host gets the word `local`. The API key goes to Together's own hosts over https, and to the origin that
    the operator named as `provider_url`; what else stands in a routes file gets nothing.
    """
    url = urlsplit(base_url)
    host = (url.hostname or "").lower()
    if is_loopback(host):
        return "local"
    together = any(host == domain or host.endswith(f".{domain}") for domain in _TOGETHER_DOMAINS)
    if (together and url.scheme == "https") or (
        config.provider_url and _origin(config.provider_url) == _origin(base_url)
    ):
        return config.api_key
    return None


def is_loopback(host: str) -> bool:
    """Is `host` this machine: `localhost`, or a loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _read_toml(file: Path) -> dict[str, Any]:
    import tomllib  # an agent without a file need not wait for its import

    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}; create it, or unset REASONING_CONFIG") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not TOML: {error}") from None


def _refuse_unknown(file: Path, raw: dict[str, Any]) -> None:
    for name, value in raw.items():
        if name in ("api_key", "together_api_key"):
            raise ConfigError(f"{file}: {name}: a key has no place in a file; set TOGETHER_API_KEY and remove it")
        if isinstance(value, dict) or name in _TABLES:
            close = _similar(name, _TABLES)
            if name not in _TABLES and close:
                raise ConfigError(f"{file}: [{name}] is not known; did you mean [{close[0]}]?")
        else:
            _refuse_name(f"{file}: {name}", name, _KEYS)


def _refuse_name(place: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        close = _similar(name, known)
        mend = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
        raise ConfigError(f"{place} is not known; {mend}")


def _similar(name: str, known: tuple[str, ...]) -> list[str]:
    import difflib

    return difflib.get_close_matches(name, known, n=1, cutoff=0.7)


def _decision_types(file: Path, raw: dict[str, Any]) -> dict[str, DecisionType]:
    types = dict(DECISION_TYPES)
    for name, table in raw.items():
        place = f"{file}: [decision_types.{name}]"
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{place}: a name is letters, digits and _, starting with a letter")
        if not isinstance(table, dict):
            raise ConfigError(f"{place}: a table is needed")
        types[name] = _decision_type(place, name, table)
    return types


def _decision_type(place: str, name: str, raw: dict[str, Any]) -> DecisionType:
    """A declared type, or a built-in with other parameters.

    Keys: `tier` (small, medium, large), `max_tokens`, `temperature`, `max_messages`, and for a new type, which answers
    with one of its labels, also `labels`, `instruction` and `question`. The last two may hold `{agent_name}`.
    """
    builtin = DECISION_TYPES.get(name)
    common = ("tier", "max_tokens", "temperature", "max_messages")
    for key in raw:
        _refuse_name(f"{place} {key}", key, common if builtin else (*common, "labels", "instruction", "question"))
    changes: dict[str, Any] = {}
    if "tier" in raw:
        if raw["tier"] not in ("small", "medium", "large"):
            raise ConfigError(f"{place} tier: {raw['tier']!r} is none of small, medium, large")
        changes["tier"] = raw["tier"]
    for key, kind, low, high in (
        ("max_tokens", int, 1, 1_000_000),
        ("temperature", float, 0, 2),
        ("max_messages", int, 1, 100_000),
    ):
        if key in raw:
            changes[key] = _number(f"{place} {key}", raw[key], kind, low, high)
    if builtin:
        return replace(builtin, **changes)
    for key in ("labels", "instruction", "question"):
        if key not in raw:
            raise ConfigError(f"{place}: {key} is missing; a declared type needs labels, instruction and question")
    labels = raw["labels"]
    if not isinstance(labels, list) or not all(isinstance(x, str) and _LABEL.fullmatch(x) for x in labels):
        raise ConfigError(f"{place} labels: a list of words (letters, digits, spaces and _.-) is needed")
    if len({label.casefold() for label in labels}) != len(labels) or len(labels) < 2:
        raise ConfigError(f"{place} labels: at least two are needed, that differ by more than upper and lower case")
    question = _text(f"{place} question", raw["question"])
    if len(question.splitlines()) != 1:
        raise ConfigError(f"{place} question: one line is needed")
    declared = DecisionType(
        name=name,
        tier="small",
        answer="label",
        max_tokens=256,
        temperature=0.1,
        labels=tuple(labels),
        instruction=_text(f"{place} instruction", raw["instruction"]),
        question=question,
    )
    return replace(declared, **changes)


def _table(file: Path, raw: dict[str, Any], name: str) -> dict[str, Any]:
    value = raw.get(name, {})
    if not isinstance(value, dict):
        raise ConfigError(f"{file}: {name}: a table is needed: [{name}]")
    return value


def _text(place: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{place}: text is needed, not {value!r}")
    return value


def _number(place: str, value: Any, kind: type, low: float, high: float) -> Any:
    good = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if not good or not low <= value <= high:
        whole = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{place}: {value!r} is not {whole} within {low}..{high}")
    return kind(value)


def _switch(place: str, value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in (*_TRUE, *_FALSE):
        raise ConfigError(f"{place}: {value!r} is neither true nor false")
    return text in _TRUE


def _url(place: str, value: Any) -> str:
    try:
        parts = urlsplit(_text(place, value))
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ConfigError(f"{place}: {value!r} is not an http(s) URL")
    if parts.username or parts.password:
        raise ConfigError(f"{place}: a URL must not hold a user name or password; set TOGETHER_API_KEY instead")
    return str(value).rstrip("/").removesuffix("/v1")
