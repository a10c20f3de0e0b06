"""The price of a model's tokens: of `reasoning.toml`, else of `genai-prices`, else of our own list. Unknown is unknown.

`genai-prices` was chosen by measurement (0.2.3, 28 Nov 2026): 3 MB, offline, with cached tokens and tiers, and it knows
10 of 20 names that we looked up, all at their price. litellm 1.110.2 knows all of them in 139 MB, and asks the network
when it is imported; tokencost 0.1.26 knows three. The decision models that `genai-prices` lacks are in `prices.toml`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from prices.listed import listed_models


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars a million tokens, of the models whose name `model` matches, `*` standing for anything.

    `source` says where it is from, with the date where it may have changed since.
    """

    model: str
    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal
    source: str = "reasoning.toml"

    def cost_usd(self, *, input: int, output: int, cache_read: int = 0, cache_write: int = 0) -> float:
        """US dollars. `input` is without what was read from or written to a cache."""
        sums = self.input * input + self.output * output + self.cache_read * cache_read + self.cache_write * cache_write
        return float(sums / 1_000_000)


@dataclass(frozen=True, slots=True)
class LibraryPrice:
    """The price of a model in `genai-prices` at a time: it may depend on the length of the prompt."""

    model: Any
    provider: Any
    ts: datetime
    source: str

    def cost_usd(self, *, input: int, output: int, cache_read: int = 0, cache_write: int = 0) -> float:
        """US dollars. `input` is without what was read from or written to a cache."""
        from genai_prices import Usage

        usage = Usage(
            input_tokens=input + cache_read + cache_write,
            output_tokens=output,
            cache_read_tokens=cache_read,
            cache_write_tokens=cache_write,
        )
        return float(self.model.calc_price(usage, self.provider, genai_request_timestamp=self.ts).total_price)


AnyPrice = Price | LibraryPrice


def find_price(
    own: Sequence[Price], model: object, *, url: str | None = None, ts: datetime | None = None
) -> AnyPrice | None:
    """The price of a model as its API names it, or None where it is not known.

    `own` goes before all lists. With `url`, the server that is asked, only the prices of the company are taken whose
    server that is: another one may serve a model of the same name for another price. `ts` is when it was asked.
    """
    if not isinstance(model, str) or not model:
        return None
    for price in own:
        if fnmatchcase(model, price.model):
            return price
    found = _in_library(model, url)
    if found is not None:
        return LibraryPrice(*found, ts or datetime.now(UTC), library_source())
    if url is not None:
        return None
    return next((price for price in _listed() if fnmatchcase(model.lower(), price.model)), None)


def load_library(urls: Iterable[str]) -> None:
    """Import the library, some 0.4 s, if one of these servers may be a company's: not while a request waits."""
    for url in urls:
        find_price((), "-", url=url)


def _is_own(url: str) -> bool:
    """Is this a server at an address or of this machine? No company's is, and the library need not be asked."""
    try:
        host = urlsplit(url).hostname or "localhost"
        return host == "localhost" or bool(ip_address(host))
    except ValueError:
        return False


@functools.lru_cache(maxsize=4096)
def _in_library(model: str, url: str | None) -> tuple[Any, Any] | None:
    """Model and provider in the library's data. None: not there, or the library is not installed."""
    if url is not None and _is_own(url):
        return None
    try:
        from genai_prices.data_snapshot import get_snapshot
    except ImportError:
        return None
    try:
        provider, found = get_snapshot().find_provider_model(model, None, None, url)
    except (LookupError, ValueError):
        return None
    return found, provider


@functools.cache
def library_source() -> str:
    """Name and version of the library, and the newest date among its dated prices: they are at least as new."""
    import genai_prices
    from genai_prices.data_snapshot import get_snapshot

    today = datetime.now(UTC).date()
    dates = {day for provider in get_snapshot().providers for model in provider.models for day in _dates(model.prices)}
    newest = max((day for day in dates if day <= today), default=None)
    return f"genai-prices {genai_prices.__version__}" + (f" ({newest})" if newest else "")


def _dates(prices: Any) -> list[date]:
    conditions = prices if isinstance(prices, list) else []
    days = (getattr(each.constraint, "start_date", None) for each in conditions)
    return [day for day in days if day is not None]


@functools.cache
def _listed() -> tuple[Price, ...]:
    found = []
    for name, listed in listed_models().items():
        rate = Decimal(str(listed["input_usd_per_mtok"]))
        out = Decimal(str(listed["output_usd_per_mtok"]))
        found.append(Price(name, rate, out, rate, rate, listed["source"]))
    return tuple(found)
