"""One process that has the imports done, from which tests fork those that they race and kill.

A fork of the test's own process inherits the locks of other tests' threads; a spawned one imports for a second.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("alembic.command", "tests.provider.deaths", "tests.storage.faults", "tests.storage.test_ledger"),
        *(f"together.resources.{name}" for name in ("endpoints", "fine_tuning", "files", "organization")),
    ]
)


def start_forkserver() -> None:
    """Before a test changes the environment: what is forked, by other tests as well, has that of the first start."""
    forkserver.ensure_running()
