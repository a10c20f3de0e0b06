"""When a task is run again by Prefect."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from prefect.states import Failed, exception_to_failed_state

from provider.errors import ProviderRefused, ProviderUnavailable
from storage.errors import DataFolderBusy
from tasks.runs import REPEATABLE, passing


def refused(seconds: str | None) -> ProviderUnavailable:
    cause = RuntimeError("429")
    cause.response = httpx.Response(429, headers={} if seconds is None else {"retry-after": seconds})  # type: ignore[attr-defined]
    error = ProviderUnavailable("busy")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (refused(None), True),
        (refused("3"), True),
        (refused("120"), False),  # the next run of the schedule comes; Prefect would ask again in five seconds
        (ProviderRefused("no"), False),
        (DataFolderBusy("busy"), True),
        (ConnectionResetError(), True),
        (ValueError(), False),
    ],
)
def test_only_what_passes_and_may_be_asked_again_soon_is_repeated(error: Exception, again: bool) -> None:
    state: Any = asyncio.run(exception_to_failed_state(error))
    assert passing(None, None, state) is again
    assert REPEATABLE["retry_delay_seconds"][0] == 5


def test_a_state_without_its_error_is_not_repeated() -> None:
    assert passing(None, None, Failed(message="?")) is False
