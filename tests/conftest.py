"""What holds for every test: the environment, the order, and which tests `--fast` leaves out."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator

import hypothesis
import pytest

from tests.cheaper import (
    copy_new_ledgers,
    judge_with_great_expectations,
    judge_without_great_expectations,
    share_tls_contexts,
)
from tests.processes import forbid_processes, starts_processes

# Before anything imports prefect or great_expectations: no telemetry from a test run.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

# The tests' records have fixed dates, and must land in any year.
os.environ.setdefault("REASONING_MAX_DAYS_BEHIND", "36500")

# A shell that starts the suite in the background has SIGINT ignored in it and in all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A file's tests share what they have set up, so a worker takes whole files. The longest come first: no worker is
# left with one at the end.
LONGEST = ("demo/test_demo.py", "cli/test_serve_attack.py", "tasks/test_turn.py", "cli/test_serve_end.py")


# Not in `make test-fast`: they take seconds without starting a process.
SLOW = (
    *(
        "test_patterns.py",
        "reasoning/test_linear_time.py",
        "reasoning/test_spool.py",
        "gateway/test_gateway_companies.py",
    ),
    *("demo/test_conversations.py", "demo/test_report.py", "quality/test_dataset.py", "quality/test_checks.py"),
    *("quality/test_redact_planted.py", "storage/test_erase.py", "storage/test_erase_exported.py"),
    *("storage/test_faults.py", "storage/test_compact.py", "storage/test_backup.py", "storage/test_batches.py"),
    *("storage/test_ledger.py", "storage/test_landed.py", "storage/test_retention.py", "storage/test_reland.py"),
    *("learners/", "tasks/", "gateway/test_gateway_memory.py", "gateway/test_gateway_forward.py"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="only tests that start no process and are not marked `slow`")


def pytest_configure(config: pytest.Config) -> None:
    fast = config.getoption("fast")
    config.stash[_SWITCH] = forbid_processes() if fast else lambda on: None
    # That examples are drawn slowly, thrown away by chance, or take long on a busy machine says nothing about a test.
    # Many are for `make torture`.
    slow_draws = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.filter_too_much]
    hypothesis.settings.register_profile(
        "fast", deadline=None, max_examples=10, suppress_health_check=list(hypothesis.HealthCheck)
    )
    hypothesis.settings.register_profile("suite", deadline=None, max_examples=50, suppress_health_check=slow_draws)
    hypothesis.settings.register_profile("torture", deadline=None, max_examples=500, suppress_health_check=slow_draws)
    torture = config.getoption("markexpr") == "torture"
    hypothesis.settings.load_profile("fast" if fast else "torture" if torture else "suite")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((at for at, name in enumerate(LONGEST) if item.path.as_posix().endswith(name)), len(LONGEST))

    items.sort(key=place)
    for item in items:
        if starts_processes(item):
            item.add_marker("processes")
        if any(f"tests/{name}" in item.path.as_posix() for name in SLOW):
            item.add_marker("slow")
    if config.getoption("fast"):
        left_out = [item for item in items if item.get_closest_marker("processes") or item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def pytest_collection_finish() -> None:
    """What was imported stays until the end: the collector need not look at these 600,000 objects each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """DuckDB's binding complains of what is left at the interpreter's end."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def cheaper_setup() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        share_tls_contexts(patch)
        copy_new_ledgers(patch)
        judge_without_great_expectations(patch)
        yield


@pytest.fixture
def great_expectations(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real judge of datasets and logs, for tests of the gate."""
    judge_with_great_expectations(monkeypatch)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    switch = item.config.stash[_SWITCH]
    switch(True)
    try:
        return (yield)
    finally:
        switch(False)


_SWITCH = pytest.StashKey[Callable[[bool], None]]()
