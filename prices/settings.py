"""`[prices]` in `reasoning.toml`: prices that go before all lists.

=============================  ======================================================================================
`[prices]`                     meaning (default)
=============================  ======================================================================================
`[prices.models."<model>"]`    what a model costs, `*` standing for anything in the name: `input_usd_per_mtok`,
                               `output_usd_per_mtok`, `cache_read_usd_per_mtok` (a tenth of the input's) and
                               `cache_write_usd_per_mtok` (1.25 of it). The first that matches
`[prices.serving.<name>]`      a way to serve models, or values in place of a listed one's (`prices/prices.toml`):
                               `kind`, `title`, `hourly_usd`, `input_usd_per_mtok`, `output_usd_per_mtok`,
                               `max_adapters`, `max_decisions_per_hour` (of one replica), `training_usd`, `forms`,
                               `source`; `enabled = false` leaves it out
`[prices.fallback]`            `<decision type> = US dollars per 1,000 decisions`: what its fallback costs where the log
                               does not say (0: it is free)
=============================  ======================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from prices.listed import listed_serving
from prices.models import Price
from prices.serving import KINDS, NUMBERS, Serving, ways_of_serving
from reasoning.config import settings_file
from reasoning.errors import ConfigError
from reasoning.toml_tables import Raises, number, read_toml, refuse_unknown, switch, table, text

_RATES = tuple(f"{kind}_usd_per_mtok" for kind in ("input", "output", "cache_read", "cache_write"))
_COUNTS = {"max_adapters": 10_000, "max_decisions_per_hour": 1_000_000_000}
_NEEDED: dict[str, tuple[str, ...]] = {
    "replica": ("hourly_usd",),
    "adapters": ("hourly_usd", "max_adapters"),
    "per_token": ("input_usd_per_mtok", "output_usd_per_mtok"),
    "home": ("hourly_usd",),
    "decision_model": ("input_usd_per_mtok", "output_usd_per_mtok"),
}


@dataclass(frozen=True, slots=True)
class PriceSettings:
    """Prices that go before all lists, and the ways of serving with them."""

    models: tuple[Price, ...] = ()
    serving: tuple[Serving, ...] = ()
    fallback_usd_per_1000: Mapping[str, Decimal] = field(default_factory=dict)


def load_prices(path: Path | None = None) -> PriceSettings:
    """The settings, validated. Raises `ConfigError`."""
    file = path or settings_file()
    try:
        raw = read_toml(file, ConfigError)
    except FileNotFoundError:
        raw = {}
    prices = table(file, "prices", raw.get("prices", {}), ConfigError)
    refuse_unknown(f"{file}: [prices]", prices, ("models", "serving", "fallback"), ConfigError)
    models = read_model_prices(file, "prices.models", prices.get("models", {}), ConfigError)
    gateway = raw.get("gateway", {})
    if isinstance(gateway, dict) and "prices" in gateway:  # the place of versions before 0.3
        models += read_model_prices(file, "gateway.prices", gateway["prices"], ConfigError)
    overrides = table(file, "prices.serving", prices.get("serving", {}), ConfigError)
    stated = table(file, "prices.fallback", prices.get("fallback", {}), ConfigError)
    return PriceSettings(
        models,
        ways_of_serving({name: _way(file, name, way) for name, way in overrides.items()}),
        {
            name: Decimal(str(number(f"{file}: [prices.fallback] {name}", usd, float, 0, 1e9, ConfigError)))
            for name, usd in stated.items()
        },
    )


def read_model_prices(file: Path, name: str, raw: Any, error: Raises) -> tuple[Price, ...]:
    """The models' prices of the table called `name`."""
    found = []
    for model, listed in table(file, name, raw, error).items():
        place = f'{file}: [{name}."{model}"]'
        listed = table(file, f'{name}."{model}"', listed, error)
        refuse_unknown(place, listed, _RATES, error)
        given = {
            rate: Decimal(str(number(f"{place} {rate}", listed[rate], float, 0, 1e6, error)))
            for rate in _RATES
            if rate in listed
        }
        if missing := [rate for rate in _RATES[:2] if rate not in given]:
            raise error(f"{place} {missing[0]} is needed: US dollars a million tokens")
        read = given.get(_RATES[2], given[_RATES[0]] / 10)
        write = given.get(_RATES[3], given[_RATES[0]] * Decimal("1.25"))
        found.append(Price(model, given[_RATES[0]], given[_RATES[1]], read, write))
    return tuple(found)


def _way(file: Path, name: str, raw: Any) -> dict[str, Any]:
    place = f"{file}: [prices.serving.{name}]"
    way = dict(table(file, f"prices.serving.{name}", raw, ConfigError))
    refuse_unknown(place, way, (*NUMBERS, "kind", "title", "source", *_COUNTS, "forms", "enabled"), ConfigError)
    for each in NUMBERS:
        if each in way:
            way[each] = number(f"{place} {each}", way[each], float, 0, 1e6, ConfigError)
    for each in ("kind", "title", "source"):
        if each in way:
            way[each] = text(f"{place} {each}", way[each], ConfigError)
    for each, most in _COUNTS.items():
        if each in way:
            way[each] = number(f"{place} {each}", way[each], int, 1, most, ConfigError)
    if "enabled" in way:
        way["enabled"] = switch(f"{place} enabled", way["enabled"], ConfigError)
    forms = way.get("forms", [])
    if not isinstance(forms, list) or not all(isinstance(form, str) for form in forms):
        raise ConfigError(f"{place} forms: a list of answer forms is needed, not {forms!r}")
    known = listed_serving().get(name, {}) | way
    if known.get("kind") not in KINDS:
        raise ConfigError(f"{place} kind: {known.get('kind')!r} is none of {', '.join(KINDS)}")
    if missing := [each for each in _NEEDED[known["kind"]] if each not in known]:
        raise ConfigError(f"{place} {missing[0]} is needed for kind = {known['kind']!r}")
    return way
