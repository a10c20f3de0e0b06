"""The gateway's settings: `[gateway]` in `reasoning.toml`, secrets from the environment only.

============================  =======================================================================================
`[gateway]`                   meaning (default)
============================  =======================================================================================
`allowed_hosts`               host names that a request may be addressed to, `*` for any (this machine's loopback names)
`max_concurrency`             requests under way at once; more are told to come back (1000)
`connect_timeout_s`           to reach an upstream (10)
`read_timeout_s`              longest silence of an upstream (600)
`head_timeout_s`              for a client to send a request's head (30)
`body_timeout_s`              longest silence within a request's body; and after it a body has to have come at 8 KB a
                              second (60)
`write_timeout_s`             for a client to read something of an answer that waits for it (600)
`drain_s`                     after SIGTERM: `/readyz` says no for so long before the port closes (0)
`log_requests`                one JSON line a request on stderr, without prompts and keys (true)
`client_credentials`          clients bring their own keys or logins for the upstreams, so that `/readyz` does not
                              ask for ours (false)
`record`                      log coding conversations and decisions for learning (true)
`record_queue_mb`             what may wait to be recorded; more is dropped and counted (64)
`body_budget_mb`              memory of the bodies under way, decompressed and parsed; a request of more than 64 KB that
                              does not fit is told to come back, 503 (512)
`[gateway.coding]`            `enabled` (true), `images` (false: the coding model takes none), `effort` (false: its
                              server does not take `reasoning_effort`), `threshold` (1.0) and
                              `classifier` (a JSON file of weights; see `gateway.coding.classify`), `idle_timeout_s`
                              (60) and `tools`: how the model gets them, `native`, `text` (`gateway.coding.turns`), or
                              `auto`: as text where its name says that it was trained by this project (auto)
`[gateway.prices."<model>"]`  what an upstream's models cost, as `[prices.models."<model>"]`, which goes before it.
                              Without them: the list price of the company whose server the upstream is, else unknown
`[gateway.decisions]`         `enabled` (true): answer known decision prompts with our models; `forced` (true): and
                              requests that force a tool or a JSON schema whose fields decide, from the
                              `forced_after`-th one of a type (2)
`[[gateway.prompts]]`         more kinds of decision prompts; see `gateway.decisions.prompts`
`[[gateway.forced]]`          forced tools with free fields; see `gateway.decisions.forced`
`[[gateway.<protocol>]]`      an upstream of `anthropic`, `openai`, `gemini` or `typesafe` (whoever answers
                              `/v1/systemone`): `url`, `weight` (1), `api_key_env` (ANTHROPIC_API_KEY, OPENAI_API_KEY,
                              GEMINI_API_KEY, TYPESAFE_API_KEY)
`[gateway.keys.<name>]`       a client's key: `token_sha256` or `token_env`, and what it may do:
                              `coding`, `decisions`, `forced` (true): our models may answer for it (`forced`: forced
                              tools and schemas, which need `decisions` as well); without `decisions` the routes
                              `/v1/decide` and `/v1/feedback` are closed as well;
                              `protocols`: of "anthropic", "openai", "gemini", "decisions" (all);
                              `paths`: what it may reach upstream (asking models: the protocols' `model_paths`). Entries
                              are `[METHOD ]PATH`, `*` at the end for any rest, without a method all but DELETE. "*" is
                              all but administration, which has to be named: "/v1/organizations/*";
                              `label` (false): feedback on others' decisions, under a name of its choice;
                              `stats` (false): `/stats` and `/metrics`;
                              `pages` (false): the page for people, which shows the log; with `label` it labels too.
                              Cycles, promotions and stops are the operator's key's alone
============================  =======================================================================================

Environment: `REASONING_GATEWAY_TOKEN` is the token of the operator's key `default`; without it and `[gateway.keys]` its
token is made once, in `<data>/gateway.token` (mode 0600). The operator's key may do all of it but administration.
`REASONING_ANTHROPIC_URL`, `REASONING_OPENAI_URL`, `REASONING_GEMINI_URL` and `REASONING_TYPESAFE_URL` replace the
upstreams of the file. `REASONING_GATEWAY_HOSTS` adds allowed hosts, separated by commas.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gateway.errors import GatewayConfigError
from gateway.http.known_tokens import TokenMark, mark_token
from gateway.http.paths import EVERYTHING, check_pattern
from gateway.protocols.table import DEFAULT_TABLE, ProtocolTable
from prices.models import Price
from prices.settings import read_model_prices
from reasoning.config import is_loopback, settings_file
from reasoning.toml_tables import number, read_toml, refuse_unknown, server_url, switch, table, text

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
MIN_TOKEN_LENGTH = 16

_table = partial(table, error=GatewayConfigError)
_text = partial(text, error=GatewayConfigError)
_number = partial(number, error=GatewayConfigError)
_switch = partial(switch, error=GatewayConfigError)
_refuse_unknown = partial(refuse_unknown, error=GatewayConfigError)
_url = partial(server_url, instead="use api_key_env", error=GatewayConfigError)


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """One server that requests are passed on to. `url` has no `/v1` at its end."""

    url: str
    weight: float = 1.0
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Key:
    """Who may come in, and what is done for them. `operator` is the key of the one who runs the gateway: it says which
    conversation is meant as the log has it, where the others' conversations carry their key's name."""

    name: str
    token_sha256: bytes = field(repr=False)
    coding: bool = True
    decisions: bool = True
    forced: bool = True
    protocols: frozenset[str] = frozenset({*DEFAULT_TABLE.by_name, "decisions"})
    paths: tuple[str, ...] = DEFAULT_TABLE.model_paths
    label: bool = False
    stats: bool = False
    pages: bool = False
    operator: bool = False
    mark: TokenMark | None = field(default=None, repr=False)
    """By which its token is found in other places; None where the settings have the token's digest alone."""

    def episode(self, told: str) -> str:
        """The conversation that this key calls `told`, as the log has it: no key reaches another's."""
        return told if self.operator else f"{self.name}:{told}"


@dataclass(frozen=True, slots=True)
class Settings:
    """See the module's table. Make it with `load_settings`, which validates."""

    keys: tuple[Key, ...]
    upstreams: Mapping[str, tuple[UpstreamSettings, ...]]
    """By the name of their protocol."""
    protocols: ProtocolTable = DEFAULT_TABLE
    allowed_hosts: frozenset[str] = frozenset(LOOPBACK_HOSTS)
    max_concurrency: int = 1000
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 600.0
    head_timeout_s: float = 30.0
    body_timeout_s: float = 60.0
    write_timeout_s: float = 600.0
    drain_s: float = 0.0
    log_requests: bool = True
    record: bool = True
    client_credentials: bool = False
    record_queue_mb: float = 64.0
    body_budget_mb: float = 512.0
    coding: bool = True
    coding_images: bool = False
    coding_effort: bool = False
    coding_threshold: float = 1.0
    coding_classifier: Path | None = None
    coding_idle_timeout_s: float = 60.0
    coding_tools: str = "auto"
    decisions: bool = True
    prompts: tuple[Mapping[str, Any], ...] = ()
    forced: bool = True
    forced_after: int = 2
    forced_templates: tuple[Mapping[str, Any], ...] = ()
    prices: tuple[Price, ...] = ()
    trace_content: bool = False


_NUMBERS: dict[str, tuple[type, float, float]] = {
    "max_concurrency": (int, 1, 1_000_000),
    "connect_timeout_s": (float, 0.001, 600),
    "read_timeout_s": (float, 0.001, 86_400),
    "head_timeout_s": (float, 0.001, 3600),
    "body_timeout_s": (float, 0.001, 3600),
    "write_timeout_s": (float, 0.001, 86_400),
    "drain_s": (float, 0, 3600),
    "record_queue_mb": (float, 0.001, 1_000_000),
    "body_budget_mb": (float, 64, 1_000_000),
}
_SWITCHES = ("log_requests", "record", "client_credentials")
_CODING = {"enabled": "coding", "images": "coding_images", "effort": "coding_effort"}
_DECISIONS = {"enabled": "decisions", "forced": "forced"}


def are_traces_wanted(env: Mapping[str, str] = os.environ) -> bool:
    """Does OpenTelemetry's own configuration name a collector of traces?"""
    return bool(env.get("OTEL_EXPORTER_OTLP_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))


def is_content_traced(env: Mapping[str, str] = os.environ) -> bool:
    """Does OpenTelemetry's own configuration ask for messages in spans?"""
    wanted = env.get("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "").strip().lower()
    return wanted in ("true", "1", "span_only", "span_and_event")


def load_settings(
    data: Path,
    path: Path | None = None,
    env: Mapping[str, str] = os.environ,
    protocols: ProtocolTable = DEFAULT_TABLE,
) -> Settings:
    """The settings, validated. A token file may be made in `data`. Raises `GatewayConfigError`."""
    file = path or settings_file(env)
    raw = _read(file)
    values: dict[str, Any] = {}
    known = {*_NUMBERS, *_SWITCHES, "allowed_hosts", "coding", "decisions", "prompts", "forced", "keys", "prices"}
    known |= protocols.by_name.keys()
    _refuse_unknown(f"{file}: [gateway]", raw, known)
    for name in _NUMBERS.keys() & raw.keys():
        values[name] = _number(f"{file}: [gateway] {name}", raw[name], *_NUMBERS[name])
    for name in _SWITCHES:
        if name in raw:
            values[name] = _switch(f"{file}: [gateway] {name}", raw[name])
    coding = _table(file, "gateway.coding", raw.get("coding", {}))
    _refuse_unknown(
        f"{file}: [gateway.coding]", coding, {*_CODING, "threshold", "classifier", "idle_timeout_s", "tools"}
    )
    for name, target in _CODING.items():
        if name in coding:
            values[target] = _switch(f"{file}: [gateway.coding] {name}", coding[name])
    if "threshold" in coding:
        values["coding_threshold"] = _number(f"{file}: [gateway.coding] threshold", coding["threshold"], float, 0, 1e6)
    if "idle_timeout_s" in coding:
        place = f"{file}: [gateway.coding] idle_timeout_s"
        values["coding_idle_timeout_s"] = _number(place, coding["idle_timeout_s"], float, 0.001, 86_400)
    if "classifier" in coding:
        values["coding_classifier"] = file.parent / _text(f"{file}: [gateway.coding] classifier", coding["classifier"])
    if (tools := coding.get("tools", "auto")) not in ("auto", "native", "text"):
        raise GatewayConfigError(f"{file}: [gateway.coding] tools: {tools!r} is none of auto, native, text")
    values["coding_tools"] = tools
    decisions = _table(file, "gateway.decisions", raw.get("decisions", {}))
    _refuse_unknown(f"{file}: [gateway.decisions]", decisions, {*_DECISIONS, "forced_after"})
    if "forced_after" in decisions:
        place = f"{file}: [gateway.decisions] forced_after"
        values["forced_after"] = _number(place, decisions["forced_after"], int, 1, 1000)
    for name, target in _DECISIONS.items():
        if name in decisions:
            values[target] = _switch(f"{file}: [gateway.decisions] {name}", decisions[name])
    hosts = set(LOOPBACK_HOSTS)
    for host in [*_list(file, "allowed_hosts", raw), *(env.get("REASONING_GATEWAY_HOSTS") or "").split(",")]:
        if host:
            hosts.add(_text(f"{file}: [gateway] allowed_hosts", host).strip().lower())
    return Settings(
        keys=_keys(file, raw, data, env, protocols),
        upstreams=load_upstreams(file, env, protocols),
        protocols=protocols,
        allowed_hosts=frozenset(hosts),
        prompts=tuple(_list(file, "prompts", raw)),
        forced_templates=tuple(_list(file, "forced", raw)),
        prices=_prices(file, raw),
        trace_content=is_content_traced(env),
        **values,
    )


def load_upstreams(
    path: Path | None = None, env: Mapping[str, str] = os.environ, protocols: ProtocolTable = DEFAULT_TABLE
) -> dict[str, tuple[UpstreamSettings, ...]]:
    """The upstreams alone, by the name of their protocol. Makes no file. Raises `GatewayConfigError`."""
    file = path or settings_file(env)
    raw = _read(file)
    return {p.name: _upstreams(file, raw, p.name, p.url, env) for p in protocols.protocols}


def do_clients_bring_credentials(path: Path | None = None, env: Mapping[str, str] = os.environ) -> bool:
    """The setting `client_credentials` alone. Raises `GatewayConfigError`."""
    file = path or settings_file(env)
    value = _read(file).get("client_credentials", False)
    return _switch(f"{file}: [gateway] client_credentials", value)


def without_credentials(upstreams: Mapping[str, tuple[UpstreamSettings, ...]]) -> list[str]:
    """Protocols none of whose upstreams has an API key; a server of this machine needs none."""
    return [
        name
        for name, servers in upstreams.items()
        if not any(server.api_key or is_loopback(urlsplit(server.url).hostname or "") for server in servers)
    ]


def load_forced_templates(path: Path | None = None, env: Mapping[str, str] = os.environ) -> tuple[Any, ...]:
    """The tables of `[[gateway.forced]]` alone. Raises `GatewayConfigError`."""
    file = path or settings_file(env)
    return tuple(_list(file, "forced", _read(file)))


def hash_token(token: str) -> bytes:
    """This digest of a token is what is compared."""
    return hashlib.sha256(token.encode()).digest()


def _keys(
    file: Path, raw: dict[str, Any], data: Path, env: Mapping[str, str], protocols: ProtocolTable
) -> tuple[Key, ...]:
    listed = _table(file, "gateway.keys", raw.get("keys", {}))
    keys = [_key(file, name, key, env, protocols) for name, key in listed.items()]
    value = env.get("REASONING_GATEWAY_TOKEN")
    if value or not keys:
        token = _token("REASONING_GATEWAY_TOKEN", value) if value else _token_file(data / "gateway.token")
        operator = Key(
            "default",
            hash_token(token),
            protocols=frozenset({*protocols.by_name, "decisions"}),
            paths=EVERYTHING,
            label=True,
            stats=True,
            operator=True,
            mark=mark_token(token),
        )
        if any(key.name == operator.name for key in keys):
            raise GatewayConfigError(
                f"{file}: [gateway.keys.default] is the name of REASONING_GATEWAY_TOKEN's key; choose another"
            )
        keys.append(operator)
    if len({key.token_sha256 for key in keys}) != len(keys):
        raise GatewayConfigError(f"{file}: two of [gateway.keys] have the same token; give each its own")
    return tuple(keys)


def _key(file: Path, name: str, key: Any, env: Mapping[str, str], table: ProtocolTable) -> Key:
    place, mark = f"{file}: [gateway.keys.{name}]", None
    key = _table(file, f"gateway.keys.{name}", key)
    switches = ("coding", "decisions", "forced", "label", "stats", "pages")
    _refuse_unknown(place, key, {"token_sha256", "token_env", "protocols", "paths", *switches})
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
        raise GatewayConfigError(f"{place}: a name has up to 64 of A-Z, a-z, 0-9, dot, underscore and hyphen")
    if "token_sha256" in key:
        digest = _text(f"{place} token_sha256", key["token_sha256"])
        if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
            raise GatewayConfigError(f"{place} token_sha256: 64 hex digits are needed: printf %s TOKEN | sha256sum")
        token = bytes.fromhex(digest)
    else:
        variable = _text(f"{place} token_env", key.get("token_env"))
        value = _token(variable, env.get(variable))
        token, mark = hash_token(value), mark_token(value)
    values: dict[str, Any] = {k: _switch(f"{place} {k}", key[k]) for k in switches if k in key}
    known = (*table.by_name, "decisions")
    protocols = _texts(f"{place} protocols", key["protocols"]) if "protocols" in key else known
    if unknown := [protocol for protocol in protocols if protocol not in known]:
        raise GatewayConfigError(f"{place} protocols: {unknown[0]!r} is none of {', '.join(known)}")
    values["protocols"] = frozenset(protocols) - (set() if values.get("decisions", True) else {"decisions"})
    values["paths"] = table.model_paths
    if "paths" in key:
        values["paths"] = tuple(_texts(f"{place} paths", key["paths"]))
        for pattern in values["paths"]:
            if problem := check_pattern(pattern):
                raise GatewayConfigError(f"{place} paths: {pattern!r}: {problem}")
    return Key(name=name, token_sha256=token, mark=mark, **values)


def _texts(place: str, value: Any) -> list[str]:
    if not isinstance(value, list):
        raise GatewayConfigError(f"{place}: a list is needed, not {value!r}")
    return [_text(place, item) for item in value]


def _token(place: str, value: str | None) -> str:
    if not value:
        raise GatewayConfigError(f"{place} is not set; it should hold the token that clients send")
    if len(value) < MIN_TOKEN_LENGTH or not value.isascii() or not value.isprintable() or " " in value:
        raise GatewayConfigError(f"{place}: a token is at least {MIN_TOKEN_LENGTH} printable characters without spaces")
    return value


def _token_file(path: Path) -> str:
    """The token in `path`, made when there is none. The file is the owner's alone."""
    path.parent.mkdir(0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        try:
            if path.stat().st_mode & 0o077:
                raise GatewayConfigError(f"{path}: others can read the token; chmod 600 it") from None
            return _token(str(path), path.read_text().strip())
        except OSError as error:
            raise GatewayConfigError(f"{path}: {error.strerror}") from None
    token = f"rsn-{secrets.token_urlsafe(32)}"
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
    return token


def _list(file: Path, name: str, raw: dict[str, Any]) -> list[Any]:
    value = raw.get(name, [])
    if not isinstance(value, list):
        raise GatewayConfigError(f"{file}: [gateway] {name}: a list is needed, not {value!r}")
    return value


def _upstreams(
    file: Path, raw: dict[str, Any], name: str, default: str, env: Mapping[str, str]
) -> tuple[UpstreamSettings, ...]:
    variable = f"REASONING_{name.upper()}_URL"
    key_variable = f"{name.upper()}_API_KEY"
    if env.get(variable):
        return tuple(
            UpstreamSettings(_url(variable, url.strip()), api_key=env.get(key_variable))
            for url in env[variable].split(",")
        )
    tables = raw.get(name) or [{"url": default}]
    if not isinstance(tables, list):
        raise GatewayConfigError(f"{file}: write [[gateway.{name}]], with two brackets: there may be several")
    found = []
    for i, upstream in enumerate(tables):
        place = f"{file}: [[gateway.{name}]] number {i + 1}"
        upstream = _table(file, f"gateway.{name}", upstream)
        _refuse_unknown(place, upstream, {"url", "weight", "api_key_env"})
        found.append(
            UpstreamSettings(
                url=_url(f"{place} url", upstream.get("url")),
                weight=_number(f"{place} weight", upstream.get("weight", 1.0), float, 0.001, 1e6),
                api_key=env.get(_text(f"{place} api_key_env", upstream.get("api_key_env", key_variable))),
            )
        )
    return tuple(found)


def _prices(file: Path, raw: dict[str, Any]) -> tuple[Price, ...]:
    """The models' prices that the operator has set, those of `[prices]` first."""
    try:
        everybodys = _table(file, "prices", read_toml(file, GatewayConfigError).get("prices", {}))
    except FileNotFoundError:
        everybodys = {}
    return (
        *read_model_prices(file, "prices.models", everybodys.get("models", {}), GatewayConfigError),
        *read_model_prices(file, "gateway.prices", raw.get("prices", {}), GatewayConfigError),
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        return _table(file, "gateway", read_toml(file, GatewayConfigError).get("gateway", {}))
    except FileNotFoundError:
        return {}
