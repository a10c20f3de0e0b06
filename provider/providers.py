"""Providers by name: the one place outside the adapters that knows which there are.

Which one an installation uses, `REASONING_PROVIDER` says (`local` is the default). An adapter is imported when it is
opened: Together's SDK takes 2 s.
"""

from __future__ import annotations

from provider.errors import ProviderSettingsError
from provider.port import Provider
from provider.together.client import inference_url, provider_name, provider_url

__all__ = ["PROVIDERS", "inference_url", "open_provider", "provider_name", "provider_url"]

PROVIDERS = ("local", "together")


def open_provider(name: str | None = None, *, timeout: float = 60.0) -> Provider:
    """A connection to the provider of that name, by default the one of the settings. `timeout` is in seconds.

    Raises ProviderSettingsError, ProviderUnavailable when nothing answers, ProviderRefused for a wrong key.
    """
    name = provider_name(name)
    if name not in PROVIDERS:
        known = " or ".join(f"`{each}`" for each in PROVIDERS)
        raise ProviderSettingsError(f"unknown provider {name!r}: use {known}")
    from provider.together.adapter import open_together

    return open_together(name, timeout=timeout)
