"""What the upstreams' models cost: `[gateway.prices."<model>"]`, US dollars a million tokens. Unknown is unknown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True)
class Price:
    """Of the models whose name `model` matches, `*` standing for anything."""

    model: str
    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal

    def cost_usd(self, *, input: int, output: int, cache_read: int = 0, cache_write: int = 0) -> float:
        """US dollars. `input` is without what was read from or written to a cache."""
        sums = self.input * input + self.output * output + self.cache_read * cache_read + self.cache_write * cache_write
        return float(sums / 1_000_000)


def find_price(prices: Sequence[Price], model: object) -> Price | None:
    """The first that matches."""
    return next((price for price in prices if isinstance(model, str) and fnmatchcase(model, price.model)), None)
