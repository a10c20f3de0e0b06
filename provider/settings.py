"""The environment variables of providers: the one place of `provider` that reads them.

====================== ===============================================================================================
REASONING_PROVIDER     which provider trains and serves; `local` where it is not set
REASONING_PROVIDER_URL address of the emulator
TOGETHER_API_KEY       Together's API key; never sent to another server
TOGETHER_PROJECT_ID    the project of the account, where the key does not tell it
TOGETHER_BASE_URL      another address of Together's API
====================== ===============================================================================================
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TogetherSettings:
    """What the environment says about Together; None where it says nothing."""

    api_key: str | None = field(repr=False)
    project_id: str | None
    base_url: str | None


def provider_name(provider: str | None = None) -> str:
    """Name of the provider, by default that of `REASONING_PROVIDER`, else `local`.

    `local` with an address in `REASONING_PROVIDER_URL` means `emulator`, as it did in earlier versions.
    """
    name = provider or os.environ.get("REASONING_PROVIDER") or "local"
    return "emulator" if name == "local" and emulator_url() else name


def emulator_url() -> str | None:
    """The address in `REASONING_PROVIDER_URL`, None where it is not set."""
    return os.environ.get("REASONING_PROVIDER_URL") or None


def together_settings() -> TogetherSettings:
    """The variables `TOGETHER_...`."""
    return TogetherSettings(
        api_key=os.environ.get("TOGETHER_API_KEY") or None,
        project_id=os.environ.get("TOGETHER_PROJECT_ID") or None,
        base_url=os.environ.get("TOGETHER_BASE_URL") or None,
    )
