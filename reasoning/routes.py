"""The former name of `reasoning.serving.routes`: its names still work, with a `DeprecationWarning`."""

from __future__ import annotations

import warnings
from typing import Any

from reasoning.serving import routes as _routes


def __getattr__(name: str) -> Any:
    value = getattr(_routes, name)  # first: a name that is not there is an error, not a deprecated name
    warnings.warn(
        f"reasoning.routes.{name} is deprecated; import it from reasoning.serving.routes",
        DeprecationWarning,
        stacklevel=2,
    )
    return value
