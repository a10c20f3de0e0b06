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
`REASONING_KEYS`           `[keys]`                        which server may see which key, see `BoundKey`
                           `[client]`                      see `Config`
                           `[decision_types.<name>]`       see `_decision_type`
                           `[decision_models.<name>]`      see `reasoning.decision_models`
                           `[retention]`                   how many days records are kept, see `Retention` (for ever)
`REASONING_VOLUME`         `[storage] volume`              whether other hosts use the folder, see `Config` (auto)
`REASONING_MAX_DAYS_…`     `[storage] max_days_ahead`      by how much a record's clock may be off when it lands, and
                           `[storage] max_days_behind`     is not quarantined, see `Config` (2 and 366)
=========================  ==============================  =====================================================

Tables that are not named here belong to the other packages.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from reasoning.decision_models import DecisionModel, read_decision_models
from reasoning.decision_types import DECISION_TYPES, TIER_THINKING, DecisionType
from reasoning.errors import ConfigError
from reasoning.formats import get_form
from reasoning.formats.port import AnswerForm
from reasoning.question_catalog import load_catalog
from reasoning.toml_tables import is_loopback as is_loopback
from reasoning.toml_tables import number, read_toml, refuse_unknown, server_url, similar_name, switch, table, text

_TOGETHER_DOMAINS = ("together.ai", "together.xyz")
_KEYS = ("data", "agent_id", "enabled", "provider_url")
_STOPS = 4  # as many as OpenAI's API takes
_TABLES = (
    *("client", "keys", "decision_types", "decision_models", "tiers", "retention", "redaction", "storage", "prices"),
)
VOLUMES = ("auto", "single-host", "shared-locks")
_MAX_DAYS = 36_500
_REGION = re.compile(r"[A-Z]{2}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_. -]*")


@dataclass(frozen=True, slots=True)
class Retention:
    """How many days records are kept, by table. None: for ever, which is the default of all.

    `labelled_decisions` have a demonstration or a metric: on them, on another answer to their question, or on their
    episode. reasoning.toml without that key keeps them as long as `decisions`. Feedback without a number of its own
    goes with its decision, and the quarantine without one is kept as long as `decisions`.
    """

    decisions: int | None = None
    labelled_decisions: int | None = None
    feedback: int | None = None
    quarantine: int | None = None

    @property
    def configured(self) -> bool:
        """Whether anything is ever deleted."""
        return not self.decisions is self.feedback is self.quarantine is None


@dataclass(frozen=True, slots=True)
class Redaction:
    """Whether what custom models are asked is redacted, as their training rows were.

    `region` (ISO 3166) is how a phone number without a country code is read, when a dataset is exported as well.
    """

    enabled: bool = True
    region: str = "US"


@dataclass(frozen=True, slots=True)
class BoundKey:
    """An API key, and the servers that may see it: `[keys]` has `VARIABLE = "https://host"`, or a list of URLs.

    `REASONING_KEYS` says the same as `VARIABLE=https://host`, separated by commas. A routes file names a variable and a
    URL, but cannot bind the one to the other: whoever can write it must not be able to send a key elsewhere. `key` is
    None where the variable is not set.
    """

    variable: str
    urls: tuple[str, ...]
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a client needs to know. Make it with `load_config`, which validates."""

    data: Path
    agent_id: str | None = None
    api_key: str | None = field(default=None, repr=False)
    provider_url: str | None = None
    keys: tuple[BoundKey, ...] = ()
    enabled: bool = True
    decision_types: Mapping[str, DecisionType] = field(default_factory=lambda: dict(DECISION_TYPES))
    decision_models: Mapping[str, DecisionModel] = field(default_factory=dict)
    """Hosted decision models by name (`reasoning.decision_models`)."""
    breaker_failures: int = 5
    """So many failures in a row stop the calls to a model."""
    breaker_seconds: float = 30.0
    """Until one probe is let through; doubles with every failed probe, up to ten times."""
    shadow_workers: int = 2
    """Background threads (tasks, in the async client) that ask shadow arms."""
    shadow_queue: int = 100
    """Shadow questions that may wait; more are dropped and counted."""
    retention: Retention = Retention()
    redaction: Redaction = Redaction()
    volume: str = "auto"
    """`auto`: verbs on the data folder are refused on file systems whose locks may not hold between hosts;
    `single-host`: no other host uses it; `shared-locks`: the locks do hold."""
    max_days_ahead: float = 2.0
    """Records whose time is further ahead of the clock of who lands them are quarantined."""
    max_days_behind: float = 366.0
    """Records whose time is further behind the clock of who lands them are quarantined."""

    @property
    def routes(self) -> Path:
        """The routes file."""
        return self.data / "routes.json"

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every key, for whoever keeps them out of a text."""
        hosted = (model.api_key for model in self.decision_models.values())
        return tuple(filter(None, (self.api_key, *(bound.key for bound in self.keys), *hosted)))

    @property
    def spool(self) -> Path:
        """Where segments are written."""
        return self.data / "spool"


def settings_file(env: Mapping[str, str] = os.environ) -> Path:
    """`reasoning.toml`, or the file that is named instead. It need not exist."""
    return Path(env.get("REASONING_CONFIG") or "reasoning.toml")


def data_source(data: Path | str | None = None, env: Mapping[str, str] = os.environ) -> str:
    """What names the data folder: `--data`, `REASONING_DATA`, the settings file, or nothing but the `default`."""
    if data:
        return "--data"
    if env.get("REASONING_DATA"):
        return "REASONING_DATA"
    file = settings_file(env)
    try:
        return str(file) if "data" in read_toml(file, ConfigError) else "default"
    except FileNotFoundError:
        return "default"


def host_id(env: Mapping[str, str] = os.environ) -> str:
    """The name of this host that `REASONING_HOST_ID` gives, for hosts that cannot be told apart otherwise."""
    return env.get("REASONING_HOST_ID", "")


def load_config(
    data: Path | str | None = None, path: Path | str | None = None, env: Mapping[str, str] = os.environ
) -> Config:
    """The configuration, validated. `data` and `path` override the environment. Raises `ConfigError`."""
    path = path or env.get("REASONING_CONFIG")
    file = Path(path) if path else Path("reasoning.toml")
    try:
        raw = read_toml(file, ConfigError)
    except FileNotFoundError as error:
        if path:
            raise ConfigError(f"{file}: {error.strerror}; create it, or unset REASONING_CONFIG") from None
        raw = {}
    _refuse_unknown(file, raw)

    def section(name: str) -> dict[str, Any]:
        return table(file, name, raw.get(name, {}), ConfigError)

    folder = data or env.get("REASONING_DATA")
    if not folder:
        folder = file.parent / text(f"{file}: data", raw.get("data", "reasoning-data"), ConfigError)
    agent_id = env.get("REASONING_AGENT_ID") or raw.get("agent_id")
    place, enabled = f"{file}: enabled", raw.get("enabled", True)
    if env.get("REASONING_ENABLED"):
        place, enabled = "REASONING_ENABLED", env["REASONING_ENABLED"]
    data = Path(folder).absolute()
    declared = _decision_types(file, section("decision_types"), _tiers(file, section("tiers")))
    return Config(
        data=data,
        agent_id=None if agent_id is None else text(f"{file}: agent_id", agent_id, ConfigError),
        api_key=_api_key(env),
        provider_url=_provider_url(file, raw, env),
        keys=_keys(file, section("keys"), env),
        enabled=switch(place, enabled, ConfigError),
        decision_types={**load_catalog(data), **declared},
        decision_models=read_decision_models(file, section("decision_models"), env),
        retention=_retention(file, section("retention")),
        redaction=_redaction(file, section("redaction"), env),
        **_client(file, section("client")),
        **_storage(file, section("storage"), env),
    )


def _client(file: Path, raw: dict[str, Any]) -> dict[str, Any]:
    settings: dict[str, tuple[type, float, float]] = {
        "breaker_failures": (int, 1, 1_000_000),
        "breaker_seconds": (float, 0, 86_400),
        "shadow_workers": (int, 1, 256),
        "shadow_queue": (int, 1, 1_000_000),
    }
    refuse_unknown(f"{file}: [client]", raw, settings, ConfigError)
    return {name: number(f"{file}: [client] {name}", raw[name], *settings[name], ConfigError) for name in raw}


def _provider_url(file: Path, raw: dict[str, Any], env: Mapping[str, str]) -> str | None:
    place, url = f"{file}: provider_url", raw.get("provider_url")
    if env.get("REASONING_PROVIDER_URL"):
        place, url = "REASONING_PROVIDER_URL", env["REASONING_PROVIDER_URL"]
    return None if url is None else server_url(place, url, "set TOGETHER_API_KEY instead", ConfigError)


def _keys(file: Path, raw: dict[str, Any], env: Mapping[str, str]) -> tuple[BoundKey, ...]:
    place, bound = f"{file}: [keys]", dict(raw)
    if env.get("REASONING_KEYS"):
        place, bound = "REASONING_KEYS:", {}
        for part in env["REASONING_KEYS"].split(","):
            variable, equals, url = part.strip().partition("=")
            if not equals:
                raise ConfigError("REASONING_KEYS: needs VARIABLE=URL, separated by commas")
            bound[variable] = [*bound.get(variable, ()), url]
    return tuple(_bound_key(place, variable, urls, env) for variable, urls in bound.items())


def _bound_key(place: str, variable: str, urls: Any, env: Mapping[str, str]) -> BoundKey:
    if not _VARIABLE.fullmatch(variable):
        raise ConfigError(f"{place} a name of an environment variable is needed before the URL; the key stays in it")
    listed = urls if isinstance(urls, list) and urls else [urls]
    servers = tuple(server_url(f"{place} {variable}", url, "set the variable instead", ConfigError) for url in listed)
    return BoundKey(variable, servers, _api_key(env, variable))


def _api_key(env: Mapping[str, str], variable: str = "TOGETHER_API_KEY") -> str | None:
    api_key = env.get(variable) or None
    if api_key and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
        raise ConfigError(f"{variable}: holds a blank, a line break or a letter that no key has; copy it anew")
    return api_key


def api_key_for(config: Config, base_url: str, key_variable: str | None = None) -> str | None:
    """The key that the server at `base_url` may see.

    With `key_variable` that of this variable, where the configuration binds it to this origin (`BoundKey`). Raises
    `ConfigError` where it does not, or where the variable is not set. Without it a loopback host gets the word `local`.
    The API key goes to Together's own hosts over https, and to the origin that the operator named as `provider_url`;
    what else stands in a routes file gets nothing.
    """
    if key_variable is not None:
        return _bound_key_for(config, base_url, key_variable)
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


def _bound_key_for(config: Config, base_url: str, variable: str) -> str:
    bound = next((bound for bound in config.keys if bound.variable == variable), None)
    origin = _origin(base_url)
    if bound is None or origin not in map(_origin, bound.urls):
        server = "{}://{}".format(*urlsplit(base_url)[:2])
        raise ConfigError(
            f'the key in {variable} is not for {server}: to send it there, set `{variable} = "{server}"` in [keys] of '
            f"reasoning.toml, or REASONING_KEYS={variable}={server}"
        )
    if bound.key is None:
        raise ConfigError(f"{variable} is not set: set it to the API key of {base_url}")
    return bound.key


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _refuse_unknown(file: Path, raw: dict[str, Any]) -> None:
    for name, value in raw.items():
        if name in ("api_key", "together_api_key"):
            raise ConfigError(f"{file}: {name}: a key has no place in a file; set TOGETHER_API_KEY and remove it")
        if isinstance(value, dict) or name in _TABLES:
            if name not in _TABLES and (close := similar_name(name, _TABLES)):  # another one is another package's
                raise ConfigError(f"{file}: [{name}] is not known; did you mean [{close}]?")
        else:
            refuse_unknown(f"{file}:", (name,), _KEYS, ConfigError)


def _tiers(file: Path, raw: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """How the models of a tier are asked, unless a type says otherwise.

    Keys: `thinking` (true, false, or "model": nothing is said of it) and `stop`.
    """
    tiers: dict[str, dict[str, Any]] = {}
    for name, value in raw.items():
        if name not in TIER_THINKING:
            raise ConfigError(f"{file}: [tiers.{name}] is not known; known are {', '.join(TIER_THINKING)}")
        place, settings = f"{file}: [tiers.{name}]", table(file, f"tiers.{name}", value, ConfigError)
        refuse_unknown(place, settings, ("thinking", "stop"), ConfigError)
        tiers[name] = _asking(place, settings)
    return tiers


def _asking(place: str, raw: dict[str, Any]) -> dict[str, Any]:
    """The settings `thinking` and `stop` of a type or a tier, those that are there."""
    found: dict[str, Any] = {}
    if "thinking" in raw:
        if raw["thinking"] == "model":
            found["thinking"] = None
        else:
            found["thinking"] = switch(f"{place} thinking", raw["thinking"], ConfigError)
    if "stop" in raw:
        stop = raw["stop"]
        if not isinstance(stop, list) or len(stop) > _STOPS or not all(isinstance(x, str) and x.strip() for x in stop):
            raise ConfigError(f"{place} stop: a list of at most {_STOPS} texts is needed, none of them blank")
        found["stop"] = tuple(stop)
    return found


def _as_its_tier(file: Path, kind: DecisionType, own: dict[str, Any], tiers: dict[str, dict[str, Any]]) -> DecisionType:
    """A type with what its tier says of thinking and stops, where it says nothing itself."""
    asked = {"thinking": TIER_THINKING[kind.tier], **tiers.get(kind.tier, {}), **own}
    kind = replace(kind, **asked)
    for stop in kind.stop:
        if any(stop in answer for answer in kind.sample_answers()):
            place = f"[decision_types.{kind.name}]" if "stop" in own else f"[tiers.{kind.tier}]"
            raise ConfigError(
                f"{file}: {place} stop: {stop!r} is part of every answer of {kind.name}, which would be cut there; "
                "take a text that no answer holds"
            )
    return kind


def _retention(file: Path, raw: dict[str, Any]) -> Retention:
    names = ("decisions", "labelled_decisions", "feedback", "quarantine")
    refuse_unknown(f"{file}: [retention]", raw, names, ConfigError)
    days: dict[str, int | None] = dict.fromkeys(names)
    for name, value in raw.items():
        if value != "keep":
            if isinstance(value, str):
                raise ConfigError(f'{file}: [retention] {name}: {value!r} is neither a number of days nor "keep"')
            days[name] = number(f"{file}: [retention] {name}", value, int, 1, _MAX_DAYS, ConfigError)
    if days["labelled_decisions"] is not None:
        if days["decisions"] is None:
            raise ConfigError(
                f"{file}: [retention] labelled_decisions: {days['labelled_decisions']}, but `decisions` are kept for "
                "ever; give decisions a number of days that is not larger, or remove labelled_decisions"
            )
        if days["labelled_decisions"] < days["decisions"]:
            raise ConfigError(
                f"{file}: [retention] labelled_decisions: {days['labelled_decisions']} is less than decisions "
                f"({days['decisions']}); labelled decisions are kept at least as long"
            )
    elif "labelled_decisions" not in raw:
        days["labelled_decisions"] = days["decisions"]
    return Retention(**days)


def _redaction(file: Path, raw: dict[str, Any], env: Mapping[str, str]) -> Redaction:
    refuse_unknown(f"{file}: [redaction]", raw, ("enabled", "region"), ConfigError)
    region = text(f"{file}: [redaction] region", raw.get("region", "US"), ConfigError)
    if not _REGION.fullmatch(region):
        raise ConfigError(f"{file}: [redaction] region: {region!r} is not a country; give two capital letters, as US")
    place, enabled = f"{file}: [redaction] enabled", raw.get("enabled", True)
    if env.get("REASONING_REDACTION"):
        place, enabled = "REASONING_REDACTION", env["REASONING_REDACTION"]
    return Redaction(switch(place, enabled, ConfigError), region)


def _as_number(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def _storage(file: Path, raw: dict[str, Any], env: Mapping[str, str]) -> dict[str, Any]:
    limits = ("max_days_ahead", "max_days_behind")
    refuse_unknown(f"{file}: [storage]", raw, ("volume", *limits), ConfigError)
    settings: dict[str, Any] = {}
    for name in limits:
        place, value = f"{file}: [storage] {name}", raw.get(name)
        if text_value := env.get(f"REASONING_{name.upper()}"):
            place, value = f"REASONING_{name.upper()}", _as_number(text_value)
        if value is not None:
            settings[name] = number(place, value, float, 0.01, _MAX_DAYS * 30, ConfigError)
    place, volume = f"{file}: [storage] volume", raw.get("volume", "auto")
    if env.get("REASONING_VOLUME"):
        place, volume = "REASONING_VOLUME", env["REASONING_VOLUME"]
    if volume not in VOLUMES:
        raise ConfigError(f"{place}: {volume!r} is not known; known are {', '.join(VOLUMES)}")
    return {**settings, "volume": volume}


def _decision_types(file: Path, raw: dict[str, Any], tiers: dict[str, dict[str, Any]]) -> dict[str, DecisionType]:
    types, own = dict(DECISION_TYPES), {}
    for name, value in raw.items():
        place = f"{file}: [decision_types.{name}]"
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{place}: a name is letters, digits and _, starting with a letter")
        settings = table(file, f"decision_types.{name}", value, ConfigError)
        types[name], own[name] = _decision_type(place, name, settings), _asking(place, settings)
    return {name: _as_its_tier(file, kind, own.get(name, {}), tiers) for name, kind in types.items()}


def _decision_type(place: str, name: str, raw: dict[str, Any]) -> DecisionType:
    """A declared type, or a built-in with other parameters.

    Keys: `tier` (small, medium, large), `max_tokens`, `temperature`, `max_messages`, `thinking`, `stop`, and for a new
    type also `answer` (an answer form of `reasoning.formats`, `label` by default) and what its form asks for of
    `labels`, `instruction` and `question`. The last two may hold `{agent_name}`.
    """
    builtin = DECISION_TYPES.get(name)
    form = get_form("label") if builtin or "answer" not in raw else _form(place, raw["answer"])
    own = () if builtin else ("answer", *form.settings, *form.optional_settings)
    common = ("tier", "max_tokens", "temperature", "max_messages", "thinking", "stop")
    refuse_unknown(place, raw, (*common, *own), ConfigError)
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
            changes[key] = number(f"{place} {key}", raw[key], kind, low, high, ConfigError)
    if builtin:
        return replace(builtin, **changes)
    for key in form.settings:
        if key not in raw:
            raise ConfigError(
                f"{place}: {key} is missing; a type whose answer is a {form.name} needs {', '.join(form.settings)}"
            )
    declared = DecisionType(
        name=name,
        tier=form.tier,
        answer=form.name,
        max_tokens=form.max_tokens,
        temperature=form.temperature,
        labels=_labels(place, raw["labels"]) if "labels" in raw else (),
        instruction=text(f"{place} instruction", raw["instruction"], ConfigError) if "instruction" in raw else "",
        question=_question(place, raw["question"]) if "question" in raw else "",
    )
    return replace(declared, **changes)


def _form(place: str, name: Any) -> AnswerForm:
    name = text(f"{place} answer", name, ConfigError)
    try:
        form = get_form(name)
    except ConfigError as error:
        raise ConfigError(f"{place} {error}") from None
    if not form.declarable:
        raise ConfigError(f"{place} answer: {name!r} is not declared here; ask the questions with `client.ask`")
    return form


def _labels(place: str, labels: Any) -> tuple[str, ...]:
    if not isinstance(labels, list) or not all(isinstance(x, str) and _LABEL.fullmatch(x) for x in labels):
        raise ConfigError(f"{place} labels: a list of words (letters, digits, spaces and _.-) is needed")
    if len({label.casefold() for label in labels}) != len(labels) or len(labels) < 2:
        raise ConfigError(f"{place} labels: at least two are needed, that differ by more than upper and lower case")
    return tuple(labels)


def _question(place: str, value: Any) -> str:
    question = text(f"{place} question", value, ConfigError)
    if len(question.splitlines()) != 1:
        raise ConfigError(f"{place} question: one line is needed")
    return question
