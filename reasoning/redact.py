"""Errors as text that may be kept: short, and without secrets."""

from __future__ import annotations

import re

_LIMIT = 500
_SECRETS = (
    r"(?P<name>\b(?:bearer|basic|api[-_ ]?key|token|secret|password|authorization)\b[\"']?\s*[:=]?\s*[\"']?)"
    r"(?!(?:bearer|basic)\b)[^\s\"',;&]+"
    r"|\b(?:sk|tgp|key|ghp|xox[a-z])[-_][A-Za-z0-9_-]{8,}"
    r"|(?<=//)[^/\s@]+(?=@)"
)


def describe_error(error: BaseException, *secrets: str | None) -> str:
    """Class and message of an error, at most 500 characters, with what looks like a secret as `***`.

    `secrets` are texts that must not be in it whatever they look like.
    """
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # an exception whose __str__ fails
        text = type(error).__name__
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    # Not compiled at import, which would be a fiftieth of the package's: `re` keeps it from the first use on.
    return re.sub(_SECRETS, lambda found: f"{found['name'] or ''}***", text, flags=re.IGNORECASE)[:_LIMIT]
