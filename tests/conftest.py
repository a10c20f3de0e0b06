"""Fixtures that more than one room uses."""

from __future__ import annotations

import os
import signal

import pytest

# Before anything imports prefect or great_expectations: no telemetry from a test run.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

# The tests' records have fixed dates, and must land in any year.
os.environ.setdefault("REASONING_MAX_DAYS_BEHIND", "36500")

# A shell that starts the suite in the background has SIGINT ignored in it and in all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A file's tests share what they have set up, so a worker takes whole files; the longest first, so that none is left
# over at the end for one worker alone.
LONGEST = ("demo/test_demo.py", "tasks/test_turn.py", "emulator/test_conformance.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((at for at, name in enumerate(LONGEST) if item.path.as_posix().endswith(name)), len(LONGEST))

    items.sort(key=place)
