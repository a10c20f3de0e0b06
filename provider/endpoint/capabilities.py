"""What a server that somebody else runs offers: answers to questions, by the hour or by the token."""

from __future__ import annotations

from provider.capabilities import Capabilities

CAPABILITIES = Capabilities(hourly=True, per_token=True)
