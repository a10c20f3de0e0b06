"""Providers by name: the one place outside the adapters that knows which there are.

Which one an installation uses, `REASONING_PROVIDER` says (`local` is the default). An adapter is imported when it is
opened: Together's SDK takes 2 s.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from provider.capabilities import Capabilities
from provider.endpoint import capabilities as endpoint
from provider.errors import ProviderSettingsError
from provider.local import capabilities as local
from provider.local.folder import server_url
from provider.port import Provider
from provider.settings import provider_name
from provider.together import capabilities as together
from provider.together.client import inference_url, provider_url
from reasoning.serving.routes import Logprobs
from storage.ledger.rows import ENDPOINT, LOCAL, TOGETHER

__all__ = [
    "PROVIDERS",
    "arm_address",
    "capabilities_of",
    "local_server_command",
    "local_server_url",
    "open_provider",
    "open_provider_of",
    "provider_url",
    "providers_where",
]

PROVIDERS = ("local", "emulator", "together")
"""`local` trains and serves on this machine; `emulator` speaks Together's API, for tests; `together` costs money."""

CAPABILITIES: Mapping[str, Capabilities] = {
    LOCAL: local.CAPABILITIES,
    TOGETHER: together.CAPABILITIES,
    ENDPOINT: endpoint.CAPABILITIES,
}
"""By the name that ledger rows have in their column `provider`."""


def capabilities_of(provider: str) -> Capabilities:
    """What the provider of a ledger row offers. Raises ProviderSettingsError for a provider that there is not."""
    if provider not in CAPABILITIES:
        raise ProviderSettingsError(f"unknown provider in the ledger: {provider!r}; use the version that wrote it")
    return CAPABILITIES[provider]


def providers_where(test: Callable[[Capabilities], bool]) -> list[str]:
    """Names of the providers, as ledger rows have them, whose capabilities pass a test."""
    return [name for name, offered in CAPABILITIES.items() if test(offered)]


def open_provider(data: Path, name: str | None = None, *, timeout: float = 60.0) -> Provider:
    """A connection to the provider of that name, by default the one of the settings, for a data folder.

    `timeout` is in seconds.

    Raises ProviderSettingsError, ProviderUnavailable when nothing answers, ProviderRefused for a wrong key.
    """
    name = provider_name(name)
    if name not in PROVIDERS:
        known = ", ".join(f"`{each}`" for each in PROVIDERS)
        raise ProviderSettingsError(f"unknown provider {name!r}: use one of {known}")
    if name == LOCAL:
        from provider.local.adapter import LocalProvider

        return LocalProvider(data)
    from provider.together.adapter import open_together

    return open_together(name, timeout=timeout)


def open_provider_of(data: Path, has: str | None, *, timeout: float = 60.0) -> Provider:
    """A connection to the provider that has an object: `has` is the `provider` of its ledger row, None: any.

    Raises as `open_provider`, and ProviderSettingsError where the settings name another provider than the one that has
    it, unless that is this machine.
    """
    name = provider_name()
    if has == LOCAL:
        name = LOCAL
    elif has is not None and name == LOCAL:
        raise ProviderSettingsError(f"this is at the provider `{has}`: set REASONING_PROVIDER={has} (or `emulator`)")
    return open_provider(data, name, timeout=timeout)


def arm_address(data: Path, has: str) -> tuple[str, Logprobs]:
    """Where a deployed model is asked, without `/v1`, and how for log-probabilities; `has` as in `open_provider_of`."""
    if has == LOCAL:
        from provider.local.adapter import LocalProvider

        return LocalProvider(data).url(), "flag"
    return inference_url(), "count"


def local_server_command(data: Path) -> list[str]:
    """The command that serves the local models of a data folder until it is told to end."""
    return [sys.executable, "-P", "-m", "provider.local.server", str(data / "local"), "--foreground"]


def local_server_url(data: Path) -> str | None:
    """Base URL of the server of local models of a data folder, where one runs."""
    return server_url(data / "local")
