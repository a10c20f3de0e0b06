"""Reading the provider's answers with care: the SDK parses without checking, so any field may lack or be anything.

What cannot be read is never taken for nothing: a replica of which nobody can tell whether it runs is taken to run, a
price that is no price is unknown, and a list of which a part cannot be read proves nobody's absence.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from reasoning.errors import ReasoningError
from storage.errors import LedgerUnavailable
from storage.ledger.money import LARGEST_USD


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


def moment(value: Any) -> datetime | None:
    """A time, in UTC where it names no zone, else None."""
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def created_at(remote: Any) -> datetime:
    """When the provider says that an object was created; where it does not say, last."""
    return moment(getattr(remote, "created_at", None)) or datetime.max.replace(tzinfo=UTC)


def bare_name(remote: Any) -> str | None:
    """Name of an endpoint or deployment without its project, or None when it has none."""
    name = text(getattr(remote, "name", None))
    return name.rsplit("/", 1)[-1] if name else None


def state_of(remote: Any) -> str | None:
    """State of a deployment in lower case, without its prefix (`ready`), or None."""
    state = text(getattr(getattr(remote, "status", None), "state", None))
    return state.removeprefix("DEPLOYMENT_STATE_").lower() if state else None


def may_run(remote: Any) -> bool:
    """May a deployment have replicas, by what it was told? Only a certain 0 says no."""
    return bool(getattr(getattr(remote, "autoscaling", None), "max_replicas", None) != 0)


def replicas_of(remote: Any, at_most: int) -> int:
    """Replicas of a deployment that may be billed; `at_most` of them where that cannot be read.

    While it stops, those that the provider does not count any more still run.
    """
    state = state_of(remote)
    if state == "stopped":
        return 0
    said = getattr(getattr(remote, "status", None), "ready_replicas", None)
    ready = count(0 if said is None and state not in (None, "ready") else said)
    if ready is None:
        return at_most
    return max(ready, 1) if state == "stopping" else ready


def etag_of(remote: Any) -> dict[str, Any]:
    """The argument `etag` for what changes or deletes this object; none, when it has none."""
    etag = text(getattr(remote, "etag", None))
    return {"etag": etag} if etag else {}
