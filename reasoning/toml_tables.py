"""Values of a TOML file, checked one by one: each error names the place, the value and the mend.

The packages that read `reasoning.toml` raise errors of their own, so every function takes the class to raise. A `place`
is what a reader of the error looks for, such as `reasoning.toml: [client] shadow_queue`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from reasoning.errors import ReasoningError

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
Raises = type[ReasoningError]


def read_toml(file: Path, error: Raises) -> dict[str, Any]:
    """The contents of a file. FileNotFoundError when there is none; `error` when it cannot be read or is not TOML."""
    try:
        contents = file.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as failure:
        raise error(f"{file}: {failure.strerror}") from None
    import tomllib  # an agent without a file need not wait for its import

    try:
        return tomllib.loads(contents.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as failure:
        raise error(f"{file}: not TOML: {failure}") from None


def refuse_unknown(place: str, names: Iterable[str], known: Collection[str], error: Raises) -> None:
    """Refuse the first of `names` that is not known, with the one that was probably meant."""
    for name in names:
        if name not in known:
            close = similar_name(name, known)
            mend = f"did you mean {close}?" if close else f"known are {', '.join(sorted(known))}"
            raise error(f"{place} {name} is not known; {mend}")


def similar_name(name: str, known: Collection[str]) -> str | None:
    """The known name that `name` may be a slip of."""
    import difflib

    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.7)), None)


def table(file: Path, name: str, value: Any, error: Raises) -> dict[str, Any]:
    """The table called `name`, dots included."""
    if not isinstance(value, dict):
        raise error(f"{file}: {name}: a table is needed: [{name}]")
    return value


def text(place: str, value: Any, error: Raises) -> str:
    """Text that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise error(f"{place}: text is needed, not {value!r}")
    return value


def number(place: str, value: Any, kind: type, low: float, high: float, error: Raises) -> Any:
    """A number within `low` and `high`, both included; `kind` is int or float. NaN is within nothing."""
    good = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if not good or not low <= value <= high:
        raise error(f"{place}: {value!r} is not {'a whole number' if kind is int else 'a number'} within {low}..{high}")
    return kind(value)


def switch(place: str, value: Any, error: Raises) -> bool:
    """True or false, or one of the words for them that an environment variable may hold."""
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else None
    if word not in (*_TRUE, *_FALSE):
        raise error(f"{place}: {value!r} is neither true nor false")
    return word in _TRUE


def is_loopback(host: str) -> bool:
    """Is `host` this machine: `localhost`, or a loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def server_url(place: str, value: Any, instead: str, error: Raises) -> str:
    """An http(s) URL of a server, without `/v1` at its end. It holds no secret; `instead` says where that belongs."""
    try:
        parts = urlsplit(text(place, value, error))
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        good = good and not parts.query and not parts.fragment
    except ValueError:
        good = False
    if not good:
        raise error(f"{place}: {value!r} is not an http(s) URL")
    if parts.username or parts.password:
        raise error(f"{place}: a URL must not hold a user name or password; {instead}")
    return str(value).rstrip("/").removesuffix("/v1")
