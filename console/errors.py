"""Errors of the page.

::

    ReasoningError
    └── PageError              what was asked for cannot be shown or done (has the status of its answer)
        ├── NoSuchPage         404
        ├── NotAllowed         403: the key may not
        └── NotConfirmed       409: what was confirmed is not what would be done now
"""

from __future__ import annotations

from reasoning.errors import ReasoningError


class PageError(ReasoningError):
    """What was asked for cannot be shown or done."""

    status = 400


class NoSuchPage(PageError):
    """There is no page at this address."""

    status = 404


class NotAllowed(PageError):
    """The key of the request may not do this."""

    status = 403


class NotConfirmed(PageError):
    """What was confirmed is not what would be done now."""

    status = 409
