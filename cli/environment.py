"""The environment variables of the command: the one place of `cli` that reads and sets them.

What a child process gets is put together in `cli.serve.environment`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from reasoning.config import settings_file

_OURS = re.compile(r"(REASONING|TOGETHER)_[A-Z0-9_]+|[A-Z][A-Z0-9_]*_KEY")


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


def load_env_file() -> None:
    """Take the variables of the `.env` beside the settings file that `reasoning init` writes.

    What is set already stays. Only settings of ours and keys are taken, and only of a file that is the user's own and
    that nobody else may read or write: what a downloaded folder brings along must not say where a key is sent.
    """
    path, is_private = env_file()
    if not is_private:
        return
    for name, value in read_env_file(path).items():
        if _OURS.fullmatch(name):
            os.environ.setdefault(name, value)


def env_file() -> tuple[Path, bool]:
    """The `.env` beside the settings file, and whether it is there, the user's own, and closed to all others."""
    path = settings_file().absolute().parent / ".env"
    try:
        status = path.stat()
    except OSError:
        return path, False
    return path, status.st_uid == os.getuid() and not status.st_mode & 0o077


def read_env_file(path: Path) -> dict[str, str]:
    """The variables of an env file; {} for one that cannot be read."""
    from dotenv import dotenv_values

    try:
        return {name: value for name, value in dotenv_values(path, interpolate=False).items() if value is not None}
    except (OSError, UnicodeDecodeError):
        return {}


def variable(name: str) -> str | None:
    """A variable, such as an API key; None where it is not set or empty."""
    return os.environ.get(name) or None


def set_variable(name: str, value: str) -> None:
    """Have this process, and its child processes, see a variable."""
    os.environ[name] = value
