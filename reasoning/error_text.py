"""Errors as text that may be kept: short, and without secrets."""

from __future__ import annotations

import re

_LIMIT = 500
_LOOKED_AT = 4_000  # characters: an error that quotes a page is cut before it is searched
# Every repetition is bounded, or keeps what it has taken: time grows with the length only.
_SECRETS = (
    r"(?P<name>\b(?:bearer|basic|api[-_ ]?key|token|secret|password|passwd|pwd|authorization|credential|cookie)\b"
    r"\\{0,4}[\"']?\s{0,8}+[:=]?\s{0,8}+\\{0,4}[\"']?)(?!(?:bearer|basic)\b)[^\s\"'\\,;&]++"
    r"|\b(?:sk|tgp|key|gh[opusr]|github_pat|glpat|xox[a-z]|gsk|xai|pplx|hf|r8|gocspx)[-_][A-Za-z0-9_-]{8,}+"
    r"|\b(?:AKIA|ASIA|AIza)[A-Za-z0-9_-]{12,}+|\beyJ[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_.-]{8,}+"
    r"|(?<=//)(?:[^/\s@:\"']{0,256}+:(?![0-9]{1,5}(?:[/?#\s]|$))[^\s\"']{1,256}|[^/\s@]{1,256}+)(?=@)"
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
    if len(text) > _LOOKED_AT:
        # Without what is cut, which might be the beginning of a secret: the last word, or the end of a very long one.
        words = text[:_LOOKED_AT].rsplit(None, 1)[0]
        text = words if words and len(words) > _LIMIT else text[: _LOOKED_AT - 40]
    # Not compiled at import, which would be a fiftieth of the package's: `re` keeps it from the first use on.
    return re.sub(_SECRETS, lambda found: f"{found['name'] or ''}***", text, flags=re.IGNORECASE)[:_LIMIT]
