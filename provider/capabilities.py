"""What a provider offers and what it charges for, as data: everything above branches on this, never on its name.

Each provider's folder has its own in `capabilities.py`; `provider.providers.capabilities_of` finds it by the name in a
ledger row.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Which parts of the port a provider has, and what it costs.

    `trains` says that it trains models. `starts_servers` says that it starts and stops what serves a model; otherwise
    somebody else runs the server, and the model is registered by URL and price. `scale_to_zero` says that a deployment
    can be stopped while nobody asks it, and started again. `hourly` and `per_token` say what is charged for a model
    that serves; `free` that nothing ever is. `adapters_per_replica` is how many trained adapters one deployment serves;
    0 where each model has a deployment of its own, None where the base model tells. `bills` says that there is a bill
    to read. `minimum_training_usd` is the least that a fine-tune costs.
    """

    trains: bool = False
    starts_servers: bool = False
    scale_to_zero: bool = False
    hourly: bool = False
    per_token: bool = False
    free: bool = False
    adapters_per_replica: int | None = 0
    bills: bool = False
    minimum_training_usd: Decimal = Decimal(0)

    @property
    def costs_while_unwatched(self) -> bool:
        """May something of ours there cost money until we stop it?"""
        return not self.free and (self.trains or self.starts_servers)
