"""Errors of what we ask of the provider.

::

    ReasoningError
    └── ProviderError
        ├── ProviderSettingsError  URL, key or provider name is missing or wrong
        ├── ProviderUnavailable    no answer, or a passing refusal (429, 5xx): try again later
        │   ├── Throttled          too many requests: this one was not even looked at
        │   └── UnexpectedAnswer   an answer that is not as documented (HTML, a field that lacks): as good as none
        ├── ProviderRefused        the provider said no (4xx): trying again is useless
        │   ├── RemoteNotFound     it has no such object
        │   ├── AccessDenied       the API key may not do this (403)
        │   ├── KeyRefused         the API key is not valid (any more): it says nothing of what was asked for
        │   ├── ConfigRefused      it does not serve the model in this way; another may do
        │   └── NoRoom             the deployment has no room for another adapter
        ├── CreationInDoubt        a create was sent and not answered, and its object is not to be seen yet
        ├── NotOffered             the provider does not do such a thing at all (`provider.port.Capabilities`)
        ├── NotServable            the model cannot be both fine-tuned and served: nothing was spent
        ├── InvalidDataset         a row the fine-tuning service would reject or misread (names file and line)
        ├── UploadFailed           the provider did not take a file
        ├── FineTuneFailed         the job ended without a model
        ├── DeploymentFailed       the deployment did not become ready; it was taken down
        │   └── NoCapacity         the provider has no hardware free
        └── NotReady               it did not get there within the time given; asking again goes on from there
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from contextlib import contextmanager

from reasoning.errors import ReasoningError
from storage.errors import LedgerUnavailable


class ProviderError(ReasoningError):
    """Base of the provider package's errors."""


class ProviderSettingsError(ProviderError):
    """URL, key or provider name is missing or wrong."""


class ProviderUnavailable(ProviderError):
    """No answer, or a passing refusal."""


class Throttled(ProviderUnavailable):
    """Too many requests: this one was not even looked at."""


class UnexpectedAnswer(ProviderUnavailable):
    """An answer that is not as documented: as good as none."""


class ProviderRefused(ProviderError):
    """The provider said no."""


class RemoteNotFound(ProviderRefused):
    """The provider has no such object."""


class AccessDenied(ProviderRefused):
    """The API key is valid, but may not do this (403)."""


class KeyRefused(ProviderRefused):
    """The API key is not valid, or not any more."""


class ConfigRefused(ProviderRefused):
    """The provider does not serve the model in this way."""


class NoRoom(ProviderRefused):
    """The deployment has no room for another adapter."""


class NotOffered(ProviderError):
    """The provider does not do such a thing at all."""


class CreationInDoubt(ProviderError):
    """A create was sent and not answered, and its object is not to be seen yet."""


class NotServable(ProviderError):
    """The model cannot be both fine-tuned and served."""


class InvalidDataset(ProviderError):
    """A row that the fine-tuning service would reject or misread."""


class UploadFailed(ProviderError):
    """The provider did not take a file."""


class FineTuneFailed(ProviderError):
    """The job ended without a model."""


class DeploymentFailed(ProviderError):
    """The deployment did not become ready; it was taken down."""


class NoCapacity(DeploymentFailed):
    """The provider has no hardware free."""


class NotReady(ProviderError):
    """It did not get there within the time given."""


@contextmanager
def collect_errors(errors: list[str], what: str) -> Iterator[None]:
    """Go on with the others where one thing fails, and say which in `errors`. Without the ledger none does."""
    try:
        yield
    except LedgerUnavailable:
        raise
    except ReasoningError as error:
        errors.append(f"{what}: {error}")
    except Exception as error:
        errors.append(f"{what}: {type(error).__name__}: {error}")


def names_the_config(message: str) -> bool:
    """Does a refusal speak of the way in which a model is served, so that another way may do?"""
    return any(word in message.lower() for word in ("config", "adapter", "profile", "quantiz", "precision"))


LONGEST_MESSAGE = 300
"""Characters of the provider's words that are kept: in errors, in the ledger, in reports."""

_READ = 4096  # of what the provider said; what counts stands at its start


def brief(message: str) -> str:
    """The provider's words in one line of at most `LONGEST_MESSAGE` characters; of an HTML page its title or text."""
    text = message[:_READ]
    start = text[:500].lower()
    if "<html" in start or "<!doctype" in start or "<head" in start:
        title = re.search(r"<title[^<>]{0,100}>([^<>]*)", text, re.IGNORECASE)
        text = (title[1] if title else "").strip() or _without_markup(text)
        text = f"an HTML page: {html.unescape(text)}"
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_MESSAGE else f"{text[: LONGEST_MESSAGE - 1]}…"


def _without_markup(text: str) -> str:
    """The text of a page, its scripts and styles left out."""
    text = re.sub(r"<(script|style)\b[^<>]*>[^<]*", " ", text, flags=re.IGNORECASE)
    return re.sub(r"<[^<>]*>", " ", text)
