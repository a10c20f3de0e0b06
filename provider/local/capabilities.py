"""What this machine offers."""

from __future__ import annotations

from provider.capabilities import Capabilities

CAPABILITIES = Capabilities(trains=True, starts_servers=True, scale_to_zero=True, free=True)
