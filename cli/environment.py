"""The environment variables of the command: the one place of `cli` that reads and sets them.

What a child process gets is put together in `cli.serve.environment`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping


def is_debug() -> bool:
    """Is the place in the code to be shown with an error?"""
    return bool(os.environ.get("REASONING_DEBUG"))


def set_debug() -> None:
    """Have errors shown with their place, here and in child processes."""
    os.environ["REASONING_DEBUG"] = "1"


def provider_name() -> str | None:
    """The provider that the environment names, if it does."""
    return os.environ.get("REASONING_PROVIDER") or None


def has_provider_url() -> bool:
    """Does the environment name a provider's address?"""
    return bool(os.environ.get("REASONING_PROVIDER_URL"))


def has_together_key() -> bool:
    """Is there an API key for Together?"""
    return bool(os.environ.get("TOGETHER_API_KEY"))


def use_emulator(url: str) -> None:
    """Have the provider's client ask this address, unless the environment names another."""
    os.environ.setdefault("REASONING_PROVIDER_URL", url)


def use_prefect(url: str) -> bool:
    """Have Prefect's client ask this API, unless the environment names another. Does it ask this one?"""
    return os.environ.setdefault("PREFECT_API_URL", url) == url


def prefect_hosts() -> list[str]:
    """Host names besides this machine's, under which `cli.prefect_server` may be asked."""
    names = os.environ.get("REASONING_PREFECT_HOSTS", "").split(",")
    return [name.strip().lower() for name in names if name.strip()]


def set_prefect_password(password: str) -> None:
    """Have Prefect's client send this password, in the form `user:password`."""
    os.environ["PREFECT_API_AUTH_STRING"] = password


def replace_environment(variables: Mapping[str, str]) -> None:
    """Make these all the variables of this process, for libraries that read their settings when imported."""
    os.environ.clear()
    os.environ.update(variables)
