"""Hosted decision models that may answer typed questions as the fallback: TypeSafe, OpenAI, or whoever speaks a wire.

reasoning.toml::

    [decision_models.jev]
    url = "https://api.typesafe.ai"
    model = "jev-latest"
    wire = "systemone"                  # or "decisions", OpenAI's
    key_env = "TYPESAFE_API_KEY"        # the key itself stays in the environment
    path = "/v1/systemone"              # where a server has it elsewhere
    timeout_s = 10

::

    client.ask(state, QUESTIONS, "jev")                       # raises `CallFailed` where it cannot be reached
    client.ask_hosted("jev", state, QUESTIONS)                # inside a fallback of your own: a `Fallback`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from reasoning.errors import ConfigError
from reasoning.serving.decision_wires import WIRES
from reasoning.toml_tables import is_loopback, number, refuse_unknown, server_url, table, text

_KEYS = ("url", "model", "wire", "key_env", "path", "timeout_s")


@dataclass(frozen=True, slots=True)
class DecisionModel:
    """Where a hosted decision model is, and how it is asked. Made by `read_decision_models`; see
    `reasoning.serving.hosted`."""

    name: str
    url: str
    model: str
    wire: str
    path: str
    timeout_s: float = 10.0
    api_key: str | None = field(default=None, repr=False)


def read_decision_models(file: Path, raw: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, DecisionModel]:
    """The tables `[decision_models.<name>]`. A key goes over https only, or to this machine. Raises `ConfigError`."""
    return {name: _read(file, name, value, env) for name, value in raw.items()}


def find_decision_model(models: Mapping[str, DecisionModel], name: str) -> DecisionModel:
    """The model called `name`. Raises `ConfigError`."""
    if name not in models:
        known = ", ".join(models) or "none"
        raise ConfigError(f"decision model {name!r} is not known ({known}); add [decision_models.{name}]")
    return models[name]


def _read(file: Path, name: str, value: Any, env: Mapping[str, str]) -> DecisionModel:
    place, raw = f"{file}: [decision_models.{name}]", table(file, f"decision_models.{name}", value, ConfigError)
    if "api_key" in raw or "key" in raw:
        raise ConfigError(f"{place}: a key has no place in a file; name its variable as key_env")
    refuse_unknown(place, raw, _KEYS, ConfigError)
    wire = text(f"{place} wire", raw.get("wire", "systemone"), ConfigError)
    if wire not in WIRES:
        raise ConfigError(f"{place} wire: {wire!r} is not known; known: {', '.join(WIRES)}")
    url = server_url(f"{place} url", raw.get("url"), "name its key's variable as key_env", ConfigError)
    key = None
    if "key_env" in raw:
        variable = text(f"{place} key_env", raw["key_env"], ConfigError)
        key = env.get(variable) or None
        if key and not (key.isascii() and key.isprintable() and " " not in key):
            raise ConfigError(f"{variable}: holds a blank, a line break or a letter that no key has; copy it anew")
        if key and urlsplit(url).scheme != "https" and not is_loopback((urlsplit(url).hostname or "").lower()):
            raise ConfigError(f"{place} url: {url} would get the key unencrypted; use https")
    path = text(f"{place} path", raw.get("path", WIRES[wire].path), ConfigError)
    if not path.startswith("/"):
        raise ConfigError(f"{place} path: {path!r} does not begin with /")
    return DecisionModel(
        name=name,
        url=url,
        model=text(f"{place} model", raw.get("model"), ConfigError),
        wire=wire,
        path=path,
        timeout_s=number(f"{place} timeout_s", raw.get("timeout_s", 10.0), float, 0.001, 600, ConfigError),
        api_key=key,
    )
