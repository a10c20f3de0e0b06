"""Fixtures that more than one room uses."""

from __future__ import annotations

import atexit
import os
import tempfile
from pathlib import Path

import certifi
import pytest

# Before anything imports prefect or great_expectations: no telemetry from a test run.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")


def _trust_little() -> None:
    """Every client of Prefect's and Together's loads 150 certificates when it is made, which takes as long as most
    tests; all that they talk to is on this machine and speaks HTTP."""
    if "SSL_CERT_FILE" in os.environ:  # of the user's, or of the process that started this one
        return
    end = "-----END CERTIFICATE-----\n"
    with tempfile.NamedTemporaryFile("w", suffix=".pem", delete=False) as file:
        file.write(certifi.contents().partition(end)[0] + end)
    atexit.register(Path(file.name).unlink, missing_ok=True)
    os.environ["SSL_CERT_FILE"] = os.environ["PREFECT_API_SSL_CERT_FILE"] = file.name


_trust_little()

# A file's tests share what they have set up, so a worker takes whole files; the longest first, so that none is left
# over at the end for one worker alone.
LONGEST = ("cli/test_serve.py", "demo/test_demo.py", "tasks/test_turn.py", "emulator/test_conformance.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((at for at, name in enumerate(LONGEST) if item.path.as_posix().endswith(name)), len(LONGEST))

    items.sort(key=place)
