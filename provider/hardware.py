"""Names of hardware, and the price of it: the same machine is written in several ways, so names are compared by what
they say.

Instance types are called `1xnvidia-h100-80gb`; their `gpuType` is `H100`. The SDK's own command makes the name from a
config's selectors (`accelerator_count`, `accelerator_type`) and finds the instance type by it, tolerating a missing
vendor (together 3.1.1, `lib/cli/api/endpoints/_utils/_hardware_pricing.py`). This module does the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from provider.port import Provider
from storage.errors import PriceUnknown

_LONGEST = 100  # of a name that is read; what is longer says nothing
_COUNT = re.compile(r"^\W*(\d{1,3})\s?x\s?|\bx\s?(\d{1,3})\b")
_MEMORY = re.compile(r"(\d{2,4})\s?gi?b\b")
_MODEL = re.compile(r"(?<![a-z0-9])((?:gb|mi|rtx|[abhlptv])\s?-?\d{2,4}[a-z]{0,2})(?![a-z0-9])")
# The same memory is called 80 GB and 79 GiB, 192 GB and 180 GB: only more than a quarter is another machine.
_MEMORY_TOLERANCE = 0.25

Match = Literal["same", "different", "unknown"]


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a name says: GPUs of one replica, their model (`h100`), the memory of each in GB. None: not said."""

    count: int | None
    model: str | None
    memory_gb: int | None


def read_hardware(name: str) -> Hardware:
    """What a name of hardware says."""
    name = name.strip().lower() if len(name) <= _LONGEST else ""
    counted = _COUNT.search(name)
    count = int(counted[1] or counted[2]) if counted else None
    rest = _COUNT.sub(" ", name).replace("_", " ")
    memory, model = _MEMORY.search(rest), _MODEL.search(rest)
    return Hardware(
        count, re.sub(r"[\s-]", "", model[1]) if model else None, int(memory[1]) if memory is not None else None
    )


def compare_hardware(first: str, second: str) -> Match:
    """Do two names mean the same machine? `unknown` where they do not say enough to tell."""
    if bare_hardware(first) == bare_hardware(second):
        return "same"
    one, other = read_hardware(first), read_hardware(second)
    if one.model is None or other.model is None:
        return "unknown"
    if one.model != other.model:
        return "different"
    if one.count is None or other.count is None:
        return "unknown"
    if one.count != other.count:
        return "different"
    memories = sorted(memory for memory in (one.memory_gb, other.memory_gb) if memory)
    if len(memories) == 2 and memories[1] > memories[0] * (1 + _MEMORY_TOLERANCE):
        return "different"
    return "same"


def bare_hardware(name: str) -> str:
    """A name without its vendor, in lower case: `1xh100-80gb`."""
    return name.strip().lower().replace("nvidia-", "").replace("amd-", "")


def price_of(prices: Mapping[str, Decimal], hardware: str) -> Decimal | None:
    """Price of hardware in a table of `Provider.hourly_prices`: by its name, else by what the name says, else None.

    Several that it may be at different prices: the dearest is the safe guess.
    """
    if hardware in prices:
        return prices[hardware]
    same = [price for name, price in prices.items() if compare_hardware(name, hardware) == "same"]
    return max(same, default=None)


def instance_price(provider: Provider, hardware: str) -> Decimal:
    """US dollars an hour of one running replica on `hardware` (an instance type's name or id, `1xnvidia-h100-80gb`).

    It is billed by the minute. Raises PriceUnknown.
    """
    prices = provider.hourly_prices()
    price = price_of(prices, hardware)
    if price is None:
        raise PriceUnknown(
            f"the provider lists no price for {hardware}; it lists {', '.join(sorted(prices)) or 'none'}"
        )
    return price
