"""How long to wait before the provider is asked again: what it says (`Retry-After`), else longer and longer.

What an SDK does for its own requests (Together's obeys `Retry-After` for reads, up to a minute) is no use for creates,
which are sent once. So it is done here, once for all of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential

from provider.clock import moment, time_from_headers
from provider.errors import CreationInDoubt, ProviderUnavailable
from storage.progress import OnProgress, share_done

ATTEMPTS = 4
"""How often something is tried when the provider does not say when to come again."""

PATIENCE_SECONDS = 600.0
"""The longest that one step waits in all, whatever the provider asks for. Then the user is told to come again."""


def retry_after(error: BaseException | None) -> float | None:
    """Seconds that the provider asked to wait, in the answer that caused this error; None where it asked for none.

    Reads `retry-after-ms`, and `Retry-After` as seconds or as a date (RFC 9110), as the SDK does.
    """
    for cause in _causes(error):
        headers = getattr(getattr(cause, "response", None), "headers", None)
        if headers is not None:
            return _read_retry_after(headers)
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen = 0
    while error is not None and seen < 10:
        yield error
        error, seen = error.__cause__, seen + 1


def _read_retry_after(headers: Mapping[str, str]) -> float | None:
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        return max(seconds, 0.0) if math.isfinite(seconds) else None
    try:
        at = moment(parsedate_to_datetime(headers["retry-after"]))
    except (KeyError, ValueError, TypeError):
        return None
    if at is None:
        return None
    # By the clock of who said it: ours may differ.
    return max((at - (time_from_headers(headers) or datetime.now(UTC))).total_seconds(), 0.0)


def pause(seconds: float, error: BaseException | None) -> float:
    """Seconds until the next look of a loop that polls: `seconds`, or longer where the provider asked for longer."""
    return max(seconds, min(retry_after(error) or 0.0, PATIENCE_SECONDS))


def retry_policy(
    *,
    attempts: int = ATTEMPTS,
    backoff: Callable[[RetryCallState], float] | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
    progress: OnProgress | None = None,
    what: str = "",
) -> dict[str, Any]:
    """Arguments for tenacity's `Retrying` and `AsyncRetrying`.

    Never asks sooner than the provider said. Gives up after `attempts` where it says nothing, or once all pauses
    together would be longer than `patience_seconds`. Each pause is told to `progress`.
    """
    grow = backoff or wait_exponential(1, 10)
    failures = 0

    def wait(state: RetryCallState) -> float:
        told = retry_after(_error_of(state)) or 0.0
        return told if told >= 1 else max(told, grow(state))

    def stop(state: RetryCallState) -> bool:
        nonlocal failures
        # The provider's own "come again then" is not a failed attempt: four answers of 429 are not four failures.
        failures += retry_after(_error_of(state)) is None
        return failures >= attempts or state.idle_for + state.upcoming_sleep > patience_seconds

    def give_up(state: RetryCallState) -> NoReturn:
        error = _error_of(state)
        assert error is not None, "only errors are retried"
        if told := retry_after(error):
            raise type(error)(f"{error}. The provider asks to wait {told:.0f} s: run it again then") from error
        raise error

    def before_sleep(state: RetryCallState) -> None:
        if progress:
            asked = "the provider asks to wait" if retry_after(_error_of(state)) else "trying again in"
            progress(share_done(0.0, f"{what}: {asked} {state.upcoming_sleep:.0f} s ({_error_of(state)})"))

    return {
        "retry": retry_if_exception_type((ProviderUnavailable, CreationInDoubt)),
        "wait": wait,
        "stop": stop,
        "before_sleep": before_sleep,
        "retry_error_callback": give_up,
    }


def retrying(wait: Callable[[float], None] = time.sleep, **policy: Any) -> Retrying:
    """A loop of attempts by `retry_policy`, whose pauses go through `wait`."""
    return Retrying(sleep=wait, **retry_policy(**policy))


def _error_of(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None
