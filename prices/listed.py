"""Our own list of prices, `prices.toml`: of what no library has. Every entry has its `source`, with its date."""

from __future__ import annotations

import functools
import tomllib
from importlib.resources import files
from typing import Any


@functools.cache
def _file() -> dict[str, Any]:
    return tomllib.loads((files("prices") / "prices.toml").read_text())


def listed_models() -> dict[str, dict[str, Any]]:
    """Prices of models' tokens by the name of the model."""
    return _dated("models")


def listed_serving() -> dict[str, dict[str, Any]]:
    """Ways to serve a model, by name."""
    return _dated("serving")


def _dated(table: str) -> dict[str, dict[str, Any]]:
    day = _file()["date"]
    return {name: entry | {"source": f"{entry['source']} ({day})"} for name, entry in _file()[table].items()}
