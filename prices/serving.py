"""The ways to serve a decision type, and what each costs: `prices.toml`, overridden by `[prices.serving.<name>]`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any, Literal

from prices.listed import listed_serving

ServingKind = Literal["replica", "adapters", "per_token", "home", "decision_model"]
KINDS: tuple[ServingKind, ...] = ("replica", "adapters", "per_token", "home", "decision_model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """One way to serve. US dollars; what its kind does not use is None (see `prices.toml`).

    `training_usd` is the least that one training costs. `max_decisions_per_hour`
    is what one replica can take; None: enough. `forms` are the answer forms that it can serve; empty: all.
    """

    name: str
    kind: ServingKind
    title: str
    source: str
    hourly_usd: Decimal | None = None
    input_usd_per_mtok: Decimal | None = None
    output_usd_per_mtok: Decimal | None = None
    max_adapters: int | None = None
    max_decisions_per_hour: int | None = None
    training_usd: Decimal = Decimal(0)
    forms: tuple[str, ...] = ()

    @property
    def trained(self) -> bool:
        """Is it a model of the user's own that must be trained?"""
        return self.kind != "decision_model"


NUMBERS = tuple(field.name for field in fields(Serving) if "Decimal" in str(field.type))


def ways_of_serving(overrides: Mapping[str, Mapping[str, Any]] | None = None) -> tuple[Serving, ...]:
    """All ways, those of the list with the overrides' values in place of theirs, and those that only they have."""
    merged: dict[str, dict[str, Any]] = {name: dict(entry) for name, entry in listed_serving().items()}
    for name, entry in (overrides or {}).items():
        merged[name] = merged.get(name, {"title": name}) | {"source": "reasoning.toml"} | dict(entry)
    return tuple(_way(name, entry) for name, entry in merged.items() if entry.get("enabled", True))


def _way(name: str, entry: Mapping[str, Any]) -> Serving:
    values = {key: value for key, value in entry.items() if key != "enabled"}
    values |= {key: Decimal(str(values[key])) for key in NUMBERS if values.get(key) is not None}
    return Serving(name=name, **values | {"forms": tuple(values.get("forms", ()))})
