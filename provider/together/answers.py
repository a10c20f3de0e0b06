"""Reading the provider's answers with care: the SDK parses without checking, so any field may lack or be anything.

What cannot be read is never taken for nothing: a replica of which nobody can tell whether it runs is taken to run, a
price that is no price is unknown, and a list of which a part cannot be read proves nobody's absence.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from provider.clock import moment
from storage.ledger.money import LARGEST_USD


def listed(answer: Any) -> list[Any]:
    """All that a list holds, over all its pages. Raises ValueError (see `translate_sdk_errors`) when it is none, or
    never ends.

    An answer without `data` is no empty list: absence decides whether something is created once more, or given up.
    """
    found: list[Any] = []
    cursors: set[object] = set()
    for page in answer.iter_pages() if hasattr(answer, "iter_pages") else (answer,):
        items = getattr(page, "data", page)
        if not isinstance(items, list):
            raise ValueError("it is no list")
        found.extend(items)
        if (cursor := text(getattr(page, "next_cursor", None))) in cursors:
            raise ValueError("its pages come round again")
        cursors |= {cursor} - {None}
    return found


def text(value: Any) -> str | None:
    """A string that says something, else None."""
    return value if isinstance(value, str) and value else None


def count(value: Any) -> int | None:
    """A whole number from 0, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def job_price(remote: Any) -> Decimal | None:
    """US dollars that a fine-tune job costs; None where it does not say. Together tells billionths of a dollar."""
    said = count(getattr(remote, "total_price", None))
    return None if said is None else Decimal(said).scaleb(-9)


def usd(value: Any) -> Decimal | None:
    """A finite amount from 0, of a decimal string or a JSON number, else None."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        return None
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        return None
    return amount if amount.is_finite() and 0 <= amount < LARGEST_USD else None


def created_at(remote: Any) -> datetime:
    """When the provider says that an object was created; where it does not say, last."""
    return moment(getattr(remote, "created_at", None)) or datetime.max.replace(tzinfo=UTC)


def bare_name(remote: Any) -> str | None:
    """Name of an endpoint or deployment without its project, or None when it has none."""
    name = text(getattr(remote, "name", None))
    return name.rsplit("/", 1)[-1] if name else None
