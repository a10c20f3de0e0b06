"""What Together offers."""

from __future__ import annotations

from decimal import Decimal

from provider.capabilities import Capabilities

CAPABILITIES = Capabilities(
    trains=True,
    starts_servers=True,
    scale_to_zero=True,
    hourly=True,
    adapters_per_replica=None,
    bills=True,
    minimum_training_usd=Decimal(4),  # Together's documentation, 2026-08: whatever the estimate says
)
